"""The embedded world: prompts about coloured shapes, testpoints that pixels decide, and a judge.

Prompts are plain English from a small grammar (KINDS); each carries testpoints under UniGenBench's
own labels, so that the benchmark runs here too. Eight of its ten primary dimensions can be decided
exactly from the pixels of such scenes: Attribute, Entity Layout, Relationship, Grammar, Compound,
Logical Reasoning, World Knowledge, Style. Absent: Action and Text Generation.

`ShapesMLLM` puts the verifier behind `judges.mllm.MLLM`: the questions and answers of a real judge.
"""

import functools
import itertools
import json
import re
import zlib
from typing import NamedTuple

import numpy as np

from judges.mllm import Answer, Query
from shapes import phrasebook
from shapes.scenes import COLORS, SHAPES, Reading, Scene, Thing, read

THINGS = {
    "a ripe tomato": "red",
    "fresh grass": "green",
    "a clear sky": "blue",
    "a ripe banana": "yellow",
    "a flamingo": "pink",
    "an eggplant": "purple",
}
RADII = {"small": 3.4, "inner": 4.3, "large": 5.6, "outer": 9.0}  # pixels
LATTICES = {3.4: (4, 12, 20, 28), 5.6: (8, 16, 24), 9.0: (16,)}  # where centres may lie, by radius
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
SUMS = {
    f"{a} {sign} {b}": n
    for a, b, sign in itertools.product(NUMBERS, NUMBERS, ("plus", "minus"))
    if 2 <= (n := NUMBERS[a] + NUMBERS[b] * (1 if sign == "plus" else -1)) <= 4
}
STYLES = ("on a dark ground", "drawn in outline")
PLACES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}


# ----------------------------------------------------------------------------- prompts

SLOTS = {
    "c1": tuple(COLORS),
    "c2": tuple(COLORS),
    "s1": SHAPES,
    "s2": SHAPES,
    "size": ("small", "large"),
    "n": ("two", "three", "four"),
    "sum": tuple(SUMS),
    "style": STYLES,
    "place": tuple(PLACES),
    "than": ("larger", "smaller"),
    "thing": tuple(THINGS),
}

COLOR = ("Attribute - Color", "the {s1} is {c1}")
COLORS_ = ("Attribute - Color", "the {s1}s are {c1}")
SHAPE = ("Attribute - Shape", "a {s1}")
SIZE_ = ("Attribute - Size", "the {s1} is {size}")
COUNT = ("Attribute - Quantity", "{n} {s1}s")
COLOR2 = ("Attribute - Color", "the {s2} is {c2}")
PAIR = ("Compound - Feature Matching", "a {c1} {s1} and a {c2} {s2}")

# kind -> (the sentence, its testpoints as (sub dimension, description))
KINDS = {
    "single": ("a {size} {c1} {s1}", (COLOR, SHAPE, SIZE_)),
    "count": ("{n} {c1} {s1}s", (COUNT, COLORS_)),
    "consistency": (
        "{n} {s1}s , all of them {c1}",
        (COUNT, ("Grammar - Consistency", "all the {s1}s are {c1}")),
    ),
    "style": ("a {c1} {s1} {style}", (("Style", "{style}"), COLOR, SHAPE)),
    "layout": (
        "a {c1} {s1} {place} a {c2} {s2}",
        (("Entity Layout - Two-Dimensional Space", "the {s1} is {place} the {s2}"), COLOR, COLOR2),
    ),
    "comparison": (
        "a {c1} {s1} {than} than a {c2} {s2}",
        (("Relationship - Comparison", "the {s1} is {than} than the {s2}"), COLOR, COLOR2),
    ),
    "inclusion": (
        "a {c1} {s1} inside a {c2} {s2}",
        (("Relationship - Inclusion", "the {s1} is inside the {s2}"), COLOR, COLOR2),
    ),
    "matching": ("a {c1} {s1} and a {c2} {s2}", (PAIR, COLOR, COLOR2)),
    "negation": (
        "a {size} {c1} {s1} and no {s2}",
        (("Grammar - Negation", "no {s2}"), COLOR, SIZE_),
    ),
    "arithmetic": ("{sum} {c1} {s1}s", (("Logical Reasoning", "{sum} {s1}s"), COLORS_)),
    "world": (
        "a {size} {s1} the color of {thing}",
        (("World Knowledge", "the {s1} has the color of {thing}"), SIZE_),
    ),
}


