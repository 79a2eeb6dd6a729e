"""The gallery of a run, one page to turn through: groups of images, who beat whom, win rates,
advantages, and the words of the judge about each pair.

    python -m figures.gallery runs/shapes        # makes runs/shapes/gallery.html again

What is kept are groups that the run learned from, those of its first step and of each step that
evaluates, as they were sampled, judged and normalized there: it costs the judge no question. Of
several processes the first keeps its own. Each step is a file, runs/NAME/gallery/step_N.json, and
the page, made again with each of them, is all of these files in one.
"""

import argparse
import json
from pathlib import Path

import torch

from common.files import write_atomic
from figures.page import image_uri, write_page
from rewards import Comparison, points_table

PAGE = Path(__file__).with_name("gallery.html")  # the template
STEP = 1_000_000  # bytes: groups of a step are kept up to this, and the first one always
ALL = 10_000_000  # bytes of all steps; beyond, steps are dropped that lie close to others
NAMES = {"pairwise": "win rate", "pointwise": "score"}


def keep(out: Path, judge: str, step) -> None:
    """Writes down the groups of a step as they were judged, and makes the page.

    out: the run directory; judge: its name; step: train.TrainStep, its groups of this rank.
    """
    kept, size = [], 0
    for p, (prompt, images) in enumerate(zip(step.rollout.prompts, step.rollout.images)):
        compared = [c for r in step.compared.values() for c in r.comparisons if c.group == p]
        group = {
            "prompt": prompt,
            "images": [image_uri(image) for image in images],
            "rewards": {NAMES.get(n, n): rounded(r.values[p]) for n, r in step.compared.items()},
            "advantages": rounded(step.advantages[p]),
            "points": points_table(compared, len(images)),
            "said": list(map(words, compared)),
        }
        size += len(json.dumps(group))
        if kept and size > STEP:
            break
        kept.append(group)
    record = {"step": step.step, "judge": judge, "groups": kept}
    write_atomic(out / "gallery" / f"step_{step.step:06d}.json", json.dumps(record).encode())
    thin(out)
    write_gallery(out)


def words(comparison: Comparison) -> dict:
    """What was answered of one or two images of a group, as they were shown."""
    shown = [i for i in (comparison.first, comparison.second) if i is not None]
    answer = comparison.outcome.answer
    text = (answer.text or answer.error or "") if answer else ""
    return {"shown": shown, "read_as": comparison.outcome.read_as, "words": text}


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


# ----------------------------------------------------------------------------- files and the page


def steps_in(out: Path) -> list[Path]:
    return sorted(out.glob("gallery/step_*.json"))


def thin(out: Path) -> None:
    """Drops steps until the rest are small enough: first and last stay, and the others evenly."""
    files = steps_in(out)
    while len(files) > 2 and sum(file.stat().st_size for file in files) > ALL:
        numbers = [int(file.stem.removeprefix("step_")) for file in files]
        gaps = [after - before for before, after in zip(numbers, numbers[2:])]
        files.pop(gaps.index(min(gaps)) + 1).unlink()


def write_gallery(out: Path) -> Path:
    """Makes gallery.html from what a run has kept. Raises ValueError if that is nothing."""
    steps = [json.loads(file.read_bytes()) for file in steps_in(out)]
    if not steps:
        raise ValueError(f"'{out}' keeps no groups: a run writes gallery/ from its first step on")
    write_page(out / "gallery.html", PAGE, {"run": out.resolve().name, "steps": steps})
    return out / "gallery.html"


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
