"""What came back: result files, and what a score is.

Result files are the official evaluator's, read and written as they are. Departures from its scorer,
all on purpose:
  - a judgement that failed stays in the count: `strict` scores it 0, and the coverage says so;
  - the overall score (plain mean of the primary dimensions) is computed, with 95 % intervals;
  - dimension names carry no trailing space.

    scores = score(read_results("results/flux.csv"))
    scores.overall, scores.interval, scores.coverage
"""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.files import write_atomic
from unigenbench.testpoints import (
    DIMENSIONS,
    PRIMARIES,
    PRIMARY_ZH,
    SUBS,
    Prompt,
    binary_scores,
    canonical,
    fold,
    language_of,
    primary_of,
    read_literal,
    read_table,
)

# ----------------------------------------------------------------------------- result files


class Result(NamedTuple):
    """What the judge said of one image. No scores and no output: the call failed, or no image."""

    index: int
    prompt: str
    subs: list[str]  # English labels
    image: str  # path
    scores: list[int] | None  # one 0 or 1 a testpoint; None: no judgement
    output: str = ""  # the judge's whole answer
    reasons: list[str] = []  # one a testpoint, or none
    descriptions: list[str] = []  # one a testpoint, or none: official files do not have them
    language: str = "en"

    @property
    def state(self) -> str:
        return "judged" if self.scores else "unparsable" if self.output else "failed"


COLUMNS = ("index", "prompt", "testpoint", "output", "result_json", "img_path")


def parse_result(row: dict) -> Result:
    """One line of a result file. Raises ValueError."""
    labels = read_literal(row["testpoint"])
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"testpoint is not a list of labels: {row['testpoint']!r}")
    subs = [canonical(label) for label in labels]
    judged = read_literal(row["result_json"] or "null")  # a failed judgement is stored as null
    judged = judged if isinstance(judged, dict) else {}
    said = judged.get("score")
    if isinstance(said, list):  # 1.0 and true are right to the official scorer too
        said = [int(v) if v in (0, 1) else v for v in said]
    scores = binary_scores(said, len(subs))
    if said is not None and scores is None:
        raise ValueError(f"{said!r} is not one 0 or 1 for each of {len(subs)} testpoints")
    reasons, descriptions = (
        list(map(str, texts)) if isinstance(texts, list) and len(texts) == len(subs) else []
        for texts in (judged.get("analysis"), judged.get("description"))
    )
    return Result(
        int(row["index"]),
        row["prompt"].strip(),
        subs,
        row["img_path"],
        scores,
        row["output"],
        reasons,
        descriptions,
        language_of(labels[0]),
    )


def read_results(path) -> list[Result]:
    """The rows of an official result CSV, failed judgements included.

    Raises ValueError that names the row for a missing column, a score that is neither 0 nor 1, an
    unknown label, an image that stands there twice, or an index with two prompts.
    """
    columns, rows = read_table(path)
    missing = set(COLUMNS) - set(columns)
    if missing:
        raise ValueError(f"{path} is no result file: it lacks {', '.join(sorted(missing))}")
    results, first_row, prompts = [], {}, {}
    for number, row in enumerate(rows, 1):
        try:
            result = parse_result(row)
            key, asked = (result.index, result.image), (result.prompt, result.subs)
            if key in first_row:
                raise ValueError(f"image {result.image} stands in row {first_row[key]} too")
            if prompts.setdefault(result.index, asked) != asked:
                raise ValueError(
                    f"another prompt or other testpoints than in a row above have "
                    f"the index {result.index}"
                )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        first_row[key] = number
        results.append(result)
    return results


def complete(results: list[Result], prompts: list[Prompt], images: int) -> list[Result]:
    """The results, and a failed one for each of the prompts' images that they lack.

    Without the prompts nobody can tell from a result file that it lacks all images of one.
    Raises ValueError if the results are of other prompts.
    """
    known = {p.index: (p.text, [sub for sub, _ in p.testpoints]) for p in prompts}
    odd = [r for r in results if known.get(r.index) != (r.prompt, r.subs)]
    if odd:
        raise ValueError(
            f"{len(odd)} results are not of this prompt set, the first of index {odd[0].index}"
        )
    there = Counter(r.index for r in results)
    return results + [
        Result(p.index, p.text, known[p.index][1], "", None, language=p.language)
        for p in prompts
        for _ in range(images - there[p.index])
    ]


