"""The probability in a server's answer, by the tokens that it might have given instead."""

import re

import pytest
from fake_server import choice, client, serving

from judges.answers import NO_ODDS, Verdict, ask
from judges.mllm import Query
from training.config import Config
from training.start import judge_of, try_judge


def with_odds(text: str, likely: dict, place: int = -1, cut=r"Image|\s?\d|\s?\w+|\W"):
    """A reply whose digit at this place, of all there are, has these likeliest tokens; all others
    have 1 and 2 at even odds."""
    tokens = re.findall(cut, text)
    digits = [n for n, token in enumerate(tokens) if token.strip() in ("1", "2")]

    def entry(n, token):
        top = likely if n == digits[place] else {"1": -0.7, "2": -0.7}
        tops = [{"token": t, "logprob": p, "bytes": None} for t, p in top.items()]
        token = token if token.isascii() else "\ufffd"  # as a part of a letter is told
        return {"token": token, "logprob": -0.1, "bytes": None, "top_logprobs": tops}

    reply = choice(text)
    reply["choices"][0]["logprobs"] = {"content": [entry(*each) for each in enumerate(tokens)]}
    return reply


LOG = {" 1": -0.2231, " 2": -1.6094, " a": -5.0}  # 0.8, 0.2
ANSWER = "Image 2 has 2 cats.\n<answer>Image 1 is better</answer>"


@pytest.mark.parametrize(
    ("reply", "p"),
    [
        (with_odds(ANSWER, LOG), 0.8),
        (with_odds("图 2 好，而 1 不\n" + ANSWER.replace("Image 1", "Image 2"), LOG), 0.8),
        (with_odds("图 2 好<answer>Image 1 is better</answer>。 很 好。", LOG), 0.8),
        (with_odds("<answer>Image 1 is better than Image 2</answer>", LOG, 0), 0.8),
        (with_odds("<answer>Image 2 is better because Image 1 lacks 2</answer>", LOG, 0), 0.8),
        (with_odds('{"reason": "1 has 2", "winner": "Image 1"}', LOG), 0.8),
        (with_odds(ANSWER, {" 1": -0.1, "1": -9999.0, "2": -9999.0}), 1.0),
        (with_odds("<answer>Both are equal: 1</answer>\n<answer>equal</answer>", LOG), 0.5),
        (choice(ANSWER), None),
        (with_odds(ANSWER, {" 1": -0.1}), None),  # what else might it have been?
        (with_odds(ANSWER, {" x": -0.1, " y": -2.0}), 1.0),  # the other is less likely than these
        (with_odds(ANSWER, LOG, cut=r"\w+"), None),  # of another text
    ],
    ids=lambda x: str(x) if isinstance(x, float) else "",
)
def test_the_probability_is_that_of_the_digit_that_decides(reply, p):
    with serving(*[reply] * 4) as server:
        query, judge = Query((), "?"), client(server)
        ((*_, outcome),) = ask(judge, [query], soft=True)
    assert outcome.points == (p and pytest.approx(p, abs=1e-3)) and not outcome.answer.tokens
    assert outcome.error == (NO_ODDS if p is None else None)
    body, _ = server.requests[0]
    assert body["logprobs"] is True and body["top_logprobs"] == 5
    assert (outcome.verdict is Verdict.FAILED) == (p is None)


def test_soft_answers_of_a_server_keep_what_was_answered_and_lost():
    """As hard ones do: who answered, why an answer is lost, and a reminder where it had none."""
    lost = [with_odds("I see 1 and 2.", LOG), with_odds(ANSWER, LOG)]
    with serving(500, *lost) as server:
        (said,) = ask(client(server), [Query((), "?")], soft=True)
        assert [one.verdict.name for one in said] == ["UNPARSABLE", "FIRST"]
        assert said[1].answer.model == "m" and said[1].read_as == pytest.approx(0.8, abs=1e-3)
        assert said[0].read_as == "unparsable" and server.requests[1][0] != server.requests[2][0]
        server.faults = [400, 400]
        ((*_, dead),) = ask(client(server), [Query((), "?")], soft=True)
    assert dead.verdict is Verdict.FAILED and "fault 400" in dead.error


def test_a_server_without_log_probabilities_is_refused_in_one_sentence():
    def tried(*faults, refuse=None):
        with serving(*faults) as server:
            server.refuse = refuse
            cfg = Config(judge="openai", base_url=server.url, judge_model="judge", soft=True)
            with pytest.raises(ValueError, match="the judge judge at") as told:
                try_judge(cfg, judge_of(cfg))
        assert "\n" not in str(told.value)
        return str(told.value)

    assert f"does not answer: {NO_ODDS}" in tried(*[choice(ANSWER)] * 4)
    refuse = lambda body: (400, {"error": {"message": "logprobs: unknown"}}) * ("logprobs" in body)
    assert "the server gives no log-probabilities, which --soft needs" in tried(refuse=refuse)
