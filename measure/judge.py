"""A judge's report card: before a week of GPUs is spent, how good is it at what a run will ask?

    python -m measure.judge --base_url URL --judge_model M      # a server
    python -m measure.judge --local FOLDER                      # a model in this process
    python -m measure.judge                                     # the verifier, which is never wrong

It is asked as train.py with the same flags would (--recipe, --judge_prompt, --soft, ...). A case is
a caption of shapes and three images whose ground truth is known as they are drawn: two in which all
testpoints hold, the second mottled in half of the cases, and one in which one does not. The three
pairs are asked in both orders in the run's words, the third image's testpoints in the benchmark's.
What only 32 pixels tell, such as slight blots, is not asked. The journal beside the page keeps what
was answered: stopped at any point, the same command goes on.
"""

import argparse
import base64
import csv
import time
from pathlib import Path
from typing import NamedTuple

from unigenbench.interrupt import interruptible

if __name__ == "__main__":
    interruptible("measure.judge")  # also while the libraries below load

import numpy as np
from PIL import Image
from scipy.stats import binomtest
from tqdm import tqdm

from common.files import Journal, journal_of
from common.seeds import seed_of
from figures import pictures
from figures.page import image_uri
from judges.answers import Outcome
from judges.mllm import ask_again
from measure.servers import ROOT
from measure.verifier import one_wrong
from rewards import Comparison, PairwiseReward, count_cycles, pair_schedule, points_table, turned
from shapes.grammar import KINDS, SLOTS, Caption, make_prompt
from shapes.prompts import all_prompts, sample_scene
from shapes.read import Reading
from shapes.render import SIZE, Scene, render
from shapes.verifier import look, satisfied
from training import checks, start
from training.config import Config, parse_config
from unigenbench.asking import Task, header_of, read_judgement, reminded, same_answers
from unigenbench.questions import question
from unigenbench.report import write_gallery
from unigenbench.tables import percent, percent_range, text_table
from unigenbench.testpoints import Prompt

TESTED = tuple(dict.fromkeys(sub for _, tested in KINDS.values() for sub, _ in tested))  # 13
LEVELS = ("a testpoint", "a testpoint, against cleanness", "cleanness only", "nothing")
HOLD = ("all that do not hold", "all that hold")
PAIRS = pair_schedule(3)
MOTTLED = 10  # gray levels: std of what is laid over an image, in squares, 32 a side
AT_ONCE = 4  # cases, of 7 questions each: what a kill may lose

# ----------------------------------------------------------------------------- cases


