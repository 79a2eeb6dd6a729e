"""What people look at of a run: grids of samples and training curves.

Every function takes plain data (PIL images, strings, numbers) and writes one file, atomically.

    sample_grid([[before, after]], ["a red circle"], "grid.png", columns=["before", "after"])
    training_curves([json.loads(line) for line in open("metrics.jsonl")], "curves.png")
"""

import math
import textwrap
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from common.files import write_atomic
from common.rgb import to_rgb
from common.wording import one_line
from figures.fonts import dress, literal, pillow_fonts

CELL = 96  # pixels: images smaller than this are enlarged by nearest neighbor
GAP = 6  # pixels between the cells of a grid
DOT = 9  # pixels: diameter of a testpoint's mark
INK, PAPER, MUTED = "#1f2328", "#ffffff", "#6e7781"
# Okabe and Ito's colors, which people with color-blindness can tell apart.
WON, LOST = "#009e73", "#d55e00"  # better and worse, met and not
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# ----------------------------------------------------------------------------- grids of samples


def save_image(image, path) -> None:
    """A PNG, written atomically."""
    data = BytesIO()
    image.save(data, "PNG")
    write_atomic(path, data.getvalue())


def enlarge(image):
    """An RGB copy, enlarged by a whole factor (nearest neighbor) to a side of about CELL."""
    image = to_rgb(image)
    factor = max(1, round(CELL / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_marks(draw, x, y, met, dot=DOT) -> None:
    """A dot for each testpoint, centered at x: filled and green where it holds, else a ring."""
    left = x - dot * (1.5 * len(met) - 0.5) / 2
    for n, holds in enumerate(met):
        box = [left + 1.5 * dot * n, y, left + 1.5 * dot * n + dot, y + dot]
        color = WON if holds else LOST
        draw.ellipse(box, fill=color if holds else PAPER, outline=color, width=2)


def wrapped(text: str, font, width: float, lines: int) -> str:
    """The text in at most so many lines, none wider than `width` pixels: letters of some scripts
    are twice as wide as others."""
    for letters in range(max(8, int(width / font.getlength("n"))), 0, -1):
        found = textwrap.wrap(text, letters, max_lines=lines, placeholder=" …")
        if all(font.getlength(line) <= width for line in found):
            break
    return "\n".join(found)


def sample_grid(rows, captions, path, columns=None, marks=None) -> None:
    """One PNG: a row of images for each caption, the caption at the row's left.

    rows: R lists of PIL images; captions: R strings; columns: headings, one for each image of a row
    marks: for each image of each row, which testpoints hold in it: drawn as dots below it
    Raises ValueError if the counts do not match.
    """
    width = max((len(row) for row in rows), default=0)
    if not width or len(captions) != len(rows) or columns and len(columns) != width:
        raise ValueError(
            "a grid needs images, a caption for each row, a heading for each column; "
            f"not {len(rows)} rows of up to {width} images, {len(captions)} captions "
            f"and {len(columns or [])} headings"
        )
    rows = [[enlarge(image) for image in row] for row in rows]
    captions, columns = ([one_line(text) for text in texts or ()] for texts in (captions, columns))
    cell_w, cell_h = np.max([image.size for row in rows for image in row], axis=0).tolist()
    fonts = pillow_fonts([*captions, *columns], max(12, cell_w // 8))
    line, fonts, head_fonts = fonts[0].size * 1.25, fonts[: len(rows)], fonts[len(rows) :]
    margin = max(150, int(1.6 * cell_w))  # the caption's column
    headings = [wrapped(text, font, cell_w, 2) for text, font in zip(columns, head_fonts)]
    head = int(line * (2 + max(text.count("\n") for text in headings))) if columns else 0
    row_h = cell_h + GAP + (DOT + GAP if marks else 0)

    size = (margin + width * (cell_w + GAP) + GAP, head + len(rows) * row_h + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    left_of = [margin + c * (cell_w + GAP) + GAP for c in range(width)]
    for left, heading, font in zip(left_of, headings, head_fonts):
        place = (left + cell_w / 2, head / 2)
        draw.multiline_text(place, heading, INK, font, anchor="mm", align="center")
    for r, (row, caption, font) in enumerate(zip(rows, captions, fonts)):
        top = head + r * row_h + GAP
        text = wrapped(caption, font, margin - 2 * GAP, max(1, int(cell_h / line)))
        draw.multiline_text((GAP, top + cell_h / 2), text, INK, font, anchor="lm")
        for c, (left, image) in enumerate(zip(left_of, row)):
            canvas.paste(image, (left, top))
            if marks:
                draw_marks(draw, left + cell_w / 2, top + cell_h + GAP / 2, marks[r][c])
    save_image(canvas, path)


# ----------------------------------------------------------------------------- training curves


OTHER_JUDGE = "win_rate_vs_base_eval_judge"


class Panel(NamedTuple):
    title: str
    label: str  # of y
    lines: Sequence[tuple[str, str]]  # (key of metrics.jsonl, label)
    level: tuple[float, str] | None = None  # something to compare with
    limits: tuple = (0, 1)  # of y
    truth: bool = False  # held-out accuracy too, on an axis of its own


def panels(metrics) -> list[Panel]:
    """What curves.png shows of these lines.

    The reward stands beside the ground truth, which is what it is to bring about: a score by its
    mean, in its own units. A win rate's mean is one half by construction, so of a run on win rates
    the judge's preference for the images over the base's is shown instead.
    """
    keys = dict.fromkeys(key for line in metrics for key in line)
    means = [k for k in keys if k.endswith("_mean") and k != "ratio_mean"]
    moving = [k for k in means if np.ptp(series(metrics, k)[1] or [0]) > 1e-4]
    reward = [(key, key.removesuffix("_mean")) for key in moving]
    held = [("heldout_accuracy", "accuracy"), ("heldout_all_correct", "all-correct rate")]
    dimensions = [(k, k.partition("/")[2]) for k in keys if k.startswith("heldout/")]
    beside, paper = ("mean, own units", reward, None, (None, None)), None
    if not reward:
        preferred, even = [("win_rate_vs_base", "win rate")], (0.5, "no difference from the base")
        beside, paper = ("win rate", preferred, even), (0.3, "win rates in the paper")
    spread = [(k, k.removesuffix("_std")) for k in keys if k.endswith("_std")]
    signal = [
        ("tie_rate", "pairs that tie"),
        ("frac_floor", "groups without a difference"),
        ("clip_frac", "samples past the clip range"),
    ]
    kl, up = [("kl_to_base", "KL to base")], (0, None)
    return [
        Panel("Held-out prompts", "share", held),
        Panel("Held out, by dimension", "testpoint accuracy", dimensions),
        Panel("Reward, beside the ground truth", *beside, truth=True),
        Panel("Spread of the reward in a group", "standard deviation", spread, paper, up),
        Panel("What a step learns from", "share", signal),
        Panel("Distance from the base", "nats per element", kl, limits=up),
        *unrewarded(keys),
    ]


def unrewarded(keys) -> list[Panel]:
    """A panel for each measure of held-out images that nothing is trained on."""
    names = [k.removeprefix("heldout_") for k in keys if k.startswith("heldout_")]
    names = [name for name in names if name not in ("accuracy", "all_correct", "render_error")]
    title, free = "Seen, never trained on", (None, None)
    found = [Panel(title, "mean, own units", [(f"heldout_{n}", n)], limits=free) for n in names]
    judges = [("win_rate_vs_base", "judge of the reward"), (OTHER_JUDGE, "another judge")]
    by_two = Panel(title, "win rate against the base", judges, (0.5, "no difference from the base"))
    scores = [("bench_overall", "overall"), ("bench_low", "95 % from"), ("bench_high", "95 % to")]
    bench = Panel("UniGenBench", "score", scores)
    return [*found, *[by_two] * (OTHER_JUDGE in keys), *[bench] * ("bench_overall" in keys)]


def series(metrics, key) -> tuple[list, list]:
    """Steps and values of the lines that have a finite number under `key`."""
    known = [m for m in metrics if m.get(key) is not None and math.isfinite(m[key])]
    return [line["step"] for line in known], [line[key] for line in known]


def new_figure(figsize, layout="constrained"):
    """A matplotlib figure that needs no display, and touches no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize, layout=layout, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def subplots(figure, *shape, **how):
    """What figure.subplots(*shape, **how) gives, without top and right sides."""
    axes = figure.subplots(*shape, **how)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return axes


def save_figure(figure, path) -> None:
    dress(figure)
    data = BytesIO()
    with warnings.catch_warnings():  # a line for each letter, of what dress has told
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, data.getvalue())


def training_curves(metrics, path) -> None:
    """Six panels over the steps of a run, and one for each measure that rewards none; one PNG.

    metrics: the lines of metrics.jsonl as dicts; a key that some steps lack is drawn where it is.
    """
    # Margins by hand: finding them takes longer than all else, and this is drawn time and again.
    shown = panels(metrics)
    rows = -(-len(shown) // 3)
    figure = new_figure(figsize=(14.4, 3.6 * rows), layout=None)
    figure.subplots_adjust(0.05, 0.07, 0.96, 0.95, wspace=0.28, hspace=0.28)
    grid = [*subplots(figure, rows, 3).flat]
    for axes in grid[len(shown) :]:
        axes.remove()
    for axes, panel in zip(grid, shown):
        many = len(panel.lines) > 4  # such as one a dimension: below them, in two columns
        lines = [(key, literal(label, 11 if many else 27)) for key, label in panel.lines]
        drawn = [draw_line(axes, metrics, *line, n) for n, line in enumerate(lines)]
        if panel.level is not None:
            value, label = panel.level
            axes.axhline(value, color=MUTED, linestyle="--", linewidth=1, label=label)
        axes.set(title=panel.title, xlabel="step", ylabel=panel.label, ylim=panel.limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        if not any(drawn):
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
            continue
        place = {"loc": "lower right", "ncols": 2} if many else {}
        axes.legend(frameon=False, fontsize=8, **place)
        if panel.truth and series(metrics, "heldout_accuracy")[0]:
            other = axes.twinx()
            draw_line(other, metrics, "heldout_accuracy", "testpoint accuracy", len(drawn))
            other.set(ylabel="testpoint accuracy", ylim=(0, 1))
            other.legend(frameon=False, fontsize=8, loc="lower right")
    save_figure(figure, path)


def draw_line(axes, metrics, key: str, label: str, number: int) -> bool:
    """Draws one key over the steps that have it; says whether there are any.

    number: which line of its panel; the colors come round again with another kind of line.
    """
    steps, values = series(metrics, key)
    if steps:
        marker = "o" if len(steps) < 40 else ""  # evaluations are few: show each as a dot
        style = ("-", "--", ":")[number // len(PALETTE) % 3]
        color = PALETTE[number % len(PALETTE)]
        axes.plot(steps, values, marker + style, color=color, label=label, ms=4, lw=1.5)
    return bool(steps)
