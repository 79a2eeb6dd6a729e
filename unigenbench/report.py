"""What people look at: sample grids, training curves, radar charts and the benchmark's report.

Every function takes plain data (PIL images, strings, numbers) and writes one file, atomically.

    sample_grid([[before, after]], ["a red circle"], "grid.png", columns=["before", "after"])
    training_curves([json.loads(line) for line in open("metrics.jsonl")], "curves.png")
    radar({"base": {"Style": 85.0, "Grammar": 62.3, "Action": None}}, "radar.png")
"""

import base64
import html
import json
import math
import os
import textwrap
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

CELL = 96  # pixels: images smaller than this are enlarged by nearest neighbour
PAGE = Path(__file__).with_name("report.html")  # the page; report fills its @@SLOTS@@
GAP = 6  # pixels between the cells of a grid
INK, PAPER, MUTED = "#1f2328", "#ffffff", "#6e7781"
# Okabe and Ito's colours, which people with colour-blindness can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def write_atomic(path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


# ----------------------------------------------------------------------------- grids of samples

def enlarge(image, side=CELL):
    """An RGB copy, enlarged by a whole factor (nearest neighbour) to a side of about `side`."""
    from PIL import Image

    factor = max(1, round(side / max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def sample_grid(rows, captions, path, columns=None) -> None:
    """One PNG: a row of images for each caption, the caption at the row's left.

    rows: R lists of PIL images; captions: R strings; columns: headings, one for each image of a row
    Raises ValueError if the counts do not match.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = max((len(row) for row in rows), default=0)
    if not width or len(captions) != len(rows) or columns and len(columns) != width:
        raise ValueError(f"a grid needs images, a caption for each row, a heading for each column; "
                         f"not {len(rows)} rows of up to {width} images, {len(captions)} captions "
                         f"and {len(columns or [])} headings")
    rows = [[enlarge(image) for image in row] for row in rows]
    cell_w = max(image.width for row in rows for image in row)
    cell_h = max(image.height for row in rows for image in row)
    font = ImageFont.load_default(size=max(12, cell_w // 8))
    letter, line = font.getlength("n"), font.size * 1.25
    margin = max(150, int(1.6 * cell_w))  # the caption's column
    head = int(2 * line) if columns else 0

    size = (margin + width * (cell_w + GAP) + GAP, head + len(rows) * (cell_h + GAP) + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for c, heading in enumerate(columns or []):
        centre = margin + c * (cell_w + GAP) + GAP + cell_w / 2
        draw.text((centre, head / 2), heading, INK, font, anchor="mm")
    for r, (row, caption) in enumerate(zip(rows, captions)):
        top = head + r * (cell_h + GAP) + GAP
        text = textwrap.wrap(caption, max(8, int((margin - 2 * GAP) / letter)),
                             max_lines=max(1, int(cell_h / line)), placeholder=" …")
        draw.multiline_text((GAP, top + cell_h / 2), "\n".join(text), INK, font, anchor="lm")
        for c, image in enumerate(row):
            canvas.paste(image, (margin + c * (cell_w + GAP) + GAP, top))
    data = BytesIO()
    canvas.save(data, "PNG")
    write_atomic(path, data.getvalue())


# ----------------------------------------------------------------------------- training curves

# title, y label, (key, label) of each line, a level to compare with, limits of y
PANELS = (
    ("Held-out prompts", "share", (("heldout_accuracy", "testpoints right"),
                                   ("heldout_perfect", "images with all right")), None, (0, 1)),
    ("Against the base", "win rate", (("win_rate_vs_base", "win rate"),), 0.5, (0, 1)),
    ("Reward within a group", "standard deviation, share", (("reward_std", "spread of the reward"),
                                                            ("tie_rate", "share of ties")), None,
     (0, None)),
    ("Distance from the base", "KL (nats per element)", (("kl_to_base", "KL to base"),), None,
     (0, None)),
)


def series(metrics, key) -> tuple[list, list]:
    """Steps and values of the lines that have a finite number under `key`."""
    points = [(line["step"], line[key]) for line in metrics
              if line.get(key) is not None and math.isfinite(line[key])]
    return [step for step, _ in points], [value for _, value in points]


def new_figure(*args, **kwargs):
    """A matplotlib figure that needs no display, and touches no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(*args, layout="constrained", facecolor=PAPER, **kwargs)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path) -> None:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, data.getvalue())


