"""What came back: result files, and what a score is.

Result files are the official evaluator's, read and written as they are. Of a row's scores what
equals 1 is right and all else wrong, "1" and 2 too, and a row in which JSON writes true, false or
null is not judged, all as its scorer has it. Departures from it, all on purpose:
  - a judgment that failed stays in the count: `strict` scores it 0, and the coverage says so;
  - the overall score (plain mean of the primary dimensions) is computed, with 95 % intervals;
  - dimension names carry no trailing space;
  - a row that cannot be read, or has a score too few, is an error (there: skipped, or cut short).

    scores = score(read_results("results/flux.csv"))
    scores.overall, scores.interval, scores.coverage
"""

import ast
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.bootstrap import interval, resample
from common.files import write_atomic
from common.wording import listed
from unigenbench.questions import read_literal
from unigenbench.testpoints import (
    DIMENSIONS,
    PRIMARIES,
    PRIMARY_ZH,
    SUBS,
    Prompt,
    canonical,
    language_of,
    line_ends,
    primary_of,
    read_table,
    write_table,
)

# ----------------------------------------------------------------------------- result files


class Result(NamedTuple):
    """What the judge said of one image. No scores and no output: the call failed, or no image."""

    index: int
    prompt: str
    subs: list[str]  # English labels
    image: str  # path
    scores: list[int] | None  # one 0 or 1 a testpoint; None: no judgment
    output: str = ""  # the judge's whole answer
    reasons: list[str] = []  # one a testpoint, or none
    descriptions: list[str] = []  # one a testpoint, or none: official files do not have them
    language: str = "en"

    @property
    def state(self) -> str:
        return "judged" if self.scores else "unparsable" if self.output else "failed"


COLUMNS = ("index", "prompt", "testpoint", "output", "result_json", "img_path")


def official_scores(text: str, count: int) -> list[int] | None:
    """One 0 or 1 for each of `count` testpoints, as the official scorer reads result_json.

    It reads a Python literal: None where only JSON has such words, true, false and null.
    Raises ValueError if there is no list of that length.
    """
    try:
        said = ast.literal_eval(text).get("score")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not isinstance(said, list) or len(said) != count:
        raise ValueError(f"{said!r} is not one score for each of {count} testpoints")
    return [int(value == 1) for value in said]


def parse_result(row: dict) -> Result:
    """One line of a result file. Raises ValueError."""
    labels = read_literal(row["testpoint"])
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"testpoint is not a list of labels: {row['testpoint']!r}")
    subs = [canonical(label) for label in labels]
    judged = read_literal(row["result_json"] or "null")  # a failed judgment is stored as null
    judged = judged if isinstance(judged, dict) else {}
    scores = official_scores(row["result_json"], len(subs)) if judged else None
    reasons, descriptions = (
        list(map(str, texts)) if isinstance(texts, list) and len(texts) == len(subs) else []
        for texts in (judged.get("analysis"), judged.get("description"))
    )
    return Result(
        int(row["index"]),
        line_ends(row["prompt"]).strip(),
        subs,
        row["img_path"],
        scores,
        row["output"],
        reasons,
        descriptions,
        language_of(labels[0]),
    )


def read_results(path) -> list[Result]:
    """The rows of an official result CSV, failed judgments included.

    Raises ValueError that names the row for a missing column, a list of too few scores, an unknown
    label, an image that stands there twice, or an index with two prompts.
    """
    columns, rows = read_table(path)
    missing = set(COLUMNS) - set(columns)
    if missing:
        raise ValueError(f"{path} is no result file: it lacks {listed(sorted(missing))}")
    results, first_row, prompts = [], {}, {}
    for number, row in rows:
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
    rows = []
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
        rows.append(
            [r.index, r.prompt, labels, r.output, json.dumps(judged, ensure_ascii=False), r.image]
        )
    write_table(path, COLUMNS, rows)


def settings_path(results_path: Path) -> Path:
    """Where judge keeps the settings of its results: beside them."""
    return results_path.with_suffix(".settings.json")