def write_results(results: list[Result], path) -> None:
    """The official result CSV; reasons and descriptions go into its result_json."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for r in results:
        labels = [DIMENSIONS[sub][0] if r.language == "zh" else sub for sub in r.subs]
        judged = (
            {
                "prompt": r.prompt,
                "testpoint": labels,
                "description": r.descriptions,
                "analysis": r.reasons,
                "score": r.scores,
            }
            if r.scores
            else None
        )
        rows.writerow(
            [r.index, r.prompt, labels, r.output, json.dumps(judged, ensure_ascii=False), r.image]
        )
    write_atomic(path, text.getvalue().encode())


# ----------------------------------------------------------------------------- scores


class Tally(NamedTuple):
    """Testpoints of one dimension; the 95 % interval is of correct / total, None where unknown."""

    correct: int
    total: int  # judged
    expected: int
    interval: tuple[float, float] | None = None

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.total if self.total else None

    @property
    def strict(self) -> float:
        """What was not judged counts as wrong."""
        return self.correct / self.expected


class Coverage(NamedTuple):
    """Numbers of testpoints. expected = judged + unparsable + failed."""

    expected: int
    judged: int
    unparsable: int
    failed: int


class Scores(NamedTuple):
    primary: dict[str, Tally]  # only dimensions that the prompts have
    sub: dict[str, Tally]
    overall: float | None  # 0..1, mean of the primary accuracies over judged testpoints
    strict: float | None  # the same with everything unjudged counted as wrong
    interval: tuple[float, float] | None
    coverage: Coverage

    @property
    def accuracy(self) -> float | None:
        """0..1, the share of all judged testpoints, whatever their dimension; train.py logs it."""
        right = sum(t.correct for t in self.primary.values())
        return right / self.coverage.judged if self.coverage.judged else None


def mean_of_primaries(values) -> float | None:
    """The overall score: the plain mean of the primary dimensions that there are."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


SUM_UP = np.array([[primary_of(sub) == p for p in PRIMARIES] for sub in SUBS], float)  # (27, 10)
NAMES = (*SUBS, *PRIMARIES, "Overall")  # of the 38 columns below; Style, say, stands twice


