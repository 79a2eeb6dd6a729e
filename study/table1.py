"""The paper's Table 1 in kind: one world, the same prompts and noise, and five rewards.

The paper compares HPS, HPS and CLIP mixed, UnifiedReward's scores, and win rates: one run each, and
not all with the same group size. Here nothing but the reward differs, and the std floor, which
released code lacks. The learned scorers are those of scorers.py. The judge is the shapes judge in
three arms: by scores; by win rates as released code makes them, in one order and from a judge that
always names a winner; by win rates as this repository makes them, in both orders and with ties.

    python -m study.table1                      # 40 runs, 1.5 hours on 2 cores; only those missing
    python -m study.table1 --quick              # one seed and fewer steps, in minutes

Writes table1*: lines of the log, what came of each held-out prompt, tables and figures; those named
"slower" are of the runs at half the rate; table1_pictures.png needs the run directories.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

import sampler
from common.seeds import seed_of
from figures import pictures
from judges.scorers import CLIPScorer, MLLMScorer
from models import base
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from study import curves, scorers
from study.runs import GROUPS, KEPT, OUT, SLOWER, Arm, Study, Table, short_and_long, size_asked_for
from study.summary import ACCURACY, BESIDE, row_of, summarize, write_tables
from training.heldout import primary_of
from unigenbench.report import radar

DIMENSIONS = sorted({primary_of(sub) for p in heldout_prompts() for sub, _ in p.testpoints})
OURS, LEARNED, ONE = "win rates both orders", "learned scorer", "win rates one order"
NO_FLOOR = "--std_floor=0"


class AlwaysAWinner(ShapesMLLM):
    """The shapes judge where a tie is not allowed: of images with the same looks the cleaner one
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
        Arm(ONE, one_order, (NO_FLOOR,)),
        Arm(OURS, None),
    ]


def slower(arms: list[Arm]) -> list[Arm]:
    """The arms at half the learning rate, which is train.py's own: no arm is to look bad, or good,
    by its rate."""
    return [arm._replace(name=arm.name + SLOWER, flags=(*arm.flags, "--lr=1e-4")) for arm in arms]


NAMES = [arm.name for arm in arms_of(dict.fromkeys(scorers.NAMES))]
SLOW = [name + SLOWER for name in NAMES]
SHARED = (*GROUPS, "--lr=2e-4")
FLAGS = short_and_long(SHARED)
SEEDS, SLOW_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
# What each arm is rewarded by, measured on held-out images: of scorers, their mean; of the judge's
# scores, these; of any other, the win rate against the base.
OWN = {LEARNED: ("first",), "two scorers mixed": ("first", "second")}
OWN |= dict.fromkeys(("judge scores", "judge scores with floor"), ("judge",))
UNSEEN = {"third": "unseen scorer 1", "fourth": "unseen scorer 2"} | BESIDE


# ----------------------------------------------------------------------------- what is watched


class Watch:
    """Mean scores of held-out images by the learned scorers, and by the judge (1 to 5)."""

    def __init__(self, folders: dict[str, Path]):
        clip = lambda name: CLIPScorer(str(folders[name]), name=name, batch_size=256)
        self.scorers = {name: clip(name) for name in folders} | {"judge": MLLMScorer(ShapesMLLM())}

    def __call__(self, prompts, grid) -> dict[str, float | None]:
        asked = [prompt for prompt, row in zip(prompts, grid) for _ in row]
        shown = [image for row in grid for image in row]
        score = lambda scorer: float(np.mean(scorer.score(asked, shown))) if shown else None
        return {name: score(scorer) for name, scorer in self.scorers.items()}


def own(rows: list[dict], arm: str) -> tuple[list, list]:
    """Steps and values of what the arm is rewarded by, over a run."""
    keys = OWN.get(arm.removesuffix(SLOWER), ("win_rate_vs_base",))
    columns = [pictures.series(rows, key) for key in keys]
    return columns[0][0], np.mean([values for _, values in columns], 0).tolist()


# ----------------------------------------------------------------------------- what is written


