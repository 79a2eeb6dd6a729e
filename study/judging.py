"""What do a judge's errors cost, and what is a comparison worth? Training at one budget of calls.

Judges that name the wrong image now and then, or favor the one that is shown first; asked in one
order or in both; about all pairs of a group, or a few. Every run may ask as many questions as every
other. Whoever asks less about a group trains for more steps: half as many questions, twice as many
steps, on new images.

    python -m study.judging                     # 45 runs, an hour on 2 cores; only those missing
    python -m study.judging --quick             # one seed, a quarter of the calls, in minutes

Writes judging*: lines of the log, what came of each held-out prompt, tables and a figure.
"""

from typing import NamedTuple

import numpy as np

from figures import pictures
from judges.answers import ask
from judges.mllm import Query
from judges.templates import PAIRWISE_TEMPLATE
from rewards import PairwiseReward, mean_points
from shapes.verifier import ShapesMLLM
from study.runs import GROUPS, Arm, Study, size_asked_for
from study.scorers import hard_pairs
from study.summary import less, summarize, write_tables


class Setup(NamedTuple):
    """A judge and how it is asked.

    A judge that is right on a share a of the pairs that the exact one decides throws a coin in
    2 (1 - a) of them, and is right in half of those. It draws anew for the other order.
    """

    right: float = 1.0
    first_bias: float = 0.0  # share of questions answered "the first" whatever is shown
    both_orders: bool = True
    opponents: int | None = None  # of each image; None: all pairs

    def reward(self) -> PairwiseReward:
        judge = ShapesMLLM(error_rate=2 * (1 - self.right), first_bias=self.first_bias)
        return PairwiseReward(judge, self.both_orders, self.opponents)


# Settings were fixed before the runs, and so was the number of seeds.
ORDERS = {"both orders": True, "one order": False}
JUDGES = {f"{percent} % right": {"right": percent / 100} for percent in (100, 80, 70, 60)}
JUDGES |= {f"{percent} % first": {"first_bias": percent / 100} for percent in (20, 50)}
ALL_PAIRS = "80 % right, both orders"
SETUPS = {
    f"{judge}, {order}": Setup(**errs, both_orders=both)
    for judge, errs in JUDGES.items()
    for order, both in ORDERS.items()
}
FEW = {f"{ALL_PAIRS}, {n} opponents": SETUPS[ALL_PAIRS]._replace(opponents=n) for n in (4, 3, 2)}
SETUPS |= FEW
# Each is held against the one that differs in one thing.
CONTRASTS = {f"{judge}, one order": f"{judge}, both orders" for judge in JUDGES}
CONTRASTS |= dict.fromkeys(FEW, ALL_PAIRS)

SEEDS = (0, 1, 2)
FLAGS = dict.fromkeys(("full", "quick"), (*GROUPS, "--lr=2e-4", "--eval_every=1000"))


class Budget(NamedTuple):
    groups: int  # a step
    group_size: int
    calls: int  # a run: whole steps for which they suffice
    hard: int  # held-out prompts on whose images the judges are measured

    def steps(self, setup: Setup) -> int:
        return self.calls // (self.groups * setup.reward().calls(self.group_size))


BUDGETS = {
    "full": Budget(8, 8, 7168, 314),
    "quick": Budget(8, 8, 1792, 314),
    "smallest": Budget(1, 3, 6, 6),
}


# ----------------------------------------------------------------------------- tables


def judged(setups: dict[str, Setup], budget: Budget) -> list[dict]:
    """What each setup makes of pairs that the exact judge decides: the shares right, tied and
    wrong. And what a group costs it, and the steps that the budget allows."""
    shown, rows = hard_pairs(budget.hard), []
    texts = [PAIRWISE_TEMPLATE.replace("{prompt}", prompt) for prompt in shown.prompts]
    for name, setup in setups.items():
        reward = setup.reward()
        points = [first_points(reward, pair, text) for pair, text in zip(shown.images, texts)]
        won = np.array([1 - p if second else p for p, second in zip(points, shown.chosen)])
        calls, levels = reward.calls(budget.group_size), {"right": 1, "tied": 0.5, "wrong": 0}
        row = dict(setup=name, pairs=len(won), calls_a_group=calls, steps=budget.steps(setup))
        rows.append(row | {key: float((won == level).mean()) for key, level in levels.items()})
    return rows


def first_points(reward: PairwiseReward, pair, text: str) -> float:
    """The points of the first of two images, from one order or both."""
    orders = [pair, pair[::-1]] if reward.both_orders else [pair]
    given = [answers[-1].points for answers in ask(reward.mllm, [Query(o, text) for o in orders])]
    return mean_points(given[0], 1 - given[-1]) if reward.both_orders else given[0]


def contrasts(study: Study) -> list[dict]:
    """The accuracy of a setup less that of the one that differs from it in one thing."""
    what = lambda name: "less all pairs" if name in FEW else "less both orders"
    return [
        {"arm": name, "quantity": what(name)} | less(study, name, other)
        for name, other in CONTRASTS.items()
        if study.lines.seeds(name)
    ]


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names, those that come of the runs."""
    return {"_summary": summarize(study, SETUPS), "_contrasts": contrasts(study)}


# ----------------------------------------------------------------------------- what is drawn


def draw(rows: list[dict], path) -> None:
    """The accuracy that each setup has reached, with its interval over prompts; the base dotted."""
    figure = pictures.new_figure(figsize=(8, 4.6))
    axes = pictures.subplots(figure)
    base, *shown = [row for row in rows if row["quantity"] == "accuracy"]
    for n, row in enumerate(reversed(shown)):
        low, high = row["prompts_low"], row["prompts_high"]
        axes.plot([low, high], [n, n], color=pictures.MUTED, lw=2)
        filled = pictures.INK if "one order" in row["arm"] else "white"
        axes.plot(row["mean"], n, "o", color=pictures.INK, mfc=filled, ms=7)
    axes.axvline(base["mean"], color=pictures.INK, ls=":", lw=1)
    axes.set_yticks(range(len(shown)), [row["arm"] for row in reversed(shown)])
    axes.set_xlabel("held-out accuracy after the last step (filled: one order; dotted: the base)")
    pictures.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    study, budget = Study("judging", size, FLAGS), BUDGETS[size]
    setups = dict(list(SETUPS.items())[: 2 if size == "smallest" else None])
    steps = {name: f"--steps={budget.steps(setup)}" for name, setup in setups.items()}
    study.make([Arm(n, s.reward, (steps[n],)) for n, s in setups.items()], SEEDS)
    found = tables(study)
    write_tables(study, found | {"_judges": judged(setups, budget)})
    draw(found["_summary"], study.file(".png"))


if __name__ == "__main__":
    main()
