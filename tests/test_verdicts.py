"""verdicts.py: verdicts and ratings out of what models really write, half of it hostile."""

import pytest

from judges.answers import Verdict, ask, parse_ratings, parse_verdict
from judges.mllm import Answer, Query, cut_off
from judges.templates import PAIRWISE_TEMPLATE, POINTWISE_TEMPLATE

FIRST, SECOND, TIE, UNPARSABLE, FAILED = Verdict
ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
GOOD = "Alignment Score (1-5): 4.25\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 4"


VERDICTS = [
    # what a judge should write
    (ONE, FIRST),
    (TWO, SECOND),
    ("<answer>Both are equal</answer>", TIE),
    ("Image 2 lacks the cube.\n" + ONE, FIRST),
    ("Image 1 is better at color.\n" + TWO + "\n", SECOND),
    # what judges write instead
    ("<ANSWER>IMAGE 2 IS BETTER</ANSWER>", SECOND),
    ("<answer>\nimage 1 is better.\n</answer>", FIRST),
    ("**<answer>Image 2 is better</answer>**", SECOND),
    ("<answer>**Image 1** is better!</answer>", FIRST),
    ("<answer>Image 1 is better than Image 2</answer>", FIRST),
    ("<answer>Image 2 is clearly better than image 1.</answer>", SECOND),
    ("<answer>Image 2 is better because Image 1 lacks the cube</answer>", SECOND),
    ("<answer>Overall, Image 1 is better</answer>", FIRST),
    ("<answer>Image 2</answer>", SECOND),
    ("<answer>Image1 is better</answer>", FIRST),
    ("<answer>Colors: Image 1.\nImage 2 is better</answer>", SECOND),
    ("<answer>Both images are equally good</answer>", TIE),
    ("<answer>It is a tie</answer>", TIE),
    ("Image 2 is better", SECOND),
    ("<answer>'Image 1 is better'</answer>", FIRST),  # the quotes of the instruction
    ("<answer>\u2018Image 2 is better\u2019.</answer>", SECOND),
    ("Answer: 'Image 2 is better'", SECOND),
    ("<answer>Image 2 is the better one</answer>", SECOND),
    ("<answer>It's a tie</answer>", TIE),
    (
        "<think>\n1. Aesthetics: \n    Image 1 (8/10) - ...; \n    Image 2 (6/10) - ...\n"
        "Total score:\nImage 1: 8=8\nImage 2: 6=6\n</think>\n" + ONE,
        FIRST,
    ),  # UnifiedReward-Think
    ("I looked at both.\n**Final answer:** Image 1 is better", FIRST),
    ("<think>Image 2 is better, no?</think>" + ONE, FIRST),
    # text after, several answers, tags that are not closed
    (ONE + "\nI hope that this helps! Image 2 is better in style.", FIRST),
    (ONE + " On reflection: " + TWO, SECOND),
    (TWO * 3 + "<answer>Both are equal</answer>", TIE),
    ("So <answer>Image 2 is better", SECOND),
    ("So <answer>Image 2 is better\nbecause of its colors, I think", SECOND),
    (ONE + " wait: <answer>Image 2 is better", SECOND),
    ("<answer><answer>Image 1 is better</answer></answer>", FIRST),
    # a caption with the tag in it, quoted before or after the answer
    ('The caption "say <answer> and go" is met by both. ' + TWO, SECOND),
    (TWO + ' (The sign says "<answer>" indeed.)', SECOND),
    ("The caption reads " + ONE + ", as text on a sign. " + TWO, SECOND),
    ('{"why": "the sign says <answer>Image 1 is better</answer>", "winner": "Image 2"}', SECOND),
    # no final answer: never a guess, never a tie
    ("", UNPARSABLE),
    ("   \n\n", UNPARSABLE),
    ("<answer></answer>", UNPARSABLE),
    ("<answer>", UNPARSABLE),
    ("</answer>", UNPARSABLE),
    ("</answer>Image 1 is better<answer>", UNPARSABLE),
    ("<answer>Image 3 is better</answer>", UNPARSABLE),
    ("<answer>Image 12 is better</answer>", UNPARSABLE),
    (ONE + "<answer>Image 3 is better</answer>", UNPARSABLE),
    ("<answer>Image 1 is not better</answer>", UNPARSABLE),
    ("<answer>Image 1 is hardly better</answer>", UNPARSABLE),
    ("<answer>Image 1 is supposedly better</answer>", UNPARSABLE),
    ("<answer>I doubt that Image 1 is better</answer>", UNPARSABLE),
    ("<answer>Neither Image 1 nor Image 2 is better</answer>", UNPARSABLE),
    ("<answer>Image 1 is better, Image 2 is better</answer>", UNPARSABLE),
    ("<answer>Image 1 is better than Image 1</answer>", UNPARSABLE),
    ("<answer>Image 1 is better since Image 2 is better in color</answer>", UNPARSABLE),
    ("<answer>Image 1 is", UNPARSABLE),
    ("<answer>Both are bad</answer>", UNPARSABLE),
    ("<answer>not equal</answer>", UNPARSABLE),
    ("Image 1 is better in color.\nImage 2 is better in shape.", UNPARSABLE),
    ("Reasons first.\nImage 1 is better", UNPARSABLE),  # a line of a list cut short reads the same
    ("I cannot help with that.", UNPARSABLE),
    ("<think>I must end with " + ONE + " or " + TWO, UNPARSABLE),
    ("<think>" + ONE + "</think>", UNPARSABLE),
    ("\x00\ufffd<<>>{}[]``````", UNPARSABLE),
    (None, FAILED),
    # JSON
    ('{"winner": "Image 1"}', FIRST),
    ('{"winner": 2}', SECOND),
    ('{"winner": "tie"}', TIE),
    ('{"winner": "Image 2 is better", "confidence": 0.9}', SECOND),
    ('```json\n{"categories": [{"name": "style", "winner": 2}], "winner": "Image 1"}\n```', FIRST),
    (
        '{"prompt": "a sign that says \\"<answer>\\"", "categories": [{"name": '
        '"A. Semantic Alignment", "dims": [{"name": "count", "reason_1": "two", '
        '"reason_2": "{one}", "score_1": 8, "score_2": 2}], "cat_reason": "...", '
        '"cat_winner": "Image 1"}], "reason": "line\nline", "winner": "Image 2"}',
        SECOND,
    ),  # UnifiedReward-Flex, with a line break that JSON forbids
    ('{"categories": [{"cat_winner": "Image 1"}], "winner": "Image 1/2"}', UNPARSABLE),
    ('{"winner": "Image 1", "style": {"winner": "Image 2"}}', FIRST),
    ('Reasons with {braces}.\n```\n{"winner": "Image 2"}\n```\nDone {here}.', SECOND),
    ('```json\n{"winner": 1}\n```\nNo:\n```json\n{"winner": 2}\n```', SECOND),
    ('<answer>{"winner": "Image 2"}</answer>', SECOND),
    ('{"winner": "Image 1"} but then ' + TWO, SECOND),
    ('{"style": {"winner": "Image 2"}}', UNPARSABLE),
    ('{"winner": null}', UNPARSABLE),
    ('{"winner": true}', UNPARSABLE),
    ('{"winner": 3}', UNPARSABLE),
    ('{"winner": "Image 1", ', UNPARSABLE),
    ('{"categories": [\n{"winner": "Image 2"}, {"winner": ', UNPARSABLE),
]