class Prompt(NamedTuple):
    text: str
    kind: str
    slots: dict[str, str]
    testpoints: tuple[tuple[str, str], ...]  # (sub dimension, description)


@functools.cache
def pattern(sentence: str) -> re.Pattern:
    """The regular expression that reads a sentence's slots back."""
    return re.compile(
        re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{'|'.join(SLOTS[m[1]])})", sentence)
    )


def make_prompt(kind: str, slots: dict[str, str]) -> Prompt:
    sentence, testpoints = KINDS[kind]
    return Prompt(
        sentence.format(**slots),
        kind,
        slots,
        tuple((sub, description.format(**slots)) for sub, description in testpoints),
    )


@functools.lru_cache(maxsize=65536)
def parse_prompt(text: str) -> Prompt | None:
    """The prompt that a text states, or None if it is not a sentence of this world."""
    text = " ".join(text.lower().replace(",", " , ").split()).rstrip(" .")
    for kind, (sentence, _) in KINDS.items():
        if match := pattern(sentence).fullmatch(text):
            return make_prompt(kind, match.groupdict())
    return None


@functools.cache
def all_prompts(split: str) -> dict[str, tuple[Prompt, ...]]:
    """Every prompt of a split ("train" or "heldout") by kind.

    A quarter of all combinations of slots, drawn by a hash of the sentence, is held out: neither
    pre-training nor RL sees those combinations.
    """
    prompts = {}
    for kind, (sentence, _) in KINDS.items():
        names = re.findall(r"\{(\w+)\}", sentence)
        combos = [
            dict(zip(names, values)) for values in itertools.product(*(SLOTS[n] for n in names))
        ]
        combos = [c for c in combos if c["s1"] != c.get("s2") and c.get("c1") != c.get("c2", 0)]
        made = [make_prompt(kind, slots) for slots in combos]
        prompts[kind] = tuple(
            p for p in made if (zlib.crc32(p.text.encode()) % 4 == 0) == (split == "heldout")
        )
    return prompts


def heldout_prompts(most: int = 60) -> list[Prompt]:
    """The held-out benchmark, at most `most` prompts of a kind, in an order that mixes the
    kinds."""
    by_kind = all_prompts("heldout").values()
    chosen = [sorted(p, key=lambda p: zlib.crc32(p.text.encode()))[:most] for p in by_kind]
    return sorted(itertools.chain(*chosen), key=lambda p: zlib.crc32(p.text.encode()))


def sample_prompts(count: int, rng: np.random.Generator) -> list[Prompt]:
    """Training prompts: each kind equally often, combinations uniform within a kind."""
    by_kind = all_prompts("train")
    kinds = rng.integers(len(KINDS), size=count)
    pools = list(by_kind.values())
    return [pools[k][rng.integers(len(pools[k]))] for k in kinds]


# ----------------------------------------------------------------------------- scenes


def place(radii: np.ndarray, rng: np.random.Generator, ordered=None) -> np.ndarray:
    """Centres (n, 2) of things that do not touch; ordered=(dx, dy): thing 0 lies there of thing 1.

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


def sample_scene(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies every testpoint of the prompt."""
    s = prompt.slots
    color = THINGS[s["thing"]] if "thing" in s else s["c1"]
    count = NUMBERS.get(s.get("n"), SUMS.get(s.get("sum"), 1))
    sizes = [s.get("size") or str(rng.choice(["small", "large"]))] * count
    looks = [(s["s1"], color)] * count
    if s.get("style") == "drawn in outline":
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
        centre = place(np.array([RADII["outer"]]), rng)[0]
        things = (
            Thing(s["s2"], s["c2"], *centre, RADII["outer"]),
            Thing(s["s1"], s["c1"], *centre, RADII["inner"]),
        )
    else:
        radii = np.array([RADII[size] for size in sizes])
        xy = place(radii, rng, PLACES.get(s.get("place")))
        things = tuple(
            Thing(shape, c, x, y, r, s.get("style") == "drawn in outline")
            for (shape, c), (x, y), r in zip(looks, xy, radii)
        )
    return Scene(things, dark=s.get("style") == "on a dark ground")


# ----------------------------------------------------------------------------- testpoints


