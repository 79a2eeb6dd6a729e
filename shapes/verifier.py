"""The verifier: whether a picture shows what a caption of the shapes demands, and as a judge.

`ShapesMLLM` puts it behind `judges.mllm.MLLM`: the questions and answers of a real judge.

    satisfied(parse_prompt("a large red circle"), reading)      # [True, True, False]
"""

import itertools
import json
import re
import zlib

import numpy as np

from judges.mllm import Answer, Query
from shapes.grammar import (
    NUMBERS,
    ON_DARK,
    PLACES,
    RADII,
    SUMS,
    THINGS,
    Caption,
    parse_prompt,
    parse_testpoint,
)
from shapes.read import Reading, read
from shapes.render import Thing

# ----------------------------------------------------------------------------- checks

# Where a check draws the line. What is drawn to satisfy it (RADII) lies well to one side.
SIZES = {"small": (0, 4.3), "large": (4.8, 7.0)}  # radius in pixels; in between is neither
MIN_DIFFERENCE = 0.8  # pixels of radius by which one thing is larger than another
MAX_INNER, MAX_OFFSET = 0.6, 0.4  # radius and offset of what is inside, over the radius outside
MIN_SHIFT = 3  # pixels by which one thing must lie to the left of another, or above it


def named(slot: str, slots: dict[str, str], reading: Reading) -> list[Thing]:
    """The things of the shape that a slot, s1 or s2, names."""
    return [t for t in reading.things if t.shape == slots[slot]]


def pairs(slots: dict[str, str], reading: Reading) -> list[tuple[Thing, Thing]]:
    """Every thing that s1 names with every thing that s2 names."""
    return list(itertools.product(named("s1", slots, reading), named("s2", slots, reading)))


def all_in(color: str, things: list[Thing]) -> bool:
    return bool(things) and all(t.color == color for t in things)


def colored(slots: dict[str, str], reading: Reading) -> bool:
    color = THINGS[slots["thing"]] if "thing" in slots else slots["c1"]
    return all_in(color, named("s1", slots, reading))


def consistent(slots: dict[str, str], reading: Reading) -> bool:
    return colored(slots, reading) and len(named("s1", slots, reading)) > 1


def absent(slots: dict[str, str], reading: Reading) -> bool:
    may_be = any(slots["s2"] in (t.shape, t.also) for t in reading.things)
    return bool(reading.things) and not may_be and not reading.unread


def sized(slots: dict[str, str], reading: Reading) -> bool:
    low, high = SIZES[slots["size"]]
    things = named("s1", slots, reading)
    return bool(things) and all(low < t.r < high for t in things)


def counted(slots: dict[str, str], reading: Reading) -> bool:
    number = SUMS[slots["sum"]] if "sum" in slots else NUMBERS[slots["n"]]
    return len(named("s1", slots, reading)) == number and not reading.unread


def matched(slots: dict[str, str], reading: Reading) -> bool:
    looks = (("c1", "s1"), ("c2", "s2"))
    return all(all_in(slots[color], named(shape, slots, reading)) for color, shape in looks)


def styled(slots: dict[str, str], reading: Reading) -> bool:
    as_asked = reading.dark if slots["style"] == ON_DARK else all(t.outline for t in reading.things)
    return bool(reading.things) and as_asked


def compared(slots: dict[str, str], reading: Reading) -> bool:
    sign = 1 if slots["than"] == "larger" else -1
    both = pairs(slots, reading)
    return bool(both) and all(sign * (a.r - b.r) > MIN_DIFFERENCE for a, b in both)


def included(slots: dict[str, str], reading: Reading) -> bool:
    both = pairs(slots, reading)
    return bool(both) and all(
        a.r < MAX_INNER * b.r and np.hypot(a.x - b.x, a.y - b.y) < MAX_OFFSET * b.r for a, b in both
    )


def placed(slots: dict[str, str], reading: Reading) -> bool:
    dx, dy = PLACES[slots["place"]]
    both = pairs(slots, reading)
    return bool(both) and all((a.x - b.x) * dx + (a.y - b.y) * dy > MIN_SHIFT for a, b in both)