@pytest.mark.parametrize(
    ("verdict", "points"),
    [(FIRST, 1.0), (SECOND, 0.0), (TIE, 0.5), (UNPARSABLE, None), (FAILED, None)],
)
def test_a_lost_comparison_has_no_points(verdict, points):
    assert verdict.points == points


@pytest.mark.parametrize(("text", "verdict"), VERDICTS)
def test_parse_verdict(text, verdict):
    assert parse_verdict(text) is verdict


@pytest.mark.parametrize(
    "unit",
    [
        "Image 1 is better. ",
        "<answer>",
        "</answer>",
        "<",
        "{",
        "[",
        '{"a":',
        "`",
        "``` ",
        "\n",
        " ",
        "image 1 is better because ",
        "<think>",
        "</think>",
        "both ",
        "1 ",
    ],
)
def test_long_hostile_reasoning_hides_no_verdict(unit):
    """It would not end within minutes either if some text took quadratic time."""
    noise = unit * (100_000 // len(unit))
    assert parse_verdict(noise + "</think>\n" + TWO) is SECOND
    assert parse_verdict(noise) is UNPARSABLE
    assert parse_verdict("<answer>" + noise + " not</answer>") is UNPARSABLE


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (GOOD, 11.75 / 3),
        (GOOD.lower() + "\nthat is all", 11.75 / 3),
        (GOOD.replace(": ", ": **"), 11.75 / 3),
        ("Style Score (1-5): 1\n" + GOOD, 11.75 / 3),  # the last counts
        (GOOD.replace("4.25", "9"), None),
        (GOOD.replace("4.25", "0"), None),
        (GOOD.replace("4.25", "X"), None),
        (GOOD.replace("Style", "Taste"), None),
        ("", None),
        ("alignment score" * 5000, None),
    ],
)
def test_parse_ratings(text, score):
    assert parse_ratings(text) == (None if score is None else pytest.approx(score))


