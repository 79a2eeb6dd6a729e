"""Making prompts as the paper does: draw what is tested, have an MLLM write it, have it checked.

One call writes a prompt and how each testpoint shows in it; a second call, which sees only the
result, says whether each testpoint is really there. What is incomplete, fails the check or repeats
an earlier prompt is written again, a few times at most.

    prompts, given_up = construct(mllm, count=100, journal_path="prompts.journal.jsonl")
"""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.files import Journal
from common.wording import one_line
from judges.answers import final_part, last_json, parse_scores
from judges.mllm import MLLM, Query
from unigenbench.asking import Patience, header_of, same_answers
from unigenbench.questions import answer_form
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt

THEMES = Path(__file__).with_name("subthemes.csv").read_text(encoding="utf-8").splitlines()
PLACES = [(row["theme"], row["subtheme"]) for row in csv.DictReader(THEMES)]
SUBJECTS = ("Animal", "Character", "Anthropomorphic", "Scene", "Other Entity")
MOST_TESTPOINTS, ATTEMPTS, BATCH = 5, 4, 16
MOST_ALIKE = 0.3  # share of three-word sequences in common; no two official prompts are above 0.19


class Draft(NamedTuple):
    """What one prompt is to be about, and to test, before it is written."""

    index: int
    theme: str
    subtheme: str
    subject: str
    subs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.theme}, {self.subtheme}, {self.subject}: {', '.join(self.subs)}"


def make_drafts(count: int, seed: int) -> list[Draft]:
    """What each prompt is to test. Sub-themes, subjects and testpoints come up about equally often.

    The first drafts do not depend on count, so that a set can be extended.
    """
    rng = np.random.default_rng(seed)
    places, used, drafts = PLACES.copy(), Counter(), []
    for index in range(count):
        if index % len(places) == 0:
            rng.shuffle(places)
        theme, subtheme = places[index % len(places)]
        subject = SUBJECTS[index % len(SUBJECTS)]
        fitting = [sub for sub in SUBS if subject in DIMENSIONS[sub].subjects.split("; ")]
        rarest = sorted(fitting, key=lambda sub: (used[sub], rng.random()))
        subs = tuple(rarest[: rng.integers(1, MOST_TESTPOINTS + 1)])
        used.update(subs)
        drafts.append(Draft(index, theme, subtheme, subject, subs))
    return drafts


def described(number: int, sub: str) -> str:
    return f"Testpoint {number}: {sub}\nDefinition: {DIMENSIONS[sub].definition_en}"


def writing_question(draft: Draft, attempt: int) -> str:
    listed = "\n".join(described(n, sub) for n, sub in enumerate(draft.subs, 1))
    again = f"\nThis is attempt {attempt + 1}; do not take the obvious idea." if attempt else ""
    return f"""\
Write one prompt for a text-to-image model: one or two sentences, at most 60 words.

Theme: {draft.theme}
Sub-theme: {draft.subtheme}
Subject: {draft.subject}

The image that the prompt asks for is checked on each of these testpoints:

{listed}

Each must be plainly asked for, and be visible in a single image.{again}
Answer with JSON alone, one description for each testpoint, in order, in words of the prompt:
{{"prompt": "...", "descriptions": ["...", "..."]}}"""


def checking_question(prompt: Prompt) -> str:
    listed = "\n\n".join(
        f"{described(n, sub)}\nDescription: {one_line(text)}"
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
    """The prompt that an answer holds, or None if it is not complete."""
    found = last_json(final_part(text or "", unfinished), ("prompt",))
    written, descriptions = found.get("prompt"), found.get("descriptions")
    if not isinstance(descriptions, list) or len(descriptions) != len(draft.subs):
        return None
    if not all(isinstance(d, str) and any(map(str.isalnum, d)) for d in (written, *descriptions)):
        return None  # the "..." of the question is no text
    if len(written.split()) > 60:
        return None
    points = list(zip(draft.subs, map(one_line, descriptions)))
    return Prompt(draft.index, one_line(written), points, draft.theme, draft.subtheme, "en")


def shingles(text: str) -> set[tuple[str, ...]]:
    """The three-word sequences of a text, letters only, shorter ones where it has fewer words."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def alike(first: str, second: str) -> float:
    """Share of three-word sequences in common, 0..1."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def attempt_batch(
    mllm: MLLM, drafts: list[Draft], attempt: int, accepted: list[Prompt], patience: Patience
) -> dict[int, Prompt | str]:
    """Of each draft, by index: a prompt that passed its check and repeats no other, or why not."""
    answers = mllm.ask([Query((), writing_question(draft, attempt)) for draft in drafts])
    made: dict[int, Prompt | str] = {}
    for draft, answer in zip(drafts, answers, strict=True):
        prompt = read_written(answer.text, draft, answer.unfinished)
        made[draft.index] = prompt or answer.error or answer.unfinished or "not what was asked for"
    patience.check([why if isinstance(why, str) else None for why in made.values()])
    fresh = []
    for prompt in [prompt for prompt in made.values() if isinstance(prompt, Prompt)]:
        if all(alike(prompt.text, other.text) <= MOST_ALIKE for other in (*accepted, *fresh)):
            fresh.append(prompt)
        else:
            made[prompt.index] = "much like another prompt"
    checks = mllm.ask([Query((), checking_question(prompt)) for prompt in fresh]) if fresh else []
    for prompt, check in zip(fresh, checks, strict=True):
        scores = parse_scores(check.text, len(prompt.testpoints), check.unfinished)
        if scores is None:
            made[prompt.index] = check.error or check.unfinished or "its check could not be read"
        elif 0 in scores:
            made[prompt.index] = "does not ask for all that it is to test"
    return made


def construct(
    mllm: MLLM, count: int, journal_path, seed=0, patience: float = 180.0
) -> tuple[list[Prompt], list[Draft]]:
    """`count` prompts, and the drafts that no attempt fulfilled, which are printed with the reason.

    Started again, it goes on. Raises ValueError if the journal is of another model or seed, or the
    model seems dead.
    """
    dead = Patience(patience)
    journal = Journal(journal_path, header_of(mllm, "writer", seed=seed), same_answers)
    drafts = {draft.index: draft for draft in make_drafts(count, seed)}
    accepted = {}
    for line in journal.lines:
        if line["index"] in drafts:
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
            todo = [draft for index, draft in drafts.items() if index not in accepted]
            for start in range(0, len(todo), BATCH):
                batch, so_far = todo[start : start + BATCH], list(accepted.values())
                why |= attempt_batch(mllm, batch, attempt, so_far, dead)
                for draft in batch:
                    if isinstance(prompt := why[draft.index], Prompt):
                        accepted[draft.index] = prompt
                        journal.write(prompt._asdict())
                        bar.update()
    given_up = [draft for index, draft in drafts.items() if index not in accepted]
    for draft in given_up:
        print(f"given up: {draft} ({why[draft.index]})")
    return [accepted[index] for index in sorted(accepted)], given_up
