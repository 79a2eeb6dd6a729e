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

BOOKS = json.loads(Path(__file__).with_name("phrasebook.json").read_text(encoding="utf-8"))
for book in BOOKS.values():  # subjects: what a prompt is to be about -> names for it
    book["words"]["who"] = [who for names in book["subjects"].values() for who in names]
# Sub dimension, by its label in either language -> its one phrase, and words for its slots.
PHRASES = {sub: (p, book["words"]) for book in BOOKS.values() for sub, p in book["phrases"].items()}


@functools.cache
def phrase_regex(sub: str) -> re.Pattern:
    """What the descriptions of a testpoint look like."""
    phrase, words = PHRASES[sub]
    choice = lambda match: "(?:" + "|".join(map(re.escape, words[match[1]])) + ")"
    return re.compile(re.sub(r"\{(\w+)\}", choice, phrase))


def write(question: str) -> str:
    """A prompt and its descriptions, drawn by the question's text: the same one gives the same.
    A long form begins with the short prompt."""
    rng = random.Random(zlib.crc32(question.encode()))
    fields = dict(re.findall(r"^(Theme|Sub-theme|Subject): (.+)$", question, re.MULTILINE))
    chinese = "model in Chinese" in question
    book = BOOKS["zh" if chinese else "en"]
    who = rng.choice(book["subjects"][fields["Subject"]])
    subs = re.findall(r"^Testpoint \d+: (.+)$", question, re.MULTILINE)
    drawn = lambda: {name: rng.choice(of) for name, of in book["words"].items()} | {"who": who}
    phrases = [PHRASES[sub][0].format(**drawn()) for sub in subs]
    prompt = f"{fields['Theme']}, {fields['Sub-theme']}: a {who}; {', '.join(phrases)}."
    if chinese:
        prompt = f"{fields['Theme']}，{fields['Sub-theme']}：{who}；{'，'.join(phrases)}。"
    if short := re.search(r"^It is the long form of .*:\n(.+)$", question, re.MULTILINE):
        prompt = f"{short[1]} {prompt}"
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
    if question.startswith("Write one prompt for a text-to-image model in "):
        return write(question)
    if question.startswith("Does this prompt for a text-to-image model really ask"):
        return check(question)
    return None
