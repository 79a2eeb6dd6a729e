"""The paper's Table 1 in kind: one world, the same prompts and noise, and five rewards.

The paper compares HPS, HPS and CLIP mixed, UnifiedReward's scores, and win rates: one run each, and
not all with the same group size. Here nothing but the reward differs, and the floor under the
deviation, which released code lacks. The learned scorers are those of scorers.py. The judge is the
shapes judge in three arms: by scores; by win rates as released code makes them, in one order and
from a judge that always names a winner; by win rates as this repository makes them, in both orders
and with ties.

    python -m study.table1                      # 40 runs, 1.5 hours on 2 cores; only those missing
    python -m study.table1 --quick              # one seed and fewer steps, in minutes

Writes table1.csv (lines of the log), table1_prompts.csv (each held-out prompt after the last step),
table1_scorers, table1_summary and table1_dimensions (.csv and .md), table1_curves.png; of the runs
at half the rate table1_slower (.csv and .md) and table1_curves_slower.png; table1_radar.png, and
table1_pictures.png where run directories are there to draw it from.
"""

import functools
import zlib
from pathlib import Path

import numpy as np
import torch

import sampler
from common.files import write_atomic
from figures import pictures
from judges.scorers import CLIPScorer, MLLMScorer
from models import base
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from study import scorers
from study.five_ways import TINY
from study.runs import (
    KEPT,
    OUT,
    RESULTS,
    Arm,
    Size,
    Table,
    folder_of,
    make_runs,
    size_asked_for,
    write_csv,
)
from study.summary import TRUTH, counts, over_seeds, row_of, shares, summarize, write_rows
from training.data import seed_of
from training.heldout import primary_of
from unigenbench.report import radar
from unigenbench.tables import markdown_table, text_table

DIMENSIONS = sorted({primary_of(sub) for p in heldout_prompts() for sub, _ in p.testpoints})
OURS, LEARNED = "win rates both orders", "learned scorer"
NO_FLOOR = "--std_floor=0"


class AlwaysAWinner(ShapesMLLM):
    """The shapes judge where a tie is not allowed: of pictures with the same looks the cleaner one
    wins, by however little; between the others a coin decides, which falls alike when asked again.
    """

    JND = 0.0

    def answer(self, query, shown) -> str:
        pixels = b"".join(image.tobytes() for image in query.images)
        coin = zlib.crc32(pixels) % 2 + 1
        return super().answer(query, shown).replace("Both are equal", f"Image {coin} is better")


def arms_of(folders: dict[str, Path]) -> list[Arm]:
    """Settings were fixed before the runs. folders: of the learned scorers, by name."""
    one, two = folders["first"], folders["second"]
    one_order = lambda: PairwiseReward(AlwaysAWinner(), both_orders=False)
    return [
        Arm(LEARNED, None, (f"--reward=clip={one}", NO_FLOOR)),
        # Two scorers of one kind: --reward knows them by the names of two published ones.
        Arm("two scorers mixed", None, (f"--reward=clip={one}:0.5,pickscore={two}:0.5", NO_FLOOR)),
        Arm("judge scores", None, ("--reward=pointwise", NO_FLOOR)),
        Arm("win rates one order", one_order, (NO_FLOOR,)),
        Arm(OURS, None),
    ]


def slower(arms: list[Arm]) -> list[Arm]:
    """The arms at half the learning rate, which is train.py's own: no arm is to look bad, or good,
    by its rate."""
    return [arm._replace(name=arm.name + SLOWER, flags=(*arm.flags, "--lr=1e-4")) for arm in arms]


NAMES = [arm.name for arm in arms_of(dict.fromkeys(scorers.NAMES))]
SLOWER = " at 1e-4"
SLOW = [name + SLOWER for name in NAMES]
COMMON = ("--prompts_per_step=8", "--group_size=8", "--lr=2e-4")
SIZES = {
    "full": Size((0, 1, 2, 3, 4), (*COMMON, "--steps=72", "--eval_every=12"), RESULTS),
    "quick": Size((0,), (*COMMON, "--steps=24", "--eval_every=12"), OUT / "quick"),
    "smallest": Size((0,), TINY, OUT / "smallest"),
}
SLOW_SEEDS = (0, 1, 2)  # of them
# What each arm is rewarded by, measured on held-out pictures; of two scorers, the mean.
OWN = {
    LEARNED: ("first",),
    "two scorers mixed": ("first", "second"),
    "judge scores": ("judge",),
    "win rates one order": ("win_rate_vs_base",),
    OURS: ("win_rate_vs_base",),
    "both orders without floor": ("win_rate_vs_base",),  # this one and the next are longer.py's
    "judge scores with floor": ("judge",),
}
BESIDE = {"third": "unseen scorer 1", "fourth": "unseen scorer 2"}
BESIDE |= {"heldout_render_error": "render error", "win_rate_vs_base": "win rate"}


