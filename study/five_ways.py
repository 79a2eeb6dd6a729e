"""One fallible score, five ways to make an advantage of it: which of them are hacked?

The score of a picture is the truth, the share of its testpoints that hold, and a small smooth taste
for strong colors. The taste changes a score by a tenth at most, and within a group by thousandths:
less than the least difference in truth, and nothing that anyone would mind. It is there to be blown
up. Every way sees the same score, the same prompts and the same noise.

    python -m study.five_ways                   # 15 runs, an hour on 2 cores; only those missing
    python -m study.five_ways --quick           # one seed and fewer steps, in minutes

Writes five_ways.csv (lines of the log), five_ways_prompts.csv (each held-out prompt after the last
step), five_ways_summary and five_ways_spread (means and intervals, .csv and .md) and five_ways.png.
"""

from typing import NamedTuple

import numpy as np

from common.rgb import to_rgb
from figures import pictures
from rewards import PairwiseReward, PointwiseReward
from shapes.grammar import parse_prompt
from study.runs import OUT, RESULTS, Arm, Size, Table, make_runs, size_asked_for
from study.summary import TRUTH, spreads, summarize, write_rows
from training.heldout import verify

TASTE = 0.1  # what the strongest colors add to a score; a testpoint adds a third or a half
VISIBLE = 0.1  # differences in score up to this tie: those that taste alone can make


class Way(NamedTuple):
    """How scores become advantages: as they are, or as win rates; normalized within the group.

    An advantage is (reward - mean) / max(deviation, floor). Scores lie within 0 and 1.1 and cannot
    deviate by 1: a floor of 1 centers them and divides by nothing.
    """

    floor: float
    margin: float | None = None  # win rates in which differences up to it tie; None: the scores

    def reward(self):
        if self.margin is None:
            return PointwiseReward(Score())
        judge = ScoreJudge(self.margin)
        return PairwiseReward(judge, both_orders=False, template="{prompt}", soft=True)


# Settings were fixed before the runs, and so was the number of seeds.
WAYS = {
    "z-scores": Way(0.0),
    "z-scores with floor": Way(0.05),
    "plain ranks": Way(0.0, 0.0),
    "ranks with ties": Way(0.0, VISIBLE),
    "centered only": Way(1.0),
}
ARMS = [Arm(name, way.reward, (f"--std_floor={way.floor:g}",)) for name, way in WAYS.items()]
SCALES = {name: 1 + TASTE if way.margin is None else 1.0 for name, way in WAYS.items()}
CURE = "ranks with ties"  # what the others are held against
COMMON = ("--prompts_per_step=8", "--group_size=8", "--lr=2e-4", "--heldout=157")
TINY = ("--prompts_per_step=1", "--group_size=3", "--num_steps=2", "--steps=1", "--heldout=2")
SIZES = {
    "full": Size((0, 1, 2), (*COMMON, "--steps=72", "--eval_every=12"), RESULTS),
    "quick": Size((0,), (*COMMON, "--steps=24", "--eval_every=12"), OUT / "quick"),
    "smallest": Size((0,), TINY, OUT / "smallest"),
}


# ----------------------------------------------------------------------------- the score


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
        return [points_of(lead, self.margin) for lead in leads]


def points_of(lead: float, margin: float) -> float:
    """What a picture gets whose score is so much higher than the other's."""
    return 0.5 if abs(lead) <= margin else float(lead > 0)


def watch(prompts, grid) -> dict[str, float | None]:
    """Mean vividness of held-out pictures, rows of them; None of none."""
    seen = [vividness(image) for row in grid for image in row]
    return {"vividness": float(np.mean(seen)) if seen else None}


# ----------------------------------------------------------------------------- what is drawn


def draw(lines: Table, names, path, below=("vividness", "vividness")) -> None:
    """Truth of held-out pictures over training, and `below` it another key of the log, by heading:
    a column a way, a thin line a seed, the mean of whole runs thick, the base dotted."""
    figure = pictures.new_figure(figsize=(2.4 + 1.32 * len(names), 4.4))
    grid = figure.subplots(2, len(names), sharex=True, sharey="row")
    rows = ((TRUTH, "testpoints right"), below)
    for line, (key, label) in zip(grid, rows):
        line[0].set_ylabel(label)
        for axes, name in zip(line, names):
            runs = [pictures.series(lines.run(name, seed), key) for seed in lines.seeds(name)]
            for steps, values in runs:
                axes.plot(steps, values, color=pictures.MUTED, lw=1)
                axes.axhline(values[0], color=pictures.INK, ls=":", lw=1)
            longest, _ = max(runs, key=lambda run: len(run[0]))
            whole = [values for steps, values in runs if steps == longest]
            axes.plot(longest, np.mean(whole, 0), "o-", color=pictures.INK, lw=2, ms=4)
            axes.spines[["top", "right"]].set_visible(False)
    for above, below, name in zip(*grid, names):
        above.set_title(name, fontsize=11)
        below.set_xlabel("step")
    pictures.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    name = size_asked_for(__doc__, arguments)
    size = SIZES[name]
    lines = Table(size.folder / "five_ways.csv", size.flags)
    prompts = Table(size.folder / "five_ways_prompts.csv", size.flags)
    make_runs(ARMS, size, OUT / name / "five_ways", lines, prompts, watch)
    shown = summarize(lines, prompts, WAYS, CURE)
    write_rows(shown, lines.head, size.folder / "five_ways_summary.csv")
    write_rows(spreads(lines, SCALES), lines.head, size.folder / "five_ways_spread.csv")
    draw(lines, WAYS, size.folder / "five_ways.png")


if __name__ == "__main__":
    main()
