"""Runs of a study: arms by seeds, each a run of train.py's own loop, and what they show as a CSV.

An arm is a way to train: a reward, and flags of train.py. Each run has a directory of its own, can
be killed and taken up as any run can, and is made by one process alone, so that several share what
is to be made. When it is done, its lines of the log join NAME.csv, and what came of each held-out
prompt joins NAME_prompts.csv; a later call makes only the runs that these lack, and needs no run
directory to draw from them.

    study = Study("NAME", "full", {"full": flags})
    study.make(arms, seeds, watch)
    study.lines.run("plain ranks", 0)           # one dict per step
"""

import argparse
import csv
import io
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import train
from common.files import hold, write_atomic
from training import log as run_log
from training.config import parse_config
from training.run import Run
from training.session import started

log = logging.getLogger("study")
RESULTS, OUT = Path(__file__).parent / "results", Path("runs/study")
GROUPS = ("--prompts_per_step=8", "--group_size=8")
TINY = ("--prompts_per_step=1", "--group_size=3", "--num_steps=2", "--steps=1", "--heldout=2")
SLOWER = " at 1e-4"  # in the name of an arm: half the learning rate of the others
# Of the log: what it says of images and rewards. Times are left out, they are never the same.
KEPT = ("heldout_accuracy", "heldout_all_correct", "heldout_render_error", "win_rate_vs_base")
KEPT += ("reward_mean", "reward_std", "frac_floor", "tie_rate", "kl_to_base", "grad_norm")