def accuracies(correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Counts by sub dimension (..., 27) -> accuracy of 27 subs, 10 primaries, overall: (..., 38).

    Where nothing was judged the accuracy is NaN, and the overall is the mean of the others.
    """
    correct = np.concatenate([correct, correct @ SUM_UP], -1).astype(float)
    total = np.concatenate([total, total @ SUM_UP], -1)
    parts = np.divide(correct, total, out=np.full(correct.shape, np.nan), where=total > 0)
    primary = parts[..., len(SUBS) :]
    known = ~np.isnan(primary)
    number = known.sum(-1, keepdims=True)
    overall = np.divide(
        np.where(known, primary, 0).sum(-1, keepdims=True),
        number,
        out=np.full(number.shape, np.nan),
        where=number > 0,
    )
    return np.concatenate([parts, overall], -1)


def count_by_prompt(results: list[Result]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Prompt indices (n), correct and judged testpoints (n, 27), prompts in order of index."""
    indices = sorted({r.index for r in results})
    row, column = {i: n for n, i in enumerate(indices)}, {sub: n for n, sub in enumerate(SUBS)}
    correct, total = np.zeros((2, len(indices), len(SUBS)), int)
    for r in results:
        for sub, value in zip(r.subs, r.scores or ()):
            correct[row[r.index], column[sub]] += value
            total[row[r.index], column[sub]] += 1
    return indices, correct, total


def resample(count: int, replicates=2000, seed=0) -> np.ndarray:
    """How often each of `count` prompts is drawn in each replicate: (replicates, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), replicates)


def intervals(replicates: np.ndarray, total: np.ndarray) -> list[tuple[float, float] | None]:
    """95 % interval of each column of (replicates, 38), drawn from judged testpoints (n, 27).

    None where a column is all NaN, or rests on one prompt: drawing it again and again would give an
    interval of no width, and look like certainty.
    """
    rests_on = np.concatenate([total, total @ SUM_UP, total.sum(-1, keepdims=True)], -1) > 0
    columns = [column[~np.isnan(column)] for column in replicates.T]
    return [
        tuple(np.percentile(c, [2.5, 97.5]).tolist()) if len(c) and n > 1 else None
        for c, n in zip(columns, rests_on.sum(0))
    ]


def expected_testpoints(results: list[Result]) -> Counter:
    """Testpoints that should have been judged, by sub dimension.

    Every prompt should have as many rows as the prompt that has most, so that rows which an
    evaluator dropped still count.
    """
    rows = Counter(r.index for r in results)
    subs = {r.index: r.subs for r in results}
    most = max(rows.values(), default=0)
    return Counter(
        {
            sub: n * most
            for sub, n in Counter(sub for points in subs.values() for sub in points).items()
        }
    )


def score(results: list[Result]) -> Scores:
    """Correct and judged counts by dimension, with 95 % bootstrap intervals over prompts.

    Raises ValueError if there is nothing to score.
    """
    if not results:
        raise ValueError("no results to score")
    _, correct, total = count_by_prompt(results)
    expected = expected_testpoints(results)
    draws = resample(len(correct))
    bounds = intervals(accuracies(draws @ correct, draws @ total), total)
    correct, total = correct.sum(0), total.sum(0)
    wanted = np.array([expected[sub] for sub in SUBS])
    columns = (
        np.concatenate([counts, (counts @ SUM_UP).astype(int)]).tolist()
        for counts in (correct, total, wanted)
    )
    tallies = [Tally(*t) for t in zip(*columns, bounds)]
    present = [(n, t) for n, t in zip(NAMES, tallies) if t.expected]
    number = sum(t.expected > 0 for t in tallies[: len(SUBS)])
    sub, primary = dict(present[:number]), dict(present[number:])
    states = Counter({"judged": 0, "unparsable": 0})
    for r in results:
        states[r.state] += len(r.subs)
    judged, unparsable, everything = states["judged"], states["unparsable"], int(wanted.sum())
    coverage = Coverage(everything, judged, unparsable, everything - judged - unparsable)
    return Scores(
        primary,
        sub,
        mean_of_primaries(t.accuracy for t in primary.values()),
        mean_of_primaries(t.strict for t in primary.values()),
        bounds[-1],
        coverage,
    )


def compare(first: list[Result], second: list[Result]) -> dict[str, tuple[float, float, float]]:
    """Second minus first, by sub and primary dimension and Overall: (difference, low, high), -1..1.

    low and high are NaN for a dimension of one prompt.

    The 95 % interval is paired: both models are resampled over the same prompts.
    Raises ValueError if the two do not hold the same prompts.
    """
    prompts = [{r.index: (r.prompt, r.subs) for r in results} for results in (first, second)]
    if prompts[0] != prompts[1]:
        odd = sorted(
            i
            for i in prompts[0].keys() | prompts[1].keys()
            if prompts[0].get(i) != prompts[1].get(i)
        )
        raise ValueError(f"not the same prompts: {len(odd)} differ, the first with index {odd[0]}")
    (_, *a), (_, *b) = count_by_prompt(first), count_by_prompt(second)
    draws = resample(len(a[0]))
    points = accuracies(*(x.sum(0) for x in b)) - accuracies(*(x.sum(0) for x in a))
    bounds = intervals(
        accuracies(*(draws @ x for x in b)) - accuracies(*(draws @ x for x in a)),
        np.minimum(a[1], b[1]),
    )
    return {
        name: (float(point), *(bound or (np.nan, np.nan)))
        for name, point, bound in zip(NAMES, points, bounds)
        if not np.isnan(point)
    }


# ----------------------------------------------------------------------------- score files


def write_scores(scores: Scores, path, language="en", settings=None) -> None:
    """The official JSON (name -> correct, total, accuracy), and what ours adds."""
    zh = language == "zh"

    def entries(tallies, names):
        return {
            names.get(name, name): {
                "correct": t.correct,
                "total": t.total,
                "accuracy": round(t.accuracy or 0.0, 4),
                "strict": round(t.strict, 4),
                "interval": t.interval,
            }
            for name, t in tallies.items()
        }

    chinese = {en: zh_label for en, (zh_label, *_) in DIMENSIONS.items()}
    content = {
        "primary_dimensions": entries(scores.primary, PRIMARY_ZH if zh else {}),
        "sub_dimensions": entries(scores.sub, chinese if zh else {}),
        "accuracy": scores.accuracy,
        "overall": scores.overall,
        "overall_strict": scores.strict,
        "overall_interval": scores.interval,
        "overall_over": len(scores.primary),
        "coverage": scores.coverage._asdict(),
        "settings": settings or {},
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n")


def read_scores(path) -> dict[str, float]:
    """Accuracy 0..1 by primary dimension (English names) from an official or our JSON.

    Raises ValueError if it is not such a file.
    """
    english = {fold(zh): en for en, zh in PRIMARY_ZH.items()} | {fold(en): en for en in PRIMARIES}
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))["primary_dimensions"]
        return {
            english[fold(name)]: e["correct"] / e["total"]
            for name, e in entries.items()
            if e["total"]
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no score file of UniGenBench: {error!r}") from None


# ----------------------------------------------------------------------------- tables


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def percent_range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else " to ".join(map(percent, interval))


def coverage_line(scores: Scores) -> str:
    """How much was judged; starts with INCOMPLETE unless everything was."""
    c = scores.coverage
    whole = "" if c.judged == c.expected else "INCOMPLETE. "
    return (
        f"{whole}Testpoints: {c.expected} expected, {c.judged} judged, "
        f"{c.unparsable} unparsable, {c.failed} failed or missing."
    )


def overall_name(scores: Scores) -> str:
    n = len(scores.primary)
    return "Overall" if n == len(PRIMARIES) else f"Overall (mean over {n} of {len(PRIMARIES)})"


def lines_of_table() -> list[tuple[str, str]]:
    """Name and label of each primary dimension, and below it of its subs."""
    lines = []
    for primary in PRIMARIES:
        subs = [sub for sub in SUBS if primary_of(sub) == primary and sub != primary]
        lines += [(primary, primary), *((sub, "- " + sub.partition(" - ")[2]) for sub in subs)]
    return lines


def score_rows(scores: Scores) -> list[list[str]]:
    """Dimension, accuracy, 95 % interval, correct/judged, strict accuracy; absent ones say so."""
    rows = []
    for name, label in lines_of_table():
        tally = scores.primary.get(name) or scores.sub.get(name)
        rows.append(
            [
                label,
                percent(tally.accuracy),
                percent_range(tally.interval),
                f"{tally.correct}/{tally.total}",
                percent(tally.strict),
            ]
            if tally
            else [label, "absent", "", "", ""]
        )
    rows.append(
        [
            overall_name(scores),
            percent(scores.overall),
            percent_range(scores.interval),
            "",
            percent(scores.strict),
        ]
    )
    return rows


SCORE_HEADER = ["Dimension", "Accuracy", "95 % interval", "Correct", "Strict"]


def compare_rows(scores: list[Scores], difference: dict) -> list[list[str]]:
    """Dimension, the accuracy of both, second minus first, its paired interval, and second minus
    first of the strict scores; all in percent. Only dimensions that both were judged on."""
    rows = []
    for name, label in [*lines_of_table(), ("Overall", overall_name(scores[0]))]:
        if name in difference:
            point, low, high = difference[name]
            tallies = [s.primary.get(name) or s.sub.get(name) for s in scores]
            both = [s.overall if name == "Overall" else t.accuracy for s, t in zip(scores, tallies)]
            a, b = [s.strict if name == "Overall" else t.strict for s, t in zip(scores, tallies)]
            bound = "-" if np.isnan(low) else f"{100 * low:+.2f} to {100 * high:+.2f}"
            rows.append(
                [label, *map(percent, both), f"{100 * point:+.2f}", bound, f"{100 * (b - a):+.2f}"]
            )
    return rows


COMPARE_HEADER = ["Difference", "95 % interval", "Strict difference"]