def training_curves(metrics, path) -> None:
    """Four panels over the steps of a run: quality held out, win rate, the reward's spread, KL.

    metrics: the lines of metrics.jsonl as dicts; a key that some steps lack is drawn where it is.
    """
    figure = new_figure(figsize=(9.6, 6.4))
    for axes, (title, label, lines, level, limits) in zip(figure.subplots(2, 2).flat, PANELS):
        drawn = 0
        for color, (key, name) in zip(PALETTE, lines):
            steps, values = series(metrics, key)
            if steps:
                sparse = len(steps) < 40  # evaluations are few: show each as a dot
                axes.plot(steps, values, "o-" if sparse else "-", color=color, label=name,
                          markersize=4, linewidth=1.5)
                drawn += 1
        if level is not None:
            axes.axhline(level, color=MUTED, linestyle="--", linewidth=1, label="no difference")
        axes.set(title=title, xlabel="step", ylabel=label, ylim=limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if drawn:
            axes.legend(frameon=False, fontsize=9)
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    save_figure(figure, path)


# ----------------------------------------------------------------------------- benchmark report

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
    for color, (name, scores) in zip(PALETTE * len(scores_by_name), scores_by_name.items()):
        points = [(angle, scores[n]) for angle, n in zip(angles, names) if scores[n] is not None]
        if points:
            theta, r = zip(*points, points[0])
            axes.plot(theta, r, "o-", color=color, label=name, linewidth=1.8, markersize=4)
            axes.fill(theta, r, color=color, alpha=0.08)
    labels = [n if any(scores[n] is not None for scores in scores_by_name.values())
              else f"{n}\n(absent)" for n in names]
    axes.set_xticks(angles, labels)
    for angle, label in zip(angles, axes.get_xticklabels()):  # outside the circle, on either side
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.set(ylim=(0, 100), yticks=[20, 40, 60, 80])
    axes.set_rlabel_position(180 / len(names))  # between the first two axes
    axes.grid(alpha=0.4)
    if axes.lines:
        figure.legend(loc="outside lower center", frameon=False)
    save_figure(figure, path)


def markdown_table(header: list[str], rows: list[list[str]], notes=()) -> str:
    """A table, the first column to the left and the others to the right, and a paragraph a note."""
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    rule = "|---|" + "---:|" * (len(header) - 1) + "\n"
    return (line(header) + rule + "".join(map(line, rows))
            + "".join(f"\n{note}\n" for note in notes))


class Point(NamedTuple):
    """What the judge said of one testpoint."""
    sub: str
    description: str
    passed: bool | None  # None: not judged
    reason: str


class Card(NamedTuple):
    """One judged image."""
    index: int  # of its prompt
    prompt: str
    image: str  # path
    points: list[Point]


FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the name says; none that Pillow runs a program for
THUMBNAIL = 384  # pixels: larger images are shrunk to this before they are put into the page


def data_uri(path) -> str | None:
    """An image file for an <img>: PNG, or WebP shrunk from larger ones; None if unreadable."""
    from PIL import Image

    try:
        image = Image.open(path, formats=FORMATS).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    kind = "png" if small else "webp"  # half of JPEG: a page may hold 2,400 of them
    image.save(data, kind, quality=75)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def gallery_data(cards_by_model: dict[str, list[Card]]) -> list[dict]:
    """Groups {model, index, prompt, images} for the page, the largest share of failures first.

    What was not judged counts as failed here, so that it is seen.
    """
    groups = {}
    for model, cards in cards_by_model.items():
        for card in cards:
            group = groups.setdefault((model, card.index), {
                "model": model, "index": card.index, "prompt": card.prompt, "images": []})
            group["images"].append({"src": data_uri(card.image), "name": Path(card.image).name,
                                    "points": [list(point) for point in card.points]})

    def share_passed(group):
        passed = [point[2] is True for image in group["images"] for point in image["points"]]
        return sum(passed) / max(1, len(passed))

    return sorted(groups.values(), key=lambda g: (share_passed(g), g["index"]))


def html_report(path, header, rows, notes, radar_png: bytes, cards_by_model) -> None:
    """One page that works offline: notes, radar chart, table, and the gallery with its filters.

    header, rows: the table's cells as text; notes: sentences above it
    cards_by_model: model name -> cards
    """
    def cells(tag, row):
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    data = json.dumps(gallery_data(cards_by_model), ensure_ascii=False)
    parts = {
        "NOTES": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "RADAR": base64.b64encode(radar_png).decode(),
        "HEAD": cells("th", header), "ROWS": "".join(cells("td", row) for row in rows),
        "DATA": data.replace("<", "\\u003c"),  # no "</script>", no "<!--" can end or open a tag
    }
    page = PAGE.read_text(encoding="utf-8")
    before, *slots = page.split("@@")  # text, name, text, name, ..., text
    filled = [parts[piece] if i % 2 == 0 else piece for i, piece in enumerate(slots)]
    write_atomic(path, (before + "".join(filled)).encode())
