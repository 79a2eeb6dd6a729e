"""What people look at of a run: grids of samples and training curves.

Every function takes plain data (PIL images, strings, numbers) and writes one file, atomically.

    sample_grid([[before, after]], ["a red circle"], "grid.png", columns=["before", "after"])
    training_curves([json.loads(line) for line in open("metrics.jsonl")], "curves.png")
"""

import math
import textwrap
from io import BytesIO

from support.files import write_atomic
from support.rgb import to_rgb

CELL = 96  # pixels: images smaller than this are enlarged by nearest neighbour
GAP = 6  # pixels between the cells of a grid
INK, PAPER, MUTED = "#1f2328", "#ffffff", "#6e7781"
# Okabe and Ito's colors, which people with color-blindness can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# ----------------------------------------------------------------------------- grids of samples


def enlarge(image, side=CELL):
    """An RGB copy, enlarged by a whole factor (nearest neighbour) to a side of about `side`."""
    from PIL import Image

    image = to_rgb(image)
    factor = max(1, round(side / max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def sample_grid(rows, captions, path, columns=None) -> None:
    """One PNG: a row of images for each caption, the caption at the row's left.

    rows: R lists of PIL images; captions: R strings; columns: headings, one for each image of a row
    Raises ValueError if the counts do not match.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = max((len(row) for row in rows), default=0)
    if not width or len(captions) != len(rows) or columns and len(columns) != width:
        raise ValueError(
            f"a grid needs images, a caption for each row, a heading for each column; "
            f"not {len(rows)} rows of up to {width} images, {len(captions)} captions "
            f"and {len(columns or [])} headings"
        )
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
        text = textwrap.wrap(
            caption,
            max(8, int((margin - 2 * GAP) / letter)),
            max_lines=max(1, int(cell_h / line)),
            placeholder=" …",
        )
        draw.multiline_text((GAP, top + cell_h / 2), "\n".join(text), INK, font, anchor="lm")
        for c, image in enumerate(row):
            canvas.paste(image, (margin + c * (cell_w + GAP) + GAP, top))
    data = BytesIO()
    canvas.save(data, "PNG")
    write_atomic(path, data.getvalue())


# ----------------------------------------------------------------------------- training curves

# title, y label, (key, label) of each line, a level to compare with, limits of y
PANELS = (
    (
        "Held-out prompts",
        "share",
        (("heldout_accuracy", "testpoints right"), ("heldout_perfect", "images with all right")),
        None,
        (0, 1),
    ),
    ("Against the base", "win rate", (("win_rate_vs_base", "win rate"),), 0.5, (0, 1)),
    (
        "Reward within a group",
        "standard deviation, share",
        (("reward_std", "spread of the reward"), ("tie_rate", "share of ties")),
        None,
        (0, None),
    ),
    (
        "Distance from the base",
        "KL (nats per element)",
        (("kl_to_base", "KL to base"),),
        None,
        (0, None),
    ),
)


def series(metrics, key) -> tuple[list, list]:
    """Steps and values of the lines that have a finite number under `key`."""
    points = [
        (line["step"], line[key])
        for line in metrics
        if line.get(key) is not None and math.isfinite(line[key])
    ]
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
                axes.plot(
                    steps,
                    values,
                    "o-" if sparse else "-",
                    color=color,
                    label=name,
                    markersize=4,
                    linewidth=1.5,
                )
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
