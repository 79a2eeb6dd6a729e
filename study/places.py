"""Is it learned where things lie, for as long as it takes?

In kinds.py a run on layout prompts alone ("a red circle to the left of a green square") gains as
much as any other, and hardly in where things lie. Here the same run goes on for four times as
long, and the log has at each evaluation the share of held-out layout prompts whose place holds.

    python -m study.places                      # 3 runs of half an hour on one core

Writes places*. --quick and --smallest as the others have them.
"""

from shapes.prompts import heldout_prompts
from study import curves
from study.kinds import on
from study.runs import KEPT, Arm, Study, size_asked_for
from study.summary import ACCURACY, row_of, write_tables
from training import log as run_log

KIND = "layout"
PLACE = "place_accuracy"  # of the log: the testpoint that layout prompts are named for
FLAGS = {
    "full": ("--steps=320", "--eval_every=40"),
    "quick": ("--steps=16", "--eval_every=8"),
}
SEEDS = (0, 1, 2)


def prepare(run) -> None:
    """Has a run train on layout prompts alone, and its log say which places hold."""
    on(KIND)(run)

    def place(held) -> float | None:
        mine = [met for p, met in zip(heldout_prompts(), held.met) if p.kind == KIND]
        return sum(met[0] for met in mine) / len(mine) if mine else None

    def observe(done) -> None:
        if run.evaluates(done.step):
            run.metrics[-1][PLACE] = place(run.last[0])
            run_log.write_metrics(run.out, run.metrics)

    if not run.metrics[0].get(PLACE):
        run.metrics[0][PLACE] = place(run.heldout.base)
    run.observers.append(observe)


ARMS = [Arm(KIND, None, prepare=prepare)]


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    rows, runs = [], study.lines.runs(KIND)
    for key, name in ((PLACE, "places"), (ACCURACY, "accuracy")):
        seen = [[row for row in run if row[key] is not None] for run in runs]
        for at in zip(*seen):
            quantity = f"{name}, step {at[0]['step']:.0f}"
            rows.append({"arm": KIND, "quantity": quantity} | row_of([r[key] for r in at]))
    return {"_summary": rows}


def main(arguments: list[str] | None = None) -> None:
    study = Study("places", size_asked_for(__doc__, arguments), FLAGS)
    study.make(ARMS, SEEDS, kept=(*KEPT, PLACE))
    write_tables(study, tables(study))
    rows = {"accuracy": ACCURACY, "places right": PLACE}
    shown = {label: curves.of(key) for label, key in rows.items()}
    curves.draw(study.lines, [KIND], shown, study.file(".png"))


if __name__ == "__main__":
    main()
