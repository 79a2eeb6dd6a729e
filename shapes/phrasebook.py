"""The classroom's prompt writer: a phrase book that answers unigenbench/construct.py.

A real MLLM invents. This one has one phrase with a few choices for each of the 27 testpoints,
strings together those that it is asked for, and knows its own phrases again when it is to check a
prompt: enough to run the construction of a benchmark end to end, over the network, without a model.

    answer(construct.writing_question(plan, attempt=0))     # {"prompt": ..., "descriptions": [...]}
    answer(construct.checking_question(prompt))             # <analysis>[...]</analysis> <score>...
"""

import functools
import itertools
import json
import random
import re
import zlib

SUBJECTS = {
    "Animal": ("fox", "heron", "tortoise", "goat", "panther", "hedgehog"),
    "Character": ("knight", "baker", "sailor", "dancer", "gardener", "violinist"),
    "Anthropomorphic": ("robot cook", "rabbit in a suit", "walking teapot"),
    "Scene": ("harbor", "market", "library", "desert camp", "railway station"),
    "Other Entity": ("lighthouse", "typewriter", "steam engine", "suspension bridge"),
}
WORDS = {
    "who": tuple(itertools.chain(*SUBJECTS.values())),
    "color": ("red", "green", "turquoise", "golden", "purple"),
    "color2": ("white", "black"),
    "style": (
        "painted in watercolor",
        "drawn in charcoal",
        "printed as a woodcut",
        "made of cut paper",
        "drawn as pixel art",
    ),
    "sight": ("the Eiffel Tower", "Mount Fuji", "the Great Wall of China", "Stonehenge"),
    "cloth": ("umbrella", "scarf", "curtain", "kite"),
    "form": ("round", "square", "hexagonal"),
    "flat": ("mirror", "table", "tile", "plate"),
    "size": ("tiny", "huge", "very tall"),
    "door": ("door", "ladder", "gate"),
    "number": ("two", "three", "four", "five"),
    "light": ("lanterns", "candles", "lamps"),
    "stuff": ("glass", "bronze", "wicker", "marble"),
    "seat": ("bench", "throne", "stool"),
    "mood": ("surprised", "proud", "frightened", "cheerful"),
    "act": ("dancing", "running", "kneeling", "jumping"),
    "hand": ("waving with one hand", "giving a thumbs-up", "pointing with one finger"),
    "way": ("leaping", "swimming", "yawning", "curling up"),
    "push": ("pushes", "pulls", "lifts"),
    "load": ("cart", "barrel", "sledge"),
    "pet": ("kitten", "parrot", "puppy"),
    "flag": ("flag", "banner", "sail"),
    "more": ("taller", "wider", "darker"),
    "post": ("column", "chimney", "totem"),
    "parts": ("old books", "seashells", "gears", "bottle caps"),
    "built": ("wall", "arch", "hut"),
    "inner": ("ship", "rose", "small moon"),
    "outer": ("bottle", "birdcage", "snow globe"),
    "like": ("fish", "heart", "feather"),
    "cover": ("cloud", "puddle", "island"),
    "proof": (
        "a snowman after a day of hot sun",
        "a candle just after it was blown out",
        "a glass that fell on a stone floor",
    ),
    "none": ("cars", "balloons", "bicycles", "fountains", "snowflakes"),
    "held": ("jar", "basket", "drawer"),
    "left": ("empty", "cracked", "glowing"),
    "many": ("windows", "hats", "boots"),
    "giant": ("whale", "piano", "elephant"),
    "sky": ("floats through the sky", "rides on a soap bubble", "sleeps on a cobweb"),
    "twin": ("monkey", "bear", "duck"),
    "side": ("to the left of", "to the right of", "above"),
    "deep": ("in front of", "behind"),
    "spot": ("clock", "mailbox", "statue"),
    "word": ("OPEN", "WELCOME", "TODAY ONLY", "MIND THE STEP"),
}