CHECKS = {  # sub dimension -> whether a testpoint of it, by its slots, holds in a reading
    "Attribute - Color": colored,
    "Attribute - Shape": lambda slots, reading: bool(named("s1", slots, reading)),
    "Attribute - Size": sized,
    "Attribute - Quantity": counted,
    "Grammar - Consistency": consistent,
    "Grammar - Negation": absent,
    "Style": styled,
    "Entity Layout - Two-Dimensional Space": placed,
    "Relationship - Comparison": compared,
    "Relationship - Inclusion": included,
    "Compound - Feature Matching": matched,
    "Logical Reasoning": counted,
    "World Knowledge": colored,
}
WANTED = {  # by the checks that draw a line in numbers
    "Attribute - Size": f"radii in {SIZES}",
    "Grammar - Consistency": "two or more",
    "Entity Layout - Two-Dimensional Space": f"{MIN_SHIFT} pixels that way",
    "Relationship - Comparison": f"radii that differ by {MIN_DIFFERENCE}",
    "Relationship - Inclusion": f"{MAX_INNER} of the outer radius at most, and an offset of "
    f"{MAX_OFFSET} of it",
}


def holds(sub: str, slots: dict[str, str] | None, reading: Reading) -> bool:
    """Whether a testpoint of a sub dimension, with its slots, holds in what was read of an image.

    "the circle" means every circle there is, and at least one. Nothing that speaks of how many
    there are, or of what is absent, is granted while a blob stays unread, and nothing is absent
    that a thing may be. Slots are None for what is not of this world.
    """
    return slots is not None and CHECKS[sub](slots, reading)


def satisfied_as(testpoints, reading: Reading) -> tuple[list[bool], Reading]:
    """Which (sub dimension, description) hold, and the reading by which most of them do.

    A thing that passes for two shapes is taken for either, as people take what they were told.
    """
    demands = [(sub, parse_testpoint(sub, text)) for sub, text in testpoints]
    other = lambda t: t._replace(shape=t.also, also=t.shape)
    ways = itertools.product(*((t, other(t)) if t.also else (t,) for t in reading.things))
    readings = [reading._replace(things=things) for things in ways]
    verdicts = [[holds(sub, slots, way) for sub, slots in demands] for way in readings]
    return max(zip(verdicts, readings), key=lambda way: sum(way[0]))


def satisfied(prompt: Caption, reading: Reading) -> list[bool]:
    """Which of a prompt's testpoints hold, in their order."""
    return satisfied_as(prompt.testpoints, reading)[0]


# ----------------------------------------------------------------------------- judge

# Where a question has its caption: our own, UnifiedReward-Think's and UnifiedReward-Flex's.
CAPTION = r"^Caption: (.*)$|「(.*?)」|^\*\*Prompt:\*\* \[(.*)\]$"


def look(thing: Thing) -> tuple[str, str, str, bool]:
    """Shape, color, size and outline: what render error depends on even where nothing is wrong."""
    size = min(RADII, key=lambda name: abs(RADII[name] - thing.r))
    return thing.shape, thing.color or "", size, thing.outline


def compare(prompt: Caption, first: Reading, second: Reading, jnd: float) -> tuple[str, int]:
    """Why, and which image is better: 1, 2, or 0 for a tie."""
    met = [sum(satisfied(prompt, r)) for r in (first, second)]
    of = len(prompt.testpoints)
    reason = f"Image 1 shows {met[0]} and Image 2 shows {met[1]} of {of} demands."
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
    flaws = [first.render_error, second.render_error]
    if abs(flaws[0] - flaws[1]) <= jnd:
        return reason + " Neither is visibly cleaner.", 0
    winner = 1 if flaws[0] < flaws[1] else 2
    return reason + f" Image {winner} is drawn more cleanly.", winner


