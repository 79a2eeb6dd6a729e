"""Prompt files and judges' answers, good and bad. The files are small ones in the official form."""

import csv
import json
import warnings
from pathlib import Path

import pytest

from unigenbench.testpoints import (
    DIMENSIONS,
    PRIMARIES,
    Prompt,
    answer_form,
    canonical,
    load_prompts,
    parse_reasons,
    parse_scores,
    primary_of,
    question,
    write_prompts,
)


def fields(points=(("Style", "ink"), ("Attribute - Color", "a red hat")), **others):
    labels, descriptions = zip(*points)
    return {
        "Primary Categories": "Art",
        "Secondary Categories": "Graphic Art",
        "Testpoints": list(labels),
        "Testpoint Description": list(descriptions),
        **others,
    }


def chinese_fields():
    return {
        "一级垂类": "艺术",
        "二级垂类": "平面艺术",
        "考点": ["属性-数量"],
        "考点对应描述": ["两只熊猫"],
    }


def write(path, rows, header=("index", "prompt_en", "sub_dims_en"), encoding="utf-8", end="\n"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=end).writerows([header, *rows])
    return path


def test_dimensions_are_the_papers():
    assert len(DIMENSIONS) == 27 and len(PRIMARIES) == 10
    assert {primary_of(sub) for sub in DIMENSIONS} == set(PRIMARIES)
    assert len({zh for zh, _, _ in DIMENSIONS.values()}) == 27


def test_loads_english_with_bom_and_windows_line_ends(tmp_path):
    path = write(
        tmp_path / "p.csv",
        [[4, "a hat,\nred", json.dumps(fields())]],
        encoding="utf-8-sig",
        end="\r\n",
    )
    assert load_prompts(path) == [
        Prompt(
            4,
            "a hat,\nred",
            [("Style", "ink"), ("Attribute - Color", "a red hat")],
            "Art",
            "Graphic Art",
            "en",
        )
    ]


def test_loads_chinese_labels_as_english_ones(tmp_path):
    row = [0, "两只熊猫", json.dumps(chinese_fields(), ensure_ascii=False)]
    path = write(tmp_path / "p.csv", [row], ("index", "prompt_zh", "sub_dims_zh"))
    (prompt,) = load_prompts(path)
    assert prompt.testpoints == [("Attribute - Quantity", "两只熊猫")]
    assert (prompt.theme, prompt.subtheme, prompt.language) == ("艺术", "平面艺术", "zh")


@pytest.mark.parametrize(
    "old, new", [('"Style", "Attr', '"Style" "Attr'), ('"], "Testpoint D', '"] "Testpoint D')]
)
def test_one_missing_comma_is_put_in_and_the_row_named(tmp_path, old, new):
    text = json.dumps(fields())
    assert old in text
    path = write(tmp_path / "p.csv", [[0, "a", text], [7, "b", text.replace(old, new)]])
    with pytest.warns(UserWarning, match=r"row 2 \(index 7\).*missing comma"):
        first, second = load_prompts(path)
    assert second.testpoints == first.testpoints


TWO_HOLES = json.dumps(fields()).replace('"Style", "', '"Style" "').replace('"ink", "', '"ink" "')


@pytest.mark.parametrize(
    "row, message",
    [
        ([1, "b", TWO_HOLES], "one more comma does not mend it"),
        ([1, "b", json.dumps(fields()).replace('"ink"', '"in"k"')], "not valid JSON"),
        ([1, "b", json.dumps(fields()).replace('"Style", ', '"Style""')], "not valid JSON"),
        ([1, "b", "[]"], "not a JSON object"),
        ([1, "b", json.dumps(fields(Testpoints=["Style"]))], "1 testpoints, but 2 descriptions"),
        ([1, "b", json.dumps(fields(Testpoints=[]))], "needs two lists"),
        ([1, "b", json.dumps({"Testpoints": ["Style"]})], "needs two lists"),
        (
            [1, "b", json.dumps(fields([("Attribute - Colour", "red")]))],
            "'Attribute - Colour' is none of the 27",
        ),
        ([0, "b", json.dumps(fields())], "the index stands in row 1 too"),
        (["x", "b", json.dumps(fields())], "index 'x' is not a whole number"),
        ([1, " ", json.dumps(fields())], "empty prompt"),
        ([1, "b"], "not valid JSON"),
    ],
)
def test_a_bad_row_is_named_with_its_fault(tmp_path, row, message):
    path = write(tmp_path / "p.csv", [[0, "a", json.dumps(fields())], row])
    with pytest.raises(ValueError, match=rf"p\.csv, row 2 \(index {row[0]}\): .*{message}"):
        load_prompts(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"index,prompt_en\n0,a\n", "lacks the column sub_dims_en; it has: index, prompt_en"),
        (b"", "it has: nothing"),
        (b"index,prompt_en,sub_dims_en\n", "no prompts"),
        ("index,prompt_zh,sub_dims_zh\n0,两只,x".encode("gbk"), "not UTF-8"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "name, points", [("en", 1813), ("zh", 1813), ("en_long", 3920), ("zh_long", 3920)]
)
def test_official_files(name, points):
    """Where bench.py looks for them. They are not part of this repository."""
    path = Path(f"data/test_prompts_{name}.csv")
    if not path.is_file():
        pytest.skip(f"no {path}; the official files are in data/ of CodeGoat24/UniGenBench")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompts = load_prompts(path)
    assert len(prompts) == len({p.index for p in prompts}) == 600
    assert sum(len(p.testpoints) for p in prompts) == points
    assert {sub for p in prompts for sub, _ in p.testpoints} == set(DIMENSIONS)
    assert all(p.theme and p.subtheme for p in prompts) and len({p.theme for p in prompts}) == 5
    assert {p.language for p in prompts} == {name[:2]}
    assert len(said) == (name == "en_long") and all("missing comma" in str(w) for w in said)


