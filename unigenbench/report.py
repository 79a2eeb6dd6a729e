"""What people look at of a benchmark: a radar chart and one page with every image and verdict.

write_report({"base": results}, {"base": bench.score(results)}, Path("report.html"))
radar({"base": {"Style": 85.0, "Grammar": 62.3, "Action": None}}, "radar.png")
"""

import base64
import html
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from common.files import write_atomic
from common.wording import reasons
from figures.fonts import literal
from figures.page import image_uri, write_page
from figures.pictures import PALETTE, new_figure, save_figure
from unigenbench.board import AGAINST, Row
from unigenbench.images import open_image
from unigenbench.results import Result, judged_by
from unigenbench.scores import Scores
from unigenbench.tables import SCORE_HEADER, coverage_line, markdown_table, score_rows
from unigenbench.testpoints import PRIMARIES

log = logging.getLogger("bench")

PAGE = Path(__file__).with_name("report.html")  # the page, with @@SLOTS@@
THUMBNAILS = 14_000_000  # bytes of a page: one of 2,400 images stays below 20 MB
# Told apart not by color alone. Their numbers have no common factor with that of the colors that
# would bring the same three together before the 85th model.
LOOKS = dict(color=PALETTE, linestyle=("-", "--", "-.", ":"), marker="os^DvxP")


def radar(scores_by_name: dict[str, dict[str, float | None]], path) -> None:
    """A polygon a model over its dimensions, 0 to 100; a dimension without score is left out of it.

    Raises ValueError if the models do not have the same dimensions.
    """
    names = list(next(iter(scores_by_name.values()), ()))
    if not names or any(list(scores) != names for scores in scores_by_name.values()):
        raise ValueError("a radar chart needs models with the same dimensions in the same order")
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    figure = new_figure(figsize=(7.2, 6.0 + 0.3 * len(scores_by_name)))
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for number, (name, scores) in enumerate(scores_by_name.items()):
        points = [(angle, scores[n]) for angle, n in zip(angles, names) if scores[n] is not None]
        if points:
            theta, r = zip(*points, points[0])
            look = {k: kinds[number % len(kinds)] for k, kinds in LOOKS.items()}
            axes.plot(theta, r, **look, label=literal(name, 42), linewidth=1.8, markersize=5)
            axes.fill(theta, r, color=look["color"], alpha=0.08)
    absent = [all(scores[n] is None for scores in scores_by_name.values()) for n in names]
    labels = [literal(n, 12) + "\n(absent)" * gone for n, gone in zip(names, absent)]
    axes.set_xticks(angles, labels)
    for angle, label in zip(angles, axes.get_xticklabels()):  # outside the circle, on either side
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.set(ylim=(0, 100), yticks=[20, 40, 60, 80])
    axes.set_rlabel_position(180 / len(names))  # between the first two axes
    axes.grid(alpha=0.4)
    if axes.lines:
        figure.legend(loc="outside lower center", frameon=False, handlelength=4)
    save_figure(figure, path)


# ----------------------------------------------------------------------------- page


def points_of(result: Result) -> list[tuple]:
    """Sub dimension, description, whether it passed (None: not judged) and why, of each testpoint;
    one without a verdict says what became of it in place of a reason."""
    none = [""] * len(result.subs)
    passed = [bool(value) for value in result.scores or ()] or [None] * len(result.subs)
    reasons = result.reasons or (none if result.scores else [result.state] * len(result.subs))
    return list(zip(result.subs, result.descriptions or none, passed, reasons))


def figure_of(result: Result, points: list[tuple]) -> dict:
    """An image of the page, and the testpoints below it."""
    return dict(file=result.image, name=Path(result.image).name, points=points)


def gallery_data(results_by_model: dict[str, list[Result]]) -> list[dict]:
    """Groups {model, index, prompt, images} for the page, the largest share of failures first.

    What was not judged counts as failed here, so that it is seen.
    """
    groups = {}
    for model, results in results_by_model.items():
        for r in results:
            group = dict(model=model, index=r.index, prompt=r.prompt, images=[])
            group = groups.setdefault((model, r.index), group)
            group["images"].append(figure_of(r, points_of(r)))

    def share_passed(group):
        passed = [point[2] is True for image in group["images"] for point in image["points"]]
        return sum(passed) / max(1, len(passed))

    return sorted(groups.values(), key=lambda g: (share_passed(g), g["index"]))


