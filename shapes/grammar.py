"""What a caption of the shapes can say, and what it demands.

Sentences are plain English from a small grammar (KINDS); each carries testpoints under
UniGenBench's own labels, so that the benchmark runs here too. Eight of its ten primary dimensions
can be decided exactly from the pixels of such scenes: Attribute, Entity Layout, Relationship,
Grammar, Compound, Logical Reasoning, World Knowledge, Style. Absent: Action and Text Generation.

    parse_prompt("a large red circle").testpoints      # ("Attribute - Color", "the circle is red"),
"""

import functools
import itertools
import re
from typing import NamedTuple

from shapes.render import COLORS, SHAPES

RADII = {"small": 3.4, "inner": 4.3, "large": 5.6, "outer": 9.0}  # pixels, as drawn
THINGS = {
    "a ripe tomato": "red",
    "fresh grass": "green",
    "a clear sky": "blue",
    "a ripe banana": "yellow",
    "a flamingo": "pink",
    "an eggplant": "purple",
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
SUMS = {
    f"{a} {sign} {b}": n
    for a, b, sign in itertools.product(NUMBERS, NUMBERS, ("plus", "minus"))
    if 2 <= (n := NUMBERS[a] + NUMBERS[b] * (1 if sign == "plus" else -1)) <= 4
}
ON_DARK, IN_OUTLINE = "on a dark ground", "drawn in outline"
PLACES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SLOTS = {
    "c1": tuple(COLORS),
    "c2": tuple(COLORS),
    "s1": SHAPES,
    "s2": SHAPES,
    "size": ("small", "large"),
    "n": ("two", "three", "four"),
    "sum": tuple(SUMS),
    "style": (ON_DARK, IN_OUTLINE),
    "place": tuple(PLACES),
    "than": ("larger", "smaller"),
    "thing": tuple(THINGS),
}

COLOR_OF_1 = ("Attribute - Color", "the {s1} is {c1}")
COLOR_OF_ALL = ("Attribute - Color", "the {s1}s are {c1}")
SHAPE_OF_1 = ("Attribute - Shape", "a {s1}")
SIZE_OF_1 = ("Attribute - Size", "the {s1} is {size}")
COUNT_OF_1 = ("Attribute - Quantity", "{n} {s1}s")
BOTH_COLORS = (COLOR_OF_1, ("Attribute - Color", "the {s2} is {c2}"))
PAIR = ("Compound - Feature Matching", "a {c1} {s1} and a {c2} {s2}")

# kind -> (the sentence, its testpoints as (sub dimension, description))
KINDS = {
    "single": ("a {size} {c1} {s1}", (COLOR_OF_1, SHAPE_OF_1, SIZE_OF_1)),
    "count": ("{n} {c1} {s1}s", (COUNT_OF_1, COLOR_OF_ALL)),
    "consistency": (
        "{n} {s1}s , all of them {c1}",
        (COUNT_OF_1, ("Grammar - Consistency", "all the {s1}s are {c1}")),
    ),
    "style": ("a {c1} {s1} {style}", (("Style", "{style}"), COLOR_OF_1, SHAPE_OF_1)),
    "layout": (
        "a {c1} {s1} {place} a {c2} {s2}",
        (("Entity Layout - Two-Dimensional Space", "the {s1} is {place} the {s2}"), *BOTH_COLORS),
    ),
    "comparison": (
        "a {c1} {s1} {than} than a {c2} {s2}",
        (("Relationship - Comparison", "the {s1} is {than} than the {s2}"), *BOTH_COLORS),
    ),
    "inclusion": (
        "a {c1} {s1} inside a {c2} {s2}",
        (("Relationship - Inclusion", "the {s1} is inside the {s2}"), *BOTH_COLORS),
    ),
    "matching": ("a {c1} {s1} and a {c2} {s2}", (PAIR, *BOTH_COLORS)),
    "negation": (
        "a {size} {c1} {s1} and no {s2}",
        (("Grammar - Negation", "no {s2}"), COLOR_OF_1, SIZE_OF_1),
    ),
    "arithmetic": ("{sum} {c1} {s1}s", (("Logical Reasoning", "{sum} {s1}s"), COLOR_OF_ALL)),
    "world": (
        "a {size} {s1} the color of {thing}",
        (("World Knowledge", "the {s1} has the color of {thing}"), SIZE_OF_1),
    ),
}


class Caption(NamedTuple):
    text: str
    kind: str
    slots: dict[str, str]
    testpoints: tuple[tuple[str, str], ...]  # (sub dimension, description)


@functools.cache
def pattern(sentence: str) -> re.Pattern:
    """The regular expression that reads a sentence's slots back."""
    choice = lambda slot: f"(?P<{slot[1]}>{'|'.join(SLOTS[slot[1]])})"
    return re.compile(re.sub(r"\{(\w+)\}", choice, sentence))


def make_prompt(kind: str, slots: dict[str, str]) -> Caption:
    sentence, testpoints = KINDS[kind]
    said = tuple((sub, description.format(**slots)) for sub, description in testpoints)
    return Caption(sentence.format(**slots), kind, slots, said)


@functools.lru_cache(maxsize=65536)
def parse_prompt(text: str) -> Caption | None:
    """The prompt that a text states, or None if it is not a sentence of this world."""
    text = " ".join(text.lower().replace(",", " , ").split()).rstrip(" .")
    for kind, (sentence, _) in KINDS.items():
        if match := pattern(sentence).fullmatch(text):
            return make_prompt(kind, match.groupdict())
    return None


@functools.lru_cache(maxsize=65536)
def parse_testpoint(sub: str, description: str) -> dict[str, str] | None:
    """The slots of a testpoint, or None if it is not of this world."""
    for tested, sentence in itertools.chain(*(testpoints for _, testpoints in KINDS.values())):
        if tested == sub and (match := pattern(sentence).fullmatch(description)):
            return match.groupdict()
    return None