@functools.lru_cache(maxsize=65536)
def parse_testpoint(sub: str, description: str) -> dict[str, str] | None:
    """The slots of a testpoint, or None if it is not of this world."""
    for tested, sentence in itertools.chain(*(testpoints for _, testpoints in KINDS.values())):
        if tested == sub and (match := pattern(sentence).fullmatch(description)):
            return match.groupdict()
    return None


def holds(sub: str, slots: dict[str, str], reading: Reading) -> bool:
    """Whether a testpoint of a sub dimension, with its slots, holds in what was read of an image.

    "the circle" means every circle there is, and at least one. Nothing that speaks of how many
    there are, or of what is absent, is granted while a blob stays unread.
    """
    of = {shape: [t for t in reading.things if t.shape == shape] for shape in SHAPES}
    first, second = of.get(slots.get("s1"), []), of.get(slots.get("s2"), [])
    pairs = list(itertools.product(first, second))
    has = lambda things, color: bool(things) and all(t.color == color for t in things)
    if sub in ("Attribute - Color", "Grammar - Consistency"):
        return has(first, slots["c1"]) and (sub == "Attribute - Color" or len(first) > 1)
    if sub == "World Knowledge":
        return has(first, THINGS[slots["thing"]])
    if sub == "Attribute - Shape":
        return bool(first)
    if sub == "Attribute - Size":
        low, high = (0, 4.3) if slots["size"] == "small" else (4.8, 7.0)
        return bool(first) and all(low < t.r < high for t in first)
    if sub in ("Attribute - Quantity", "Logical Reasoning"):
        wanted = NUMBERS[slots["n"]] if "n" in slots else SUMS[slots["sum"]]
        return len(first) == wanted and not reading.unread
    if sub == "Compound - Feature Matching":
        return has(first, slots["c1"]) and has(second, slots["c2"])
    if sub == "Grammar - Negation":
        return bool(reading.things) and not second and not reading.unread
    if sub == "Style":
        return bool(reading.things) and (
            reading.dark if slots["style"] == STYLES[0] else all(t.outline for t in reading.things)
        )
    if sub == "Relationship - Comparison":
        sign = 1 if slots["than"] == "larger" else -1
        return bool(pairs) and all(sign * (a.r - b.r) > 0.8 for a, b in pairs)
    if sub == "Relationship - Inclusion":
        return bool(pairs) and all(
            a.r < 0.6 * b.r and np.hypot(a.x - b.x, a.y - b.y) < 0.4 * b.r for a, b in pairs
        )
    dx, dy = PLACES[slots["place"]]
    return bool(pairs) and all((a.x - b.x) * dx + (a.y - b.y) * dy > 3 for a, b in pairs)


def satisfied(prompt: Prompt, reading: Reading) -> list[bool]:
    """Which of a prompt's testpoints hold, in their order."""
    return [holds(sub, parse_testpoint(sub, text), reading) for sub, text in prompt.testpoints]


# ----------------------------------------------------------------------------- judge


