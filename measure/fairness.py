"""What the autoencoder costs each look: mean render error of clean scenes of one thing, decoded.

The judge compares render error only between pictures of the same looks, since these differ.

    python -m measure.fairness                   # seconds
    python -m measure.fairness --model runs/tiny
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

from measure.verifier import MODEL, autoencode, read
from shapes.grammar import RADII
from shapes.prompts import place
from shapes.render import COLORS, SHAPES, Scene, Thing, render

SIZES = ("small", "large", "outline")  # an outline is as large as what is large


def alone(look: tuple, rng: np.random.Generator) -> Scene:
    """A scene of one thing with this look, (shape, color, size, ground), anywhere."""
    shape, color, size, ground = look
    radius = RADII["large" if size == "outline" else size]
    (where,) = place(np.array([radius]), rng)
    thing = Thing(shape, color, *where, radius, size == "outline")
    return Scene((thing,), ground == "dark")


def fidelities(model: Path, count: int) -> list[tuple[tuple, float | None]]:
    """The look and the render error of `count` scenes of each look; None: not read as one thing."""
    looks = itertools.product(SHAPES, COLORS, SIZES, ("light", "dark"))
    drawn = [look for look in looks for _ in range(count)]
    rng = np.random.default_rng(0)
    pixels = render([alone(look, rng) for look in drawn])
    readings = read(autoencode(pixels, model))
    return [(k, r.render_error if len(r.things) == 1 else None) for k, r in zip(drawn, readings)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder of a pipeline")
    parser.add_argument("--pictures", type=int, default=10, help="of each look")
    args = parser.parse_args(arguments)
    found = fidelities(args.model, args.pictures)
    rows = [(look, value) for look, value in found if value is not None]
    print(f"{len(rows)} of {len(found)} scenes read; mean render error in gray levels:")
    for column in range(4):
        for name in dict.fromkeys(look[column] for look, _ in rows):
            print(f"{name:10} {np.mean([v for look, v in rows if look[column] == name]):5.2f}")


if __name__ == "__main__":
    main()