def report_table(
    scores: dict[str, Scores], against: dict[str, Row]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of one model all there is to say, of several the accuracy of each.

    Where not all of a model's testpoints were judged, its strict accuracy stands beside it; the
    published ones come last.
    """
    tables = [score_rows(s) for s in scores.values()]
    labels = [row[0] for row in tables[0]]
    header, columns = ["Dimension"], [labels]
    if len(tables) == 1:
        header, columns = [*SCORE_HEADER], [*zip(*tables.pop())]
    for (name, s), table in zip(scores.items(), tables):
        header.append(name)
        columns.append([row[1] for row in table])
        if s.coverage.judged < s.coverage.expected:
            header.append(f"{name}, strict")
            columns.append([row[4] for row in table])
    for name, row in against.items():
        header.append(name)
        primary = [f"{row.primary[n]:.2f}" if n in row.primary else "" for n in labels[:-1]]
        columns.append([*primary, f"{row.overall:.2f}"])
    return header, [list(row) for row in zip(*columns)]


def radar_percent(scores: Scores) -> dict[str, float | None]:
    """Accuracy in percent by primary dimension; None where nothing was judged."""
    known = {p: 100 * t.accuracy for p, t in scores.primary.items() if t.total}
    return {p: known.get(p) for p in PRIMARIES}


def polygons(scores: dict[str, Scores], rows: dict[str, Row]) -> dict[str, dict]:
    """What radar draws: one's own models, and published ones."""
    own = {name: radar_percent(s) for name, s in scores.items()}
    return own | {name: row.primary for name, row in rows.items()}


def files_of(out: Path) -> tuple[Path, Path, Path]:
    """The page, and its chart and its table in Markdown, named after it: two may share a folder."""
    stem = out.stem if out.suffix.lower() in (".html", ".htm") else out.name
    return out, out.with_name(f"{stem}.radar.png"), out.with_name(f"{stem}.md")


def write_report(
    results: dict[str, list[Result]],
    scores: dict[str, Scores],
    out: Path,
    against: dict[str, Row] | None = None,
    added: Sequence[str] = (),
) -> None:
    """One page of these models, by name, that works offline: coverage, radar chart, table and a
    gallery with filters. Beside it lie the chart and the table in Markdown.

    against: published rows beside them, as find_published gives them; added: further notes
    """
    against = against or {}
    page, chart, table = files_of(out)
    header, rows = report_table(scores, against)
    notes = [f"{n}: {coverage_line(s.coverage)}{judged_by(results[n])}" for n, s in scores.items()]
    notes += [*added, *([AGAINST] if against else [])]
    radar(polygons(scores, against), chart)
    write_atomic(table, markdown_table(header, rows, notes).encode(errors="backslashreplace"))
    text = "Radar chart of the primary dimensions; the table has the same numbers"
    data = base64.b64encode(chart.read_bytes()).decode()
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    titles = "UniGenBench report", "Images, worst prompts first"
    write_gallery(page, titles, notes, header, rows, gallery_data(results), image)


def embed(images: list[dict], folder: Path) -> None:
    """Gives each image its thumbnail, `src`, and the address of its `file` as seen from the page's
    folder: there the page finds it when it is enlarged. Both are None if it cannot be read."""
    room, lost = THUMBNAILS / max(1, len(images)), []

    def thumbnail(image: dict) -> tuple[str | None, str | None]:
        try:
            return image_uri(open_image(Path(image["file"]))[0], room), None
        except ValueError as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(thumbnail, images), desc="thumbnails", total=len(images), leave=False)
        for image, (src, why) in zip(images, found):
            address = quote(os.path.relpath(image["file"], folder)) if src else None
            image |= {"src": src, "file": address}
            lost += [why] if why else []
    if lost:
        said = "%d of %d images are not on the page: %s; it looks where img_path says, from here"
        log.warning(said, len(lost), len(images), reasons(lost))


def write_gallery(path, titles, notes, header, rows, groups, image="") -> None:
    """The page: notes, a table, an image's markup, and a gallery of groups.

    titles: of the page, and of the gallery; groups: as gallery_data gives them. An image has the
    `file` that it lies in, or else its `src` as image_uri gives it.
    """
    embed([i for group in groups for i in group["images"] if "file" in i], Path(path).parent)

    def cells(tag, row):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    write_page(
        path,
        PAGE,
        groups,
        TITLE=titles[0],
        GALLERY=titles[1],
        CHART=image,
        NOTES="".join(f"<p>{html.escape(note)}</p>" for note in notes),
        HEAD=cells("th", header),
        ROWS="".join(cells("td", row) for row in rows),
    )