class ShapesMLLM:
    """The verifier as a multimodal judge: it reads questions and writes answers as a real one does.

    Two images and a caption: which is better, as a careful person would compare them. More
    testpoints satisfied wins. If equal, and equally many things are drawn, fewer that are no shape
    win. If equal again, and the same looks are drawn, the image that renders again better by more
    than a just-noticeable difference JND wins. Else a tie. (Without "equally many", leaving things
    out would pay; without "the same looks", so would what renders best, circles in yellow.)
    One image and testpoints: an analysis and a 0 or 1 for each. One image and a caption: scores
    1-5. No image: the questions of construct.py, from a phrase book.

    error_rate: share of comparisons answered at random; first_bias: share answered "Image 1"
    whatever is shown. Both depend on the query alone, so that asking again gives the same answer.
    """

    JND = 0.5  # grey levels of fidelity, averaged over the picture

    def __init__(self, error_rate: float = 0.0, first_bias: float = 0.0):
        self.error_rate, self.first_bias = error_rate, first_bias
        self.name = "shapes" + (
            f"-err{error_rate}-first{first_bias}" if error_rate or first_bias else ""
        )

    def ask(self, queries: list[Query]) -> list[Answer]:
        """One answer a query, in order; each image is read once however many queries show it."""
        images = {id(image): image for query in queries for image in query.images}
        readings = dict(zip(images, read(list(images.values())))) if images else {}
        return [
            Answer(self.answer(query, [readings[id(i)] for i in query.images]), None)
            for query in queries
        ]

    def answer(self, query: Query, shown: list[Reading]) -> str:
        caption = re.search(r"^Caption: (.*)$", query.text, re.MULTILINE)
        prompt = parse_prompt(caption[1]) if caption else None
        if len(shown) == 1 and "Testpoint 1:" in query.text:
            return answer_testpoints(query.text, shown[0])
        if not shown and (written := phrasebook.answer(query.text)):
            return written
        if prompt is None or not shown:
            return "I can only judge pictures of coloured shapes by a caption that describes them."
        if len(shown) == 1:
            return answer_scores(prompt, shown[0])
        reason, winner = compare(prompt, *shown[:2], jnd=self.JND)
        if self.error_rate or self.first_bias:
            pixels = b"".join(image.tobytes() for image in query.images)
            draw = np.random.default_rng(zlib.crc32(pixels + query.text.encode()))
            if draw.random() < self.first_bias:
                winner = 1
            elif draw.random() < self.error_rate:
                winner = int(draw.integers(1, 3))
        if '"winner"' in query.text:
            return json.dumps({"reason": reason, "winner": f"Image {winner}" if winner else "tie"})
        final = f"Image {winner} is better" if winner else "Both are equal"
        return f"{reason}\n<answer>{final}</answer>"


def look(thing: Thing) -> tuple[str, str, str, bool]:
    """Shape, color, size and outline: what fidelity depends on even where nothing is wrong."""
    size = min(RADII, key=lambda name: abs(RADII[name] - thing.r))
    return thing.shape, thing.color or "", size, thing.outline


def compare(prompt: Prompt, first: Reading, second: Reading, jnd: float) -> tuple[str, int]:
    """Why, and which image is better: 1, 2, or 0 for a tie."""
    met = [sum(satisfied(prompt, r)) for r in (first, second)]
    reason = (
        f"Image 1 shows {met[0]} and Image 2 shows {met[1]} of {len(prompt.testpoints)} demands."
    )
    if met[0] != met[1]:
        return reason, 1 if met[0] > met[1] else 2
    drawn = [len(r.things) + r.unread for r in (first, second)]
    if drawn[0] != drawn[1] or drawn[0] == 0:
        return reason + " They do not show equally many things.", 0
    if first.unread != second.unread:
        winner = 1 if first.unread < second.unread else 2
        return reason + f" Image {winner} has fewer things that are no shape at all.", winner
    looks = [sorted(map(look, r.things)) for r in (first, second)]
    if looks[0] != looks[1]:
        return reason + " They show different things.", 0
    flaws = [first.fidelity, second.fidelity]
    if abs(flaws[0] - flaws[1]) <= jnd:
        return reason + " Neither is visibly cleaner.", 0
    winner = 1 if flaws[0] < flaws[1] else 2
    return reason + f" Image {winner} is drawn more cleanly.", winner


def answer_testpoints(question: str, reading: Reading) -> str:
    """The official form: a list of analyses and a list of scores, for the testpoints of a
    question."""
    analyses, scores = [], []
    for sub, description in re.findall(
        r"^Testpoint \d+: (.+)\n(?:Definition: .*\n)?Description: (.+)$", question, re.MULTILINE
    ):
        slots = parse_testpoint(sub.strip(), description.strip())
        verdict = slots is not None and holds(sub.strip(), slots, reading)
        fault = "cannot be verified" if slots is None else "is not shown"
        analyses.append(f"'{description.strip()}' {'is shown' if verdict else fault}")
        scores.append(int(verdict))
    return f"<analysis>{json.dumps(analyses)}</analysis>\n<score>{json.dumps(scores)}</score>"


def answer_scores(prompt: Prompt, reading: Reading) -> str:
    """Scores from 1 to 5 in UnifiedReward's pointwise form: alignment from the testpoints, the rest
    from fidelity."""
    met = satisfied(prompt, reading)
    alignment = 1 + 4 * sum(met) / len(met)
    clean = 1 + 4 * np.exp(-reading.fidelity / 4)
    return (
        f"Alignment Score (1-5): {alignment:.4f}\nCoherence Score (1-5): {clean:.4f}\n"
        f"Style Score (1-5): {clean:.4f}"
    )