def summary_rows(study: Study, arms: list[str], beside=BESIDE) -> list[dict]:
    """Of runs at one rate, and how much of its own reward each arm has gained on held-out images.
    arms: the last one is ours, and the others are held against it."""
    rows = summarize(study, arms, arms[-1], beside)
    for arm in arms:
        runs = [own(run, arm)[1] for run in study.lines.runs(arm)]
        gained = row_of([values[-1] - values[0] for values in runs])
        rows.append({"arm": arm, "quantity": "less the base, own reward"} | gained)
    return rows


def dimensions(lines: Table) -> list[dict]:
    """The accuracy in each primary dimension, after the last step and of the base."""
    found = {"base": [lines.runs(OURS)[0][:1]]} | {arm: lines.runs(arm) for arm in NAMES}
    return [
        {"arm": arm, "quantity": name} | row_of([run[-1][f"heldout/{name}"] for run in runs])
        for arm, runs in found.items()
        for name in DIMENSIONS
        if runs[0][-1][f"heldout/{name}"] is not None
    ]


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    groups = {"_summary": NAMES, "_slower": SLOW} if study.size == "full" else {"_summary": NAMES}
    found = {end: summary_rows(study, arms, UNSEEN) for end, arms in groups.items()}
    return found | {"_dimensions": dimensions(study.lines)}


def draw_curves(study: Study, arms: list[str], end: str) -> None:
    """The curves of these arms: accuracy, the arm's own reward, an unseen scorer, render error."""
    gain = lambda steps, values: (steps, np.array(values) - values[0])
    rows = {
        "accuracy": curves.of(ACCURACY),
        "own reward, gain": lambda rows, arm: gain(*own(rows, arm)),
        "unseen scorer, gain": lambda rows, _: gain(*pictures.series(rows, "third")),
        "render error": curves.of("heldout_render_error"),
    }
    curves.draw(study.lines, arms, rows, study.file(f"{end}.png"))


def write_scorers(study: Study, folders: dict[str, Path], budget: scorers.Budget) -> None:
    """How often the learned scorers are right. What is there stays: the runs were made with those
    scorers, and others are only nearly the same."""
    if not study.file("_scorers.csv").exists():
        write_tables(study, {"_scorers": scorers.quality(folders, budget)})


def draw_images(study: Study, path, count: int = 8) -> None:
    """One held-out prompt a row, an arm a column, the same noise along a row; of the first seed."""
    kinds = {prompt.kind: prompt.text for prompt in reversed(heldout_prompts())}
    prompts = list(kinds.values())[:count]
    folders = [study.run_folder(name, 0) / "final" for name in NAMES]
    columns = [images_of(folder, prompts) for folder in (scorers.FLUX, *folders)]
    pictures.sample_grid(list(map(list, zip(*columns))), prompts, path, ["base", *NAMES])


@torch.no_grad()
def images_of(folder, prompts: list[str]) -> list:
    model = base.load(str(folder), size=32)
    noise = model.noise([seed_of("table1", n) for n in range(len(prompts))])
    velocity = model.velocity(model.encode(prompts))
    return model.decode(sampler.ode_sample(velocity, noise, sampler.sigma_schedule(6)))


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    study, budget = Study("table1", size, FLAGS), scorers.BUDGETS[size]
    folders = scorers.learned(OUT / size / "scorers", budget)
    arms, watch = arms_of(folders), Watch(folders)
    kept = (*KEPT, *(f"heldout/{d}" for d in DIMENSIONS))
    study.make(arms, SEEDS, watch, kept)
    draw_curves(study, NAMES, "_curves")
    if size == "full":
        study.make(slower(arms), SLOW_SEEDS, watch, kept)
        draw_curves(study, SLOW, "_curves_slower")
    write_scorers(study, folders, budget)
    found, percent = tables(study), {}
    write_tables(study, found)
    for row in found["_dimensions"]:
        percent.setdefault(row["arm"], {})[row["quantity"]] = 100 * row["mean"]
    radar(percent, study.file("_radar.png"))
    if study.out.exists():
        draw_images(study, study.file("_pictures.png"))


if __name__ == "__main__":
    main()
