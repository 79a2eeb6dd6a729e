"""Whether a judge sees its images: a question or two before anything long begins.

A text-only model behind a server that drops images in silence answers every question all the same.
Nothing could be learned from it, and no score of its means anything.

check_sight(judge)                         # ValueError if it is blind, or does not answer at all
"""

import re

from PIL import Image, ImageDraw

from judges.answers import Outcome, Verdict, ask, final_part
from judges.mllm import MLLM, Query
from judges.templates import PAIRWISE_TEMPLATE

CAPTION = "a large red circle"
# In the form of the benchmark's, which judges were tuned to answer.
QUESTION = f"""\
You check whether a generated image shows what its caption asks for.

Caption: {CAPTION}

Testpoint 1: Attribute - Color
Description: the circle is red

Score 1 if the image shows it, 0 if it does not. Answer in exactly this form, with 0 or 1 in place
of X: <score>[X]</score>
"""


def circle(color: str) -> Image.Image:
    """256 x 256 pixels, light ground."""
    image = Image.new("RGB", (256, 256), "#f4f4f4")
    ImageDraw.Draw(image).ellipse((80, 80, 176, 176), color)
    return image


def _compare(mllm: MLLM, template: str, soft: bool) -> list[Outcome]:
    """Of a red and a blue circle, in both orders; points are of the first."""
    red, blue = circle("#dc3232"), circle("#3264dc")
    text = template.replace("{prompt}", CAPTION)
    queries = [Query((red, blue), text), Query((blue, red), text)]
    return [outcomes[-1] for outcomes in ask(mllm, queries, soft)]


def _score(mllm: MLLM) -> list[Outcome]:
    """Of a red and of a blue circle, each alone; points are its score."""
    queries = [Query((circle(color),), QUESTION) for color in ("#dc3232", "#3264dc")]
    scores = []
    for answer in mllm.ask(queries):
        text = final_part(answer.text or "", answer.unfinished, QUESTION)
        found = re.findall(r"\b[01]\b", re.sub(r"(?i)(testpoint|image)\s*\d", "", text))
        points = float(found[-1]) if found else None
        silent = answer.text is None and not answer.unfinished
        error = answer.error or answer.unfinished or f"no score in {(answer.text or '')[-80:]!r}"
        verdict = Verdict.FAILED if silent else None
        scores.append(Outcome(points, verdict, None if found else error))
    return scores


def check_sight(
    mllm: MLLM, template: str = PAIRWISE_TEMPLATE, soft: bool = False, pairs_first: bool = True
) -> str:
    """Asks which circle is the red one; where that tells nothing, also whether each circle is red.

    template, soft: of the comparisons, as in rewards.PairwiseReward. pairs_first: false for a judge
    of single images, who is asked the second question first.
    Returns what to warn of, or "": a judge that sees passes, however it is biased.
    Raises ValueError if it answers neither, or says the same whatever it is shown.
    """
    trials = [lambda: _compare(mllm, template, soft), lambda: _score(mllm)]
    blind, error = False, None
    for n, trial in enumerate(trials if pairs_first else reversed(trials)):
        red, blue = trial()
        if not n and red.verdict is blue.verdict is Verdict.FAILED:
            raise ValueError(f"the judge {mllm.name} does not answer: {red.error}")
        if red.points is None or blue.points is None:
            error = red.error or blue.error
        elif abs(red.points - blue.points) < 1e-6:  # soft ones differ in the last bit
            blind = True
        else:
            if red.points < blue.points:
                return f"the judge {mllm.name} takes a blue circle for a red one"
            said = error or "it says the same of a red and a blue circle"
            form = f"the judge {mllm.name} sees, but not so in the form in which it will be asked"
            return f"{form}: {said}" if n else ""
    if blind:
        raise ValueError(
            f"the judge {mllm.name} does not see its images: it says the same of a red circle "
            "and of a blue one. Is it a vision-language model, and does its server pass images on?"
        )
    return f"whether the judge {mllm.name} sees its images cannot be told: {error}"
