"""How a judge's free text becomes a verdict, a rating or scores: models' words are read here alone.

Released code: an answer with neither phrase gives half a win to each image. Here it is UNPARSABLE:
a verdict is read from a final answer only, never guessed from the reasoning. Before anything is
read, repetitions of the question and the model's thinking are left out (final_part), and an answer
that was cut off counts only where nothing could follow that changes it.

unfinished, in all that follows: true if the text was cut off. question: what was asked.

    parse_verdict("<think>...</think><answer>Image 1 is better</answer>")          # Verdict.FIRST
    parse_ratings("Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 5")  # 4.0
    parse_scores("<analysis>[...]</analysis> <score>[1, 0]</score>", count=2)              # [1, 0]
"""

import ast
import itertools
import json
import math
import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from judges.mllm import MLLM, Answer, Query, ask_again

# Why an answer of a server has no probability.
NO_ODDS = (
    "no probability can be read: --soft needs log-probabilities (logprobs, top_logprobs) of the "
    "verdict's token and of the other one; leave --soft out, or ask a server that gives them"
)
CATEGORIES = 3  # of UnifiedReward-Flex's answer, those that count
# Appended when an answer had no verdict: a greedy judge, asked the very same text again, would give
# the very same answer. It does not spell out a form, since a user's template may ask for another.
VERDICT_REMINDER = (
    "\nFinish with your verdict, word for word in the form that is asked for above.\n"
)

# ----------------------------------------------------------------------------- what is final

_NAMES = "think|thinking|thought|reasoning"
_THOUGHT_BEGINS = re.compile(rf"(?i:<(?:{_NAMES})>)|\[THINK\]|◁think▷")
_THOUGHT_ENDS = re.compile(rf"(?i:</(?:{_NAMES})>)|\[/THINK\]|◁/think▷")


def without_echo(text: str, question: str) -> str:
    """The text without repetitions of the whole question, whose example is nobody's answer."""
    words = question.split()
    if not words or " ".join(words) not in " ".join(text.split()):
        return text
    return re.sub(r"\s+".join(map(re.escape, words)), "\n", text)


def final_part(text: str, unfinished: object = None, question: str = "") -> str:
    """What stands after a model's thinking, in which no answer is final however it sounds.

    The tag that opens the thought may stand in the prompt, and so be missing here. Therefore an
    unfinished text in which no thought ends may be one thought, and nothing of it is final.
    """
    *thoughts, rest = _THOUGHT_ENDS.split(without_echo(text, question))
    if unfinished and not thoughts:
        return ""
    return _THOUGHT_BEGINS.split(rest, maxsplit=1)[0].strip()


def open_thought(prompt: str) -> str:
    """What closes the thought that a prompt opens at its end; "" where it opens none."""
    *_, tag = ["", *_THOUGHT_BEGINS.findall(prompt)]
    return f"{tag[0]}/{tag[1:]}" if tag and prompt.rstrip().endswith(tag) else ""


# ----------------------------------------------------------------------------- verdicts


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
    if probability == 0.5:
        return Verdict.TIE
    return Verdict.FIRST if probability > 0.5 else Verdict.SECOND


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
# What stands between <answer> and the next such tag, and that tag if it is the closing one.
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)(</answer>)?", re.IGNORECASE | re.DOTALL)
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
    for content, closed in reversed(_TAGGED.findall(text)):
        lines = content.strip().splitlines() or [""]
        if closed:
            return _phrase_verdict(lines[-1])
        if unfinished:
            return Verdict.UNPARSABLE
        verdict = _phrase_verdict(lines[0])
        if verdict is not Verdict.UNPARSABLE:
            return verdict
    return None


