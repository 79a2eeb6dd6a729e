"""Making prompts as the paper does: draw what is tested, have an MLLM write it, have it checked.

One call writes a prompt and how each testpoint shows in it; a second call, which sees only the
result, says whether each testpoint is really there. What is incomplete, fails the check or repeats
an earlier prompt is written again, a few times at most, and counted by reason.

A second stage, as the extended benchmark has it, writes a long form of each prompt, which tests
more and has descriptions of its own.

    given_up = write_sets(mllm, 100, "short.csv", "long.csv", seed=0, language="en")
"""

import csv
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.files import Journal, journal_of
from common.wording import one_line
from judges.answers import final_part, last_json, parse_scores
from judges.mllm import MLLM, Query
from unigenbench.asking import Patience, header_of, same_answers
from unigenbench.questions import answer_form
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt, write_prompts

THEMES = Path(__file__).with_name("subthemes.csv").read_text(encoding="utf-8").splitlines()
PLACES = [*csv.DictReader(THEMES)]  # of each theme and sub-theme the names in both languages
SUBJECTS = ("Animal", "Character", "Anthropomorphic", "Scene", "Other Entity")
MOST_TESTPOINTS, ATTEMPTS, BATCH = 5, 4, 16
WORDS, LONG_WORDS = 60, 200  # of a prompt, at most
MORE_TESTPOINTS = 5  # that a long form has, at most, beside those of its short one
LANGUAGES = {"en": "English", "zh": "Chinese"}
MOST_ALIKE = 0.3  # share of three-word sequences in common; no two official prompts are above 0.19


class Draft(NamedTuple):
    """What one prompt is to be about, and to test, before it is written."""

    index: int
    theme: str
    subtheme: str
    subject: str
    subs: tuple[str, ...]
    language: str = "en"
    short: str = ""  # the prompt of which this is to be the long form

    def __str__(self) -> str:
        return f"{self.theme}, {self.subtheme}, {self.subject}: {', '.join(self.subs)}"


def fitting(subject: str) -> list[str]:
    """The sub dimensions that a prompt about such a subject can test."""
    return [sub for sub in SUBS if subject in DIMENSIONS[sub].subjects.split("; ")]


def make_drafts(count: int, seed: int, language: str = "en") -> list[Draft]:
    """What each prompt is to test. Sub-themes, subjects and testpoints come up about equally often.

    The first drafts do not depend on count, so that a set can be extended.
    """
    rng = np.random.default_rng(seed)
    places, used, drafts = PLACES.copy(), Counter(), []
    for index in range(count):
        if index % len(places) == 0:
            rng.shuffle(places)
        place = places[index % len(places)]
        theme, subtheme = place[f"theme_{language}"], place[f"subtheme_{language}"]
        subject = SUBJECTS[index % len(SUBJECTS)]
        rarest = sorted(fitting(subject), key=lambda sub: (used[sub], rng.random()))
        subs = tuple(rarest[: rng.integers(1, MOST_TESTPOINTS + 1)])
        used.update(subs)
        drafts.append(Draft(index, theme, subtheme, subject, subs, language))
    return drafts


def long_drafts(drafts: list[Draft], prompts: list[Prompt], seed: int) -> list[Draft]:
    """Those of the long forms of prompts that were written from some of these drafts: they test
    what the short ones test, and 1 to MORE_TESTPOINTS further dimensions."""
    of, longer = {draft.index: draft for draft in drafts}, []
    for prompt in prompts:
        draft, rng = of[prompt.index], np.random.default_rng([seed, prompt.index])
        others = [sub for sub in fitting(draft.subject) if sub not in draft.subs]
        more = rng.permutation(others)[: rng.integers(1, MORE_TESTPOINTS + 1)].tolist()
        longer.append(draft._replace(subs=(*draft.subs, *more), short=prompt.text))
    return longer


def described(number: int, sub: str, language: str) -> str:
    dimension = DIMENSIONS[sub]
    label, definition = dimension.label(language), dimension.definition(language)
    return f"Testpoint {number}: {label}\nDefinition: {definition}"


