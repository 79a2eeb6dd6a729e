"""What do a judge's errors cost, and what is a comparison worth? Training at one budget of calls.

Judges that name the wrong picture now and then, or favor the one that is shown first; asked in one
order or in both; about all pairs of a group, or a few. Every run may ask as many questions as every
other. Whoever asks less about a group trains for more steps: half as many questions, twice as many
steps, on new pictures.

    python -m study.judging                     # 45 runs, an hour on 2 cores; only those missing
    python -m study.judging --quick             # one seed, a quarter of the calls, in minutes

Writes judging.csv (lines of the log), judging_prompts.csv (each held-out prompt after the last
step), judging_judges, judging_summary and judging_contrasts (.csv and .md), and judging.png.
"""

from typing import NamedTuple

import numpy as np

from common.files import write_atomic
from figures import pictures
from judges.answers import ask
from judges.mllm import Query
from judges.templates import PAIRWISE_TEMPLATE
from rewards import PairwiseReward, mean_points
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from study.runs import OUT, RESULTS, Arm, Size, Table, make_runs, size_asked_for, write_csv
from study.scorers import choices
from study.summary import counts, row_of, shares, write_rows
from training.data import seed_of
from unigenbench.tables import markdown_table


class Way(NamedTuple):
    """A judge and how it is asked.

    A judge that is right on a share a of the pairs that the exact one decides throws a coin in
    2 (1 - a) of them, and is right in half of those. It draws anew for the other order.
    """

    right: float = 1.0
    first_bias: float = 0.0  # share of questions answered "the first" whatever is shown
    both_orders: bool = True
    opponents: int | None = None  # of each picture; None: all pairs

    def reward(self) -> PairwiseReward:
        judge = ShapesMLLM(error_rate=2 * (1 - self.right), first_bias=self.first_bias)
        return PairwiseReward(judge, self.both_orders, self.opponents)


# Settings were fixed before the runs, and so was the number of seeds.
ORDERS = {"both orders": True, "one order": False}
JUDGES = {f"{percent} % right": {"right": percent / 100} for percent in (100, 80, 70, 60)}
JUDGES |= {f"{percent} % first": {"first_bias": percent / 100} for percent in (20, 50)}
ALL_PAIRS = "80 % right, both orders"
WAYS = {
    f"{judge}, {order}": Way(**errs, both_orders=both)
    for judge, errs in JUDGES.items()
    for order, both in ORDERS.items()
}
FEW = {f"{ALL_PAIRS}, {n} opponents": WAYS[ALL_PAIRS]._replace(opponents=n) for n in (4, 3, 2)}
WAYS |= FEW
# Each is held against the way that differs in one thing.
CONTRASTS = {f"{judge}, one order": f"{judge}, both orders" for judge in JUDGES}
CONTRASTS |= dict.fromkeys(FEW, ALL_PAIRS)

GROUPS = "--prompts_per_step=8", "--group_size=8", "--lr=2e-4", "--eval_every=1000"
TINY = "--prompts_per_step=1", "--group_size=6", "--num_steps=2", "--heldout=2"
SIZES = {
    "full": Size((0, 1, 2), GROUPS, RESULTS),
    "quick": Size((0,), GROUPS, OUT / "quick"),
    "smallest": Size((0,), TINY, OUT / "smallest"),
}


class Budget(NamedTuple):
    groups: int  # a step
    group_size: int
    calls: int  # a run: whole steps for which they suffice
    hard: int  # held-out prompts on whose pictures the judges are measured

    def steps(self, way: Way) -> int:
        return self.calls // (self.groups * way.reward().calls(self.group_size))


BUDGETS = {
    "full": Budget(8, 8, 7168, 314),
    "quick": Budget(8, 8, 1792, 314),
    "smallest": Budget(1, 6, 30, 6),
}


def watch(prompts, grid) -> dict:
    """Nothing more than the log has."""
    return {}


# ----------------------------------------------------------------------------- tables


def judged(ways: dict[str, Way], budget: Budget) -> list[dict]:
    """What each way makes of pairs that the exact judge decides, two pictures of the base model for
    a held-out prompt: the shares right, tied and wrong. And what a group costs it, and the steps
    that the budget allows."""
    prompts = [prompt.text for prompt in heldout_prompts()[: budget.hard]] * 2
    shown, rows = choices(prompts, ShapesMLLM(), seed_of("hard pairs")), []
    texts = [PAIRWISE_TEMPLATE.replace("{prompt}", prompt) for prompt in shown.prompts]
    for name, way in ways.items():
        reward = way.reward()
        points = [first_points(reward, pair, text) for pair, text in zip(shown.images, texts)]
        won = np.array([1 - p if second else p for p, second in zip(points, shown.chosen)])
        shares = {
            "right": (won == 1).mean(),
            "tied": (won == 0.5).mean(),
            "wrong": (won == 0).mean(),
        }
        costs = {"calls": reward.calls(budget.group_size), "steps": budget.steps(way)}
        rows.append(
            {"way": name, "pairs": len(won)} | costs | {k: float(v) for k, v in shares.items()}
        )
    return rows