def _final_object(text: str) -> tuple[dict, str]:
    """The JSON object with a top-level "winner", {} if there is none, and the text that follows it.

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
                return found, body[end:] + rest
    return {}, text


def parse_verdict(text: str | None, unfinished: object = None, question: str = "") -> Verdict:
    """The last final answer in a judge's text; FAILED for None, UNPARSABLE without a final answer.

    Forms: <answer>Image 1 is better</answer> (UnifiedReward-Think); a JSON object with "winner"
    (UnifiedReward-Flex); the bare phrase, as the whole text or on a last line "Answer: ...". An
    unfinished text has one only in tags or an object that are closed, with nothing begun after
    them. Time is linear in the text.
    """
    if text is None:
        return Verdict.FAILED
    text = final_part(text, unfinished, question)
    found, rest = _final_object(text)
    winner = _phrase_verdict(str(found["winner"])) if found else None
    if unfinished and "{" in rest:  # the next object was begun
        winner = Verdict.UNPARSABLE
    verdict = _tagged_verdict(rest, unfinished) or winner
    if verdict is None and text and not unfinished:
        *before, last = text.splitlines()
        final = not before or re.match(_LABEL, last.translate(_PUNCTUATION).strip().lower())
        verdict = _phrase_verdict(last) if final else None
    return verdict or Verdict.UNPARSABLE


def parse_categories(text: str, question: str = "") -> tuple[float | None, ...]:
    """What the first image gets of each of the first three categories of UnifiedReward-Flex's JSON
    object, in order; None for one that is missing, or names no winner. Empty without any list."""
    listed = _final_object(final_part(text, None, question))[0].get("categories")
    if not isinstance(listed, list):
        return ()
    winners = [c.get("cat_winner") if isinstance(c, dict) else None for c in listed[:CATEGORIES]]
    points = [_phrase_verdict(str(winner)).points for winner in winners]
    return (*points, *[None] * (CATEGORIES - len(points)))


def parse_ratings(text: str, unfinished: object = None, question: str = "") -> float | None:
    """Mean of the three ratings, the last of each kind; None unless all are there and in 1 to 5.

    The last line of an unfinished text is left out: it may hold a part of a number.
    """
    text = final_part(text, unfinished, question)
    if unfinished:
        text = text.rpartition("\n")[0]
    pattern = r"(alignment|coherence|style) score[^:\n]{0,20}:[ *]{0,8}(\d+(?:\.\d+)?)"
    found = re.findall(pattern, text, re.IGNORECASE)
    ratings = {kind.lower(): float(number) for kind, number in found}
    if len(ratings) != 3 or not all(1 <= rating <= 5 for rating in ratings.values()):
        return None
    return sum(ratings.values()) / 3


# ----------------------------------------------------------------------------- score lists

PLAIN = str.maketrans("，［］【】“”‘’０１", ',[][]""""01')  # what Chinese keyboards put for ,[]""01


def read_literal(text: str):
    """A value in JSON, or as Python prints it. Raises ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"cannot read {text[:60]!r}") from None


def read_answer(text: str):
    """A value that a model wrote, perhaps fenced or with Chinese punctuation; or None."""
    body = re.sub(r"```\w*", "", text).strip()
    for candidate in (body, body.translate(PLAIN)):
        try:
            return read_literal(candidate)
        except ValueError:
            continue
    return None


def final_answer(text: str | None, unfinished: object = None) -> dict:
    """The last answer in a text: {"score": ..., "analysis": ...}, either may be absent.

    Tags <analysis> and <score>, or a JSON object with those keys, or a list and nothing else. (The
    official script takes the first tags, of the thinking too, and insists on an analysis.) An
    unfinished text that begins another answer has none.
    """
    text = final_part(text or "", unfinished)
    begun, ended = (max(map(text.rfind, marks)) for marks in (("<score>", "{"), ("</score>", "}")))
    if unfinished and begun > ended:
        return {}
    tagged = {}
    for key in ("analysis", "score"):
        found = re.findall(rf"<{key}>((?:(?!<{key}>).)*?)</{key}>", text, re.DOTALL)
        if found:
            tagged[key] = read_answer(found[-1])
    if "score" in tagged:
        return tagged
    if isinstance(whole := read_answer(text), list):
        return {"score": whole}
    found = last_json(text, ("score", "scores"))
    return {"score": found.get("score", found.get("scores")), "analysis": found.get("analysis")}


def last_json(text: str, keys: tuple[str, ...]) -> dict:
    """The last JSON object in a text that has one of the keys; {} if there is none."""
    answer, decoder, start = {}, json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            value, end = {}, start + 1
        if any(key in value for key in keys):
            answer = value
        start = text.find("{", end)
    return answer


def parse_scores(text: str | None, count: int, unfinished: object = None) -> list[int] | None:
    """One 0 or 1 for each of `count` testpoints, in order; None if the answer is not just that.

    A judge may write them as 1.0, true or "1". (The official script takes what is neither 0 nor 1
    for wrong without a word, and "1" too; of true it writes a row that its own scorer skips.)
    """
    value = final_answer(text, unfinished).get("score")
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    scores = [{"0": 0, "1": 1}.get(v.strip()) if isinstance(v, str) else v for v in value]
    ok = all(isinstance(s, (int, float)) and s in (0, 1) for s in scores)
    return [int(s) for s in scores] if ok else None


def parse_reasons(text: str | None, count: int, unfinished: object = None) -> list[str]:
    """The judge's analysis of each testpoint; empty if there is not one for each."""
    reasons = final_answer(text, unfinished).get("analysis")
    fits = isinstance(reasons, (list, tuple)) and len(reasons) == count
    return [str(reason) for reason in reasons] if fits else []


# ----------------------------------------------------------------------------- asking and reading


class Outcome(NamedTuple):
    """One answer of a judge, as it was read: about two images as they were shown, or about one."""

    points: float | None  # of the first of two images; the rating of one; None where it is lost
    verdict: Verdict | None = None  # of two images
    error: str | None = None
    answer: Answer | None = None  # as the judge gave it; None for a probability, and for a scorer
    categories: tuple[float | None, ...] = ()  # points of the first image in each (Flex)

    @property
    def read_as(self) -> str | float | None:
        """How an answer was read, for people: a verdict's name, a probability or a rating."""
        hard = self.answer and self.verdict and self.points == self.verdict.points
        return self.verdict.value if hard else self.points