def short_and_long(shared: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Flags by size, of 72 steps or, for the quick form, 24."""
    ends = {"full": "--steps=72", "quick": "--steps=24"}
    return {size: (*shared, steps, "--eval_every=12") for size, steps in ends.items()}


class Arm(NamedTuple):
    name: str
    reward: Callable | None  # makes what is called as rewards.PairwiseReward is; None: by flags
    flags: tuple[str, ...] = ()  # of train.py, beside those of all arms
    prepare: Callable = lambda run: None  # what else the run is given before its first step


def size_asked_for(doc: str, arguments: Sequence[str] | None) -> str:
    """The command line of a study: "full", "quick" or "smallest"."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="less of the same, in minutes")
    size.add_argument("--smallest", action="store_true", help="seconds: only to see that it runs")
    args = parser.parse_args(arguments)
    return "quick" if args.quick else "smallest" if args.smallest else "full"


def folder_of(size: str) -> Path:
    """Where tables and figures of that size are written."""
    return RESULTS if size == "full" else OUT / size


# ----------------------------------------------------------------------------- tables


class Table:
    """A CSV that grows by whole runs. Its first line is a comment: flags that all runs share."""

    def __init__(self, path: Path, flags: Sequence[str]):
        """Raises ValueError if the file is of runs with other flags."""
        self.path, self.head, self.rows = Path(path), "# " + " ".join(flags), []
        self.read()

    def read(self) -> None:
        """Takes up what the file has, which another process may have added to."""
        if self.path.exists():
            head, *lines = self.path.read_text().splitlines()
            if head != self.head:
                other = f"is of runs with '{head[2:]}', not with '{self.head[2:]}'"
                raise ValueError(f"{self.path} {other}: remove it to make them anew")
            self.rows = list(csv.DictReader(lines))

    def seeds(self, arm: str) -> list[int]:
        """Of the runs of this arm that are there."""
        return list(dict.fromkeys(int(row["seed"]) for row in self.rows if row["arm"] == arm))

    def run(self, arm: str, seed: int) -> list[dict]:
        """The rows of a run, cells as numbers, None where a cell is empty."""
        mine = [row for row in self.rows if (row["arm"], row["seed"]) == (arm, str(seed))]
        number = lambda value: float(value) if value else None
        return [{k: number(v) for k, v in row.items() if k != "arm"} for row in mine]

    def runs(self, arm: str) -> list[list[dict]]:
        return [self.run(arm, seed) for seed in self.seeds(arm)]

    def add(self, arm: str, seed: int, rows: Sequence[dict]) -> None:
        """Adds the rows of one run; those that it may have already give way to them."""
        self.read()
        kept = [row for row in self.rows if (row["arm"], row["seed"]) != (arm, str(seed))]
        new = [{"arm": arm, "seed": seed} | row for row in rows]
        self.rows = kept + [{k: text(v) for k, v in row.items()} for row in new]
        write_csv(self.path, self.rows, self.head)


def text(value) -> str:
    """A cell: a number in six digits; empty where there is none."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[dict], head: str) -> None:
    """The rows, after one comment line that says what they are of."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: text(v) for k, v in row.items()} for row in rows)
    write_atomic(path, f"{head}\n{out.getvalue()}".encode())


# ----------------------------------------------------------------------------- runs


def of_prompts(run: Run) -> list[dict]:
    """For each held-out prompt how many of its testpoints held in the base's image, and in that
    of the last step."""
    return [
        {"prompt": n, "testpoints": len(before), "base": sum(before), "last": sum(after)}
        for n, (before, after) in enumerate(met_of(run))
    ]


def met_of(run: Run) -> list[tuple[list[bool], list[bool]]]:
    """For each held-out prompt which of its testpoints held in the base's image, and in that of the
    last step: none, if the run broke down before it."""
    whole = run.metrics[-1]["step"] == run.cfg.steps
    base = run.heldout.base.met
    return list(zip(base, run.last[0].met if whole else [[] for _ in base], strict=True))


class Study:
    """The runs of one study at one size: their two tables, and where they and figures lie."""

    def __init__(self, stem: str, size: str, flags: dict[str, tuple[str, ...]]):
        """flags: of train.py, for all arms, by size; those of "smallest" are always TINY."""
        self.stem, self.size, self.out = stem, size, OUT / size / stem
        self.flags = TINY if size == "smallest" else flags[size]
        self.lines = Table(self.file(".csv"), self.flags)
        self.prompts = Table(self.file("_prompts.csv"), self.flags)

    def file(self, end: str) -> Path:
        return folder_of(self.size) / f"{self.stem}{end}"

    def run_folder(self, arm: str, seed: int) -> Path:
        return self.out / f"{re.sub(r'[^A-Za-z0-9-]+', '_', arm)}-{seed}"

    def make(
        self,
        arms: Sequence[Arm],
        seeds,
        watch: Callable = lambda prompts, grid: {},
        kept=KEPT,
        details: Callable = of_prompts,
    ) -> None:
        """Makes the runs that the tables lack, the first seed of all arms first; of a short form
        that seed alone.

        watch: from prompts and rows of held-out images, one row per prompt, to what else is to be
        known of them, numbers by name; kept: what of the log; details: the rows of a run's prompts.
        """
        seeds = seeds if self.size == "full" else (0,)
        wanted = [(arm, seed) for seed in seeds for arm in arms]
        for count, (arm, seed) in enumerate(wanted, 1):
            if seed in self.lines.seeds(arm.name):
                continue
            out = self.run_folder(arm.name, seed)
            label = f"{arm.name}, seed {seed} (run {count} of {len(wanted)})"
            self.out.mkdir(parents=True, exist_ok=True)
            try:
                claim = hold(out.with_suffix(".lock"))
            except BlockingIOError:  # another process makes it
                continue
            with claim:
                self.lines.read()
                if seed in self.lines.seeds(arm.name):
                    continue
                run = trained(arm, [*self.flags, f"--seed={seed}", f"--out={out}"], label, watch)
                columns = ("step", *kept, *watch([], []))
                rows = [{k: row.get(k) for k in columns} for row in run.metrics]
                with hold(self.out / "tables.lock", wait=True):
                    self.prompts.add(arm.name, seed, details(run))
                    self.lines.add(arm.name, seed, rows)
                shutil.rmtree(out / "checkpoint")  # 100 MB and more; the tables are what is needed


def trained(arm: Arm, flags: list[str], label: str, watch: Callable) -> Run:
    """One run, begun or taken up. One whose numbers run away ends early, and counts as it is."""
    cfg = parse_config([*flags, *arm.flags])
    if (Path(cfg.out) / "metrics.jsonl").exists():
        cfg = parse_config([*flags, *arm.flags, "--resume"])
    with started(cfg) as run:
        if arm.reward:
            run.judging.rewards = dict.fromkeys(run.judging.rewards, arm.reward())
        arm.prepare(run)
        try:
            train_watched(run, label, watch)
            run.finish()
        except FloatingPointError as error:
            log.warning("%s: %s; the run ends there and counts", label, error)
    return run


def train_watched(run: Run, label: str, watch: Callable) -> None:
    """train.train, with a bar that says which run it is, and `watch` at each evaluation."""
    run.label = label
    run.metrics[0] |= watch(run.heldout.grid_prompts, run.heldout.base_grid)

    def seen(done: train.TrainStep) -> None:
        if run.evaluates(done.step):
            run.metrics[-1] |= watch(run.heldout.grid_prompts, run.last[1])
            run_log.write_metrics(run.out, run.metrics)

    run.observers.append(seen)
    train.train(run.cfg, run)
    if run.last is None:  # taken up after its last step
        with run.average.swapped_in():
            run.last = run.heldout.evaluate(), run.heldout.grid_images(run.model.transformer)
