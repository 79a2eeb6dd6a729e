"""Scores of results: accuracies by dimension with 95 % intervals, differences of two models.

What the overall score is stands in bench.py. Departures from the official scorer: a judgment that
failed stays in the count (`strict` scores it 0, and the coverage says so); the overall score is
computed; everything has an interval over resampled prompts; names carry no trailing space.

    scores = bench.score(read_results("results/flux.csv"))
    scores.overall, scores.interval, scores.coverage
"""

import json
from collections import Counter
from typing import NamedTuple

import numpy as np

from common.bootstrap import interval, resample
from common.files import write_atomic
from unigenbench.results import Result
from unigenbench.testpoints import DIMENSIONS, PRIMARIES, SUBS, primary_of

OVERALL = "Overall"
NAMES = tuple(dict.fromkeys((*SUBS, *PRIMARIES)))  # 33, since Style and three others are both
COLUMNS_OF = {sub: sorted({NAMES.index(sub), NAMES.index(primary_of(sub))}) for sub in SUBS}


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


def count_by_prompt(results: list[Result]) -> np.ndarray:
    """Right, judged and expected testpoints, (3, prompts in order of index, NAMES)."""
    rows = {index: n for n, index in enumerate(sorted({r.index for r in results}))}
    counts = np.zeros((3, len(rows), len(NAMES)), int)
    for r in results:
        for sub, value in zip(r.subs, r.scores or [None] * len(r.subs)):
            one = [[value == 1], [value is not None], [True]]
            counts[:, rows[r.index], COLUMNS_OF[sub]] += one
    return counts


def accuracies(correct: np.ndarray, judged: np.ndarray) -> dict[str, np.ndarray]:
    """Counts (..., NAMES) -> accuracy (...) of each dimension, and Overall; NaN if none was judged.

    Overall is bench.overall for many resamples at once, whose mean leaves out what is NaN.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0
        shares = correct / judged
        primaries = np.take(shares, [NAMES.index(name) for name in PRIMARIES], -1)
        known = ~np.isnan(primaries)
        overall = np.where(known, primaries, 0).sum(-1) / known.sum(-1)
    return {**dict(zip(NAMES, np.moveaxis(shares, -1, 0))), OVERALL: overall}


def coverage_of(results: list[Result]) -> Coverage:
    states = Counter()
    for r in results:
        states[r.state] += len(r.subs)
    return Coverage(states.total(), states["judged"], states["unparsable"], states["failed"])


def scores_of(results: list[Result], overall: float | None, strict: float | None) -> Scores:
    """All that is to be told of results; overall, strict: as bench.overall has them.

    Raises ValueError if there are none.
    """
    if not results:
        raise ValueError("no results to score")
    counts = count_by_prompt(results)
    correct, judged, _ = counts
    draws = resample(len(correct))
    replicates = accuracies(draws @ correct, draws @ judged)
    tallies = {
        name: Tally(*numbers, interval(replicates[name]))
        for name, numbers in zip(NAMES, counts.sum(1).T.tolist())
        if numbers[2]
    }
    primary, sub = ({n: tallies[n] for n in names if n in tallies} for names in (PRIMARIES, SUBS))
    bounds = interval(replicates[OVERALL])
    return Scores(primary, sub, overall, strict, bounds, coverage_of(results))


def compare(first: list[Result], second: list[Result]) -> dict[str, tuple[float, float, float]]:
    """Second minus first, by sub and primary dimension and Overall: (difference, low, high), -1..1.

    The 95 % interval is paired: both models, whose prompts are the same, are resampled over the
    same ones. low and high are NaN where no two prompts differ, as in a dimension of one.
    """
    counts = np.stack([count_by_prompt(first), count_by_prompt(second)])
    prompts = counts.shape[2]
    draws = np.vstack([np.ones(prompts, int), resample(prompts)])  # each once; then the replicates
    one, two = (accuracies(*(draws @ counted[:2])) for counted in counts)
    difference = {name: two[name] - one[name] for name in one}
    return {
        name: (float(values[0]), *(interval(values[1:]) or (np.nan, np.nan)))
        for name, values in difference.items()
        if not np.isnan(values[0])
    }


def write_scores(scores: Scores, path, language="en", settings=None) -> None:
    """The official JSON (name -> correct, total, accuracy), and what ours adds."""
    labels = {}  # of the results' language
    for sub, dimension in DIMENSIONS.items():
        label = dimension.label(language)
        labels |= {primary_of(sub): primary_of(label), sub: label}

    def entries(tallies):
        return {
            labels[name]: dict(
                correct=t.correct,
                total=t.total,
                accuracy=round(t.accuracy or 0.0, 4),
                strict=round(t.strict, 4),
                interval=t.interval,
            )
            for name, t in tallies.items()
        }

    content = dict(
        primary_dimensions=entries(scores.primary),
        sub_dimensions=entries(scores.sub),
        accuracy=scores.accuracy,
        overall=scores.overall,
        overall_strict=scores.strict,
        overall_interval=scores.interval,
        overall_over=len(scores.primary),
        coverage=scores.coverage._asdict(),
        settings=settings or {},
    )
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n")