def _outcome(answer: Answer, points: float | None, verdict: Verdict | None, what: str) -> Outcome:
    """what: what an answer without points lacks."""
    error = None
    if points is None:
        error = answer.error or f"no {what} in an answer that ends with {answer.text[-80:]!r}"
        if answer.unfinished and answer.text is not None:
            error = f"{answer.unfinished}: {error}"
    return Outcome(points, verdict, error, answer)


def read(query: Query, answer: Answer) -> Outcome:
    """The verdict in an answer to a question about two images."""
    verdict = parse_verdict(answer.text, answer.unfinished, query.text)
    if answer.unfinished and answer.text is None:  # it responded, and had not come to its answer
        verdict = Verdict.UNPARSABLE
    outcome = _outcome(answer, verdict.points, verdict, "verdict")
    if outcome.points is None or '"categories"' not in answer.text:
        return outcome
    return outcome._replace(categories=parse_categories(answer.text, query.text))


def read_rating(query: Query, answer: Answer) -> Outcome:
    """The mean rating in an answer to a question about one image."""
    if answer.text is None:
        return read(query, answer)
    points = parse_ratings(answer.text, answer.unfinished, query.text)
    return _outcome(answer, points, None, "ratings")


_TURNED = str.maketrans("12", "21")


def _in_tokens(text: str, place: int, answer: Answer) -> int | None:
    """Where in the joined tokens the text's digit at `place` stands. They may hold a thought before
    the text; and they may be parts of letters, so that only text in ASCII is found in them."""
    (run,) = (m for m in re.finditer(r"[\x21-\x7f][\x00-\x7f]*", text) if place in range(*m.span()))
    part = run[0].rstrip()
    joined = "".join(token for token, _ in answer.tokens)
    found = [match.start() for match in re.finditer(re.escape(part), joined)]
    later = len(re.findall(re.escape(part), text[run.start() :]))
    return found[-later] + place - run.start() if later <= len(found) else None


def first_probability(query: Query, answer: Answer) -> float | None:
    """P(first is better), of the two, by the tokens of an answer with a winner; None where they do
    not tell. The digit that counts is the last one such that the answer, with 1 and 2 exchanged
    from there on, says the opposite."""
    text, verdict = answer.text, parse_verdict(answer.text, answer.unfinished, query.text)

    def decides(place: int) -> bool:
        turned = text[:place] + text[place:].translate(_TURNED)
        read = parse_verdict(turned, answer.unfinished, query.text)
        return {read, verdict} == {Verdict.FIRST, Verdict.SECOND}

    digits = [match.start() for match in re.finditer("[12]", text)]
    place = next(filter(decides, reversed(digits)), None)
    if place is None or (place := _in_tokens(text, place, answer)) is None:
        return None
    ends = itertools.accumulate(len(token) for token, _ in answer.tokens)
    (token, likely), end = next((t, end) for t, end in zip(answer.tokens, ends) if end > place)
    head, tail = token[: place - end], token[place - end :][1:]
    shares = [  # of both digits, in all forms such as " 1" and "1"
        sum(
            math.exp(min(p, 0)) for t, p in likely.items() if t.strip() == (head + d + tail).strip()
        )
        for d in "12"
    ]
    return shares[0] / sum(shares) if len(likely) > 1 and sum(shares) else None


def read_soft(query: Query, answer: Answer) -> Outcome:
    """The probability in an answer to a question about two images; an equal pair's is one half."""
    outcome = read(query, answer._replace(tokens=()))
    if outcome.points in (None, 0.5):
        return outcome
    p = first_probability(query, answer)
    return outcome._replace(
        points=p, verdict=nearest_verdict(p), error=NO_ODDS if p is None else None
    )


def ask(mllm: MLLM, queries: list[Query], soft: bool = False) -> list[list[Outcome]]:
    """All that a judge says of each query, the last of which counts; all are asked at once.

    What failed is asked for once more in the same words, what had no verdict with a reminder.
    soft: points are P(first is better): by the tokens of a server's answer, or as a judge in
    process gives it without one.
    """

    def outcomes(asked: Sequence[Query]) -> list[Outcome]:
        if not soft:
            return list(map(read, asked, mllm.ask(asked)))
        if hasattr(mllm, "ask_with_tokens"):
            return list(map(read_soft, asked, mllm.ask_with_tokens(asked)))
        return [
            Outcome(p, nearest_verdict(p), "no probability" if p is None else None)
            for p in mllm.first_probability(asked)
        ]

    def again(query: Query, said: Outcome) -> str | None:
        if said.points is not None:
            return None
        return query.text + VERDICT_REMINDER * (said.verdict is Verdict.UNPARSABLE)

    return ask_again(outcomes, queries, again)
