"""The phrase book: its own phrases pass its check, anything else does not."""

import json
import re

import pytest

from judges.answers import parse_reasons, parse_scores
from shapes import phrasebook
from shapes.server import ClassroomMLLM
from unigenbench import construct as C
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt

DRAFT = C.Draft(0, "Art", "Other", "Animal", tuple(SUBS[:5]))


def write(plan, attempt=0):
    return C.read_written(phrasebook.answer(C.writing_question(plan, attempt)), plan)


@pytest.mark.parametrize("language", C.LANGUAGES)
def test_it_has_a_phrase_for_each_testpoint_and_knows_it_again(language):
    labels = [dimension.label(language) for dimension in DIMENSIONS.values()]
    assert [*phrasebook.BOOKS[language]["phrases"]] == labels
    for sub in SUBS:
        prompt = write(DRAFT._replace(subs=(sub,), language=language))
        assert prompt.testpoints[0][1] in prompt.text
        assert parse_scores(phrasebook.answer(C.checking_question(prompt)), 1) == [1]
    assert write(DRAFT) == write(DRAFT) != write(DRAFT, attempt=1)


def test_its_check_refuses_what_is_not_there_or_is_of_another_dimension():
    points = {  # (sub dimension, description) -> the reason
        ("Attribute - Color", "a red kite"): "asked for",
        ("Attribute - Shape", "a round table"): "not in the prompt",
        ("Attribute - Size", "exactly two lamps"): "not known to be Attribute - Size",
        ("Style", "nice"): "not known to be Style",
    }
    prompt = Prompt(0, "a red kite, exactly two lamps, nice", list(points), "Art", "Other", "en")
    answer = phrasebook.answer(C.checking_question(prompt))
    assert parse_scores(answer, 4) == [1, 0, 0, 0]
    assert parse_reasons(answer, 4) == list(points.values())


def test_what_a_prompt_excludes_no_phrase_brings_in():
    book = phrasebook.BOOKS["en"]
    others = {name: words for name, words in book["words"].items() if name != "none"}
    words = set(re.findall(r"\w+", json.dumps([others, book["phrases"]])))
    excluded = book["words"]["none"]
    assert not words & {*excluded, *(noun.removesuffix("s") for noun in excluded)}


def test_the_server_asks_it_where_there_is_no_picture():
    questions = (C.writing_question(DRAFT, 0), "Write a poem")
    written, refused = ClassroomMLLM().ask([C.Query((), text) for text in questions])
    assert written.text == phrasebook.answer(questions[0])
    assert "only judge pictures" in refused.text
