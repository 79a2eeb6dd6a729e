"""One fallible score, five estimators of the advantage made from it: which of them are hacked?

The score of an image is its accuracy, the share of its testpoints that hold, and a small smooth
bias towards strong colors. The bias changes a score by a tenth at most, and within a group by
thousandths: less than the least difference in accuracy, and nothing that anyone would mind. It is
there to be amplified. Every estimator sees the same score, the same prompts and the same noise.

    python -m study.estimators                  # 15 runs, an hour on 2 cores; only those missing
    python -m study.estimators --quick          # one seed and fewer steps, in minutes

Writes estimators*: lines of the log, what came of each held-out prompt, tables and a figure.
"""

from typing import NamedTuple

import numpy as np

from common.rgb import to_rgb
from rewards import PairwiseReward, PointwiseReward
from shapes.grammar import parse_prompt
from study import curves
from study.runs import GROUPS, Arm, Study, Table, short_and_long, size_asked_for
from study.summary import ACCURACY, BESIDE, row_of, summarize, write_tables
from training.heldout import verify

BIAS = 0.1  # what the strongest colors add to a score; a testpoint adds a third or a half
VISIBLE = 0.1  # differences in score up to this tie: those that the bias alone can make


class Estimator(NamedTuple):
    """How scores become advantages: as they are, or as win rates; normalized within the group.

    An advantage is (reward - mean) / max(std, floor). Scores lie within 0 and 1.1, so that their
    std is below 1: a floor of 1 centers them and divides by nothing.
    """

    floor: float
    margin: float | None = None  # win rates in which differences up to it tie; None: the scores

    def reward(self):
        if self.margin is None:
            return PointwiseReward(Score())
        judge = ScoreJudge(self.margin)
        return PairwiseReward(judge, both_orders=False, template="{prompt}", soft=True)


# Settings were fixed before the runs, and so was the number of seeds.
ESTIMATORS = {
    "z-scores": Estimator(0.0),
    "z-scores with floor": Estimator(0.05),
    "plain ranks": Estimator(0.0, 0.0),
    "ranks with ties": Estimator(0.0, VISIBLE),
    "centered only": Estimator(1.0),
}
ARMS = [Arm(name, e.reward, (f"--std_floor={e.floor:g}",)) for name, e in ESTIMATORS.items()]
CURE = "ranks with ties"  # what the others are held against
SHARED = (*GROUPS, "--lr=2e-4", "--heldout=157")
FLAGS = short_and_long(SHARED)
SEEDS = (0, 1, 2)
MEASURED = {"vividness": "vividness"} | BESIDE
# Of the rewards that a step learns from: key of the log -> heading
SPREAD = {"reward_std": "std", "tie_rate": "ties", "frac_floor": "groups below the floor"}
AVERAGED = 12  # steps, at the start and at the end


# ----------------------------------------------------------------------------- the score


def vividness(image) -> float:
    """How strong the colors of an image are, 0 to 1: the largest less the smallest channel, mean
    over pixels."""
    pixels = np.asarray(to_rgb(image), float) / 255
    return float((pixels.max(-1) - pixels.min(-1)).mean())


class Score:
    """The accuracy and a bias, for each image alone."""

    name = "accuracy and bias"

    def score(self, prompts, images) -> list[float]:
        met, _ = verify([parse_prompt(prompt) for prompt in prompts], images)
        return [sum(m) / len(m) + BIAS * vividness(i) for m, i in zip(met, images, strict=True)]


class ScoreJudge:
    """A judge that prefers the image with the higher score, and ties up to a margin.

    It answers as a judge in process does that is asked for the probability that the first is better
    (PairwiseReward's `soft`); both orders would give the same.
    """

    def __init__(self, margin: float):
        self.name, self.margin = f"score, margin {margin}", margin

    def first_probability(self, queries) -> list[float]:
        shown = {id(image): (query.text, image) for query in queries for image in query.images}
        scores = dict(zip(shown, Score().score(*zip(*shown.values()))))
        leads = (scores[id(q.images[0])] - scores[id(q.images[1])] for q in queries)
        return [points_of(lead, self.margin) for lead in leads]


def points_of(lead: float, margin: float) -> float:
    """What an image gets whose score is so much higher than the other's."""
    return 0.5 if abs(lead) <= margin else float(lead > 0)


def watch(prompts, grid) -> dict[str, float | None]:
    """Mean vividness of held-out images, rows of them; None of none."""
    seen = [vividness(image) for row in grid for image in row]
    return {"vividness": float(np.mean(seen)) if seen else None}


# ----------------------------------------------------------------------------- what is written


def spreads(lines: Table) -> list[dict]:
    """For each estimator, over its first steps and over its last: the mean std of rewards within a
    group, as a share of their scale; the share of pairs that tie, and of groups below the floor,
    where these change at all."""
    rows = []
    for name, estimator in ESTIMATORS.items():
        runs = [run[1:] for run in lines.runs(name)]  # the base has no rewards
        scale = 1 + BIAS if estimator.margin is None else 1.0
        for key, label in SPREAD.items():
            unit = scale if key == "reward_std" else 1.0
            if key != "reward_std" and len({row[key] for run in runs for row in run}) == 1:
                continue
            for place, part in (("first", slice(AVERAGED)), ("last", slice(-AVERAGED, None))):
                means = [np.mean([row[key] for row in run[part]]) / unit for run in runs]
                rows.append({"arm": name, "quantity": f"{label}, {place} steps"} | row_of(means))
    return rows


def tables(study: Study, names=tuple(ESTIMATORS)) -> dict[str, list[dict]]:
    """By the end of their files' names: of these estimators the summary; of all, the spread."""
    found = {"_summary": summarize(study, names, CURE, MEASURED)}
    return found | ({"_spread": spreads(study.lines)} if len(names) == len(ESTIMATORS) else {})


def write(study: Study, names=tuple(ESTIMATORS)) -> None:
    """The tables and the figure of these estimators."""
    write_tables(study, tables(study, names))
    shown = {"accuracy": curves.of(ACCURACY), "vividness": curves.of("vividness")}
    curves.draw(study.lines, names, shown, study.file(".png"))


def main(arguments: list[str] | None = None) -> None:
    study = Study("estimators", size_asked_for(__doc__, arguments), FLAGS)
    study.make(ARMS, SEEDS, watch)
    write(study)


if __name__ == "__main__":
    main()
