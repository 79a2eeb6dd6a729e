"""The question about an image, and judges' answers to it, good and bad."""

import pytest

from judges.answers import parse_reasons, parse_scores
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.start import comparison_of
from unigenbench.questions import answer_form, question
from unigenbench.testpoints import Prompt

POINTS = [("Style", "ink\npainting"), ("Grammar - Negation", "no {dog}")]
PROMPT = Prompt(0, "a {red}\nhat", POINTS, "", "", "en")


def test_questions_have_the_lines_that_the_verifier_reads_and_those_about_chinese_are_chinese():
    lines = question(PROMPT).split("\n")
    assert "Caption: a {red} hat" in lines and "Description: ink painting" in lines
    start = lines.index("Testpoint 2: Grammar - Negation")
    definition = "Definition: What the prompt excludes is absent."
    assert lines[start + 1 : start + 3] == [definition, "Description: no {dog}"]
    assert lines[-1] == '<analysis>["...", "..."]</analysis> <score>[X, X]</score>'
    text = question(PROMPT._replace(text="一顶红帽", language="zh"))
    assert "提示词：一顶红帽" in text and "考点 2：语法-否定" in text and "Caption" not in text
    assert "定义：提示词否定的内容没有出现。" in text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_question_and_its_form_are_no_answer(count, language):
    prompt = PROMPT._replace(testpoints=[("Style", "ink")] * count, language=language)
    text = question(prompt)
    assert answer_form(count) == text.splitlines()[-1]  # as many places as testpoints
    for echo in (text, answer_form(count), answer_form(count).replace('"', "'")):
        assert parse_scores(echo, count) is None
        answer = answer_form(count).replace("X", "1")
        assert parse_scores(echo + "\n" + answer, count) == [1] * count


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("draft: <score>[1, 0]</score>", None),  # the thought may have begun in the prompt
        ("draft <score>[0, 0]</score></think><score>[1, 0]</score>", [1, 0]),
        ("</think><score>[1, 0]</score> and", [1, 0]),
        ('</think>{"score": [1, 0]}\nand', [1, 0]),
        ("</think><score>[1, 0]</score> no: <score>[1,", None),
        ('</think>{"score": [1, 0]} no: {"score": [', None),
        ("</think><score>[1, 0]", None),
        ("</think><score>[1, 0]</score><think>", [1, 0]),
    ],
)
def test_scores_of_an_unfinished_answer_stand_closed_after_the_thinking(text, scores):
    assert parse_scores(text, 2, "cut off") == scores


def test_a_template_of_ones_own():
    text = question(PROMPT, "{prompt}|{testpoint}|{explanation}|{test_explanation}")
    assert text.startswith("a {red}\nhat|['Style', 'Grammar - Negation']|Style: The picture")
    assert text.endswith("|Style: ink painting\nGrammar - Negation: no {dog}")
    assert question(PROMPT, "{prompt}{testpoint}{{}}").endswith("]{}")


@pytest.mark.parametrize(
    "template, said",
    [
        ("%s {prompt.text}", "placeholder other than .*: {prompt.text}$"),
        ("%s { prompt }", "placeholder other than"),
        ("%s {prompt} {}", "placeholder other than"),
        ("%s {prompt} {", "opened or closed alone"),
        ("%s {{prompt}}", "lacks {prompt}, .* it is none"),
        ("%s", "lacks {prompt}"),
    ],
)
def test_a_template_that_would_not_be_filled_in_is_refused_by_all_that_take_one(
    template, said, tmp_path
):
    file = tmp_path / "t.txt"
    file.write_text(template.replace("%s ", ""))
    with pytest.raises(ValueError, match=said) as told:
        comparison_of(Config(judge_prompt=str(file)), ShapesMLLM())
    assert f"--judge_prompt '{file}'" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(ValueError, match=said):
        question(PROMPT, template.replace("%s", "{test_explanation}"))


def test_a_template_of_testpoints_has_a_place_for_them_and_one_of_pairs_may_hold_json(tmp_path):
    with pytest.raises(ValueError, match="lacks {test_explanation} or {testpoint}"):
        question(PROMPT, "{prompt} {explanation}")
    file, form = tmp_path / "t.txt", '{prompt}\n{"winner": "Image 1", "why": {"a": {}}}'
    file.write_text(form.replace("{}", "[]"))
    assert comparison_of(Config(judge_prompt=str(file)), ShapesMLLM()).template.startswith(
        form[:20]
    )


@pytest.mark.parametrize(
    "text, count, scores",
    [
        ('<analysis>["a", "b"]</analysis> <score>[1, 0]</score>', 2, [1, 0]),
        ("<score>\n```json\n[0, 1]\n```\n</score>", 2, [0, 1]),
        ("<score>［“1”，“0”］</score>", 2, [1, 0]),
        ("<score>[1, 1]</score> no, rather <score>[0, 1]</score>", 2, [0, 1]),  # the last counts
        ("<score> the form is <score>[1]</score>", 1, [1]),
        ("<think>say <score>[1]</score></think><score>[0]</score>", 1, [0]),
        ("<think>say <score>[1]</score> or", 1, None),  # cut off while thinking
        ('{"analysis": ["a"], "score": [1]}', 1, [1]),
        ('First:\n```json\n{"scores": [1, 0]}\n```', 2, [1, 0]),
        ("[1, 0]", 2, [1, 0]),
        ("Testpoints: [1, 0]", 2, None),
        ("1", 1, None),  # a list, or a sentence?
        ('{"score": [1]} then {"score": [0]}', 1, [0]),
        ('{"score": [1], "inner": {"score": [0]}}', 1, [1]),
        ("<score>[1, 0]</score>", 3, None),
        ("<score>[1, 0]</score>", 1, None),
        ("<score>[1, 0.5]</score>", 2, None),
        ('{"scores": [true, 1.0, " 0 "]}', 3, [1, 1, 0]),
        ('<score>["true", "0"]</score>', 2, None),
        ("<score>[1 + 0j, 1]</score>", 2, None),
        ("<score>[NaN, 1]</score>", 2, None),
        ("<score>1, 0</score>", 2, [1, 0]),
        ("<score>[[1], 0]</score>", 2, None),
        (None, 1, None),
        ("{" * 5000, 1, None),
    ],
)
def test_parse_scores(text, count, scores):
    assert parse_scores(text, count) == scores


def test_reasons_need_one_for_each_testpoint():
    assert parse_reasons('<analysis>["a", "b"]</analysis><score>[1, 0]</score>', 2) == ["a", "b"]
    assert parse_reasons('<analysis>["a"]</analysis><score>[1, 0]</score>', 2) == []
    assert parse_reasons("<score>[1, 0]</score>", 2) == []
