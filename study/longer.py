"""The curve that shows hacking: arms of table1.py and estimators.py, three times as long.

Those two stop after 72 steps, when some arms have begun to fall and others have not. Here they go
on, at train.py's own learning rate: the arms of Table 1; win rates in both orders without the floor
and a judge's scores with one, to see what it is that holds; z-scores and ranks with ties of the
five estimators. The learned scorer and win rates in both orders go on at Table 1's rate too, twice
that.

    python -m study.longer                      # 47 runs, 4 hours on 2 cores; only those missing
    python -m study.longer --quick              # four of them, fewer steps, one seed: in minutes

Scorers that are missing are trained first, in three minutes. The first line of longer.csv has
Table 1's flags; arms named "at 1e-4" have that rate instead. Writes longer*, and of the two
estimators longer_estimators*: as table1.py, a summary and a figure for each group of arms.
"""

from figures.pictures import series
from study import estimators, scorers, table1
from study.runs import GROUPS, OUT, SLOWER, Arm, Study, Table, size_asked_for
from study.summary import ACCURACY, write_tables
from study.table1 import LEARNED, NO_FLOOR, OURS, SLOW, Watch, arms_of, slower

# Ours without its floor, and a judge's scores with one: as large a share of their scale, 1 to 5.
CURES = [
    Arm("both orders without floor", None, (NO_FLOOR,)),
    Arm("judge scores with floor", None, ("--reward=pointwise", "--std_floor=0.2")),
]
SLOW_CURES = [arm.name for arm in slower(CURES)]
FIGURES = {  # the last of the arms is what the others are held against
    "_arms": SLOW,
    "_cures": [*SLOW_CURES, OURS + SLOWER],
    "_faster": [LEARNED, OURS],
}
SHORT = {"_arms": [LEARNED + SLOWER, OURS + SLOWER]}  # of the short forms
PAIR = ["z-scores", estimators.CURE]
STEPS = {"full": ("--steps=240", "--eval_every=24"), "quick": ("--steps=48", "--eval_every=12")}
FLAGS = {size: (*table1.SHARED, *steps) for size, steps in STEPS.items()}
PAIR_FLAGS = {s: (*GROUPS, "--lr=1e-4", "--heldout=157", *steps) for s, steps in STEPS.items()}
SEEDS = (0, 1, 2)
# Added when the first three had been seen, of all arms in which the judge is asked at train.py's
# own rate and of both estimators: whether these hold differs from seed to seed.
MORE = (3, 4)
JUDGED = [*SLOW[2:], *SLOW_CURES]


def all_arms(folders) -> list[Arm]:
    """folders: of the learned scorers, by name."""
    arms = arms_of(folders)
    return slower([*arms, *CURES]) + [arm for arm in arms if arm.name in FIGURES["_faster"]]


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    study, budget = Study("longer", size, FLAGS), scorers.BUDGETS[size]
    figures = FIGURES if size == "full" else SHORT
    folders = scorers.learned(OUT / size / "scorers", budget)
    shown = {name for names in figures.values() for name in names}
    arms, watch = [arm for arm in all_arms(folders) if arm.name in shown], Watch(folders)
    study.make(arms, SEEDS, watch)
    study.make([arm for arm in arms if arm.name in JUDGED], MORE, watch)
    table1.write_scorers(study, folders, budget)
    write_tables(study, tables(study, figures, [arm.name for arm in arms]))
    for end, names in figures.items():
        table1.draw_curves(study, names, end)

    study = Study("longer_estimators", size, PAIR_FLAGS)
    pair = [arm for arm in estimators.ARMS if arm.name in PAIR]
    study.make(pair, (*SEEDS, *MORE), estimators.watch)
    estimators.write(study, PAIR)


def tables(study: Study, figures: dict, arms: list[str]) -> dict[str, list[dict]]:
    """By the end of their files' names. Scorers are trained anew where runs are made, and other
    ones are only nearly the same: what they give is drawn as a gain, and not in the tables."""
    found = {end: table1.summary_rows(study, names) for end, names in figures.items()}
    return found | {"_seeds": of_seeds(study.lines, arms)}


def of_seeds(lines: Table, arms: list[str]) -> list[dict]:
    """The accuracy of each run after its last step: where some break down, a mean says little. Of
    the arms that have a run."""
    rows = []
    for arm in filter(lines.seeds, arms):
        last = {seed: series(lines.run(arm, seed), ACCURACY)[1][-1] for seed in lines.seeds(arm)}
        rows.append({"arm": arm} | {f"seed {seed}": last.get(seed) for seed in (*SEEDS, *MORE)})
    return rows


if __name__ == "__main__":
    main()
