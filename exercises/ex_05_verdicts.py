"""Exercise 5: read a verdict out of a judge's answer, or say that there is none. 25 minutes.

A judge is a language model: it answers in free text. It was asked to end with its verdict between
tags, one of three phrases:

    Image 1 has three cups, Image 2 only two. <answer>Image 1 is better</answer>
    <answer>Image 2 is better</answer>
    <answer>Both are equal</answer>

It does so nearly always. The rest decides what a reward is worth: a reader that guesses feeds its
guesses to training as if the judge had said them. Thus nothing is taken from the reasons that a
judge gives on its way, and whatever is not clearly one of the three phrases is `UNPARSABLE`, no
answer at all (exercise 4 leaves it out). The released code counts it as half a win for each image.

The paper: a multimodal language model as the judge of a pair.

    python -m pytest exercises/test_05_verdicts.py
"""

import re

from judges.answers import Verdict  # FIRST, SECOND, TIE, UNPARSABLE, FAILED


def parse_verdict(text: str | None) -> Verdict:
    r"""The verdict in a judge's answer.

    1. None means that no answer came: Verdict.FAILED.
    2. Some judges think aloud between <think> and </think>, and draft answers there. All that
       stands before the last </think> counts for nothing, also if <think> is missing (some servers
       put it at the end of the question). If <think> follows without a </think>, the thinking was
       cut off, and all that follows <think> counts for nothing.
    3. The verdict stands between <answer> and </answer>. If there are several, the last counts,
       verdict or not: the judge has changed its mind, or taken its verdict back. Tags and phrase
       may be in capitals, and line breaks may stand between them. (No check has an <answer> that is
       never closed, or several lines in one of which the last is the phrase.)
    4. What stands between the tags, without the blanks, line breaks and full stops at its two ends,
       in whatever order they stand there, must be one of the three phrases as a whole:
       "Image 1 is better" is Verdict.FIRST, "Image 2 is better" Verdict.SECOND, "Both are equal"
       Verdict.TIE. "Image 1 is not better" is none of them.
    5. Everything else: Verdict.UNPARSABLE.

    Hint: text.lower() first. text.rpartition(tag)[2] is what follows the last tag, or the whole
    text if it has none; text.partition(tag)[0] is what stands before the first, or the whole text.
    re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL) lists all that stands between tags, line
    breaks included; the question mark ends each at the next </answer>. "...".strip(" .\n") takes
    away any of these three characters at both ends.
    """
    raise NotImplementedError