def test_written_prompts_are_read_back(tmp_path):
    prompts = [Prompt(3, 'a "sign", open', [("Text Generation", '"open"')], "Art", "Other", "en")]
    write_prompts(prompts, tmp_path / "p.csv")
    assert load_prompts(tmp_path / "p.csv") == prompts


def test_labels_are_read_whatever_their_blanks():
    assert canonical(" Attribute-Color ") == canonical("属性 - 颜色") == "Attribute - Color"


# ----------------------------------------------------------------------------- question and answer

PROMPT = Prompt(
    0,
    "a {red}\nhat",
    [("Style", "ink\npainting"), ("Grammar - Negation", "no {dog}")],
    "",
    "",
    "en",
)


def test_question_has_the_lines_that_the_embedded_judge_reads():
    lines = question(PROMPT).split("\n")
    assert "Caption: a {red} hat" in lines
    start = lines.index("Testpoint 2: Grammar - Negation")
    assert lines[start + 1] == "Definition: What the prompt excludes is absent."
    assert lines[start + 2] == "Description: no {dog}"
    assert "Description: ink painting" in lines
    assert '<analysis>["...", "..."]</analysis> <score>[X, X]</score>' in lines


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("count", range(1, 11))
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
        ("[1, 0]", None),
        ("draft <score>[0, 0]</score></think><score>[1, 0]</score>", [1, 0]),
        ("</think><score>[1, 0]</score> and", [1, 0]),
        ('</think>{"score": [1, 0]}\nand', [1, 0]),
        ("</think><score>[1, 0]</score> no: <score>[1,", None),
        ('</think>{"score": [1, 0]} no: {"score": [', None),
        ("</think><score>[1, 0]", None),
        ("</think><score>[1, 0]</score><think>", [1, 0]),
        ("", None),
    ],
)
def test_scores_of_an_unfinished_answer_stand_closed_after_the_thinking(text, scores):
    assert parse_scores(text, 2, "cut off") == scores


def test_chinese_prompts_are_asked_in_chinese():
    text = question(PROMPT._replace(text="一顶红帽", language="zh"))
    assert "提示词：一顶红帽" in text and "考点 2：语法-否定" in text and "Caption" not in text


def test_a_template_of_ones_own():
    text = question(PROMPT, "{prompt}|{testpoint}|{explanation}|{test_explanation}")
    assert text.startswith("a {red}\nhat|['Style', 'Grammar - Negation']|Style: The picture")
    assert text.endswith("|Style: ink painting\nGrammar - Negation: no {dog}")
    with pytest.raises(ValueError, match="placeholder other than"):
        question(PROMPT, "{caption}")


@pytest.mark.parametrize(
    "text, count, scores",
    [
        ('<analysis>["a", "b"]</analysis> <score>[1, 0]</score>', 2, [1, 0]),
        ("<analysis>['it''s', 'b']</analysis>\n<score>['1', '0']</score>", 2, [1, 0]),
        ('<score>["1", "0"]</score>', 2, [1, 0]),
        ("<score>\n```json\n[0, 1]\n```\n</score>", 2, [0, 1]),
        ("<score>［“1”，“0”］</score>", 2, [1, 0]),
        ("<score>(1, 1)</score>", 2, [1, 1]),
        ("<score>[1, 1]</score> no, rather <score>[0, 1]</score>", 2, [0, 1]),  # the last counts
        ("<score> the form is <score>[1]</score>", 1, [1]),
        ("<think>say <score>[1]</score></think><score>[0]</score>", 1, [0]),
        ("<think>say <score>[1]</score> or", 1, None),  # cut off while thinking
        ('{"analysis": ["a"], "score": [1]}', 1, [1]),
        ('First:\n```json\n{"scores": [1, 0]}\n```', 2, [1, 0]),
        ("[1, 0]", 2, [1, 0]),
        ("```json\n['1', '0']\n```", 2, [1, 0]),
        ("[1]", 2, None),
        ("Testpoints: [1, 0]", 2, None),
        ("1, 0", 2, None),
        ("1", 1, None),  # a list, or a sentence?
        ('{"score": [1]} then {"score": [0]}', 1, [0]),
        ('{"score": [1], "inner": {"score": [0]}}', 1, [1]),
        ("<score>[1, 0]</score>", 3, None),
        ("<score>[1, 0]</score>", 1, None),
        ("<score>[1, 2]</score>", 2, None),
        ("<score>[1, 0.5]</score>", 2, None),
        ("<score>[True, False]</score>", 2, [1, 0]),
        ("<score>[true, false]</score>", 2, [1, 0]),
        ("<score>[1.0, 0.0]</score>", 2, [1, 0]),
        ('<score>["1", 0.0]</score>', 2, [1, 0]),
        ('{"scores": [true, 1.0, " 0 "]}', 3, [1, 1, 0]),
        ('<score>["true", "0"]</score>', 2, None),
        ("<score>[1 + 0j, 1]</score>", 2, None),
        ("<score>[NaN, 1]</score>", 2, None),
        ("<score>[-1, 1]</score>", 2, None),
        ("<score>['', 1]</score>", 2, None),
        ("<score>[null, 1]</score>", 2, None),
        ("<score>1, 0</score>", 2, [1, 0]),
        ("<score>10</score>", 2, None),
        ("<score>[1, 0</score>", 2, None),
        ("<score>[1, 0]", 2, None),
        ("<score>[[1], 0]</score>", 2, None),
        ("<score>{'a': 1}</score>", 1, None),
        ("both are met", 2, None),
        ("", 1, None),
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
