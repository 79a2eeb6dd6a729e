"""What a picture shows: the inverse of render.py.

Ground, then connected blobs, then for each blob the best of six templates (circle, square,
triangle; filled or in outline) and the nearest of six colors. It decides strictly, since whatever
it lets pass, training will find:
  - A blend of two colors is no color: the mean color inside the template must lie within
    COLOR_TOLERANCE of a palette entry, clearly nearer than to the next (COLOR_RIVAL; no half-way
    mix of two entries is both), and the pixels there must agree on it.
  - A half-drawn shape is no shape: its template must cover it with an overlap of MIN_OVERLAP.
    Where a second shape fits as well, within MIN_MARGIN, as a square with soft corners does for a
    circle, people take it for what they were told that it is: the thing says which (`also`).
  - `render error` is of what was read, rendered again: mean absolute error in 8-bit levels.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from common.rgb import to_rgb
from shapes.render import (
    COLORS,
    DARK,
    LIGHT,
    LINE_WIDTH,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    coverage,
    render,
)

COLOR_TOLERANCE = 56.0  # Euclidean distance in RGB: a palette color that keeps 0.8 of its contrast
COLOR_RIVAL = 0.75  # largest distance to a color over that to the next; 1 half-way between two
COLOR_DEVIATION = 45.0  # root mean square of the distances to the mean
MIN_OVERLAP = (0.95, 0.90)  # of a filled shape, and of an outline, which is all edge
MIN_MARGIN = 0.01
MIN_BLOB = 10  # pixels; anything smaller is dirt, which only render error sees


class Reading(NamedTuple):
    things: tuple[Thing, ...]  # what was recognized
    unread: int  # blobs that are no shape of this world
    dark: bool
    render_error: float  # mean absolute difference to the picture rendered again, gray levels
    faults: tuple[str, ...] = ()  # what was refused, a shape or its color, and by how much

    def in_words(self) -> str:
        seen = [
            f"{t.color or 'off-color'} {t.shape}{' in outline' * t.outline} of radius {t.r:.1f} "
            f"at {t.x:.0f}, {t.y:.0f}"
            for t in self.things
        ]
        refused = f" (refused: {'; '.join(self.faults)})" * bool(self.faults)
        ground = "dark" if self.dark else "light"
        return f"on a {ground} ground {'; '.join(seen) or 'nothing'} was read{refused}"


def color_distances(rgb: np.ndarray) -> np.ndarray:
    """Euclidean distance of rgb (..., 3) to each palette color (..., 6)."""
    palette = np.array(list(COLORS.values()), np.float32)
    square = (rgb**2).sum(-1)[..., None] - 2 * rgb @ palette.T + (palette**2).sum(1)
    return np.sqrt(np.maximum(square, 0))


@functools.cache
def outline_spread() -> np.ndarray:
    """For each shape in outline: mean squared distance to the centroid over (r - 1)^2, measured."""
    alpha = coverage(np.arange(3), [16] * 3, [16] * 3, [6] * 3, [True] * 3)
    return spread(alpha) / (6 - LINE_WIDTH / 2) ** 2


def centroid(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, x and y of the centroid, each (n,), of coverage maps (n, 32, 32)."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    area = np.maximum(alpha.sum((1, 2)), 1e-6)
    return area, alpha.sum(1) @ grid / area, alpha.sum(2) @ grid / area


def spread(alpha: np.ndarray) -> np.ndarray:
    """Mean squared distance to the centroid (n,), pixels squared."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    area, x, y = centroid(alpha)
    return (alpha.sum(1) @ grid**2 + alpha.sum(2) @ grid**2) / area - x**2 - y**2


class Fit(NamedTuple):
    shape: np.ndarray  # (n,) as all of them; index into SHAPES
    outline: np.ndarray
    x: np.ndarray
    y: np.ndarray
    r: np.ndarray
    overlap: np.ndarray  # see fit; 0 to 1
    margin: np.ndarray  # over the overlap of the next best shape
    also: np.ndarray  # that shape


def fit(alpha: np.ndarray) -> Fit:
    """The best of six templates for each coverage map (n, 32, 32).

    Position and size come from the map's moments: the area of a filled shape, the spread of an
    outline. The overlap of template t and map a is sum(t a) / (sum(t^2) + sum(a^2) - sum(t a)):
    intersection over union for masks; of soft edges, which shapes share, it makes little, and of
    corners, by which people tell circle and square, much.
    """
    count = len(alpha)
    area, x, y = centroid(alpha)
    per_r2 = np.array([np.pi, 4 * 0.886**2, 1.2 * 2.1])  # area of each shape over r^2
    filled = np.sqrt(area[:, None] / per_r2)
    hollow = LINE_WIDTH / 2 + np.sqrt(spread(alpha)[:, None].clip(0) / outline_spread())
    r = np.concatenate([filled, hollow], 1)  # (n, 6)
    shape, outline = np.tile([0, 1, 2, 0, 1, 2], count), np.tile([False] * 3 + [True] * 3, count)
    template = coverage(shape, x.repeat(6), y.repeat(6), r.ravel(), outline)
    template = template.reshape(count, 6, SIZE, SIZE)
    both = np.einsum("nkhw,nhw->nk", template, alpha)
    own = np.einsum("nkhw,nkhw->nk", template, template)
    overlap = both / (own + np.einsum("nhw,nhw->n", alpha, alpha)[:, None] - both)
    best = overlap.argmax(1)
    r, most = r[np.arange(count), best], overlap[np.arange(count), best]
    others = np.where(np.arange(6) % 3 == best[:, None] % 3, 0, overlap)  # of another shape
    margin, also = most - others.max(1), others.argmax(1) % 3
    return Fit(best % 3, best >= 3, x, y, r, most, margin, also)


