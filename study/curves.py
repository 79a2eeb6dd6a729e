"""Curves over training, drawn in one way: a column an arm, a row a quantity.

draw(study.lines, arms, {"accuracy": of(ACCURACY), "win rate": of("win_rate_vs_base")}, path)
"""

import textwrap
from collections.abc import Callable

import numpy as np

from figures import pictures
from study.runs import SLOWER, Table
from study.summary import over_seeds


def of(key: str) -> Callable:
    """Steps and values of a key of the log, over a run."""
    return lambda rows, arm: pictures.series(rows, key)


def fallen(values: np.ndarray) -> list[int]:
    """Evaluations at which the accuracy has fallen below its best by more than its interval.

    values: (seeds, evaluations). The best is that of the mean over seeds.
    """
    best = int(values.mean(0).argmax())
    later = range(best + 1, values.shape[1])
    drops = [(n, over_seeds(values[:, n] - values[:, best])[1]) for n in later]
    return [n for n, high in drops if high is not None and high < 0]


def draw(lines: Table, arms, rows: dict[str, Callable], path) -> None:
    """A thin line a seed, the mean of whole runs thick, the base dotted, a cross where the accuracy
    has fallen. rows: by label, from the lines of a run and its arm to steps and values."""
    figure = pictures.new_figure(figsize=(2 + 1.6 * len(arms), 0.8 + 1.6 * len(rows)))
    shape, how = (len(rows), len(arms)), dict(sharex=True, sharey="row", squeeze=False)
    grid = pictures.subplots(figure, *shape, **how)
    for line, (label, values_of) in zip(grid, rows.items()):
        line[0].set_ylabel(label)
        for axes, arm in zip(line, arms):
            runs = [values_of(run, arm) for run in lines.runs(arm)]
            for steps, values in runs:
                axes.plot(steps, values, color=pictures.MUTED, lw=1)
                axes.axhline(values[0], color=pictures.INK, ls=":", lw=1)
            longest, _ = max(runs, key=lambda run: len(run[0]))
            whole = np.array([values for steps, values in runs if steps == longest])
            mean = whole.mean(0)
            axes.plot(longest, mean, color=pictures.INK, lw=2)
            if label == "accuracy":
                at = fallen(whole)
                axes.plot(np.take(longest, at), mean[at], "x", color=pictures.INK, ms=9, mew=2)
    for above, below, arm in zip(grid[0], grid[-1], arms):
        above.set_title(textwrap.fill(arm.removesuffix(SLOWER), 18), fontsize=10)
        below.set_xlabel("step")
    pictures.save_figure(figure, path)
