"""What holds a judge that must name a winner? A second order, the KL to the base, a soft answer.

In longer.py win rates of such a judge, asked in one order, break down in four runs of five; with a
third answer, a tie, in none. Here the same judge is asked in both orders, as this repository asks,
with the KL of the paper's own objective at four weights. Then the KL beside what else broke down
there, and a judge whose probability is taken in place of its word. Settings are longer.py's.

    python -m study.kl                          # 38 runs of 10 minutes on one core; several
                                                # processes share them, each begun by this command
Writes kl*, as table1.py does; arms without KL that longer.py made are longer.csv's. --quick and
--smallest as the others have them.
"""

import math
import re
import zlib

from rewards import PairwiseReward
from shapes.grammar import parse_prompt
from shapes.read import read
from shapes.verifier import ShapesMLLM, compare
from study import curves, scorers
from study.longer import FLAGS, MORE, SEEDS, of_seeds
from study.runs import OUT, SLOWER, Arm, Study, size_asked_for
from study.summary import ACCURACY, summarize, write_tables
from study.table1 import LEARNED, NO_FLOOR, ONE, OURS, AlwaysAWinner, Watch, slower

BOTH, SOFT = "always a winner both orders", "soft winner both orders"
WEIGHTS = (0, 0.03, 0.1, 0.3)
KL = "--kl_coef=0.1"


class SoftWinner(AlwaysAWinner):
    """The same judge where its probability that the first is better is taken, as `--soft` takes it:
    near 1/2 where a difference is slight. It stands for a model that can answer "first" or "second"
    alone, but is unsure where a person sees nothing: of images with the same looks the odds are
    logistic in the difference in render error, by just noticeable ones; between the others, where
    the coin would decide, it leans to a side by LEAN; and what can be seen is sure.
    """

    LEAN = 0.05

    def first_probability(self, queries) -> list[float]:
        images = {id(image): image for query in queries for image in query.images}
        readings = dict(zip(images, read(list(images.values()))))
        return [self.odds(q, *(readings[id(image)] for image in q.images)) for q in queries]

    def odds(self, query, first, second) -> float:
        prompt = parse_prompt(re.search(r"^Caption: (.*)$", query.text, re.MULTILINE)[1])
        if seen := compare(prompt, first, second, jnd=math.inf)[1]:
            return float(seen == 1)
        if compare(prompt, first, second, jnd=0.0)[1]:
            return 1 / (1 + math.exp((first.render_error - second.render_error) / ShapesMLLM.JND))
        coin = zlib.crc32(b"".join(image.tobytes() for image in query.images)) % 2
        return 0.5 + self.LEAN * (1 - 2 * coin)


def with_kl(arm: Arm, flag: str = KL) -> Arm:
    return arm._replace(name=f"{arm.name}, KL {flag.split('=')[1]}", flags=(*arm.flags, flag))


def arms_of(scorer) -> tuple[list[Arm], list[Arm]]:
    """The arms that are the question, and the others. scorer: the folder of the learned one."""
    both = Arm(BOTH, lambda: PairwiseReward(AlwaysAWinner()))
    one = Arm(ONE, lambda: PairwiseReward(AlwaysAWinner(), both_orders=False), (NO_FLOOR,))
    soft = Arm(SOFT, lambda: PairwiseReward(SoftWinner(), soft=True))
    ties, learned = Arm(OURS, None), Arm(LEARNED, None, (f"--reward=clip={scorer}", NO_FLOOR))
    others = slower([with_kl(one), with_kl(ties)]) + [with_kl(ties)]
    others += slower([soft, learned, with_kl(learned)])  # the scorer is not longer.csv's
    return slower([with_kl(both, f"--kl_coef={weight}") for weight in WEIGHTS]), others


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    study, scorer = Study("kl", size, FLAGS), OUT / size / "scorers"
    asked, others = arms_of(scorer / scorers.NAMES[0])
    if size != "full":  # without the KL and with it, and the soft answer
        asked, others = asked[::2], [arm for arm in others if SOFT in arm.name]
    study.make(asked, (*SEEDS, *MORE), Watch({}))
    if size == "full":
        scorers.learned(scorer, scorers.FULL)
    study.make(others, SEEDS, Watch({}))
    write(study)


def write(study: Study) -> None:
    """The tables and the figure of what has been made so far."""
    write_tables(study, tables(study))
    if drawn := asked_of(study):
        shown = {"accuracy": curves.of(ACCURACY), "win rate": curves.of("win_rate_vs_base")}
        curves.draw(study.lines, drawn, shown, study.file(".png"))


def asked_of(study: Study) -> list[str]:
    """The arms that are the question, of which there is a run."""
    return [arm.name for arm in arms_of("")[0] if study.lines.seeds(arm.name)]


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    found, drawn = {"_seeds": rows_of(study)}, asked_of(study)
    return found | ({"_summary": summarize(study, drawn, reference=drawn[0])} if drawn else {})


def rows_of(study: Study) -> list[dict]:
    """A row an arm, of those that have a run; beside them those without KL that longer.py made."""
    rows = of_seeds(study.lines, [arm.name for arms in arms_of("") for arm in arms])
    longer = Study("longer", study.size, FLAGS)
    return rows + of_seeds(longer.lines, [ONE + SLOWER, OURS + SLOWER, OURS])


if __name__ == "__main__":
    main()
