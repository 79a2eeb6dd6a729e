"""answers.py: verdicts and ratings out of what models really write, half of it hostile."""

import csv
from pathlib import Path

import pytest
from fakes import in_turn

from judges.answers import Verdict, ask, parse_ratings, parse_verdict
from judges.mllm import Answer, Query, cut_off
from judges.templates import PAIRWISE_TEMPLATE, POINTWISE_TEMPLATE

FIRST, SECOND, TIE, UNPARSABLE, FAILED = Verdict
ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
GOOD = "Alignment Score (1-5): 4.25\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 4"


def test_a_lost_comparison_has_no_points():
    assert [verdict.points for verdict in Verdict] == [1.0, 0.0, 0.5, None, None]


def test_each_text_has_its_verdict():
    """verdicts.csv: what judges should write, and do; several answers, tags that are not closed,
    JSON; no final answer, which is never a guess; answers that were cut off."""
    with open(Path(__file__).with_name("verdicts.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    read = [(row["text"], parse_verdict(row["text"], row["unfinished"]).name) for row in rows]
    assert read == [(row["text"], row["verdict"]) for row in rows] and len(rows) > 80
    for unfinished in (None, "cut off"):
        assert parse_verdict(None, unfinished) is FAILED
        assert parse_verdict("\x00\ufffd<<>>{}[]``````", unfinished) is UNPARSABLE


@pytest.mark.parametrize("unit", ["<answer>", '{"a":', "``` ", "image 1 is better because "])
def test_long_hostile_reasoning_hides_no_verdict(unit):
    """It would not end within minutes either if some text took quadratic time."""
    noise = unit * (100_000 // len(unit))
    assert parse_verdict(noise + "</think>\n" + TWO) is SECOND
    assert parse_verdict(noise) is UNPARSABLE
    assert parse_verdict("<answer>" + noise + " not</answer>") is UNPARSABLE


MEAN, CUT = 11.75 / 3, cut_off(9)


@pytest.mark.parametrize(
    ("text", "unfinished", "score"),
    [
        (GOOD.lower() + "\nthat is all", None, MEAN),
        (GOOD.replace(": ", ": **"), None, MEAN),
        ("Style Score (1-5): 1\n" + GOOD, None, MEAN),  # the last counts
        (GOOD.replace("4.25", "9"), None, None),
        (GOOD.replace("4.25", "0"), None, None),
        (GOOD.replace("4.25", "X"), None, None),
        (GOOD.replace("Style", "Taste"), None, None),
        (f"<think>{GOOD}</think>", None, None),
        ("Style Score: " * 10_000, None, None),
        (GOOD, CUT, None),
        (f"</think>{GOOD}", CUT, None),  # 4 of 4.5?
        (f"</think>{GOOD}\nSo", CUT, MEAN),
        (f"{GOOD}\n</think>\nAlignment Score", CUT, None),
    ],
)
def test_parse_ratings(text, unfinished, score):
    assert parse_ratings(text, unfinished) == (score and pytest.approx(score))


def test_our_templates_ask_for_what_our_parsers_read():
    said = PAIRWISE_TEMPLATE.splitlines()[-3:]
    assert [parse_verdict(f"<answer>{line}</answer>") for line in said] == [FIRST, SECOND, TIE]
    assert parse_ratings(POINTWISE_TEMPLATE.replace(": X", ": 3")) == 3
    for template in (PAIRWISE_TEMPLATE, POINTWISE_TEMPLATE):
        assert template.splitlines().count("Caption: {prompt}") == 1


def test_a_question_is_no_answer_and_hides_none():
    """Nor is any end of it, of at least its last two lines."""
    lines = PAIRWISE_TEMPLATE.replace("{prompt}", "a dog").splitlines()
    for start in range(len(lines) - 1):
        echo = "\n".join(lines[start:])
        assert parse_verdict(echo) is UNPARSABLE
        assert parse_verdict(f"{echo}\n{TWO}") is SECOND
    assert parse_ratings(POINTWISE_TEMPLATE.replace("{prompt}", "a dog")) is None


NOTHING = f"empty answer: {CUT}"


@pytest.mark.parametrize(
    "answer", [Answer("I draft: " + ONE, unfinished=CUT), Answer(error=NOTHING, unfinished=NOTHING)]
)
def test_a_cut_off_answer_names_the_flag_and_is_not_asked_for_in_the_same_words(answer):
    mllm = in_turn(answer, answer)
    ((_, last),) = ask(mllm, [Query((), "?")])
    assert last.verdict is UNPARSABLE and last.points is None
    assert "--judge_tokens" in last.error and "--max_tokens" in last.error and "9" in last.error
    assert len({query.text for query in mllm.asked}) == 2


@pytest.mark.parametrize("template", [PAIRWISE_TEMPLATE, "{prompt}? Answer like this:\n" + ONE])
def test_who_repeats_the_question_has_not_answered_it(template):
    """Also a question of one's own, whose example reads as an answer."""
    asked = template.replace("{prompt}", "a dog")
    (said,) = ask(in_turn("echo " + asked, asked + "\n\n" + TWO), [Query((), asked)])
    assert [one.verdict for one in said] == [UNPARSABLE, SECOND]
