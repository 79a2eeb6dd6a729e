"""How far two judges agree about the same images, or one judge with itself: bench.py agree.

table = agreement(read_results("gemini.csv"), read_results("offline.csv"))
table["Style"].share, table["Style"].kappa, table["Style"].shift
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.bootstrap import interval, resample
from common.wording import listed
from unigenbench import generate
from unigenbench.report import figure_of, write_gallery
from unigenbench.results import Result, judged_by, settings_of
from unigenbench.scores import COLUMNS_OF, NAMES, OVERALL, accuracies
from unigenbench.tables import LABELS, percent, percent_range, range_text, text_table

EVERY = "All testpoints"
HEADER = ["Dimension", "Testpoints", "Same", "95 % interval", "Kappa", "95 % interval"]
HEADER += ["Shift", "95 % interval"]
KNOWN = (
    "For scale: the benchmark's authors report 94 % between their offline judge and the API judge "
    "(0.87 to 0.97 by sub dimension). With people no judge is as one: on MMRB2 API judges agree "
    "in 59 to 80 % of hard pairs (the benchmark's own, Gemini 2.5 Pro, in 66 to 75 %), people with "
    "each other in more than 90 %."
)


class Agreement(NamedTuple):
    """Of one dimension, over the testpoints that both judged; intervals are 95 % over prompts."""

    count: int
    share: float | None  # with the same answer; None for OVERALL, a mean of dimensions
    share_interval: tuple[float, float] | None
    kappa: float | None  # Cohen's; None also where both always gave one and the same answer
    kappa_interval: tuple[float, float] | None
    shift: float  # second's accuracy minus the first's
    shift_interval: tuple[float, float] | None


def paired(first: list[Result], second: list[Result]) -> list[tuple[Result, Result]]:
    """Both judges' results of each image that both judged, known by its prompt's index and its
    file's name. An official evaluator drops the images that it failed on.

    Raises ValueError if there is none, or a prompt is another in the second.
    """
    one, two = ({(r.index, Path(r.image).name): r for r in of_one} for of_one in (first, second))
    pairs = [(r, two[key]) for key, r in one.items() if key in two]
    for a, b in pairs:
        if (a.prompt, a.subs) != (b.prompt, b.subs):
            raise ValueError(f"index {a.index} has another prompt or other testpoints in the two")
    pairs = [(a, b) for a, b in pairs if a.scores and b.scores]
    if not pairs:
        raise ValueError("there is no image that both judged: agreement needs the same images")
    return pairs


def count_answers(pairs: list[tuple[Result, Result]]) -> np.ndarray:
    """(2, 2, prompts, NAMES + 1): testpoints that the first answered so, and the second so. The
    last column has all dimensions."""
    rows = {index: n for n, index in enumerate(sorted({r.index for r, _ in pairs}))}
    counts = np.zeros((2, 2, len(rows), len(NAMES) + 1), int)
    for a, b in pairs:
        for sub, one, two in zip(a.subs, a.scores, b.scores):
            counts[one, two, rows[a.index], [*COLUMNS_OF[sub], -1]] += 1
    return counts


def kappas(shares: np.ndarray) -> np.ndarray:
    """Cohen's kappa of (2, 2, ...) shares of answers; NaN where chance alone gives agreement."""
    same = shares[0, 0] + shares[1, 1]
    one, two = shares[1].sum(0), shares[:, 1].sum(0)  # each judge's share of 1
    chance = one * two + (1 - one) * (1 - two)
    return np.where(
        chance < 1 - 1e-12, (same - chance) / np.where(chance < 1, 1 - chance, 1), np.nan
    )


def agreement(first: list[Result], second: list[Result]) -> dict[str, Agreement]:
    """By dimension, EVERY for all testpoints alike, and OVERALL for the shift of the benchmark's
    own score. Raises ValueError if they judged no same images."""
    counts = count_answers(paired(first, second))
    prompts = counts.shape[2]
    draws = np.vstack([np.ones(prompts, int), resample(prompts)])  # each once; then the replicates
    drawn = draws @ counts  # (2, 2, 1 + replicates, NAMES + 1)
    with np.errstate(invalid="ignore"):  # 0 / 0
        shares = drawn / drawn.sum((0, 1))
    same, kappa = shares[0, 0] + shares[1, 1], kappas(shares)
    judged = drawn[..., :-1].sum((0, 1))
    one, two = (accuracies(n[..., :-1], judged) for n in (drawn[1].sum(0), drawn[:, 1].sum(0)))
    shift = {name: two[name] - one[name] for name in one}
    shift[EVERY] = (shares[0, 1] - shares[1, 0])[:, -1]
    found = {}
    for n, name in enumerate([*NAMES, EVERY]):
        if count := int(drawn[..., 0, n].sum()):
            known = None if np.isnan(kappa[0, n]) else float(kappa[0, n])
            values = (same[:, n], kappa[:, n], shift[name])
            bounds = [interval(value[1:]) for value in values]
            point = float(shift[name][0])
            found[name] = Agreement(
                count, float(same[0, n]), bounds[0], known, bounds[1], point, bounds[2]
            )
    total, whole = found[EVERY].count, shift[OVERALL]
    bounds = interval(whole[1:])
    found[OVERALL] = Agreement(total, None, None, None, None, float(whole[0]), bounds)
    return found


