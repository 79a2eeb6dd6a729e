"""A prompt writer for shapes: a phrase book that answers unigenbench/construct.py.

A real vision-language model invents. This one has one phrase with a few choices for each of the 27
testpoints (phrasebook.json), strings together those that it is asked for, and knows its own phrases
again when it is to check a prompt: enough to run the construction of a benchmark end to end, over
the network, without a model.

    answer(construct.writing_question(plan, attempt=0))     # {"prompt": ..., "descriptions": [...]}
    answer(construct.checking_question(prompt))             # <analysis>[...]</analysis> <score>...
"""

import functools
import json
import random
import re
import zlib
from pathlib import Path

BOOK = json.loads(Path(__file__).with_name("phrasebook.json").read_text(encoding="utf-8"))
SUBJECTS = BOOK["subjects"]  # the subject that a prompt is to be about -> names for it
WORDS = {"who": [who for names in SUBJECTS.values() for who in names], **BOOK["words"]}
PHRASES = BOOK["phrases"]  # sub dimension -> its one phrase, whose slots WORDS fills


@functools.cache
def phrase_regex(sub: str) -> re.Pattern:
    """What the descriptions of a testpoint look like."""
    choice = lambda match: "(?:" + "|".join(map(re.escape, WORDS[match[1]])) + ")"
    return re.compile(re.sub(r"\{(\w+)\}", choice, PHRASES[sub]))


def write(question: str) -> str:
    """A prompt and its descriptions, drawn by the question's text: the same one gives the same."""
    rng = random.Random(zlib.crc32(question.encode()))
    fields = dict(re.findall(r"^(Theme|Sub-theme|Subject): (.+)$", question, re.MULTILINE))
    who = rng.choice(SUBJECTS[fields["Subject"]])
    subs = re.findall(r"^Testpoint \d+: (.+)$", question, re.MULTILINE)
    drawn = lambda: {name: rng.choice(of) for name, of in WORDS.items()} | {"who": who}
    phrases = [PHRASES[sub].format(**drawn()) for sub in subs]
    prompt = f"{fields['Theme']}, {fields['Sub-theme']}: a {who}; {', '.join(phrases)}."
    return json.dumps({"prompt": prompt, "descriptions": phrases})


def check(question: str) -> str:
    """1 for each description that stands in the prompt and is of its dimension, otherwise 0."""
    prompt = re.search(r"^Prompt: (.*)$", question, re.MULTILINE)[1]
    reasons, scores = [], []
    form = r"^Testpoint \d+: (.+)\nDefinition: .*\nDescription: (.+)$"
    for sub, description in re.findall(form, question, re.MULTILINE):
        known = sub in PHRASES and phrase_regex(sub).fullmatch(description)
        stands = description in prompt
        fault = f"not known to be {sub}" if stands else "not in the prompt"
        reasons.append("asked for" if stands and known else fault)
        scores.append(int(reasons[-1] == "asked for"))
    return f"<analysis>{json.dumps(reasons)}</analysis>\n<score>{json.dumps(scores)}</score>"


def answer(question: str) -> str | None:
    """The answer to a question of construct.py; None if it is none of its two."""
    if question.startswith("Write one prompt for a text-to-image model"):
        return write(question)
    if question.startswith("Does this prompt for a text-to-image model really ask"):
        return check(question)
    return None
