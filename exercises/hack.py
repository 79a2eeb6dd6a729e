"""Watches a reward being hacked, and cured: python -m exercises.hack

Trains the tiny model twice: on the score of exercise 10, picture by picture, and on win rates from
its comparison. Both are yours if all checks of the exercise pass, else ours. Nothing holds training
back: no floor under the standard deviation of a group, as in the released code, and no moving
average of the weights. Every flag of train.py works (python train.py --help).
"""

import dataclasses
import logging
from pathlib import Path

from exercises.checks import USED, student
from exercises.train import BRIEF, draw, held_out, settings, trained
from figures import pictures
from rewards import PairwiseReward, PointwiseReward


class Scorer:
    """The student's score, as rewards.PointwiseReward asks for it."""

    name = "score"

    def __init__(self, score):
        self.of = score

    def score(self, prompts, images) -> list[float]:
        return [self.of(prompt, image) for prompt, image in zip(prompts, images, strict=True)]


class Judge:
    """The student's points, as rewards.PairwiseReward takes probabilities from a judge."""

    name = "points"

    def __init__(self, points):
        self.points = points

    def first_probability(self, queries) -> list[float]:
        return [self.points(query.text, *query.images) for query in queries]


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = settings(__doc__, "--out=runs/hack", *BRIEF, "--std_floor=0", "--ema=0")
    scorer, judge = Scorer(student("score")), Judge(student("points"))
    print(f"score and points: {USED['score']}")
    pointwise = dataclasses.replace(cfg, reward="pointwise")
    hacked = trained(pointwise, "score", PointwiseReward(scorer))
    cured = trained(cfg, "points", PairwiseReward(judge, template="{prompt}", soft=True))
    out = Path(cfg.out)
    curves = {
        "testpoints right, trained on points": held_out(cured),
        "testpoints right, trained on score": held_out(hacked),
        "the score itself, while trained on": pictures.series(hacked.metrics, "reward_mean"),
    }
    draw(curves, "What is wanted, on held-out prompts, and what is scored", out / "curves.png")
    grids = hacked.heldout.base_grid, hacked.last[1], cured.last[1]  # of each prompt, four pictures
    rows = [[picture for four in row for picture in four[:2]] for row in zip(*grids)]
    heads = [name for name in ("before", "on score", "on points") for _ in range(2)]
    pictures.sample_grid(rows, hacked.heldout.grid_prompts, out / "pictures.png", heads)
    for name, (_, values) in curves.items():
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    print(f"look at {out / 'curves.png'} and {out / 'pictures.png'}")


if __name__ == "__main__":
    main()
