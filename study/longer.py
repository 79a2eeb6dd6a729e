"""The curve that shows hacking: arms of table1.py and five_ways.py, three times as long.

Those two stop after 72 steps, when some arms have begun to fall and others have not. Here they go
on, at train.py's own learning rate: the arms of Table 1; win rates in both orders without the floor
and a judge's scores with one, to see what it is that holds; z-scores and ranks with ties of the
five ways. The learned scorer and win rates in both orders go on at Table 1's rate too, twice that.

    python -m study.longer                      # 47 runs, 4 hours on 2 cores; only those missing
    python -m study.longer --quick              # four of them, fewer steps, one seed: in minutes

Scorers that are missing are trained first, in three minutes. The first line of longer.csv has
Table 1's flags; arms named "at 1e-4" have that rate instead.

Writes longer.csv (lines of the log) and longer_prompts.csv (each held-out prompt after the last
step), longer_scorers and longer_seeds (.csv and .md), and of each group of arms a summary (.csv and
.md) and a figure: longer_arms, longer_cures, longer_faster. Of the two ways: longer_ways.csv,
longer_ways_prompts.csv, longer_ways_summary (.csv and .md), longer_ways.png.
"""

from common.files import write_atomic
from figures.pictures import series
from study import five_ways, scorers
from study.runs import OUT, RESULTS, Arm, Size, Table, make_runs, size_asked_for, write_csv
from study.summary import TRUTH, summarize, write_rows
from study.table1 import (
    COMMON,
    LEARNED,
    NO_FLOOR,
    OURS,
    SLOW,
    SLOWER,
    Watch,
    arms_of,
    draw_curves,
    slower,
    summary_rows,
    write_scorers,
)
from unigenbench.tables import markdown_table

# Ours without its floor, and a judge's scores with one: as large a share of their scale, 1 to 5.
CURES = [
    Arm("both orders without floor", None, (NO_FLOOR,)),
    Arm("judge scores with floor", None, ("--reward=pointwise", "--std_floor=0.2")),
]
SLOW_CURES = [arm.name for arm in slower(CURES)]
FIGURES = {  # the last of the arms is what the others are held against
    "longer_arms": SLOW,
    "longer_cures": [*SLOW_CURES, OURS + SLOWER],
    "longer_faster": [LEARNED, OURS],
}
SHORT = {"longer_arms": [LEARNED + SLOWER, OURS + SLOWER]}  # of the short forms
# Scorers are trained anew where runs are made, and other ones are only nearly the same: what they
# say of pictures is drawn as a gain, and not in the tables.
BESIDE = {"heldout_render_error": "render error", "win_rate_vs_base": "win rate"}
WAYS = ["z-scores", five_ways.CURE]
STEPS = {"full": ("--steps=240", "--eval_every=24"), "quick": ("--steps=48", "--eval_every=12")}
WAYS_COMMON = ("--prompts_per_step=8", "--group_size=8", "--lr=1e-4", "--heldout=157")
SEEDS = {"full": (0, 1, 2), "quick": (0,), "smallest": (0,)}
# Added when the first three had been seen, of all arms in which the judge is asked at train.py's
# own rate and of both ways: whether these hold differs from seed to seed.
MORE = (3, 4)
JUDGED = [*SLOW[2:], *SLOW_CURES]


def all_arms(folders) -> list[Arm]:
    """folders: of the learned scorers, by name."""
    arms = arms_of(folders)
    return slower([*arms, *CURES]) + [arm for arm in arms if arm.name in FIGURES["longer_faster"]]


def main(arguments: list[str] | None = None) -> None:
    name = size_asked_for(__doc__, arguments)
    figures = FIGURES if name == "full" else SHORT
    folder = RESULTS if name == "full" else OUT / name
    budget = scorers.SMALLEST if name == "smallest" else scorers.FULL
    folders = scorers.learned(OUT / name / "scorers", budget)

    arms = [arm for arm in all_arms(folders) if any(arm.name in of for of in figures.values())]
    lines, prompts = made("longer", name, COMMON, arms, JUDGED, Watch(folders))
    write_scorers(folders, budget, lines.head, folder / "longer_scorers.csv")
    seeds = of_seeds(lines, [arm.name for arm in arms])
    write_csv(folder / "longer_seeds.csv", seeds, lines.head)
    write_atomic(folder / "longer_seeds.md", seeds_table(seeds).encode())
    for stem, of in figures.items():
        write_rows(summary_rows(lines, prompts, of, BESIDE), lines.head, folder / f"{stem}.csv")
        draw_curves(lines, of, folder / f"{stem}.png")

    ways = [arm for arm in five_ways.ARMS if arm.name in WAYS]
    lines, prompts = made("longer_ways", name, WAYS_COMMON, ways, WAYS, five_ways.watch)
    shown = summarize(lines, prompts, WAYS, five_ways.CURE)
    write_rows(shown, lines.head, folder / "longer_ways_summary.csv")
    five_ways.draw(lines, WAYS, folder / "longer_ways.png")


def made(stem: str, name: str, common, arms, often, watch) -> tuple[Table, Table]:
    """The tables of the runs, with those made that they lacked. name: of the size; often: arms by
    name that are made with MORE seeds."""
    flags = five_ways.TINY if name == "smallest" else (*common, *STEPS[name])
    size = Size(SEEDS[name], flags, RESULTS if name == "full" else OUT / name)
    tables = [Table(size.folder / f"{stem}{end}.csv", flags) for end in ("", "_prompts")]
    make_runs(arms, size, OUT / name / stem, *tables, watch)
    if name == "full":
        again = [arm for arm in arms if arm.name in often]
        make_runs(again, size._replace(seeds=MORE), OUT / name / stem, *tables, watch)
    return tables[0], tables[1]


def of_seeds(lines: Table, arms: list[str], seeds=(*SEEDS["full"], *MORE)) -> list[dict]:
    """The truth of each run after its last step: where some break down, a mean says little. Of the
    arms that have a run."""
    rows = []
    for arm in filter(lines.seeds, arms):
        last = {seed: series(lines.run(arm, seed), TRUTH)[1][-1] for seed in lines.seeds(arm)}
        rows.append({"arm": arm} | {f"seed {seed}": last.get(seed) for seed in seeds})
    return rows


def seeds_table(rows: list[dict]) -> str:
    """The same in Markdown."""
    shown = lambda value: "" if value is None else f"{value:.3f}"
    cells = [[arm, *map(shown, values)] for arm, *values in (row.values() for row in rows)]
    return markdown_table(["", *list(rows[0])[1:]], cells)


if __name__ == "__main__":
    main()