def agreement_rows(found: dict[str, Agreement]) -> list[list[str]]:
    """Rows for HEADER: shares and shifts in percent, kappa from -1 to 1."""
    rows = []
    for name, label in [*LABELS.items(), (EVERY, EVERY), (OVERALL, OVERALL)]:
        if a := found.get(name):
            same = [percent(a.share), percent_range(a.share_interval)]
            kappa = ["-" if a.kappa is None else f"{a.kappa:z.2f}"]
            kappa.append(range_text(a.kappa_interval, "{:z.2f}"))
            shift = [f"{100 * a.shift:+.2f}", range_text(a.shift_interval, "{:+.2f}", 100)]
            rows.append([label, str(a.count), *same, *kappa, *shift])
    return rows


def most_different(first: list[Result], second: list[Result], count: int = 20) -> list[dict]:
    """The testpoints on which they differ in most images of their prompt, with these images and
    both answers, as groups of the report's gallery."""
    images = defaultdict(list)
    for a, b in paired(first, second):
        for n, (one, two) in enumerate(zip(a.scores, b.scores)):
            if one != two:
                images[a.index, n].append((a, b))
    ranked = sorted(images.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    return [dict(index=index, testpoint=n, pairs=pairs) for (index, n), pairs in ranked]


def said(result: Result, n: int, judge: str) -> tuple:
    """A judge's answer about one testpoint, as the page shows it."""
    reason = result.reasons[n] if result.reasons else ""
    asked = f"{judge}: {result.descriptions[n]}" if result.descriptions else judge
    return result.subs[n], asked, bool(result.scores[n]), reason


# ----------------------------------------------------------------------------- files


def image_notes(paths: Sequence[Path]) -> list[str]:
    """What is to be said where their settings tell that these results are of other images: the
    names of files are but indices."""
    first, *others = (settings_of(path).get("images") or {} for path in paths)
    keys = {k for made in others for k in first.keys() & made.keys() if first[k] != made[k]}
    odd = listed(sorted(keys - set(generate.NAMES)))
    said = f"The images were drawn otherwise ({odd}): these are answers about different ones."
    return [said] if odd else []


def agreement_table(
    results: dict[str, list[Result]], added: Sequence[str] = ()
) -> tuple[list[list[str]], list[str]]:
    """Rows for HEADER of each later judge, by name, against the first; what is to be said of them.

    added: further notes
    Raises ValueError that names a judge with whom there is nothing to compare.
    """
    (first, answers), *others = results.items()
    rows, notes = [], []
    for name, other in others:
        try:
            count, found = len(paired(answers, other)), agreement(answers, other)
        except ValueError as error:
            raise ValueError(f"{first} and {name}: {error}") from None
        rows += [[f"{name} against {first}", *[""] * (len(HEADER) - 1)], *agreement_rows(found)]
        seen = len({(r.index, Path(r.image).name) for r in (*answers, *other)})
        rest = f"; {seen - count} that one of them did not judge are left out" * (seen > count)
        notes.append(f"{name} against {first}: {count} images{rest}.")
    notes += [f"{name}:{models}" for name, r in results.items() if (models := judged_by(r))]
    return rows, [*notes, *added, KNOWN]


def agreement_text(rows: list[list[str]], notes: list[str]) -> str:
    """What agreement_table gives, for a terminal."""
    return "\n".join([text_table(HEADER, rows), *notes])


def write_agreement(results: dict[str, list[Result]], table: tuple, out: Path) -> None:
    """One page: the agreement_table of the results, and the testpoints on which the judges differ
    most."""
    rows, notes = table
    (first, answers), *others = results.items()
    groups = [
        dict(
            model=f"{name} against {first}",
            index=group["index"],
            prompt=group["pairs"][0][0].prompt,
            images=[
                figure_of(
                    a, [said(a, group["testpoint"], first), said(b, group["testpoint"], name)]
                )
                for a, b in group["pairs"]
            ],
        )
        for name, other in others
        for group in most_different(answers, other)
    ]
    titles = "Agreement of judges", "Where they differ most: testpoints, and both answers"
    write_gallery(out, titles, notes, HEADER, rows, groups)
