"""What does training teach? One kind of prompt trained at a time, all kinds measured.

A run raises held-out accuracy, but on which prompts, by training on which? Here the default run is
made with prompts of one kind alone, and beside it as it is. Held-out prompts are the same in all.
Of each, the testpoint that its kind is named for is told from the others, most of which are about
colors that all kinds share.

    python -m study.kinds                       # 15 runs of 8 minutes on one core

Writes kinds*: a matrix of kinds trained by kinds gained. --quick and --smallest as the others have
them.
"""

import numpy as np

from figures import pictures
from shapes.prompts import all_prompts, heldout_prompts
from study.runs import Arm, Study, met_of, size_asked_for
from study.summary import counts, shares, write_tables
from training.data import Prompts

TRAINED = ("layout", "count", "inclusion", "style")  # where, how many, what in what, drawn how
ALL = "all kinds"
FLAGS = {"full": ("--eval_every=20",), "quick": ("--steps=16", "--eval_every=16")}
SEEDS = (0, 1, 2)
# Of a prompt's testpoints: the first, which a kind is named for, or the others.
PARTS = {"own": slice(1), "others": slice(1, None)}
TITLES = {"own": "what the kind is named for (the base's accuracy)", "others": "other testpoints"}


def on(kind: str):
    """Has a run train on prompts of one kind alone."""

    def prepare(run) -> None:
        run.prompts = Prompts([prompt.text for prompt in all_prompts("train")[kind]], [])

    return prepare


ARMS = [Arm(ALL, None)] + [Arm(kind, None, prepare=on(kind)) for kind in TRAINED]


def of_prompts(run) -> list[dict]:
    """For each held-out prompt how many of its testpoints held in the base's image and in that of
    the last step, the one that its kind is named for apart."""
    rows = []
    for n, (base, last) in enumerate(met_of(run)):
        row = {"prompt": n, "testpoints": len(base), "base": sum(base), "last": sum(last)}
        for name, part in PARTS.items():
            row |= {f"{name} testpoints": len(base[part])}
            row |= {f"{name} base": sum(base[part]), f"{name} last": sum(last[part])}
        rows.append(row)
    return rows


def gains(study: Study, name: str) -> list[dict]:
    """For each kind trained and each kind of held-out prompt what was gained over the base, in one
    of PARTS of its testpoints; a quantity tells the base's own accuracy."""
    rows, kinds = [], np.array([prompt.kind for prompt in heldout_prompts()])
    for arm in (arm.name for arm in ARMS if study.lines.seeds(arm.name)):
        seeds, keys = (
            study.lines.seeds(arm),
            [f"{name} {key}" for key in ("base", "last", "testpoints")],
        )
        base, last, of = (counts(study.prompts, arm, seeds, key) for key in keys)
        for kind in [ALL, *dict.fromkeys(kinds)]:
            mine = (kinds[: base.shape[1]] == kind) | (kind == ALL)
            if of[0, mine].sum():
                before = base[0, mine].sum() / of[0, mine].sum()
                gained = shares((last - base)[:, mine], of[0, mine])
                rows.append({"arm": arm, "quantity": f"gain, {kind} ({before:.2f})"} | gained)
    return rows


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    return {f"_{name}": gains(study, name) for name in PARTS}


def draw(found: dict[str, list[dict]], path) -> None:
    """Gains as matrices, a row a kind trained: in the testpoint of the kind, and in the others."""
    figure = pictures.new_figure(figsize=(11, 6))
    for axes, (name, rows) in zip(pictures.subplots(figure, len(found), 1).flat, found.items()):
        arms, kinds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("arm", "quantity"))
        gain = {(row["arm"], row["quantity"]): row["mean"] for row in rows}
        table = np.array([[gain[arm, kind] for kind in kinds] for arm in arms])
        axes.imshow(table, cmap="RdBu", vmin=-0.5, vmax=0.5, aspect="auto")
        labels = [kind.removeprefix("gain, ").replace(" (", "\n(") for kind in kinds]
        axes.set_xticks(range(len(kinds)), labels, fontsize=8)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylabel("trained on")
        axes.set_title(f"gain in {TITLES[name[1:]]}", fontsize=10)
        for (y, x), value in np.ndenumerate(table):
            color = "white" if abs(value) > 0.3 else "black"
            axes.text(x, y, f"{value:+.2f}", ha="center", va="center", color=color, fontsize=9)
    pictures.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    study = Study("kinds", size_asked_for(__doc__, arguments), FLAGS)
    study.make(ARMS, SEEDS, details=of_prompts)
    found = tables(study)
    write_tables(study, found)
    draw(found, study.file(".png"))


if __name__ == "__main__":
    main()