def settings_of(results_path: Path) -> dict:
    """The settings that judge wrote beside its results; {} for files of other origin."""
    path = settings_path(results_path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


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


OVERALL = "Overall"
# Each dimension, sub or primary -> where its subs stand in SUBS. Style and three others are both.
COLUMNS_OF = {
    **{sub: [n] for n, sub in enumerate(SUBS)},
    **{p: [n for n, sub in enumerate(SUBS) if primary_of(sub) == p] for p in PRIMARIES},
}


def accuracies(correct: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
    """Counts by sub dimension (..., 27) -> accuracy (...) of each sub and primary, and Overall.

    Where nothing was judged it is NaN; Overall is the mean of the primaries that are not.
    """

    def divide(above, below):
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)

    by_name = {
        name: divide(correct[..., columns].sum(-1), total[..., columns].sum(-1))
        for name, columns in COLUMNS_OF.items()
    }
    primaries = np.stack([by_name[p] for p in PRIMARIES], -1)  # (..., 10)
    known = ~np.isnan(primaries)
    by_name[OVERALL] = divide(np.where(known, primaries, 0).sum(-1), known.sum(-1))
    return by_name


def count_by_prompt(results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Correct and judged testpoints (n prompts, 27 subs), prompts in order of index."""
    indices = sorted({r.index for r in results})
    row, column = {i: n for n, i in enumerate(indices)}, {sub: n for n, sub in enumerate(SUBS)}
    correct, total = np.zeros((2, len(indices), len(SUBS)), int)
    for r in results:
        for sub, value in zip(r.subs, r.scores or ()):
            correct[row[r.index], column[sub]] += value
            total[row[r.index], column[sub]] += 1
    return correct, total


def expected_testpoints(results: list[Result]) -> Counter:
    """Testpoints that should have been judged, by sub dimension.

    Every prompt should have as many rows as the prompt that has most, so that rows which an
    evaluator dropped still count.
    """
    most = max(Counter(r.index for r in results).values(), default=0)
    asked = {r.index: r.subs for r in results}
    subs = Counter(sub for of_prompt in asked.values() for sub in of_prompt)
    return Counter({sub: n * most for sub, n in subs.items()})


def coverage_of(results: list[Result], expected: int) -> Coverage:
    """How many of the expected testpoints were judged; rows that are not there have failed."""
    states = Counter()
    for r in results:
        states[r.state] += len(r.subs)
    judged, unparsable = states["judged"], states["unparsable"]
    return Coverage(expected, judged, unparsable, expected - judged - unparsable)


def score(results: list[Result]) -> Scores:
    """Correct and judged counts by dimension, with 95 % bootstrap intervals over prompts.

    Raises ValueError if there is nothing to score.
    """
    if not results:
        raise ValueError("no results to score")
    correct, total = count_by_prompt(results)
    draws = resample(len(correct))
    replicates = accuracies(draws @ correct, draws @ total)
    bounds = {name: interval(values) for name, values in replicates.items()}
    expected = expected_testpoints(results)
    tallies = {
        name: Tally(
            int(correct[:, columns].sum()),
            int(total[:, columns].sum()),
            sum(expected[SUBS[n]] for n in columns),
            bounds[name],
        )
        for name, columns in COLUMNS_OF.items()
    }
    primary = {name: tallies[name] for name in PRIMARIES if tallies[name].expected}
    return Scores(
        primary,
        {name: tallies[name] for name in SUBS if tallies[name].expected},
        mean_of_primaries(t.accuracy for t in primary.values()),
        mean_of_primaries(t.strict for t in primary.values()),
        bounds[OVERALL],
        coverage_of(results, sum(expected.values())),
    )


def compare(first: list[Result], second: list[Result]) -> dict[str, tuple[float, float, float]]:
    """Second minus first, by sub and primary dimension and Overall: (difference, low, high), -1..1.

    The 95 % interval is paired: both models are resampled over the same prompts. low and high are
    NaN where no two prompts differ, as in a dimension of one.
    Raises ValueError if the two do not hold the same prompts.
    """
    prompts = [{r.index: (r.prompt, r.subs) for r in results} for results in (first, second)]
    if prompts[0] != prompts[1]:
        indices = prompts[0].keys() | prompts[1].keys()
        odd = sorted(i for i in indices if prompts[0].get(i) != prompts[1].get(i))
        raise ValueError(f"not the same prompts: {len(odd)} differ, the first with index {odd[0]}")
    (correct_1, total_1), (correct_2, total_2) = count_by_prompt(first), count_by_prompt(second)

    def difference(draws) -> dict[str, np.ndarray]:
        one = accuracies(draws @ correct_1, draws @ total_1)
        two = accuracies(draws @ correct_2, draws @ total_2)
        return {name: two[name] - one[name] for name in one}

    points = difference(np.ones(len(total_1), int))  # each prompt once
    replicates = difference(resample(len(total_1)))
    return {
        name: (float(point), *(interval(replicates[name]) or (np.nan, np.nan)))
        for name, point in points.items()
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