def test_our_templates_ask_for_what_our_parsers_read():
    said = PAIRWISE_TEMPLATE.splitlines()[-3:]
    assert [parse_verdict(f"<answer>{line}</answer>") for line in said] == [FIRST, SECOND, TIE]
    assert parse_ratings(POINTWISE_TEMPLATE.replace(": X", ": 3")) == 3
    for template in (PAIRWISE_TEMPLATE, POINTWISE_TEMPLATE):
        assert template.splitlines().count("Caption: {prompt}") == 1


def test_a_question_is_no_answer_and_hides_none():
    """Nor is any end of it, of at least its last two lines."""
    asked = PAIRWISE_TEMPLATE.replace("{prompt}", "a dog")
    lines = asked.splitlines()
    for start in range(len(lines) - 1):
        echo = "\n".join(lines[start:])
        assert parse_verdict(echo) is UNPARSABLE
        assert parse_verdict(f"{echo}\n{TWO}") is SECOND
    assert parse_ratings(POINTWISE_TEMPLATE.replace("{prompt}", "a dog")) is None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        # the tag that opens a thought may stand in the prompt
        ("I draft: <answer>Both are equal</answer>", UNPARSABLE),
        ("<think>I draft: <answer>Both are equal</answer>", UNPARSABLE),
        (ONE, UNPARSABLE),
        ("Image 1 is better", UNPARSABLE),
        # after the thinking a closed form counts
        (ONE + "</think>" + TWO, SECOND),
        ("</think>" + TWO + " And so", SECOND),
        ('</think>{"winner": "Image 2"} and', SECOND),
        # one that is not closed, or with another begun after it, does not
        (ONE + "</think> So <answer>Image 2 is better", UNPARSABLE),
        ("</think>" + ONE + " wait: <answer>Image 2 is", UNPARSABLE),
        ('</think>{"winner": "Image 1"} wait: {"winner": ', UNPARSABLE),
        ("</think>Image 1", UNPARSABLE),  # 1 of 12?
        ("</think>Reasons.\nAnswer: Image 1 is better", UNPARSABLE),  # than Image 2, or in color
        ("", UNPARSABLE),
        (None, FAILED),
    ],
)
def test_the_verdict_of_an_unfinished_answer_stands_closed_after_the_thinking(text, verdict):
    assert parse_verdict(text, "cut off") is verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (GOOD, None),
        (f"</think>{GOOD}", None),  # 4 of 4.5?
        (f"</think>{GOOD}\nSo", 11.75 / 3),
        (f"{GOOD}\n</think>\nAlignment Score", None),
    ],
)
def test_ratings_of_an_unfinished_answer_stand_in_whole_lines_after_the_thinking(text, score):
    assert parse_ratings(text, "cut off") == (None if score is None else pytest.approx(score))
    assert parse_ratings(f"<think>{text.replace('</think>', '')}") is None


class Says:
    """Answers with texts, in turn."""

    name = "says"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, queries):
        self.asked += [query.text for query in queries]
        return [self.answers.pop(0) for _ in queries]


CUT = cut_off(9)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("I draft: " + ONE, unfinished=CUT),
        Answer(error=f"empty answer: {CUT}", unfinished=f"empty answer: {CUT}"),
    ],
)
def test_a_cut_off_answer_names_the_flag_and_is_not_asked_for_in_the_same_words(answer):
    mllm = Says(answer, answer)
    ((_, last),) = ask(mllm, [Query((), "?")])
    assert last.verdict is UNPARSABLE and last.points is None
    assert "--judge_tokens" in last.error and "--max_tokens" in last.error and "9" in last.error
    assert len(set(mllm.asked)) == 2


@pytest.mark.parametrize(
    "template",
    [PAIRWISE_TEMPLATE, "Which follows '{prompt}'? Answer like this:\n" + ONE, "{prompt}\n" + TWO],
)
def test_who_repeats_the_question_has_not_answered_it(template):
    """Also a question of one's own, whose example reads as an answer."""
    asked = template.replace("{prompt}", "a dog")
    (said,) = ask(Says(Answer("echo " + asked), Answer(asked + "\n\n" + TWO)), [Query((), asked)])
    assert [one.verdict for one in said] == [UNPARSABLE, SECOND]
