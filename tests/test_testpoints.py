"""Prompt files, good and bad. They are small ones in the official form."""

import csv
import json
import warnings
from pathlib import Path

import pytest

from unigenbench.testpoints import (
    DIMENSIONS,
    PRIMARIES,
    Prompt,
    canonical,
    load_prompts,
    primary_of,
    write_prompts,
)

POINTS = [("Style", "ink"), ("Attribute - Color", "a red hat")]


def fields(points=POINTS, **others):
    labels, descriptions = zip(*points)
    return {
        "Primary Categories": "Art",
        "Secondary Categories": "Graphic Art",
        "Testpoints": list(labels),
        "Testpoint Description": list(descriptions),
        **others,
    }


def write(path, rows, header=("index", "prompt_en", "sub_dims_en"), encoding="utf-8", end="\n"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=end).writerows([header, *rows])
    return path


def test_dimensions_are_the_papers():
    assert len(DIMENSIONS) == 27 and len(PRIMARIES) == 10
    assert {primary_of(sub) for sub in DIMENSIONS} == set(PRIMARIES)
    assert len({zh for _, zh, *_ in DIMENSIONS.values()}) == 27
    assert canonical(" ATTRIBUTE-color ") == canonical("属性 - 颜色") == "Attribute - Color"


def test_loads_english_with_bom_windows_line_ends_and_blanks_in_the_header(tmp_path):
    header = ("index ", " prompt_en", "sub_dims_en")
    row = [4, "a hat,\r\nred", json.dumps(fields())]
    path = write(tmp_path / "p.csv", [row], header, encoding="utf-8-sig", end="\r\n")
    assert load_prompts(path) == [Prompt(4, "a hat,\nred", POINTS, "Art", "Graphic Art", "en")]


@pytest.mark.parametrize("ending", ["_zh", ""])
def test_loads_chinese_labels_as_english_ones(tmp_path, ending):
    """UniGenBench's README has columns without a language, which then the labels tell."""
    asked = {
        "一级垂类": "艺术",
        "二级垂类": "平面艺术",
        "考点": ["属性-数量"],
        "考点对应描述": ["两只"],
    }
    row = [0, "两只熊猫", json.dumps(asked, ensure_ascii=False)]
    path = write(tmp_path / "p.csv", [row], ("index", f"prompt{ending}", f"sub_dims{ending}"))
    points = [("Attribute - Quantity", "两只")]
    assert load_prompts(path) == [Prompt(0, "两只熊猫", points, "艺术", "平面艺术", "zh")]


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


TEXT = json.dumps(fields())
TWO_HOLES = TEXT.replace('"Style", "', '"Style" "').replace('"ink", "', '"ink" "')


@pytest.mark.parametrize(
    "row, message",
    [
        ([1, "b", TWO_HOLES], "one more comma does not mend it"),
        ([1, "b", TEXT.replace('"Style", ', '"Style"')], "not valid JSON"),
        ([1, "b", "[]"], "not a JSON object"),
        ([1, "b", json.dumps(fields(Testpoints=["Style"]))], "1 testpoints, but 2 descriptions"),
        ([1, "b", json.dumps({"Testpoints": ["Style"]})], "needs two lists"),
        ([1, "b", json.dumps(fields([("Colour", "red")]))], "'Colour' is none of the 27"),
        ([0, "b", TEXT], "the index stands in row 1 too"),
        (["x", "b", TEXT], "index 'x' is not a whole number"),
        ([1, " ", TEXT], "empty prompt"),
    ],
)
def test_a_bad_row_is_named_with_its_fault(tmp_path, row, message):
    path = write(tmp_path / "p.csv", [[0, "a", TEXT], row])
    with pytest.raises(ValueError, match=rf"p\.csv, row 2 \(index {row[0]}\): .*{message}"):
        load_prompts(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"index,prompt_en\n0,a\n", "lacks the column sub_dims_en; it has: index, prompt_en"),
        (b"", "it has: nothing"),
        (b"index,prompt_en,sub_dims_en\n", "no prompts"),
        ("index,prompt_zh,sub_dims_zh\n0,两只,x".encode("gbk"), "not UTF-8"),
        (b"index,prompt_en,sub_dims_en\n\n,,\n7,b\n", "row 3: 2 fields, but the header has 3; a"),
        (b"index,prompt_en,sub_dims_en\n7,a\rb,{}\n", "row 1: 2 fields, but the header has 3; a"),
        (b'index,prompt_en,sub_dims_en\n7,b,"{}\n8,c,{}\n', r"not a CSV file .*\(line 3: unexp"),
        (b"index,prompt_en,prompt_en ,sub_dims_en\n", "more than one column prompt_en; leave one"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "p.csv")


@pytest.mark.parametrize("name", ["en", "zh", "en_long", "zh_long"])
def test_official_files(name):
    """Where bench.py looks for them. They are not part of this repository."""
    path = Path(f"data/test_prompts_{name}.csv")
    if not path.is_file():
        pytest.skip(f"no {path}; the official files are in data/ of CodeGoat24/UniGenBench")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompts = load_prompts(path)
    assert len(prompts) == len({p.index for p in prompts}) == 600
    assert sum(len(p.testpoints) for p in prompts) == (3920 if "long" in name else 1813)
    assert {sub for p in prompts for sub, _ in p.testpoints} == set(DIMENSIONS)
    assert all(p.theme and p.subtheme for p in prompts) and len({p.theme for p in prompts}) == 5
    assert {p.language for p in prompts} == {name[:2]}
    assert len(said) == (name == "en_long") and all("missing comma" in str(w) for w in said)


@pytest.mark.parametrize("odd", ["", *map(chr, (0, 12, 0x85, 0x2028))])
def test_written_prompts_are_read_back(tmp_path, odd):
    points = [("Text Generation", f'"op{odd}en"')]
    prompts = [Prompt(3, f'a "sign",{odd} open', points, "Art", "Other", "en")]
    write_prompts(prompts, tmp_path / "p.csv")
    assert load_prompts(tmp_path / "p.csv") == prompts
