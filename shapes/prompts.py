"""Prompts of the shapes, split for training and evaluation, and scenes that satisfy them.

A quarter of what the grammar (grammar.KINDS) can say is held out from all training.

    sample_prompts(8, rng)                      # for a training step
    heldout_prompts()                           # the benchmark
    sample_scene(heldout_prompts()[0], rng)     # what a right answer looks like
"""

import functools
import itertools
import re
import zlib

import numpy as np

from shapes.grammar import (
    IN_OUTLINE,
    KINDS,
    NUMBERS,
    ON_DARK,
    PLACES,
    RADII,
    SLOTS,
    SUMS,
    THINGS,
    Caption,
    make_prompt,
)
from shapes.render import COLORS, SHAPES, Scene, Thing

LATTICES = {3.4: (4, 12, 20, 28), 5.6: (8, 16, 24), 9.0: (16,)}  # where centers may lie, by radius


# ----------------------------------------------------------------------------- splits


@functools.cache
def all_prompts(split: str) -> dict[str, tuple[Caption, ...]]:
    """Every prompt of a split ("train" or "heldout") by kind.

    A quarter of all combinations of slots, drawn by a hash of the sentence, is held out.
    """
    prompts = {}
    for kind, (sentence, _) in KINDS.items():
        names = re.findall(r"\{(\w+)\}", sentence)
        combos = [dict(zip(names, v)) for v in itertools.product(*(SLOTS[n] for n in names))]
        combos = [c for c in combos if c["s1"] != c.get("s2") and c.get("c1") != c.get("c2", 0)]
        made = [make_prompt(kind, slots) for slots in combos]
        prompts[kind] = tuple(
            p for p in made if (zlib.crc32(p.text.encode()) % 4 == 0) == (split == "heldout")
        )
    return prompts


def heldout_prompts(most: int = 60) -> list[Caption]:
    """The held-out benchmark: at most `most` prompts of a kind, the kinds mixed."""
    by_kind = all_prompts("heldout").values()
    chosen = [sorted(p, key=lambda p: zlib.crc32(p.text.encode()))[:most] for p in by_kind]
    return sorted(itertools.chain(*chosen), key=lambda p: zlib.crc32(p.text.encode()))


def sample_prompts(count: int, rng: np.random.Generator) -> list[Caption]:
    """Training prompts: each kind equally often, combinations uniform within a kind."""
    by_kind = all_prompts("train")
    kinds = rng.integers(len(KINDS), size=count)
    pools = list(by_kind.values())
    return [pools[k][rng.integers(len(pools[k]))] for k in kinds]


# ----------------------------------------------------------------------------- scenes


def place(radii: np.ndarray, rng: np.random.Generator, ordered=None) -> np.ndarray:
    """Centers (n, 2) of things that do not touch; ordered=(dx, dy): thing 0 lies there of thing 1.

    Small things stand in the middle of the cells of 8 pixels that one token shows, large ones on
    the cells' corners: so the world is small enough for a tiny model to learn it in minutes.
    """
    for _ in range(10_000):
        xy = np.stack([rng.choice(LATTICES[r], 2) for r in radii])
        gap = np.abs(xy[:, None] - xy[None]).max(-1) - 1.2 * (radii[:, None] + radii[None])
        apart = (gap[np.triu_indices(len(radii), 1)] >= 1.0).all()
        if apart and ordered is not None:
            along = (xy[0] - xy[1]) @ np.array(ordered)
            apart = along >= np.abs(xy[0] - xy[1]).max()
        if apart:
            return xy.astype(float)
    raise ValueError(f"no room for things of radius {radii}")


def sample_scene(prompt: Caption, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies every testpoint of the prompt."""
    s = prompt.slots
    color = THINGS[s["thing"]] if "thing" in s else s["c1"]
    count = NUMBERS.get(s.get("n"), SUMS.get(s.get("sum"), 1))
    sizes = [s.get("size") or str(rng.choice(["small", "large"]))] * count
    looks = [(s["s1"], color)] * count
    if s.get("style") == IN_OUTLINE:
        sizes = ["large"]
    if count > 1:
        sizes = ["small"] * count
    if "c2" in s:
        looks.append((s["s2"], s["c2"]))
        sizes = [("small", "small"), ("small", "large"), ("large", "small")][rng.integers(3)]
        if "than" in s:
            sizes = ["large", "small"] if s["than"] == "larger" else ["small", "large"]
    if prompt.kind == "negation" and rng.random() < 0.5:  # something else, but not what is excluded
        (other,) = set(SHAPES) - {s["s1"], s["s2"]}
        looks.append((other, str(rng.choice(list(COLORS)))))
        sizes = [*sizes, "small"]
    if prompt.kind == "inclusion":
        center = place(np.array([RADII["outer"]]), rng)[0]
        things = (
            Thing(s["s2"], s["c2"], *center, RADII["outer"]),
            Thing(s["s1"], s["c1"], *center, RADII["inner"]),
        )
    else:
        radii = np.array([RADII[size] for size in sizes])
        xy = place(radii, rng, PLACES.get(s.get("place")))
        things = tuple(
            Thing(shape, c, x, y, r, s.get("style") == IN_OUTLINE)
            for (shape, c), (x, y), r in zip(looks, xy, radii)
        )
    return Scene(things, dark=s.get("style") == ON_DARK)
