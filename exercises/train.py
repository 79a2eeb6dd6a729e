"""Trains the tiny model on what you wrote: python -m exercises.train

The loop is that of train.py, which knows nothing of exercises. Of the four functions in it that you
write, sde_step (exercise 2), win_rates (4), group_advantages (6) and clipped_loss (7), those that
pass their checks take the place of ours. Then it trains once more on ours alone, and draws both
held-out curves. Each step has two updates, so that ratios leave 1 and are clipped in the second.
Every flag of train.py works (python train.py --help), for example

    python -m exercises.train --seed 1 --out runs/second
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import grpo
import rewards
import sampler
import train
from exercises.checks import USED, student
from figures import pictures
from training.config import Config, parse_config
from training.run import Run
from training.session import started

# What ends in minutes on two cores, and still shows something; all other settings are train.py's.
BRIEF = ["--steps=32", "--prompts_per_step=8", "--lr=2e-4", "--heldout=157"]
TWO_UPDATES = ["--updates=2", "--micro_batch=32"]  # each sees half of the 64 samples of a step
PLACES = {"sde_step": sampler, "win_rates": rewards, "group_advantages": grpo, "clipped_loss": grpo}


def for_the_loop(sde_step: Callable) -> Callable:
    """A student's sde_step as the loop calls it: samples have each their own step and generator."""

    def by_row(x, velocity, sigmas, index, level, kind="flow", next_latents=None, generator=None):
        if kind != "flow":
            raise ValueError("exercise 2 is about the flow SDE: leave --sde_kind as it is")
        steps = []
        for n, k in enumerate(torch.as_tensor(index).expand(len(x)).tolist()):
            row = slice(n, n + 1)
            given = {} if next_latents is None else {"next_latents": next_latents[row]}
            if isinstance(generator, list):
                given["generator"] = generator[n]
            steps.append(sde_step(x[row], velocity[row], sigmas, k, level, **given))
        return sampler.Step(*map(torch.cat, zip(*steps)))

    return by_row


@contextlib.contextmanager
def in_place(functions: dict[str, Callable]):
    """Puts functions where the loop looks for ours, and ours back afterwards."""
    ours = {name: getattr(PLACES[name], name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(PLACES[name], name, function)
        yield
    finally:
        for name, function in ours.items():
            setattr(PLACES[name], name, function)


def settings(about: str, *usual: str) -> Config:
    """Those of the command line, over the usual ones. --help: what the command is about."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(about.strip())
        raise SystemExit
    return parse_config([*usual, *sys.argv[1:]])


def trained(cfg: Config, name: str, reward=None) -> Run:
    """A whole run into the folder `name` of --out. reward: in place of what --reward names."""
    print(f"\ntraining with {name}:", flush=True)
    with started(dataclasses.replace(cfg, out=str(Path(cfg.out) / name))) as run:
        if reward:
            run.judging.rewards = dict.fromkeys(run.judging.rewards, reward)
        train.train(run.cfg, run)
        run.finish()
    return run


def held_out(run: Run) -> tuple[list, list]:
    """Steps, and the share of held-out testpoints that hold after each."""
    return pictures.series(run.metrics, "heldout_accuracy")


def draw(curves: dict[str, tuple[list, list]], title: str, path: Path) -> None:
    """Steps and values of each curve, later ones over earlier ones, which stay visible below."""
    figure = pictures.new_figure(figsize=(6.4, 4))
    axes = pictures.subplots(figure)
    styles = zip(pictures.PALETTE, ("-", "--", ":"))
    for (name, (steps, values)), (color, style) in zip(curves.items(), styles):
        axes.plot(steps, values, "o" + style, color=color, label=name, lw=2, ms=5)
    highest = max([1.0, *(value for _, values in curves.values() for value in values)])
    # From 0, since closer chance would look like a rise; with room for the marks at the top.
    axes.set(title=title, xlabel="step", ylim=(0, 1.05 * highest))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    pictures.save_figure(figure, path)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = settings(__doc__, "--out=runs/exercises", *BRIEF, *TWO_UPDATES)
    functions = {name: student(name) for name in PLACES}
    for name in functions:
        print(f"{name}: {USED[name]}")
    yours = {name: f for name, f in functions.items() if USED[name] == "yours"}
    if not yours:
        raise SystemExit("nothing of yours to train on yet: see exercises 2, 4, 6 and 7")
    if "sde_step" in yours:
        yours["sde_step"] = for_the_loop(yours["sde_step"])
    print(
        "Twice the same training, first with your functions, then with ours; the functions of the "
        "other exercises are not used here."
    )
    with in_place(yours):
        theirs = trained(cfg, "yours")
    runs, path = {"ours": trained(cfg, "ours"), "yours": theirs}, Path(cfg.out) / "curves.png"
    title = "Held-out prompts: share of testpoints right"
    draw({name: held_out(run) for name, run in runs.items()}, title, path)
    print(
        f"\nlook at {path}. The same curve means right. So few steps need not rise: the interval "
        "that stands behind each result above says how much of it may be chance."
    )


if __name__ == "__main__":
    main()