def mean_color(pixels: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (n, 3) and root mean squared deviation (n,) of pixels (n, 32, 32, 3)."""
    total = np.maximum(weight.sum((1, 2)), 1e-6)
    mean = np.einsum("nhw,nhwc->nc", weight, pixels) / total[:, None]
    square = np.einsum("nhw,nhwc->n", weight, pixels**2) / total
    return mean, np.sqrt(np.maximum(square - (mean**2).sum(1), 0))


def core_color(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean color (n, 3) of a mask's pixels, of those at its edge only where there are no other."""
    return mean_color(pixels, ndimage.minimum_filter(mask, size=(1, 3, 3)) + 1e-3 * mask)[0]


def along(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far each pixel lies from color start (0) to color end (1), clipped: (n, 32, 32)."""
    axis = end - start
    share = np.einsum("nhwc,nc->nhw", pixels - start[:, None, None], axis)
    return np.clip(share / np.maximum((axis**2).sum(1), 1e-6)[:, None, None], 0, 1)


def find_blobs(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected blobs of what is not ground, grown by a pixel: image (m,), mask (m, 32, 32)."""
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)  # connects within an image only
    contrast = np.linalg.norm(pixels - ground[:, None, None], axis=-1)
    # a third of what is near: soft edges of neighbors that meet there do not join them
    own = np.maximum(40, 0.35 * ndimage.maximum_filter(contrast, size=(1, 5, 5)))
    labels, _ = ndimage.label(contrast > own, cross)
    sizes = np.bincount(labels.ravel())
    ids = 1 + np.flatnonzero(sizes[1:] >= MIN_BLOB)
    first = np.full(len(sizes), labels.size)
    np.minimum.at(first, labels.ravel(), np.arange(labels.size))
    image = first[ids] // SIZE**2
    grown = ndimage.maximum_filter(labels, size=(1, 3, 3))
    own = np.where(labels > 0, labels, grown)  # the soft edge belongs to the blob beside it
    return image, own[image] == ids[:, None, None]


def unmix(pixels: np.ndarray, ground: np.ndarray, c1: np.ndarray, c2: np.ndarray):
    """Shares of c1 and of c2 in each pixel over the ground, by least squares: two (n, 32, 32)."""
    axes = np.stack([c1 - ground, c2 - ground], 1)  # (n, 2, 3)
    solve = np.linalg.solve(axes @ axes.transpose(0, 2, 1) + 1e-3 * np.eye(2), axes)
    shares = np.einsum("nhwc,nkc->knhw", pixels - ground[:, None, None], solve)
    return np.clip(shares[0], 0, 1), np.clip(shares[1], 0, 1)


def extent(mask: np.ndarray) -> np.ndarray:
    """Bounding boxes (n, 4) as left, top, -right, -bottom, so that inside means greater."""
    sides = mask.any(1), mask.any(2)
    first = [side.argmax(1) for side in sides]
    return np.stack(first + [side[:, ::-1].argmax(1) - SIZE for side in sides], 1)


def split_blobs(pixels, ground, mask) -> list[tuple[np.ndarray, ...]]:
    """Blobs -> coverage maps of single-colored things: (blob rows, alpha, pixels that show it).

    A blob with a second palette color, which no mix of the first with the ground explains, holds
    two things: one inside the other (then the outer one is taken to go on beneath), or side by
    side. The colors are those that the picture has, not the palette's: else a paler thing would
    cover nothing wholly.
    """
    distance = color_distances(pixels)
    nearest, voter = distance.argmin(-1), mask & (distance.min(-1) < 60)
    palette = np.arange(len(COLORS))[:, None, None, None]
    votes = (voter & (nearest == palette)).sum((2, 3))
    first, most = votes.argmax(0), votes.max(0)
    shows = voter & (nearest == first[:, None, None])
    new = most < 5  # of no palette color: its strongest pixels
    contrast = np.linalg.norm(pixels[new] - ground[new, None, None], axis=-1) * mask[new]
    shows[new] = contrast >= 0.75 * contrast.max((1, 2), keepdims=True, initial=0)
    c1 = core_color(pixels, shows)
    alpha = along(pixels, ground, c1) * mask
    mix = ground[:, None, None] + alpha[..., None] * (c1 - ground)[:, None, None]
    voter &= ~shows & (np.linalg.norm(pixels - mix, axis=-1) > 25)
    votes = (voter & (nearest == palette)).sum((2, 3))
    second, is_two = votes.argmax(0), votes.max(0) >= 12
    one, two = np.flatnonzero(~is_two), np.flatnonzero(is_two)
    found = [(one, alpha[one], mask[one])]
    if len(two):
        core = voter[two] & (nearest[two] == second[two, None, None])
        c2 = core_color(pixels[two], core)
        a, b = (share * mask[two] for share in unmix(pixels[two], ground[two], c1[two], c2))
        whole = np.minimum(a + b, 1)
        # where no ground shines through, what is not the one color is the other
        b = np.where(whole > 0.9, along(pixels[two], c1[two], c2), b)
        b *= ndimage.maximum_filter(core, size=(1, 5, 5))  # an edge is at most two pixels wide
        nested = (extent(b > 0.5) > extent(whole > 0.5)).all(1)[:, None, None]
        found += [(two, np.where(nested, whole, a), b < 0.05), (two, b, b > 0)]
    return found


class Hue(NamedTuple):
    entry: np.ndarray  # (n,) as all of them; index of the nearest palette color
    accepted: np.ndarray
    distance: np.ndarray  # to that color
    rival: np.ndarray  # distance to the next
    deviation: np.ndarray  # of the pixels from their mean


def name_color(pixels: np.ndarray, weight: np.ndarray) -> Hue:
    """The palette color that pixels (n, 32, 32, 3) show where they have weight."""
    mean, deviation = mean_color(pixels, weight)
    distances = color_distances(mean)
    entry, (distance, rival) = distances.argmin(1), np.sort(distances, 1)[:, :2].T
    accepted = (distance <= COLOR_TOLERANCE) & (distance <= COLOR_RIVAL * rival)
    return Hue(entry, accepted & (deviation <= COLOR_DEVIATION), distance, rival, deviation)


def recognize(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, Fit, Hue]:
    """For each blob, or part of one, in pictures (n, 32, 32, 3): image, shape and color."""
    index, mask = find_blobs(pixels, ground)
    parts = split_blobs(pixels[index], ground[index], mask)
    rows = np.concatenate([rows for rows, _, _ in parts])
    alpha, shows = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    keep = alpha.sum((1, 2)) >= MIN_BLOB / 2
    image, alpha, shows = index[rows[keep]], alpha[keep], shows[keep]
    fitted = fit(alpha)
    shape, outline, x, y, r, *_ = fitted
    # the color is decided on the inside of the template, where no edge is mixed in
    inside = coverage(shape, x, y, np.where(outline, r, r - 1), outline) ** 6 * shows
    return image, fitted, name_color(pixels[image], inside)


def read(images: list[Image.Image]) -> list[Reading]:
    """What each image shows; any size, read at 32x32."""
    shown = map(to_rgb, images)
    small = [im if im.size == (SIZE, SIZE) else im.resize((SIZE, SIZE), Image.BOX) for im in shown]
    pixels = np.stack([np.asarray(im, np.float32) for im in small])
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    ground = np.median(border, axis=1)
    dark = np.linalg.norm(ground - DARK, axis=-1) < np.linalg.norm(ground - LIGHT, axis=-1)
    image, fitted, hue = recognize(pixels, ground)

    things, drawn, faults = ([[] for _ in images] for _ in range(3))
    unread = [0] * len(images)
    for k in np.argsort(-fitted.r):  # the outer of two things first
        i = image[k]
        shape, outline, x, y, r, overlap, margin, also = (values[k].item() for values in fitted)
        what = f"{SHAPES[shape]} at {x:.0f}, {y:.0f}"
        if overlap < MIN_OVERLAP[outline]:
            unread[i] += 1
            faults[i].append(f"{what}: overlap {overlap:.2f}, wanted {MIN_OVERLAP[outline]:.2f}")
            continue
        color, doubt = list(COLORS)[hue.entry[k]], SHAPES[also] if margin < MIN_MARGIN else None
        drawn[i].append(Thing(SHAPES[shape], color, x, y, r, outline, doubt))
        things[i].append(drawn[i][-1]._replace(color=color if hue.accepted[k] else None))
        if not hue.accepted[k]:
            most = min(COLOR_TOLERANCE, COLOR_RIVAL * hue.rival[k])
            faults[i].append(
                f"{what}: color {hue.distance[k]:.0f} from {color}, wanted {most:.0f}; its pixels "
                f"{hue.deviation[k]:.0f} from their mean, wanted {COLOR_DEVIATION:.0f}"
            )
    again = render([Scene(tuple(t), bool(d)) for t, d in zip(drawn, dark)])
    render_error = np.abs(again - pixels).mean((1, 2, 3))
    return [
        Reading(tuple(t), u, bool(d), float(f), tuple(why))
        for t, u, d, f, why in zip(things, unread, dark, render_error, faults)
    ]
