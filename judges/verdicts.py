"""What a judge is asked, and how its free text becomes a verdict or a rating.

Released code: an answer with neither phrase gives half a win to each image. Here it is UNPARSABLE:
a verdict is read from a final answer only, never guessed from the reasoning. What our questions
show as the form is no answer itself, so that a judge that repeats its question has given none.
"""

import json
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from judges.mllm import MLLM, Answer, Query, ask_again, final_part, without_echo

PAIRWISE_TEMPLATE = """\
You are given two images, Image 1 and Image 2 (in this order), that were made from the same caption.

Caption: {prompt}

Decide which of them is better. Look first at how well each follows the caption: objects, counts,
colors, places, actions, text. Then look at errors of form, and last at how good it looks.
The order in which the images are shown means nothing.
Explain your reasons in a few sentences. Then finish with your verdict between <answer> and
</answer>, which is, word for word, exactly one of these three:
Image 1 is better
Image 2 is better
Both are equal
"""

POINTWISE_TEMPLATE = """\
You are given one image that was made from a caption.

Caption: {prompt}

Score it on three scales from 1 (worst) to 5 (best), fractions welcome: alignment (does it show what
the caption says?), coherence (is it free of errors of form?) and style (does it look good?).
Finish with exactly these three lines, with your numbers in place of X:
Alignment Score (1-5): X
Coherence Score (1-5): X
Style Score (1-5): X
"""

# Appended when an answer had no verdict: a greedy judge, asked the very same text again, would give
# the very same answer. It does not spell out a form, since a user's template may ask for another.
VERDICT_REMINDER = (
    "\nFinish with your verdict, word for word in the form that is asked for above.\n"
)