# ----------------------------------------------------------------------------- what is watched


class Watch:
    """Mean scores of held-out pictures by the learned scorers, and by the judge (1 to 5)."""

    def __init__(self, folders: dict[str, Path]):
        self.scorers = {
            name: CLIPScorer(str(folder), name=name, batch_size=256)
            for name, folder in folders.items()
        }
        self.scorers["judge"] = MLLMScorer(ShapesMLLM())

    def __call__(self, prompts, grid) -> dict[str, float | None]:
        asked = [prompt for prompt, row in zip(prompts, grid) for _ in row]
        shown = [image for row in grid for image in row]
        score = lambda scorer: float(np.mean(scorer.score(asked, shown))) if shown else None
        return {name: score(scorer) for name, scorer in self.scorers.items()}


def own(rows: list[dict], arm: str) -> tuple[list, list]:
    """Steps and values of what the arm is rewarded by, over a run."""
    columns = [pictures.series(rows, key) for key in OWN[arm.removesuffix(SLOWER)]]
    return columns[0][0], np.mean([values for _, values in columns], 0).tolist()


# ----------------------------------------------------------------------------- tables


def of_base(lines: Table, prompts: Table, arm: str, beside: dict[str, str]) -> list[dict]:
    """The base's row: the same in all runs, and so taken of this arm's first."""
    seed = lines.seeds(arm)[0]
    held, points = (counts(prompts, arm, [seed], key) for key in ("base", "testpoints"))
    first = lines.run(arm, seed)[0]
    found = {"truth": shares(held, points[0])}
    found |= {name: row_of([first[key]]) for key, name in beside.items()}
    return [{"arm": "base", "quantity": quantity} | row for quantity, row in found.items()]


def gains(lines: Table, arms: list[str]) -> list[dict]:
    """How much of its own reward each arm has gained on held-out pictures."""
    rows = []
    for arm in arms:
        runs = [own(lines.run(arm, seed), arm)[1] for seed in lines.seeds(arm)]
        gained = row_of([values[-1] - values[0] for values in runs])
        rows.append({"arm": arm, "quantity": "less the base, own reward"} | gained)
    return rows


def summary_rows(lines: Table, prompts: Table, arms: list[str], beside=BESIDE) -> list[dict]:
    """Of runs at one rate. arms: the last one is ours, and the others are held against it."""
    shown = summarize(lines, prompts, arms, arms[-1], beside)
    return of_base(lines, prompts, arms[-1], beside) + shown + gains(lines, arms)


def dimensions(lines: Table) -> list[dict]:
    """The share of testpoints of each primary dimension, after the last step and of the base."""
    base_run = lines.run(OURS, lines.seeds(OURS)[0])
    found = {"base": [base_run[:1]]}
    found |= {arm: [lines.run(arm, seed) for seed in lines.seeds(arm)] for arm in NAMES}
    return [
        {"arm": arm, "quantity": name} | row_of([run[-1][f"heldout/{name}"] for run in runs])
        for arm, runs in found.items()
        for name in DIMENSIONS
        if runs[0][-1][f"heldout/{name}"] is not None
    ]


def write_scorers(folders: dict[str, Path], budget: scorers.Budget, head: str, path: Path) -> None:
    """How often the learned scorers are right, as CSV, and as Markdown beside it. What is there
    stays: the runs were made with those scorers, and others are only nearly the same."""
    if path.exists():
        return
    rows = scorers.quality(folders, budget)
    write_csv(path, rows, head)
    heads = ["scorer", "hard pairs", "right", "as the first"]
    numbers = lambda row: [f"{row['right']:.3f}", f"{row['as_first']:.3f}"]
    cells = [[row["scorer"], str(row["pairs"]), *numbers(row)] for row in rows]
    write_atomic(path.with_suffix(".md"), markdown_table(heads, cells).encode())


# ----------------------------------------------------------------------------- what is drawn


def fallen(values: np.ndarray) -> list[int]:
    """Evaluations at which the truth has fallen below its best by more than its interval.

    values: (seeds, evaluations). The best is that of the mean over seeds.
    """
    best = int(values.mean(0).argmax())
    drops = [
        (n, over_seeds(values[:, n] - values[:, best])[1]) for n in range(best + 1, len(values.T))
    ]
    return [n for n, high in drops if high is not None and high < 0]