class Case(NamedTuple):
    number: int
    prompt: Caption
    sub: str  # the dimension of the testpoint that does not hold in the third image
    scenes: tuple[Scene, ...]
    held: tuple[list[bool], ...]  # of each image, which testpoints hold
    clean: tuple[bool, ...]
    spots: np.ndarray  # (32, 32, 3) laid over an image that is not clean

    def images(self, size: int) -> tuple[Image.Image, ...]:
        spots = np.kron(self.spots, np.ones((size // SIZE, size // SIZE, 1)))
        drawn = [render([scene], size)[0] for scene in self.scenes]
        drawn = [pixels + spots * (not clean) for pixels, clean in zip(drawn, self.clean)]
        return tuple(Image.fromarray(x.round().clip(0, 255).astype(np.uint8)) for x in drawn)

    def difference(self, i: int, j: int) -> tuple[str, int]:
        """In what two images differ; 1 where i is the better one, -1 where j is, 0 for neither."""
        met, clean = sum(self.held[i]) - sum(self.held[j]), self.clean[i] - self.clean[j]
        level = LEVELS[int(met * clean < 0)] if met else LEVELS[2 if clean else 3]
        return level, int(np.sign(met or clean))


def holding(prompt: Caption, scene: Scene) -> list[bool]:
    """Which testpoints hold in a scene as it is drawn, without any reading."""
    return satisfied(prompt, Reading(scene.things, 0, scene.dark, 0.0))


def spoiled(prompt: Caption, tested: int, rng: np.random.Generator) -> Scene:
    """A scene in which that testpoint does not hold, and all others do as far as that can be: a
    wrong shape is wrong in all that is said of it."""
    scenes = []
    while len(scenes) < 24:
        wrong, _ = one_wrong(prompt, rng)
        if "s2" in prompt.slots and rng.random() < 0.5:
            # both side by side, where one is to be inside the other, or to be absent
            wrong = make_prompt("matching", {"c2": str(rng.choice(SLOTS["c2"]))} | prompt.slots)
        scene = sample_scene(wrong, rng)
        if not holding(prompt, scene)[tested]:
            scenes.append(scene)
    return max(scenes, key=lambda scene: sum(holding(prompt, scene)))


def draw_case(seed: int, number: int) -> Case:
    """The case of that number: dimensions take turns, and so do mottled and clean."""
    rng, sub = np.random.default_rng(seed_of(seed, number, "case")), TESTED[number % len(TESTED)]
    places = [(k, n) for k, (_, t) in KINDS.items() for n, (name, _) in enumerate(t) if name == sub]
    kind, tested = places[rng.integers(len(places))]
    prompts = all_prompts("heldout")[kind]
    prompt = prompts[rng.integers(len(prompts))]
    looks = lambda scene: sorted(map(look, scene.things))
    right, again = sample_scene(prompt, rng), sample_scene(prompt, rng)
    while looks(again) != looks(right):  # the same things, perhaps elsewhere
        again = sample_scene(prompt, rng)
    scenes = (right, again, spoiled(prompt, tested, rng))
    held = tuple(holding(prompt, scene) for scene in scenes)
    clean = (True, number // len(TESTED) % 2 == 1, True)
    return Case(number, prompt, sub, scenes, held, clean, rng.normal(0, MOTTLED, (SIZE, SIZE, 3)))


# ----------------------------------------------------------------------------- asking


def ask_cases(reward: PairwiseReward, cases: list[Case], size: int) -> list[dict]:
    """A line of the journal for each case: what was answered, and its share of calls and time."""
    prompts, shown = [case.prompt for case in cases], [case.images(size) for case in cases]
    asked = [Prompt(0, p.text, list(p.testpoints), "", "", "en") for p in prompts]
    tasks = [Task(s[2:], question(p), len(p.testpoints), "", "") for s, p in zip(shown, asked)]
    begun = time.perf_counter()
    compared = reward.compare(PAIRS, [p.text for p in prompts], shown)
    scored = ask_again(reward.mllm.ask, tasks, reminded)
    seconds, calls = time.perf_counter() - begun, sum(1 + len(c.lost) for c in compared)
    spent = {"seconds": seconds / len(cases), "calls": (calls + sum(map(len, scored))) / len(cases)}
    lines = []
    for n, (case, task, answers) in enumerate(zip(cases, tasks, scored)):
        scores = read_judgement(answers[-1], task.text, task.count).scores
        pairs = [kept(c) for c in compared if c.group == n]
        lines.append({"case": case.number, "pairs": pairs, "scores": scores} | spent)
    return lines


def kept(comparison: Comparison) -> dict:
    """What the journal keeps of it; a judge that is asked for probabilities has no words."""
    said, answer = comparison.outcome, comparison.outcome.answer
    line = {"first": comparison.first, "second": comparison.second, "points": said.points}
    line |= {"verdict": said.verdict.value, "error": said.error}
    return line | {name: getattr(answer, name, None) for name in ("text", "model", "usage")}


def answered(reward: PairwiseReward, cases: list[Case], journal: Journal, size: int) -> list[dict]:
    """The line of each case: the journal's, or a new one where that has none, or a failed call.

    Raises ValueError if nothing is answered any more.
    """
    failed = lambda line: [pair["error"] for pair in line["pairs"] if pair["verdict"] == "failed"]
    known = {line["case"]: line for line in journal.lines if not failed(line)}
    left = [case for case in cases if case.number not in known]
    with journal.file, tqdm(desc="cases", total=len(cases), initial=len(cases) - len(left)) as bar:
        for n in range(0, len(left), AT_ONCE):
            lines = ask_cases(reward, left[n : n + AT_ONCE], size)
            if all(len(failed(line)) == len(line["pairs"]) for line in lines):
                why = f"the judge {reward.name} does not answer: {failed(lines[-1])[-1][:300]}"
                raise ValueError(f"{why}; what it answered is kept: repeat the command to go on")
            for line in lines:
                journal.write(line)
                known[line["case"]] = line
            bar.update(len(lines))
    return [known[case.number] for case in cases]


# ----------------------------------------------------------------------------- what is measured


class Pair(NamedTuple):
    """Two images of a case: 1 where the first is better, -1 the second, 0 neither, None lost."""

    case: Case
    images: tuple[int, int]
    level: str
    truth: int
    said: int | None  # by both orders
    orders: tuple[int | None, int | None]  # by the one in which the first is shown first; the other


class Row(NamedTuple):
    """k of n, with the exact 95 % interval (Clopper and Pearson), which is honest near 0 and 1."""

    name: str
    k: int
    n: int
    tied: int | str = ""
    wrong: int | str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        return tuple(binomtest(self.k, self.n).proportion_ci()) if self.n else None

    def cells(self) -> list[str]:
        share = percent(self.k / self.n if self.n else None), percent_range(self.interval)
        return [self.name, str(self.n), *share, str(self.tied), str(self.wrong)]


HEADER = ["", "Of", "Percent", "95 % interval", "Tied", "Wrong"]


def table_of(line: dict) -> list[list[float | None]]:
    """(3, 3): the points of each image of a case against each other, over both orders."""
    made = [Comparison(0, p["first"], p["second"], Outcome(p["points"])) for p in line["pairs"]]
    return points_table(made, 3)


def pairs_of(case: Case, line: dict) -> list[Pair]:
    sign = lambda points: None if points is None else int(np.sign(points - 0.5))
    points, table = {(p["first"], p["second"]): p["points"] for p in line["pairs"]}, table_of(line)
    pairs = []
    for i, j in PAIRS:
        orders = sign(points[i, j]), sign(turned(points[j, i]))
        pairs.append(Pair(case, (i, j), *case.difference(i, j), sign(table[i][j]), orders))
    return pairs


def judged(name: str, pairs: list[Pair]) -> Row:
    """Pairs that are judged rightly; wrong are those with another winner, or one without cause."""
    tied = sum(p.said == 0 for p in pairs)
    wrong = sum(p.said not in (0, p.truth) for p in pairs)
    return Row(name, sum(p.said == p.truth for p in pairs), len(pairs), tied, wrong)


def scored(name: str, cases: list[Case], lines: list[dict]) -> Row:
    """Testpoints of the third images that are scored rightly: of a dimension, or all that hold, or
    all that do not."""
    right = [
        held == score
        for case, line in zip(cases, lines)
        for (sub, _), held, score in zip(case.prompt.testpoints, case.held[2], line["scores"] or ())
        if name in (sub, HOLD[held])
    ]
    return Row(name, sum(right), len(right))


def sections_of(cases: list[Case], lines: list[dict], pairs: list[Pair]) -> dict[str, list[Row]]:
    """The card's rows; pairs: those that were answered in both orders."""
    of_level = {level: [p for p in pairs if p.level == level] for level in LEVELS}
    met = sum((of_level[level] for level in LEVELS[:2]), [])
    orders = [pair.orders for pair in pairs]
    triples, cyclic = map(sum, zip(*(count_cycles(table_of(line)) for line in lines)))
    verdicts = [pair["verdict"] for line in lines for pair in line["pairs"]]
    rest = {
        "pairs: both orders agree": (sum(a == b for a, b in orders), len(orders)),
        "pairs: the first place wins": (orders.count((1, -1)), len(orders)),
        "pairs: the second place wins": (orders.count((-1, 1)), len(orders)),
        "decided triples: cycles": (cyclic, triples),
        "answers: without a verdict": (verdicts.count("unparsable"), len(verdicts)),
        "answers: none": (verdicts.count("failed"), len(verdicts)),
        "images: not scored": (sum(not line["scores"] for line in lines), len(lines)),
    }
    return {
        "Pairs judged rightly, by what differs": [judged(*of) for of in of_level.items()],
        "Pairs judged rightly, by the testpoint": [
            judged(sub, [p for p in met if p.case.sub == sub]) for sub in TESTED
        ],
        "Testpoints of one image scored rightly": [
            scored(name, cases, lines) for name in (*TESTED, *HOLD)
        ],
        "Order, cycles, lost answers": [Row(name, *counts) for name, counts in rest.items()],
    }


# ----------------------------------------------------------------------------- what it means


def study_of(end: str) -> list[dict]:
    """The rows of a table of the study's section on judge errors."""
    lines = (ROOT / "study" / "results" / f"judging_{end}.csv").read_text().splitlines()
    return list(csv.DictReader(lines[1:]))  # below its settings


def left_on_shapes(pairs: list[Pair]) -> str:
    """What a run on shapes gained by the judge of the study that is nearest to this one. pairs:
    those with a better image."""
    here = judged("", pairs)
    found = {"right": here.k / here.n, "tied": here.tied / here.n, "wrong": here.wrong / here.n}
    both = [row for row in study_of("judges") if row["setup"].endswith(", both orders")]
    near = min(both, key=lambda row: sum(abs(float(row[key]) - found[key]) for key in found))
    lead = lambda row: float(row["right"]) - float(row["wrong"])
    poorer = ", and none of them as poor" * (lead(found) < min(map(lead, both)))
    what = (near["setup"], "less the base")
    gain = next(row for row in study_of("summary") if (row["arm"], row["quantity"]) == what)
    share = lambda row: ", ".join(f"{float(row[key]):.0%} {key}" for key in found)
    number = lambda key: f"{float(gain[key]):+.3f}"
    return (
        f"Of pairs with a better image: {share(found)}. Of the judges in docs/study.md, section 5, "
        f"'{near['setup']}' is nearest{poorer} ({share(near)}). On shapes it left a gain of "
        f"{number('mean')} in held-out accuracy (95 % interval {number('prompts_low')} .. "
        f"{number('prompts_high')} over prompts, {number('seeds_low')} .. {number('seeds_high')} "
        f"over {gain['seeds']} seeds)."
    )


def cost(cfg: Config, lines: list[dict]) -> str:
    """Time and tokens of a call, and what a training step asks for."""
    calls, step = sum(line["calls"] for line in lines), start.calls_of(cfg) * cfg.prompts_per_step
    each = sum(line["seconds"] for line in lines) / calls
    usage = [pair["usage"] for line in lines for pair in line["pairs"] if pair["usage"]]
    counted = "question {:.0f} tokens, answer {:.0f}".format(*np.mean(usage, 0)) if usage else ""
    return (
        f"{calls:.0f} calls at {each:.3g} s each, side by side if a server answers; "
        f"{counted or 'tokens were not counted'}. A training step of --recipe {cfg.recipe} asks "
        f"{step:,} calls: {step * each:.0f} s at this rate."
    )


# ----------------------------------------------------------------------------- the page


def chart(sections: dict[str, list[Row]], path: Path) -> str:
    """Shares with their intervals, a panel for each section: a PNG, and markup that holds it."""
    figure = pictures.new_figure(figsize=(6.4, 12))
    heights = [len(rows) + 2 for rows in sections.values()]
    panels = pictures.subplots(figure, len(sections), height_ratios=heights)
    for axes, (title, rows) in zip(panels, sections.items()):
        for y, row in enumerate(rows):
            if row.n:
                axes.plot(row.interval, (y, y), color=pictures.MUTED, lw=2)
                axes.plot(row.k / row.n, y, "o", color=pictures.INK)
        axes.set_yticks(range(len(rows)), [f"{row.name} ({row.n})" for row in rows], fontsize=8)
        axes.set(title=title, xlim=(-0.03, 1.03), ylim=(len(rows) - 0.4, -0.6))
    pictures.save_figure(figure, path)
    source = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="The shares of the table" src="data:image/png;base64,{source}">'


def shown_wrong(pair: Pair, line: dict, name: str, size: int) -> dict:
    """A group of the report's gallery: what the two images show in truth, and what was answered
    where each was shown first."""
    case, shown, images = pair.case, pair.case.images(size), []
    words = {(p["first"], p["second"]): p["text"] or "" for p in line["pairs"]}
    for k, other in (pair.images, pair.images[::-1]):
        points = [(*of, held, "") for of, held in zip(case.prompt.testpoints, case.held[k])]
        points[-1] = (*points[-1][:3], f"Answered, shown first: {words[k, other][-400:]}")
        about = "clean" if case.clean[k] else "mottled"
        images.append(dict(src=image_uri(shown[k]), name=about, points=points))
    what = f"{case.prompt.text}: the images differ in {pair.level}"
    return dict(model=name, index=case.number, prompt=what, images=images)


# ----------------------------------------------------------------------------- the command


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Config]:
    """This command's settings, and those of a run by the judge that is measured."""
    about, others = __doc__.split("\n")[0], "Other flags are train.py's."
    parser = argparse.ArgumentParser(description=about, epilog=others, allow_abbrev=False)
    parser.add_argument("--local", metavar="FOLDER", help="--judge local --judge_model FOLDER")
    parser.add_argument("--pairs", type=int, default=390, help="about so many [390]")
    parser.add_argument("--size", type=int, default=512, help="pixels, a multiple of 32 [512]")
    parser.add_argument("--seed", type=int, default=0, help="of the cases [0]")
    parser.add_argument("--out", default="runs/judge.html", help="the page [runs/judge.html]")
    args, rest = parser.parse_known_args(arguments)
    least = 2 * len(TESTED) * len(PAIRS)
    if args.pairs < least or args.size < SIZE or args.size % SIZE:
        parser.error(f"--pairs is at least {least}, and --size a multiple of {SIZE}")
    if any(flag.partition("=")[0] == "--base_url" for flag in rest):
        rest = ["--judge", "openai", *rest]
    if args.local:
        rest += ["--judge", "local", "--judge_model", args.local]
    cfg = parse_config(rest)
    checks.check_numbers(cfg)
    for check in (checks.needs, checks.judging, checks.server):
        for fault in check(cfg, 1):
            raise SystemExit(fault)
    return args, cfg


def run(args: argparse.Namespace, cfg: Config) -> None:
    path, judge = journal_of(Path(args.out)), start.judge_of(cfg)
    if not path.exists() and (doubt := start.try_judge(cfg, judge)):
        print(f"warning: {doubt}")
    reward = start.comparison_of(cfg, judge)  # in both orders, whatever the run will do
    about = dict(seed=args.seed, size=args.size, soft=cfg.soft, question=seed_of(reward.template))
    journal = Journal(path, header_of(judge, **about), same_answers)
    cases = [draw_case(args.seed, n) for n in range(args.pairs // len(PAIRS))]
    lines = answered(reward, cases, journal, args.size)
    found = [pair for case, line in zip(cases, lines) for pair in pairs_of(case, line)]
    pairs = [pair for pair in found if pair.said is not None]
    sections = sections_of(cases, lines, pairs)
    rows = []
    for title, section in sections.items():
        rows += [[title, *[""] * (len(HEADER) - 1)], *map(Row.cells, section)]
    models = sorted({p["model"] for line in lines for p in line["pairs"] if p["model"]})
    notes = [f"{judge.name}; answered by: {', '.join(models) or 'itself'}.", cost(cfg, lines)]
    decided = [pair for pair in pairs if pair.truth]
    notes += [left_on_shapes(decided)] if decided else []
    print(text_table(HEADER, rows), *notes, sep="\n")
    odd = sorted((p for p in pairs if p.said != p.truth), key=lambda pair: pair.said == 0)
    titles = "A judge's report card", "Pairs that were not judged rightly: wrong winners, then ties"
    groups = [shown_wrong(p, lines[p.case.number], judge.name, args.size) for p in odd[:30]]
    image = chart(sections, Path(args.out).with_suffix(".png"))
    write_gallery(args.out, titles, notes, HEADER, rows, groups, image)
    print(f"open {args.out}")
    if not decided:
        raise ValueError("nothing could be measured: no pair was answered in both orders")


def main(arguments: list[str] | None = None) -> None:
    try:
        run(*parse(arguments))
    except (ValueError, OSError) as error:
        raise SystemExit(f"measure.judge: {error}") from None


if __name__ == "__main__":
    main()