def read_template(path: str | Path, flag: str) -> str:
    """The file word for word, line breaks included. Raises ValueError if it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{flag} '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{flag} '{path}' is not UTF-8 text ({why})") from None


def check_template(
    text: str, where: str, names: Sequence[str], needs: Sequence[str] = (), formatted: bool = False
) -> None:
    """Raises ValueError, in one sentence, for a template in which not all would be filled in.

    where: what the sentence calls it. names: the placeholders that it may have; the first must
    stand there, and one of needs. formatted: it is a format string, in which {{ is a brace; else
    all but {name} is taken word for word, so that JSON may stand there as it is.
    """
    lone = text.count("{") != text.count("}")
    fields = re.findall(r"(?<!\{)\{(\s*\w*(?:[.:!\[][^\s{}\"']*)?\s*)\}(?!\})", text)
    if formatted:
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
            fields = [
                n + f"!{how}" * bool(how) + f":{form}" * bool(form) for _, n, form, how in parts
            ]
        except ValueError:
            lone = True
    if lone:
        twice = " (one that is meant as such is written twice, {{ or }})" if formatted else ""
        raise ValueError(f"{where} has a brace that is opened or closed alone{twice}")
    if odd := [field for field in fields if field not in names]:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"{where} has a placeholder other than {known}: {{{odd[0]}}}")
    for group in (names[:1], needs):
        if group and not set(group) & set(fields):
            lacks = " or ".join(f"{{{name}}}" for name in group)
            twice = "; between two braces it is none" if f"{{{{{group[0]}}}}}" in text else ""
            raise ValueError(f"{where} lacks {lacks}, where what is to be judged is put{twice}")


class Verdict(Enum):
    """The outcome of one comparison; the last two are lost comparisons, never ties."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNPARSABLE = "unparsable"  # the judge answered, but without a verdict
    FAILED = "failed"  # the judge did not answer

    @property
    def points(self) -> float | None:
        """What the first image gets of the comparison's one point; None for a lost comparison."""
        return {"first": 1.0, "second": 0.0, "tie": 0.5}.get(self.value)


def nearest_verdict(probability: float | None) -> Verdict:
    """The verdict nearest to P(first is better); FAILED where there is none."""
    if probability is None:
        return Verdict.FAILED
    return {1: Verdict.FIRST, 0: Verdict.TIE, -1: Verdict.SECOND}[
        (probability > 0.5) - (probability < 0.5)
    ]


# The whole phrase must be a verdict, so that "Image 1 is not better", "Image 1 is hardly better",
# "I doubt that Image 1 is better" and "Image 1 is better, Image 2 is better" are none. No nested
# quantifiers: linear time.
_LABEL = r"(?:final )?(?:answer|verdict|winner) ?: ?"
_OPENING = rf"(?:{_LABEL}|(?:overall|therefore|thus|so|hence),? )?"
_REASON = r"[,;:]? (?:because|since|as|due to|overall)\b(?!.*\b(?:better|worse|equal|tie)\b).*"
_DEGREE = (
    r"(?:clearly|slightly|significantly|considerably|substantially|noticeably|marginally|definitely"
    r"|obviously|much|far) "
)
_WINNER = re.compile(
    rf"{_OPENING}(?:image ?)?([12])"
    rf"(?: (?:is (?:{_DEGREE})?(?:better|the better (?:one|image))|wins)(?: than image ?([12]))?"
    rf"(?:{_REASON})?)?"
)
_TIE = re.compile(
    rf"{_OPENING}(?:(?:it is |it s )?(?:a )?(?:tie|draw)|equal"
    r"|(?:both|the two)(?: images)?(?: are)?(?: about| roughly)? (?:equal|equally good|the same))"
)
_PUNCTUATION = str.maketrans(dict.fromkeys("*_`'\"#>‘’“”", " "))


def _phrase_verdict(phrase: str) -> Verdict:
    """The verdict that one line states, or UNPARSABLE."""
    phrase = " ".join(phrase.translate(_PUNCTUATION).lower().split()).strip(" .!")
    if _TIE.fullmatch(phrase):
        return Verdict.TIE
    match = _WINNER.fullmatch(phrase)
    if match is None or match[1] == match[2]:  # "Image 1 is better than Image 1"
        return Verdict.UNPARSABLE
    return Verdict.FIRST if match[1] == "1" else Verdict.SECOND


def _tagged_verdict(text: str, unfinished: object) -> Verdict | None:
    """The verdict in the last <answer>, or None if there is none.

    An answer that is closed by </answer> decides, verdict or not, by its last line. An unclosed one
    (cut short, or a mere mention of the tag, which a caption may contain) decides only if its first
    line is a verdict; otherwise the answer before it is looked at. In an unfinished text the last
    one must be closed.
    """
    _, *parts = re.split(r"<(/?)answer>", text, flags=re.IGNORECASE)
    slashes, contents = parts[::2], parts[1::2]  # of each tag; from each tag to the next
    for slash, content, next_slash in reversed(list(zip(slashes, contents, [*slashes[1:], ""]))):
        if slash:  # a closing tag begins no answer
            continue
        lines = content.strip().splitlines() or [""]
        if next_slash:
            return _phrase_verdict(lines[-1])
        if unfinished:
            return Verdict.UNPARSABLE
        verdict = _phrase_verdict(lines[0])
        if verdict is not Verdict.UNPARSABLE:
            return verdict
    return None


def _json_verdict(text: str) -> tuple[Verdict | None, str]:
    """The verdict in the top-level "winner" of a JSON object, and the text that follows the object.

    The object spans all braces of the text, or those of its last code fence. Nothing smaller is
    tried: an inner object names the winner of one category.
    """
    head, _, tail = text.rpartition("```")
    for body, rest in ((text, ""), (head.rpartition("```")[2], tail)):
        start, end = body.find("{"), body.rfind("}") + 1
        if 0 <= start < end:
            try:
                found = json.loads(body[start:end], strict=False)  # models break lines in strings
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and "winner" in found:
                return _phrase_verdict(str(found["winner"])), body[end:] + rest
    return None, text


def parse_verdict(text: str | None, unfinished: object = None) -> Verdict:
    """The last final answer in a judge's text; FAILED for None, UNPARSABLE without a final answer.

    unfinished: true if the text was cut off. Then a final answer must stand after the thinking, in
    tags or a JSON object that are closed, with nothing begun after it.

    Forms: <answer>Image 1 is better</answer> (UnifiedReward-Think); a JSON object with "winner"
    (UnifiedReward-Flex); the bare phrase, as the whole text or on a last line "Answer: ...".
    Nothing is guessed from the reasoning. Time is linear in the text.
    """
    if text is None:
        return Verdict.FAILED
    text = final_part(text, unfinished)
    winner, rest = _json_verdict(text)
    if unfinished and "{" in rest:  # the next object was begun
        winner = Verdict.UNPARSABLE
    verdict = _tagged_verdict(rest, unfinished) or winner
    if verdict is None and text and not unfinished:
        *before, last = text.splitlines()
        final = not before or re.match(_LABEL, last.translate(_PUNCTUATION).strip().lower())
        verdict = _phrase_verdict(last) if final else None
    return verdict or Verdict.UNPARSABLE


def parse_ratings(text: str, unfinished: object = None) -> float | None:
    """Mean of the three ratings, the last of each kind; None unless all are there and in 1 to 5.

    unfinished: true if the text was cut off. Its last line, a part of a number perhaps, is left
    out.
    """
    text = final_part(text, unfinished)
    if unfinished:
        text = text.rpartition("\n")[0]
    pattern = r"(alignment|coherence|style) score[^:\n]{0,20}:[ *]{0,8}(\d+(?:\.\d+)?)"
    found = re.findall(pattern, text, re.IGNORECASE)
    ratings = {kind.lower(): float(number) for kind, number in found}
    if len(ratings) != 3 or not all(1 <= rating <= 5 for rating in ratings.values()):
        return None
    return sum(ratings.values()) / 3


class Outcome(NamedTuple):
    """One answer of a judge, as it was read: about two images as they were shown, or about one."""

    points: float | None  # of the first of two images; the rating of one; None where it is lost
    verdict: Verdict | None = None  # of two images
    error: str | None = None
    answer: Answer | None = None  # as the judge gave it; None for a probability, and for a scorer

    @property
    def read_as(self) -> str | float | None:
        """How an answer was read, for people: a verdict's name, a probability or a rating."""
        return self.verdict.value if self.answer and self.verdict else self.points


def read(query: Query, answer: Answer) -> Outcome:
    """The verdict in an answer to a question about two images."""
    text = None if answer.text is None else without_echo(answer.text, query.text)
    verdict = parse_verdict(text, answer.unfinished)
    if text is not None and verdict is Verdict.UNPARSABLE:
        error = f"no verdict in an answer that ends with {answer.text[-80:]!r}"
        return Outcome(None, verdict, ": ".join(filter(None, (answer.unfinished, error))), answer)
    if answer.unfinished and text is None:  # the judge was heard, and had not come to its answer
        verdict = Verdict.UNPARSABLE
    return Outcome(verdict.points, verdict, answer.error, answer)


def read_rating(query: Query, answer: Answer) -> Outcome:
    """The mean rating in an answer to a question about one image."""
    if answer.text is None:
        return read(query, answer)
    points = parse_ratings(without_echo(answer.text, query.text), answer.unfinished)
    error = f"no ratings in an answer that ends with {answer.text[-80:]!r}"
    error = ": ".join(filter(None, (answer.unfinished, error))) if points is None else None
    return Outcome(points, error=error, answer=answer)


def ask(mllm: MLLM, queries: list[Query], soft: bool = False) -> list[list[Outcome]]:
    """All that a judge says of each query, the last of which counts; all are asked at once.

    What is lost is asked for once more: what failed in the same words, what was answered without a
    verdict with a reminder.
    soft: points are P(first is better), which a judge in process can give (local.py).
    """

    def heard(asked: Sequence[Query]) -> list[Outcome]:
        if soft:
            odds = mllm.first_probability(asked)
            lost = [None if p is not None else "no probability" for p in odds]
            return list(map(Outcome, odds, map(nearest_verdict, odds), lost))
        return list(map(read, asked, mllm.ask(asked)))

    def again(query: Query, said: Outcome) -> str | None:
        if said.points is not None:
            return None
        return query.text + VERDICT_REMINDER * (said.verdict is Verdict.UNPARSABLE)

    return ask_again(heard, queries, again)