def first_points(reward: PairwiseReward, pair, text: str) -> float:
    """The points of the first of two pictures, from one order or both."""
    orders = [pair, pair[::-1]] if reward.both_orders else [pair]
    said = [answers[-1].points for answers in ask(reward.mllm, [Query(o, text) for o in orders])]
    return mean_points(said[0], 1 - said[-1]) if reward.both_orders else said[0]


def write_judges(rows: list[dict], head: str, folder) -> None:
    write_csv(folder / "judging_judges.csv", rows, head)
    heads = ["", "calls a group", "steps", "right", "tied", "wrong"]
    numbers = lambda row: [f"{row[key]:.3f}" for key in ("right", "tied", "wrong")]
    cells = [[row["way"], str(row["calls"]), str(row["steps"]), *numbers(row)] for row in rows]
    write_atomic(folder / "judging_judges.md", markdown_table(heads, cells).encode())


def summary_rows(lines: Table, prompts: Table) -> list[dict]:
    """Of each way: the truth after the last step, less that of the base; render error, win rate."""
    rows = []
    for way in filter(lines.seeds, WAYS):
        seeds = lines.seeds(way)
        held, base = (counts(prompts, way, seeds, key) for key in ("last", "base"))
        points = counts(prompts, way, seeds, "testpoints")[0]
        ends = [lines.run(way, seed)[-1] for seed in seeds]
        found = {
            "truth": shares(held, points),
            "less the base": shares(held - base, points),
            "render error": row_of([end["heldout_render_error"] for end in ends]),
            "win rate": row_of([end["win_rate_vs_base"] for end in ends]),
        }
        rows += [{"arm": way, "quantity": quantity} | row for quantity, row in found.items()]
    return rows


def contrasts(lines: Table, prompts: Table) -> list[dict]:
    """The truth of a way less that of the one that differs from it in one thing."""
    rows = []
    for way, other in CONTRASTS.items():
        seeds = [seed for seed in lines.seeds(way) if seed in lines.seeds(other)]
        if seeds:
            one, two = (counts(prompts, name, seeds, "last") for name in (way, other))
            found = shares(one - two, counts(prompts, way, seeds, "testpoints")[0])
            what = "less all pairs" if way in FEW else "less both orders"
            rows.append({"arm": way, "quantity": what} | found)
    return rows


# ----------------------------------------------------------------------------- what is drawn


def draw(rows: list[dict], path) -> None:
    """The truth that each way has reached, with its interval over prompts; the base dotted."""
    figure = pictures.new_figure(figsize=(8, 4.6))
    axes, truths = figure.subplots(), [row for row in rows if row["quantity"] == "truth"]
    for n, row in enumerate(reversed(truths)):
        low, high = row["prompts_low"], row["prompts_high"]
        axes.plot([low, high], [n, n], color=pictures.MUTED, lw=2)
        filled = pictures.INK if "one order" in row["arm"] else "white"
        axes.plot(row["mean"], n, "o", color=pictures.INK, mfc=filled, ms=7)
    first, gained = rows[:2]  # of one way: its truth, and that less the base's
    axes.axvline(first["mean"] - gained["mean"], color=pictures.INK, ls=":", lw=1)
    axes.set_yticks(range(len(truths)), [row["arm"] for row in reversed(truths)])
    axes.set_xlabel("testpoints right after the last step (filled: one order; dotted: the base)")
    axes.spines[["top", "right"]].set_visible(False)
    pictures.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    name = size_asked_for(__doc__, arguments)
    size, budget = SIZES[name], BUDGETS[name]
    names = [*WAYS] if name != "smallest" else [*WAYS][:2]
    ways = {way: WAYS[way] for way in names}
    arms = [Arm(n, way.reward, (f"--steps={budget.steps(way)}",)) for n, way in ways.items()]
    lines = Table(size.folder / "judging.csv", size.flags)
    prompts = Table(size.folder / "judging_prompts.csv", size.flags)
    make_runs(arms, size, OUT / name / "judging", lines, prompts, watch)
    write_judges(judged(ways, budget), lines.head, size.folder)
    shown = summary_rows(lines, prompts)
    write_rows(shown, lines.head, size.folder / "judging_summary.csv")
    write_rows(contrasts(lines, prompts), lines.head, size.folder / "judging_contrasts.csv")
    draw(shown, size.folder / "judging.png")


if __name__ == "__main__":
    main()
