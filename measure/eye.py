"""Does the verifier say what people see? Sheets to judge by eye, and the labels held against it.

    python -m measure.eye draw --models assets/tiny-flux runs/shapes/final --out runs/eye
    python -m measure.eye compare measure/sheets/first measure/sheets/second runs/eye

`draw` samples pictures for held-out captions, each kind equally often, models and kinds mixed, and
writes sheets (runs/eye-1.png ...) and runs/eye.csv, one line a picture. Look at the sheets, and
write in the column `eye` a 1 or 0 for each of the picture's demands, in the order in which they
stand under it, before the verifier has answered. "The circle" means every circle there is, and at
least one; "all the circles", at least two; nothing is granted on an empty picture. `compare` cuts
the pictures out of the sheets, has the verifier read them, and prints how often both agree.
"""

import argparse
import csv
import glob
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import sampler
from models import base
from shapes.grammar import RADII, Caption, parse_prompt
from shapes.prompts import all_prompts
from shapes.read import read
from shapes.render import COLORS, SHAPES, SIZE, Scene, Thing, render
from shapes.verifier import satisfied

ZOOM, COLUMNS, ROWS = 6, 5, 4
TILE, CELL, LEGEND = 32 * ZOOM, (32 * ZOOM + 48, 32 * ZOOM + 88), 100  # pixels


# ----------------------------------------------------------------------------- draw


def sample(folder: str, texts: list[str], seeds: list[int], batch: int = 50) -> list[Image.Image]:
    """One picture a caption, as train.py's held-out evaluation draws them."""
    model = base.load(folder, SIZE, 3.5)
    sigmas, images = sampler.sigma_schedule(6), []
    for i in range(0, len(texts), batch):
        velocity = model.velocity(model.encode(texts[i : i + batch]))
        noise = model.noise(seeds[i : i + batch])
        images += model.decode(sampler.ode_sample(velocity, noise, sigmas))
    return images


def origin(k: int) -> tuple[int, int]:
    """Left and top of the k-th picture on its sheet."""
    row, column = divmod(k % (COLUMNS * ROWS), COLUMNS)
    return 14 + column * CELL[0], LEGEND + row * CELL[1]


def legend() -> Image.Image:
    """What the names of colors and sizes look like when drawn right."""
    looks = [("circle", color, "large") for color in COLORS]
    looks += [(shape, "blue", size) for size in ("small", "large") for shape in SHAPES]
    strip = Image.new("RGB", (len(looks) * 92, LEGEND), "white")
    draw = ImageDraw.Draw(strip)
    for k, (shape, color, size) in enumerate(looks):
        thing = Thing(shape, color, 16, 16, RADII[size])
        pixels = render([Scene((thing,))])[0]
        image = Image.fromarray(pixels).crop((9, 9, 23, 23)).resize((84, 84), Image.NEAREST)
        strip.paste(image, (k * 92 + 4, 14))
        draw.text((k * 92 + 4, 0), color if k < 6 else size, "black", ImageFont.load_default(12))
    return strip


def sheet(first: int, prompts: list[Caption], images: list[Image.Image]) -> Image.Image:
    """A page of pictures with their numbers, captions and demands."""
    page = Image.new("RGB", (COLUMNS * CELL[0], LEGEND + ROWS * CELL[1]), "white")
    page.paste(legend(), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for k, (prompt, image) in enumerate(zip(prompts, images)):
        x, y = origin(k)
        page.paste(image.resize((TILE, TILE), Image.NEAREST), (x, y))
        lines = textwrap.wrap(f"{first + k}: {prompt.text}", 33)
        lines += [f"  {i}. {text}" for i, (_, text) in enumerate(prompt.testpoints, 1)]
        draw.multiline_text((x, y + TILE + 1), "\n".join(lines), "black", font, spacing=1)
    return page


def draw_sheets(models: list[str], count: int, seed: int, out: Path) -> None:
    rng = np.random.default_rng(seed)
    pools = list(all_prompts("heldout").values())
    prompts = [pools[k][rng.integers(len(pools[k]))] for k in rng.permutation(count) % len(pools)]
    seeds = rng.integers(2**31, size=count).tolist()
    which = rng.permutation(count) % len(models)
    drawn = {}
    for m, folder in enumerate(models):
        rows = np.flatnonzero(which == m)
        texts = [prompts[r].text for r in rows]
        drawn |= zip(rows, sample(folder, texts, [seeds[r] for r in rows]))
    images = [drawn[k] for k in range(count)]
    out.parent.mkdir(parents=True, exist_ok=True)
    per_page = COLUMNS * ROWS
    for page, i in enumerate(range(0, count, per_page), 1):
        drawn = sheet(i, prompts[i : i + per_page], images[i : i + per_page])
        drawn.save(f"{out}-{page}.png", optimize=True)
    with open(f"{out}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", "model", "caption", "eye", "note"])
        table.writerows([k, m, p.text, "", ""] for k, (m, p) in enumerate(zip(which, prompts)))


# ----------------------------------------------------------------------------- compare


def load(name: str) -> tuple[list[dict[str, str]], list[Image.Image]]:
    """The lines of the table, and the pictures cut out of the sheets, 32x32."""
    with open(f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pages = [Image.open(f"{name}-{k}.png") for k in range(1, len(glob.glob(f"{name}-*.png")) + 1)]
    images = []
    for k in range(len(rows)):
        x, y = origin(k)
        tile = pages[k // (COLUMNS * ROWS)].crop((x, y, x + TILE, y + TILE))
        images.append(tile.resize((SIZE, SIZE), Image.NEAREST))
    return rows, images


def compare(name: str) -> None:
    rows, images = load(name)
    agreed, readings = defaultdict(list), read(images)
    print(f"{name}, where only one of eye and verifier accepts:")
    for row, reading in zip(rows, readings):
        prompt = parse_prompt(row["caption"])
        if len(row["eye"]) != len(prompt.testpoints) or set(row["eye"]) - {"0", "1"}:
            raise SystemExit(
                f"{name}.csv, picture {row['picture']}: `eye` is {row['eye']!r}, and needs a 1 or "
                f"0 for each of {len(prompt.testpoints)} demands"
            )
        seen = [digit == "1" for digit in row["eye"]]
        for eye, met, (sub, text) in zip(seen, satisfied(prompt, reading), prompt.testpoints):
            agreed[sub].append((eye, met))
            if eye != met:
                who = "the eye" if eye else "the verifier"
                print(f"{row['picture']:>5} {who}: {text}; {reading.in_words()}")
    print(f"{'sub dimension':38} agree   of  only the eye  only the verifier")
    for sub in [*sorted(agreed), None]:
        eye, met = np.array(sum(agreed.values(), []) if sub is None else agreed[sub]).T
        only = f"{(eye & ~met).sum():14} {(met & ~eye).sum():18}"
        print(f"{sub or 'all':38} {(eye == met).mean():.3f} {len(eye):4}{only}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="sheets and an empty table for some models")
    drawing.add_argument("--models", nargs="+", required=True, metavar="FOLDER")
    drawing.add_argument("--count", type=int, default=200)
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True, help="sheets are OUT-1.png and so on")
    comparing = commands.add_parser("compare", help="labels against the verifier")
    comparing.add_argument("names", nargs="+", help="as --out of draw")
    args = parser.parse_args()
    if args.command == "draw":
        return draw_sheets(args.models, args.count, args.seed, args.out)
    for name in args.names:
        compare(name)


if __name__ == "__main__":
    main()
