"""Pictures of colored shapes: a scene drawn on 32x32 pixels, or as large as is asked for."""

from typing import NamedTuple

import numpy as np

SIZE = 32  # pixels: the unit of all places and lengths
LIGHT, DARK = (238, 236, 230), (30, 30, 36)  # the two grounds
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (40, 80, 215),
    "yellow": (240, 205, 30),
    "pink": (240, 110, 190),
    "purple": (130, 40, 190),
}
SHAPES = ("circle", "square", "triangle")

LINE_WIDTH = 2.0  # pixels, of outlined shapes


class Thing(NamedTuple):
    shape: str
    color: str | tuple[int, int, int] | None  # of the palette, or RGB; None: read as no color of it
    x: float
    y: float
    r: float
    outline: bool = False
    also: str | None = None  # another shape for which it passes as well


class Scene(NamedTuple):
    things: tuple[Thing, ...]
    dark: bool = False


def coverage(shape: np.ndarray, x, y, r, outline, size: int = SIZE) -> np.ndarray:
    """Share of each pixel that a shape covers (n, size, size), by signed distance; inputs (n,).

    All three shapes are centered on their centroid; circle and square of one r have equal areas.
    """
    grid = (np.arange(size, dtype=np.float32) + 0.5) * (SIZE / size)
    x, y, r = (np.asarray(v, np.float32)[:, None, None] for v in (x, y, r))
    dx, dy = np.abs(grid[None, None, :] - x), grid[None, :, None] - y
    circle = np.sqrt(dx**2 + dy**2) - r
    square = np.maximum(dx, np.abs(dy)) - 0.886 * r
    # base 2.4 r, height 2.1 r, centroid a third above the base
    side = (2.1 * dx - 1.2 * (dy + 1.4 * r)) / np.float32(np.hypot(2.1, 1.2))
    triangle = np.maximum(dy - 0.7 * r, side)
    distance = np.choose(np.asarray(shape)[:, None, None], [circle, square, triangle])
    half = np.float32(LINE_WIDTH / 2)
    line = np.asarray(outline)[:, None, None]
    inside = np.where(line, np.abs(distance + half) - half, distance)
    return np.clip(0.5 - inside * (size / SIZE), 0, 1)


def render(scenes: list[Scene], size: int = SIZE) -> np.ndarray:
    """Anti-aliased pictures (n, size, size, 3) uint8, things painted in order."""
    ground = np.array([DARK if s.dark else LIGHT for s in scenes], np.float32)
    images = np.broadcast_to(ground[:, None, None], (len(scenes), size, size, 3)).copy()
    for layer in range(max((len(s.things) for s in scenes), default=0)):
        rows = [i for i, s in enumerate(scenes) if len(s.things) > layer]
        things = [scenes[i].things[layer] for i in rows]
        shapes = np.array([SHAPES.index(t.shape) for t in things])
        rest = ([getattr(t, name) for t in things] for name in ("x", "y", "r", "outline"))
        alpha = coverage(shapes, *rest, size)[..., None]
        color = np.array([COLORS.get(t.color, t.color) for t in things], np.float32)[:, None, None]
        images[rows] += alpha * (color - images[rows])
    return np.round(images).astype(np.uint8)
