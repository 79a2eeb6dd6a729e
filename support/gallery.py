"""The gallery of a run, one page to turn through: groups of pictures, who beat whom, win rates,
advantages, and the words of the judge about each pair.

    python -m support.gallery runs/shapes        # makes runs/shapes/gallery.html again

What is kept are groups that the run learned from, those of its first step and of each step that
evaluates, as they were sampled, judged and normalized there: it costs the judge no question. Of
several processes the first keeps its own. Each step is a file, runs/NAME/gallery/step_N.json, and
the page, made again with each of them, is all of these files in one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from judges.mllm import MLLM, Answer, Query
from judges.record import reading
from judges.verdicts import Verdict
from rewards import mean_points
from support.files import write_atomic
from support.page import image_uri, write_page

PAGE = Path(__file__).with_name("gallery.html")  # the template
STEP = 1_000_000  # bytes: groups of a step are kept up to this, and the first one always
ALL = 10_000_000  # bytes of all steps; beyond, steps are dropped that lie close to others
NAMES = {"pairwise": "win rate", "pointwise": "score"}


class Witness:
    """Another MLLM, of which it is noted what it says of groups that were shown here before.

    Several threads may ask.
    """

    def __init__(self, mllm: MLLM, out: str | Path):
        """out: the run directory."""
        self.mllm, self.name, self.out = mllm, mllm.name, Path(out)
        self.forget()

    def forget(self) -> None:
        self.groups, self.places, self.said = [], {}, {}

    def show(self, prompts: Sequence[str], images: Sequence[Sequence]) -> None:
        """Groups that the judge is about to be asked about, for any of the run's rewards."""
        for prompt, group in zip(prompts, images, strict=True):
            if id(group[0]) not in self.places:  # else shown for another reward
                self.places |= {id(image): (len(self.groups), i) for i, image in enumerate(group)}
                self.groups.append((prompt, group))

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        answers = self.mllm.ask(queries)
        if self.places:  # else no group of this step is kept
            for query, answer in zip(queries, answers, strict=True):
                self.note(query, reading(query, answer), answer.text or answer.error or "")
        return answers

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        found = self.mllm.first_probability(queries)
        for query, probability in zip(queries, found, strict=True):
            self.note(query, probability, "")
        return found

    def note(self, query: Query, found: str | float | None, words: str) -> None:
        """The last that is said of pictures counts, since only what is lost is asked again."""
        places = [self.places.get(id(image)) for image in query.images]
        if places and None not in places:
            shown = [i for _, i in places]
            said = {"shown": shown, "read_as": found, "words": words}
            self.said[(places[0][0], *shown)] = said

    def keep(self, step: int, rewards: dict[str, torch.Tensor], advantages: torch.Tensor) -> None:
        """Writes down what was shown and said, and makes the page.

        rewards by name and advantages: (P, G), of which the first groups are those shown here.
        """
        kept, size = [], 0
        for p, (prompt, images) in enumerate(self.groups):
            said = [said for place, said in self.said.items() if place[0] == p]
            group = {
                "prompt": prompt,
                "images": [image_uri(image) for image in images],
                "rewards": {NAMES.get(n, n): rounded(values[p]) for n, values in rewards.items()},
                "advantages": rounded(advantages[p]),
                "points": points_of(said, len(images)),
                "said": said,
            }
            size += len(json.dumps(group))
            if kept and size > STEP:
                break
            kept.append(group)
        record = {"step": step, "judge": self.name, "groups": kept}
        path = self.out / "gallery" / f"step_{step:06d}.json"
        write_atomic(path, json.dumps(record).encode())
        self.forget()
        thin(path.parent)
        write_gallery(self.out)


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def points_of(said: list[dict], size: int) -> list[list[float | None]]:
    """(G, G): what the image of a row got of its comparison with that of a column, over the orders
    that were asked; None where it was lost, or there was none."""
    turned = lambda points: None if points is None else 1 - points
    first = {}  # points of the first of two images, as they were shown
    for answer in said:
        if len(answer["shown"]) == 2:
            found = answer["read_as"]
            points = Verdict(found).points if isinstance(found, str) else found
            first[tuple(answer["shown"])] = points
    table = [[None] * size for _ in range(size)]
    for (i, j), points in first.items():
        backward = turned(first[j, i]) if (j, i) in first else points
        table[i][j] = mean_points(points, backward)
        table[j][i] = turned(table[i][j])
    return table


# ----------------------------------------------------------------------------- files and the page


def steps_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.json"))


def thin(folder: Path) -> None:
    """Drops steps until the rest are small enough: first and last stay, and the others evenly."""
    files = steps_in(folder)
    while len(files) > 2 and sum(file.stat().st_size for file in files) > ALL:
        numbers = [int(file.stem.removeprefix("step_")) for file in files]
        gaps = [after - before for before, after in zip(numbers, numbers[2:])]
        files.pop(gaps.index(min(gaps)) + 1).unlink()


def write_gallery(out: Path) -> Path:
    """Makes gallery.html from what a run has kept. Raises ValueError if that is nothing."""
    steps = [json.loads(file.read_bytes()) for file in steps_in(out / "gallery")]
    if not steps:
        raise ValueError(f"'{out}' keeps no groups: a run writes gallery/ from its first step on")
    path = out / "gallery.html"
    write_page(path, PAGE, {"run": out.resolve().name, "steps": steps})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory")
    try:
        print(f"look at {write_gallery(parser.parse_args().run)}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
