"""One fallible score, five ways to make an advantage of it: which of them are hacked?

The score of a picture is the truth, the share of its testpoints that hold, and a small smooth taste
for strong colors. The taste changes a score by a tenth at most, and within a group by thousandths:
less than the least difference in truth, and nothing that anyone would mind. It is there to be blown
up. Every way sees the same score, the same prompts and the same noise.

    python -m study.five_ways                   # about an hour and a half on 2 idle cores
    python -m study.five_ways --quick           # fewer steps, one seed
"""

import argparse
from pathlib import Path

import numpy as np

from rewards import PairwiseReward, PointwiseReward
from shapes.verifier import parse_prompt
from study.runs import RESULTS, Arm, Size, Table, make_runs
from support.heldout import verify
from support.rgb import to_rgb

TASTE = 0.1  # what the strongest colors add to a score; a testpoint adds a third or a half
VISIBLE = 0.1  # differences in score up to this tie: those that taste alone can make


def vividness(image) -> float:
    """How strong the colors of a picture are, 0 to 1: the largest less the smallest channel, mean
    over pixels."""
    pixels = np.asarray(to_rgb(image), float) / 255
    return float((pixels.max(-1) - pixels.min(-1)).mean())


class Score:
    """The truth and a taste, for each picture alone."""

    name = "truth and taste"

    def score(self, prompts, images) -> list[float]:
        met, _ = verify([parse_prompt(prompt) for prompt in prompts], images)
        return [sum(m) / len(m) + TASTE * vividness(i) for m, i in zip(met, images, strict=True)]


class ScoreJudge:
    """A judge that prefers the picture with the higher score, and ties up to a margin.

    It answers as a judge in process does that is asked for the probability that the first is better
    (PairwiseReward's `soft`); both orders would say the same.
    """

    def __init__(self, margin: float):
        self.name, self.margin = f"score, margin {margin}", margin

    def first_probability(self, queries) -> list[float]:
        shown = {id(image): (query.text, image) for query in queries for image in query.images}
        scores = dict(zip(shown, Score().score(*zip(*shown.values()))))
        leads = (scores[id(q.images[0])] - scores[id(q.images[1])] for q in queries)
        return [0.5 if abs(lead) <= self.margin else float(lead > 0) for lead in leads]


def scores() -> PointwiseReward:
    return PointwiseReward(Score())


def win_rate(margin: float) -> PairwiseReward:
    return PairwiseReward(ScoreJudge(margin), both_orders=False, template="{prompt}", soft=True)


# Settings were fixed before the runs. An advantage is (reward - mean) / max(deviation, std_floor).
# Scores lie within 0 and 1.1 and cannot deviate by 1: a floor of 1 centers and divides by nothing.
ARMS = (
    Arm("z-scores", scores, ("--std_floor=0",)),
    Arm("z-scores with floor", scores, ("--std_floor=0.05",)),
    Arm("plain ranks", lambda: win_rate(0.0), ("--std_floor=0",)),
    Arm("ranks with ties", lambda: win_rate(VISIBLE), ("--std_floor=0",)),
    Arm("centered only", scores, ("--std_floor=1",)),
)
COMMON = ("--prompts_per_step=8", "--group_size=8", "--lr=2e-4", "--heldout=157")
OUT = Path("runs/study")
SIZES = {
    "full": Size((0, 1, 2), (*COMMON, "--steps=72", "--eval_every=12"), RESULTS),
    "quick": Size((0,), (*COMMON, "--steps=24", "--eval_every=12"), OUT / "quick"),
    "smallest": Size(
        (0,),
        (
            "--prompts_per_step=1",
            "--group_size=3",
            "--num_steps=2",
            "--steps=1",
            "--heldout=2",
        ),
        OUT / "smallest",
    ),
}


def watch(grid) -> dict[str, float | None]:
    """Mean vividness of held-out pictures, rows of them; None of none."""
    seen = [vividness(image) for row in grid for image in row]
    return {"vividness": float(np.mean(seen)) if seen else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    name = parser.parse_args().size
    size = SIZES[name]
    lines = Table(size.folder / "five_ways.csv", size.flags)
    prompts = Table(size.folder / "five_ways_prompts.csv", size.flags)
    make_runs(ARMS, size, OUT / name / "five_ways", lines, prompts, watch)


if __name__ == "__main__":
    main()
