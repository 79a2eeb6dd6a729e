"""Do groups without a difference break the runs of a judge that must name a winner?

In kl.py win rates of such a judge, asked in both orders, break down. An account that fits: as the
task is learned, more and more groups hold nothing that anyone would prefer, the judge ranks them
all the same, and normalizing gives these ranks the size of any others. Here it is put to a test. In
each step a second judge, which may call a pair equal, says which groups have no difference: those
whose win rates by it lie below the std floor. The log has their share of the groups and of the
squared advantages; and in a second arm just these groups are dropped. Settings are longer.py's.

    python -m study.dropped                     # 10 runs of 12 minutes on one core

Writes dropped*, as kl.py does. --quick and --smallest as the others have them.
"""

import numpy as np

from rewards import STD_FLOORS, PairwiseReward, Rewards
from shapes.verifier import ShapesMLLM
from study import curves
from study.longer import FLAGS, MORE, SEEDS, of_seeds
from study.runs import KEPT, Arm, Study, size_asked_for
from study.summary import ACCURACY, row_of, summarize, write_tables
from study.table1 import AlwaysAWinner, Watch, slower
from training import log as run_log

FLOOR = STD_FLOORS["pairwise"]
# Of the groups of a step those without a difference: their share of all, and of what is learned.
LOGGED = {"flat_groups": "share of groups", "flat_advantages": "share of squared advantages"}
AVERAGED = 24  # steps, at the start and at the end


class Dropping(PairwiseReward):
    """Win rates of the judge that must name a winner, and which groups have no difference.

    drop: whether these get equal win rates, and so no advantage.
    """

    def __init__(self, drop: bool):
        super().__init__(AlwaysAWinner())
        self.drop, self.with_ties = drop, PairwiseReward(ShapesMLLM())

    def __call__(self, prompts, images) -> Rewards:
        found = super().__call__(prompts, images)
        self.flat = self.with_ties(prompts, images).values.std(1, correction=0) < FLOOR
        kept = found.values.clone()
        if self.drop:
            kept[self.flat] = 0.5
        return found._replace(values=kept)


def logged(run) -> None:
    """Has the run's log say in each step what LOGGED names."""
    (reward,) = set(run.judging.rewards.values())

    def observe(done) -> None:
        squares = done.advantages.square().sum(1)
        share = float(squares[reward.flat].sum() / squares.sum()) if squares.any() else 0.0
        flat = {"flat_groups": float(reward.flat.float().mean()), "flat_advantages": share}
        run.metrics[-1] |= flat
        run_log.write_metrics(run.out, run.metrics)

    run.observers.append(observe)


ARMS = slower(
    [
        Arm("all groups", lambda: Dropping(False), prepare=logged),
        Arm("groups without a difference dropped", lambda: Dropping(True), prepare=logged),
    ]
)
NAMES = [arm.name for arm in ARMS]


def shares(study: Study) -> list[dict]:
    """What LOGGED names, over the first steps and over the last."""
    rows = []
    for arm in filter(study.lines.seeds, NAMES):
        runs = [run[1:] for run in study.lines.runs(arm)]  # the base has no rewards
        for key, label in LOGGED.items():
            for place, part in (("first", slice(AVERAGED)), ("last", slice(-AVERAGED, None))):
                means = [float(np.mean([row[key] for row in run[part]])) for run in runs]
                rows.append({"arm": arm, "quantity": f"{label}, {place} steps"} | row_of(means))
    return rows


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    found = {"_seeds": of_seeds(study.lines, NAMES), "_shares": shares(study)}
    return found | {"_summary": summarize(study, NAMES, reference=NAMES[0])}


def main(arguments: list[str] | None = None) -> None:
    study = Study("dropped", size_asked_for(__doc__, arguments), FLAGS)
    study.make(ARMS, (*SEEDS, *MORE), Watch({}), (*KEPT, *LOGGED))
    write_tables(study, tables(study))
    shown = {"accuracy": ACCURACY, "share of squared advantages": "flat_advantages"}
    rows = {label: curves.of(key) for label, key in shown.items()}
    curves.draw(study.lines, NAMES, rows, study.file(".png"))


if __name__ == "__main__":
    main()