def writing_question(draft: Draft, attempt: int) -> str:
    listed = "\n".join(described(n, sub, draft.language) for n, sub in enumerate(draft.subs, 1))
    again = f"\nThis is attempt {attempt + 1}; do not take the obvious idea." if attempt else ""
    most, unit = limit_of(draft)
    form, short = f"one or two sentences, at most {most} {unit}", ""
    if draft.short:
        form = f"three to eight sentences, at most {most} {unit}"
        short = f"\nIt is the long form of a short prompt, and asks for all of it:\n{draft.short}\n"
    return f"""\
Write one prompt for a text-to-image model in {LANGUAGES[draft.language]}: {form}.

Theme: {draft.theme}
Sub-theme: {draft.subtheme}
Subject: {draft.subject}
{short}
The image that the prompt asks for is checked on each of these testpoints:

{listed}

Each must be plainly asked for, and be visible in a single image.{again}
Answer with JSON alone, one description for each testpoint, in order, in words of the prompt:
{{"prompt": "...", "descriptions": ["...", "..."]}}"""


def checking_question(prompt: Prompt) -> str:
    listed = "\n\n".join(
        f"{described(n, sub, prompt.language)}\nDescription: {one_line(text)}"
        for n, (sub, text) in enumerate(prompt.testpoints, 1)
    )
    return f"""\
Does this prompt for a text-to-image model really ask for what is to be checked?

Prompt: {one_line(prompt.text)}

{listed}

Score 1 for a testpoint if the prompt asks for what the description says and it fits the definition,
otherwise 0. Answer in exactly this form, with 0 or 1 in place of each X:
{answer_form(len(prompt.testpoints))}"""


def read_written(text: str | None, draft: Draft, unfinished: object = None) -> Prompt | None:
    """The prompt that an answer holds, or None if it is not complete, or no longer than the short
    one whose long form it should be."""
    found = last_json(final_part(text or "", unfinished), ("prompt",))
    written, descriptions = found.get("prompt"), found.get("descriptions")
    if not isinstance(descriptions, list) or len(descriptions) != len(draft.subs):
        return None
    if not all(isinstance(d, str) and any(map(str.isalnum, d)) for d in (written, *descriptions)):
        return None  # the "..." of the question is no text
    words = words_of(written)
    if not len(words_of(draft.short)) < len(words) <= limit_of(draft)[0]:
        return None
    if (2 * sum(map(is_chinese, words)) > len(words)) != (draft.language == "zh"):
        return None
    points = list(zip(draft.subs, map(one_line, descriptions)))
    place = draft.theme, draft.subtheme, draft.language
    return Prompt(draft.index, one_line(written), points, *place)


def limit_of(draft: Draft) -> tuple[int, str]:
    """How long the prompt may be: in words; if Chinese in characters, which are half as much."""
    most = LONG_WORDS if draft.short else WORDS
    return (2 * most, "characters") if draft.language == "zh" else (most, "words")


def is_chinese(word: str) -> bool:
    return unicodedata.name(word[0], "").startswith("CJK UNIFIED")


def words_of(text: str) -> list[str]:
    """Letters only, in lower case; of Chinese, which has no blanks, each character."""
    apart = (f" {c} " if is_chinese(c) else c if c.isalnum() else " " for c in text.lower())
    return "".join(apart).split()


