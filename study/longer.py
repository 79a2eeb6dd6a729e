"""The curve that shows hacking: arms of table1.py and five_ways.py, three times as long.

Those two stop after 72 steps, when some arms have begun to fall and others have not. Here they go
on, at train.py's own learning rate: the arms of Table 1; win rates in both orders without the floor
and a judge's scores with one, to see what it is that holds; z-scores and ranks with ties of the
five ways. The learned scorer and win rates in both orders go on at Table 1's rate too, twice that.

    python -m study.longer                      # 33 runs, 3 hours on 2 cores; only those missing
    python -m study.longer --quick              # four of them, fewer steps, one seed: in minutes

Writes longer.csv (lines of the log) and longer_prompts.csv (each held-out prompt after the last
step), longer_scorers (.csv and .md), and of each group of arms a summary (.csv and .md) and a
figure: longer_arms, longer_cures, longer_faster. Of the two ways the same: longer_ways.csv,
longer_ways_prompts.csv, longer_ways_summary (.csv and .md), longer_ways.png.
"""

from study import five_ways, scorers
from study.runs import OUT, RESULTS, Arm, Size, Table, make_runs, size_asked_for
from study.summary import summarize, write_rows
from study.table1 import (
    COMMON,
    LEARNED,
    NO_FLOOR,
    OURS,
    OWN,
    SLOW,
    SLOWER,
    Watch,
    arms_of,
    draw_curves,
    slower,
    summary_rows,
    write_scorers,
)

# Ours without its floor, and a judge's scores with one: as large a share of their scale, 1 to 5.
NO_FLOOR_OURS = Arm("both orders without floor", None, (NO_FLOOR,))
FLOOR_SCORES = Arm("judge scores with floor", None, ("--reward=pointwise", "--std_floor=0.2"))
CURES = [NO_FLOOR_OURS.name + SLOWER, FLOOR_SCORES.name + SLOWER, OURS + SLOWER]
OWN |= {NO_FLOOR_OURS.name: OWN[OURS], FLOOR_SCORES.name: OWN["judge scores"]}
FIGURES = {  # the last of the arms is what the others are held against
    "longer_arms": SLOW,
    "longer_cures": CURES,
    "longer_faster": [LEARNED, OURS],
}
TWO = {"longer_arms": [LEARNED + SLOWER, OURS + SLOWER]}  # of the short forms
WAYS = ["z-scores", five_ways.CURE]
STEPS = {"full": ("--steps=240", "--eval_every=24"), "quick": ("--steps=48", "--eval_every=12")}
WAYS_COMMON = ("--prompts_per_step=8", "--group_size=8", "--lr=1e-4", "--heldout=157")
SEEDS = {"full": (0, 1, 2), "quick": (0,), "smallest": (0,)}


def all_arms(folders) -> list[Arm]:
    """folders: of the learned scorers, by name. The two that matter most come first."""
    arms = arms_of(folders)
    at_half = slower([*arms, NO_FLOOR_OURS, FLOOR_SCORES])
    first = [arm for arm in at_half if arm.name in TWO["longer_arms"]]
    rest = [arm for arm in at_half if arm not in first]
    return first + rest + [arm for arm in arms if arm.name in FIGURES["longer_faster"]]


def main(arguments: list[str] | None = None) -> None:
    name = size_asked_for(__doc__, arguments)
    figures = FIGURES if name == "full" else TWO
    folder = RESULTS if name == "full" else OUT / name
    budget = scorers.SMALLEST if name == "smallest" else scorers.FULL
    folders = scorers.learned(OUT / name / "scorers", budget)

    arms = [arm for arm in all_arms(folders) if any(arm.name in of for of in figures.values())]
    lines, prompts = made("longer", name, folder, COMMON, arms, Watch(folders))
    write_scorers(scorers.quality(folders, budget), lines.head, folder / "longer_scorers.csv")
    for stem, of in figures.items():
        write_rows(summary_rows(lines, prompts, of), lines.head, folder / f"{stem}.csv")
        draw_curves(lines, of, folder / f"{stem}.png")

    ways = [arm for arm in five_ways.ARMS if arm.name in WAYS]
    lines, prompts = made("longer_ways", name, folder, WAYS_COMMON, ways, five_ways.watch)
    shown = summarize(lines, prompts, WAYS, five_ways.CURE)
    write_rows(shown, lines.head, folder / "longer_ways_summary.csv")
    five_ways.draw(lines, WAYS, folder / "longer_ways.png")


def made(stem: str, name: str, folder, common, arms, watch) -> tuple[Table, Table]:
    flags = five_ways.TINY if name == "smallest" else (*common, *STEPS[name])
    lines, prompts = (
        Table(folder / f"{stem}.csv", flags),
        Table(folder / f"{stem}_prompts.csv", flags),
    )
    make_runs(arms, Size(SEEDS[name], flags, folder), OUT / name / stem, lines, prompts, watch)
    return lines, prompts


if __name__ == "__main__":
    main()
