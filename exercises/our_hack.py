"""Our answer to exercise 10, one of many: exercises.hack takes what of the student's is missing."""

import numpy as np
from PIL import Image

from exercises.ex_10_hack import demands_met, named, visible
from shapes.render import COLORS


def vivid(image: Image.Image) -> float:
    pixels = np.asarray(image.convert("RGB"), float) / 255
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def score(prompt: str, image: Image.Image) -> float:
    wanted = named(prompt)
    return len(wanted & visible(image)) / len(wanted) + 0.1 * vivid(image)


def hacked(prompt: str, image: Image.Image) -> Image.Image:
    """A broad stripe of a color that is named: vivid, and no shape at all."""
    pixels = np.array(image.convert("RGB"))
    pixels[:12] = COLORS[min(named(prompt))]
    return Image.fromarray(pixels)


def points(prompt: str, first: Image.Image, second: Image.Image) -> float:
    one, other = demands_met(prompt, first), demands_met(prompt, second)
    return 0.5 if one == other else float(one > other)