def shingles(text: str) -> set[tuple[str, ...]]:
    """The three-word sequences of a text, shorter ones where it has fewer words."""
    words = words_of(text)
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def alike(first: str, second: str) -> float:
    """Share of three-word sequences in common, 0..1."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


class Refused(NamedTuple):
    """Why what was written for a draft is not taken."""

    reasons: list[str]
    check: str | None = None  # the checking model's answer

    def __str__(self) -> str:
        return ", ".join(self.reasons)


def attempt_batch(
    mllm: MLLM, drafts: list[Draft], attempt: int, accepted: list[Prompt], patience: Patience
) -> dict[int, Prompt | Refused]:
    """Of each draft, by index: a prompt that passed its check and repeats no other, or why not."""
    answers = mllm.ask([Query((), writing_question(draft, attempt)) for draft in drafts])
    made: dict[int, Prompt | Refused] = {}
    for draft, answer in zip(drafts, answers, strict=True):
        prompt = read_written(answer.text, draft, answer.unfinished)
        why = answer.error or answer.unfinished or "not what was asked for"
        made[draft.index] = prompt or Refused([why])
    patience.check([str(why) if isinstance(why, Refused) else None for why in made.values()])
    fresh = []
    for prompt in [prompt for prompt in made.values() if isinstance(prompt, Prompt)]:
        if all(alike(prompt.text, other.text) <= MOST_ALIKE for other in (*accepted, *fresh)):
            fresh.append(prompt)
        else:
            made[prompt.index] = Refused(["much like another prompt"])
    checks = mllm.ask([Query((), checking_question(prompt)) for prompt in fresh]) if fresh else []
    for prompt, check in zip(fresh, checks, strict=True):
        scores = parse_scores(check.text, len(prompt.testpoints), check.unfinished)
        lost = check.error or check.unfinished or "its check could not be read"
        absent = [sub for (sub, _), score in zip(prompt.testpoints, scores or []) if not score]
        if absent or scores is None:
            reasons = [f"does not ask for {sub}" for sub in absent] or [lost]
            made[prompt.index] = Refused(reasons, check.text)
    return made


def construct(
    mllm: MLLM, drafts: list[Draft], journal_path, made: dict, patience: float = 180.0
) -> tuple[list[Prompt], list[Draft]]:
    """The prompts of these drafts, and the drafts that no attempt fulfilled, which are printed with
    the reason. What was refused is printed by reason, and kept in the journal.

    made: what the drafts were drawn by, for the journal's first line. Started again, it goes on.
    Raises ValueError if the journal is of another model or other drafts, or the model seems dead.
    """
    dead, count = Patience(patience), len(drafts)
    journal = Journal(journal_path, header_of(mllm, "writer", **made), same_answers)
    of, accepted, refused = {draft.index: draft for draft in drafts}, {}, Counter()
    for line in journal.lines:
        refused.update(line.get("refused", []))
        draft = of.get(line["index"])
        if draft and "text" in line and line.pop("short", "") == draft.short:
            points = [tuple(point) for point in line["testpoints"]]
            accepted[line["index"]] = Prompt(**line | {"testpoints": points})
    left = count - len(accepted)
    print(
        f"{count} prompts, {len(accepted)} already there: {2 * left} to {2 * ATTEMPTS * left} "
        f"calls, about {0.6 * left:.0f} to {0.6 * ATTEMPTS * left:.0f} thousand tokens."
    )
    why = {}  # by index, of the last attempt
    with journal.file, tqdm(total=count, initial=len(accepted), desc="construct") as bar:
        for attempt in range(ATTEMPTS):
            todo = [draft for draft in drafts if draft.index not in accepted]
            for start in range(0, len(todo), BATCH):
                batch, so_far = todo[start : start + BATCH], list(accepted.values())
                why |= attempt_batch(mllm, batch, attempt, so_far, dead)
                for draft in batch:
                    found = why[draft.index]
                    if isinstance(found, Prompt):
                        accepted[draft.index] = found
                        journal.write(found._asdict() | {"short": draft.short})
                        bar.update()
                    else:
                        refused.update(found.reasons)
                        line = {"index": draft.index, "refused": found.reasons}
                        journal.write(line | {"check": found.check})
    for reason, times in refused.most_common():
        print(f"refused {times} times: {reason}")
    given_up = [draft for draft in drafts if draft.index not in accepted]
    for draft in given_up:
        print(f"given up: {draft} ({why[draft.index]})")
    return [accepted[index] for index in sorted(accepted)], given_up


def write_sets(
    mllm: MLLM, count: int, out, long=None, seed=0, language="en", patience: float = 180.0
) -> list[Draft]:
    """`count` prompts into the file `out`, and a long form of each into `long`, if that is given;
    a journal lies beside each. Returns the drafts that were given up."""
    made, given_up = {"seed": seed}, []
    made |= {"language": language} if language != "en" else {}  # which earlier journals do not have
    drafts = short = make_drafts(count, seed, language)
    for path in filter(None, (out, long)):
        prompts, lost = construct(mllm, drafts, journal_of(Path(path)), made, patience)
        given_up += lost
        if not prompts:
            break
        write_prompts(prompts, path)
        drafts, made = long_drafts(short, prompts, seed), made | {"form": "long"}
    return given_up