def answer_testpoints(question: str, reading: Reading) -> str:
    """For each testpoint of a question an analysis and a score, in UniGenBench's own form.

    null is the score of what is not of this world, so that the answer is none: a 0 would say of the
    picture what is true of the verifier.
    """
    form = r"^Testpoint \d+: (.+)\n(?:Definition: .*\n)?Description: (.+)$"
    found = re.findall(form, question, re.MULTILINE)
    testpoints = [(sub.strip(), text.strip()) for sub, text in found]
    verdicts, reading = satisfied_as(testpoints, reading)
    analyses, scores = [], []
    for (sub, text), met in zip(testpoints, verdicts):
        fault = f"is not shown; {reading.in_words()}"
        known = parse_testpoint(sub, text) is not None
        if not known:
            fault = "cannot be verified"
        elif sub in WANTED:
            fault += f"; wanted: {WANTED[sub]}"
        analyses.append(f"'{text}' {'is shown' if met else fault}")
        scores.append(int(met) if known else None)
    return f"<analysis>{json.dumps(analyses)}</analysis>\n<score>{json.dumps(scores)}</score>"


def answer_scores(prompt: Caption, reading: Reading) -> str:
    """UnifiedReward's pointwise form, 1 to 5: alignment by testpoints, the rest by render error."""
    met = satisfied(prompt, reading)
    alignment = 1 + 4 * sum(met) / len(met)
    clean = 1 + 4 * np.exp(-reading.render_error / 4)
    return (
        f"Alignment Score (1-5): {alignment:.4f}\nCoherence Score (1-5): {clean:.4f}\n"
        f"Style Score (1-5): {clean:.4f}"
    )


class ShapesMLLM:
    """The verifier as a multimodal judge: it reads questions and writes answers as a real one does.

    Two images and a caption: which is better, as a careful person would compare them. More
    testpoints satisfied wins. If equal, and equally many things are drawn, fewer that are no shape
    win. If equal again, and the same looks are drawn, the image that renders again better by more
    than a just-noticeable difference JND wins. Else a tie. (Without "equally many", leaving things
    out would pay; without "the same looks", so would what renders best, circles in yellow.)
    One image and testpoints: an analysis and a 0 or 1 for each, null for one that is not of this
    world. One image and a caption: scores 1-5. Anything else: a sentence without a verdict.

    error_rate: share of comparisons answered at random; first_bias: share answered "Image 1"
    whatever is shown. Both depend on the query alone, so that asking again gives the same answer.
    """

    JND = 0.5  # gray levels of render error, averaged over the picture

    def __init__(self, error_rate: float = 0.0, first_bias: float = 0.0):
        self.error_rate, self.first_bias = error_rate, first_bias
        self.name = "shapes" + (
            f"-err{error_rate}-first{first_bias}" if error_rate or first_bias else ""
        )

    def ask(self, queries: list[Query]) -> list[Answer]:
        """One answer a query, in order; each image is read once however many queries show it."""
        images = {id(image): image for query in queries for image in query.images}
        readings = dict(zip(images, read(list(images.values())))) if images else {}
        shown = [[readings[id(image)] for image in query.images] for query in queries]
        return [Answer(self.answer(query, seen)) for query, seen in zip(queries, shown)]

    def answer(self, query: Query, shown: list[Reading]) -> str:
        caption = re.search(CAPTION, query.text, re.MULTILINE)
        prompt = parse_prompt(caption[caption.lastindex]) if caption else None
        if len(shown) == 1 and "Testpoint 1:" in query.text:
            return answer_testpoints(query.text, shown[0])
        if prompt is None or not shown:
            return "I can only judge pictures of colored shapes by a caption that describes them."
        if len(shown) == 1:
            return answer_scores(prompt, shown[0])
        reason, winner = compare(prompt, *shown[:2], jnd=self.JND)
        if self.error_rate or self.first_bias:
            winner = self.err(query, winner)
        if '"winner"' in query.text:
            said = {"reason": reason, "winner": f"Image {winner}" if winner else "tie"}
            if '"categories"' in query.text:  # the verifier does not tell them apart
                category = {"name": "demands and drawing", "cat_winner": said["winner"]}
                said["categories"] = [category] * 3
            return json.dumps(said)
        final = f"Image {winner} is better" if winner else "Both are equal"
        return f"{reason}\n<answer>{final}</answer>"

    def err(self, query: Query, winner: int) -> int:
        """The winner, or as often as first_bias and error_rate say, another."""
        pixels = b"".join(image.tobytes() for image in query.images)
        draw = np.random.default_rng(zlib.crc32(pixels + query.text.encode()))
        if draw.random() < self.first_bias:
            return 1
        if draw.random() < self.error_rate:
            return int(draw.integers(1, 3))
        return winner