PHRASES = {  # sub dimension -> its one phrase
    "Style": "all of it {style}",
    "World Knowledge": "{sight} in the distance",
    "Attribute - Color": "a {color} {cloth}",
    "Attribute - Shape": "a {form} {flat}",
    "Attribute - Size": "a {size} {door}",
    "Attribute - Quantity": "exactly {number} {light}",
    "Attribute - Material": "a {seat} made of {stuff}",
    "Attribute - Expression": "the {who} looks {mood}",
    "Action - Full-body (Character/Anthropomorphic)": "the {who} is {act}",
    "Action - Hand (Character/Anthropomorphic)": "the {who} is {hand}",
    "Action - Animal": "the {who} is {way}",
    "Action - Contact Interaction": "a child {push} a {load}",
    "Action - Non-contact Interaction": "a {pet} and a butterfly look at each other",
    "Action - State": "a {flag} flutters in the wind",
    "Relationship - Comparison": "the left {post} is {more} than the right one",
    "Relationship - Composition": "a {built} built from {parts}",
    "Relationship - Inclusion": "a {inner} inside a {outer}",
    "Relationship - Similarity": "a {cover} with the outline of a {like}",
    "Logical Reasoning": "{proof}",
    "Grammar - Negation": "there are no {none}",
    "Grammar - Pronoun Reference": "a boy holds a {held} and it is {left}",
    "Grammar - Consistency": "all the {many} are {color}",
    "Compound - Imagination": "a {giant} {sky}",
    "Compound - Feature Matching": "a {color} {twin} next to a {color2} goose",
    "Entity Layout - Two-Dimensional Space": "a {spot} is {side} a doorway",
    "Entity Layout - Three-Dimensional Space": "a {spot} stands {deep} a hedge",
    "Text Generation": 'a sign that reads "{word}"',
}


@functools.cache
def phrase_regex(sub: str) -> re.Pattern | None:
    """What the descriptions of a testpoint look like; None for a label that is not in the book."""
    if sub not in PHRASES:
        return None
    choice = lambda match: "(?:" + "|".join(map(re.escape, WORDS[match[1]])) + ")"
    return re.compile(re.sub(r"\{(\w+)\}", choice, PHRASES[sub]))


def write(question: str) -> str:
    """A prompt and its descriptions, drawn by the question's text: the same one gives the same."""
    rng = random.Random(zlib.crc32(question.encode()))
    fields = dict(re.findall(r"^(Theme|Sub-theme|Subject): (.+)$", question, re.MULTILINE))
    who = rng.choice(SUBJECTS[fields["Subject"]])
    subs = re.findall(r"^Testpoint \d+: (.+)$", question, re.MULTILINE)
    phrases = [
        PHRASES[sub].format(**{name: rng.choice(of) for name, of in WORDS.items()} | {"who": who})
        for sub in subs
    ]
    prompt = f"{fields['Theme']}, {fields['Sub-theme']}: a {who}; {', '.join(phrases)}."
    return json.dumps({"prompt": prompt, "descriptions": phrases})


def check(question: str) -> str:
    """1 for each description that stands in the prompt and is of its dimension, otherwise 0."""
    prompt = re.search(r"^Prompt: (.*)$", question, re.MULTILINE)[1]
    reasons, scores = [], []
    for sub, description in re.findall(
        r"^Testpoint \d+: (.+)\nDefinition: .*\nDescription: (.+)$", question, re.MULTILINE
    ):
        known = phrase_regex(sub) is not None and phrase_regex(sub).fullmatch(description)
        reasons.append(
            "not in the prompt"
            if description not in prompt
            else "asked for"
            if known
            else f"not known to be {sub}"
        )
        scores.append(int(reasons[-1] == "asked for"))
    return f"<analysis>{json.dumps(reasons)}</analysis>\n<score>{json.dumps(scores)}</score>"


def answer(question: str) -> str | None:
    """The answer to a question of construct.py; None if it is none of its two."""
    if question.startswith("Write one prompt for a text-to-image model"):
        return write(question)
    if question.startswith("Does this prompt for a text-to-image model really ask"):
        return check(question)
    return None
