"""reply.py: what is taken for an answer of the model, whole, unfinished or none."""

import re

import pytest
from fake_server import choice, client, questions, serving

from judges.answers import Verdict, parse_verdict


def answers_of(reply, **settings):
    """The answer that is made of a reply, and how many calls it took."""
    with serving(*[reply] * 3) as server:
        (answer,) = client(server, max_retries=2, **settings).ask(questions("x"))
    return answer, len(server.requests)


@pytest.mark.parametrize(
    ("reason", "tokens", "said"),
    [
        ("stop", 9, None),  # just so long
        (None, 5, None),
        ("STOP", None, None),
        ("length", 5, "cut off at 9 tokens.*--judge_tokens"),
        ("MAX_TOKENS", None, "cut off at 9 tokens"),
        (None, 9, "cut off at 9 tokens"),
        ("content_filter", 5, "stopped by the server .content_filter."),
    ],
)
def test_an_answer_that_the_model_did_not_end_is_told_apart(reason, tokens, said):
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": tokens}} if tokens else {}
    answer, _ = answers_of(choice("a draft", reason) | usage, max_tokens=9)
    assert answer.text == "a draft" and answer.usage == ((7, tokens) if tokens else None)
    assert re.match(said, answer.unfinished) if said else answer.unfinished is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": [{"text": "no"}]}, {"type": "text", "text": "x"}], "x"),
        ([{"type": "reasoning", "text": "no"}, {"type": "output_text", "text": "x"}], "x"),
        (["one", {"text": " two"}, {"type": "image_url"}, 5], "one two"),
        ("a cut emoji \ud83d, in one text", "a cut emoji ?, in one text"),  # no file could hold it
        *((nothing, None) for nothing in (None, " ", [{"type": "thinking", "text": "hm"}], 5)),
    ],
)
def test_content_may_be_a_list_of_parts_or_hold_nothing(content, text):
    answer, calls = answers_of(choice(content))
    assert answer.text == text and calls == 1  # at temperature 0 it would say nothing again
    if text is None:
        assert answer.error == answer.unfinished == "empty answer (finish_reason: stop)"
        cut, calls = answers_of(choice(content, reason="length"))
        assert "empty answer (finish_reason: length): cut off" in cut.error and calls == 1


def test_a_refusal_is_told_in_the_models_words():
    answer, _ = answers_of(choice(None, refusal="I cannot help with that"))
    assert answer.error == "refused: I cannot help with that"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_that_comes_by_itself_is_no_draft_in_the_answer(name):
    verdict = "<answer>Image 2 is better</answer> and"
    answer, _ = answers_of(choice(verdict, reason="length", **{name: "a draft"}))
    assert parse_verdict(answer.text, answer.unfinished) is Verdict.SECOND


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ({"error": {"message": "no such model", "code": 404}}, 1),
        ({"error": {"message": "no such model", "code": "insufficient_quota"}}, 1),
        ({"object": "error", "message": "no such model", "code": 400}, 1),
        ({"error": "no such model"}, 3),
        ({"detail": "no such model"}, 3),
        ({"error": {"message": "no such model", "code": 502}}, 3),
        ({"choices": [{"error": {"message": "no such model", "code": 400}, "message": None}]}, 1),
    ],
)
def test_an_error_with_http_200_is_told_in_its_own_words(body, calls):
    answer, asked = answers_of(body)
    assert "the server says: no such model" in answer.error and asked == calls