def draw_curves(lines: Table, names: list[str], path) -> None:
    """Over training: the truth, the arm's own reward, an unseen scorer, render error. A column an
    arm, a thin line a seed, the mean thick, the base dotted, a cross where the truth has fallen."""
    figure = pictures.new_figure(figsize=(10, 7.2))
    grid = figure.subplots(4, len(names), sharex=True, sharey="row", squeeze=False)
    gain = lambda steps, values: (steps, np.array(values) - values[0])
    rows = {
        "testpoints right": lambda rows, _: pictures.series(rows, TRUTH),
        "own reward, gain": lambda rows, arm: gain(*own(rows, arm)),
        "unseen scorer, gain": lambda rows, _: gain(*pictures.series(rows, "third")),
        "render error": lambda rows, _: pictures.series(rows, "heldout_render_error"),
    }
    for line, (label, values_of) in zip(grid, rows.items()):
        line[0].set_ylabel(label)
        for axes, name in zip(line, names):
            runs = [values_of(lines.run(name, seed), name) for seed in lines.seeds(name)]
            for steps, values in runs:
                axes.plot(steps, values, color=pictures.MUTED, lw=1)
                axes.axhline(values[0], color=pictures.INK, ls=":", lw=1)
            longest, _ = max(runs, key=lambda run: len(run[0]))
            whole = np.array([values for steps, values in runs if steps == longest])
            axes.plot(longest, whole.mean(0), "-", color=pictures.INK, lw=2)
            if label == "testpoints right":
                at = fallen(whole)
                marks = [longest[n] for n in at], whole.mean(0)[at]
                axes.plot(*marks, "x", color=pictures.INK, ms=9, mew=2)
            axes.spines[["top", "right"]].set_visible(False)
    for above, below, name in zip(grid[0], grid[-1], names):
        above.set_title(name.removesuffix(SLOWER), fontsize=10)
        below.set_xlabel("step")
    pictures.save_figure(figure, path)


def draw_pictures(runs: Path, path, rows: int = 8) -> None:
    """One held-out prompt a row, an arm a column, the same noise along a row; of the first seed."""
    kinds = {prompt.kind: prompt.text for prompt in reversed(heldout_prompts())}
    prompts = list(kinds.values())[:rows]
    folders = {name: folder_of(runs, name, 0) / "final" for name in NAMES}
    columns = [pictures_of(folder, prompts) for folder in (scorers.FLUX, *folders.values())]
    pictures.sample_grid(list(map(list, zip(*columns))), prompts, path, ["base", *NAMES])


@torch.no_grad()
def pictures_of(folder, prompts: list[str]) -> list:
    model = base.load(str(folder), size=32)
    noise = model.noise([seed_of("table1", n) for n in range(len(prompts))])
    velocity = model.velocity(model.encode(prompts))
    return model.decode(sampler.ode_sample(velocity, noise, sampler.sigma_schedule(6)))


def main(arguments: list[str] | None = None) -> None:
    name = size_asked_for(__doc__, arguments)
    size, budget = SIZES[name], scorers.SMALLEST if name == "smallest" else scorers.FULL
    lines = Table(size.folder / "table1.csv", size.flags)
    prompts = Table(size.folder / "table1_prompts.csv", size.flags)
    folders, runs = scorers.learned(OUT / name / "scorers", budget), OUT / name / "table1"
    arms, kept = arms_of(folders), (*KEPT, *(f"heldout/{d}" for d in DIMENSIONS))
    make = functools.partial(make_runs, watch=Watch(folders), kept=kept)
    make(arms, size, runs, lines, prompts)
    if name == "full":
        make(slower(arms), size._replace(seeds=SLOW_SEEDS), runs, lines, prompts)
    write_scorers(folders, budget, lines.head, size.folder / "table1_scorers.csv")
    write_rows(summary_rows(lines, prompts, NAMES), lines.head, size.folder / "table1_summary.csv")
    by_dimension = dimensions(lines)
    write_rows(by_dimension, lines.head, size.folder / "table1_dimensions.csv")
    draw_curves(lines, NAMES, size.folder / "table1_curves.png")
    if name == "full":
        slower_rows = summary_rows(lines, prompts, SLOW)
        write_rows(slower_rows, lines.head, size.folder / "table1_slower.csv")
        draw_curves(lines, SLOW, size.folder / "table1_curves_slower.png")
    percent = {}
    for row in by_dimension:
        percent.setdefault(row["arm"], {})[row["quantity"]] = 100 * row["mean"]
    radar(percent, size.folder / "table1_radar.png")
    cells = [[arm, *(f"{value:.1f}" for value in of.values())] for arm, of in percent.items()]
    print(text_table(["percent right", *percent[OURS]], cells))
    if runs.exists():
        draw_pictures(runs, size.folder / "table1_pictures.png")


if __name__ == "__main__":
    main()
