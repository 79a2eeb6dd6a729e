"""Scores by hand, the published row, official result files, and intervals that can be checked."""

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench import overall, score
from common.bootstrap import interval, resample
from common.files import journal_path
from unigenbench import results as R
from unigenbench import scores, tables
from unigenbench.report import radar_percent
from unigenbench.results import Result, read_results, write_results
from unigenbench.scores import Coverage, compare
from unigenbench.testpoints import PRIMARIES, SUBS, Prompt, primary_of

COLOR, SIZE = "Attribute - Color", "Attribute - Size"


def result(index, subs, values, image=0, **others):
    return Result(index, f"prompt {index}", list(subs), f"{index}_{image}.png", values, **others)


RESULTS = [
    result(0, ("Style", COLOR), [1, 0]),
    result(0, ("Style", COLOR), [1, 1], 1),
    result(1, (COLOR, COLOR, SIZE), [0, 0, 1]),
    result(1, (COLOR, COLOR, SIZE), None, 1, output="I cannot tell"),
    result(2, ("Grammar - Negation",), [1]),
    result(2, ("Grammar - Negation",), None, 1),
]


def test_the_published_row_gives_its_overall():
    """FLUX.1-dev, English short prompts; in the order of the ten dimensions."""
    percent = (85.00, 87.50, 67.20, 62.26, 66.88, 29.77, 62.30, 45.75, 70.90, 32.18)
    first = {primary_of(sub): sub for sub in SUBS}
    results = [
        result(k, [first[name]] * 10_000, [1] * round(100 * p) + [0] * (10_000 - round(100 * p)))
        for k, (name, p) in enumerate(zip(PRIMARIES, percent))
    ]
    assert round(100 * overall(results), 2) == 60.97


def test_scores_by_hand():
    s = score(RESULTS)
    sub = {"Style": (2, 2, 2), COLOR: (1, 4, 6), SIZE: (1, 1, 2), "Grammar - Negation": (1, 1, 2)}
    primary = {"Style": (2, 2, 2), "Attribute": (2, 5, 8), "Grammar": (1, 1, 2)}
    assert {name: t[:3] for name, t in s.sub.items()} == sub
    assert {name: t[:3] for name, t in s.primary.items()} == primary
    assert s.overall == pytest.approx((1 + 2 / 5 + 1) / 3)
    assert s.strict == pytest.approx((1 + 2 / 8 + 1 / 2) / 3)
    assert s.coverage == Coverage(12, 8, 3, 1) and s.accuracy == 5 / 8
    rows = {row[0]: row[1:] for row in tables.score_rows(s)}
    assert rows["Attribute"][2:] == ["2/5", "25.00"] and rows["Style"][0] == "100.00"
    assert rows["Action"][0] == rows["- Material"][0] == "absent"
    assert "Overall (mean over 3 of 10)" in rows
    assert len(rows) == 27 + 10 - 4 + 1  # four primaries are their own only sub
    assert tables.coverage_line(s.coverage).startswith("INCOMPLETE")
    assert tables.coverage_line(score(RESULTS[:2]).coverage).startswith("Testpoints: 4 expected")
    assert [radar_percent(s)[name] for name in ("Attribute", "Action")] == [40.0, None]


def test_dropped_rows_count_as_failed_and_nothing_judged_is_no_score():
    """Other evaluators leave failed images out of the file; the denominator keeps them."""
    whole, dropped = score(RESULTS), score(RESULTS[:-1])
    assert dropped.coverage == whole.coverage and dropped.strict == whole.strict
    nothing = [result(0, ("Style",), None)]
    s = score(nothing)
    assert s.overall is s.interval is overall(nothing) is None
    assert s.strict == overall(nothing, strict=True) == 0
    assert s.coverage == Coverage(1, 0, 0, 1)
    with pytest.raises(ValueError, match="no results"):
        score([])


def test_resampled_scores_are_those_of_the_plain_definition():
    """What is counted in arrays is, of each replicate, what bench.overall defines."""
    rng, results = np.random.default_rng(0), []
    for index, image in np.ndindex(40, 2):  # one image in five is not judged
        subs = np.random.default_rng(index).choice(SUBS, index % 5 + 1, replace=False).tolist()
        values = rng.integers(0, 2, len(subs)).tolist() if rng.random() < 0.8 else None
        results.append(result(index, subs, values, image))
    s = score(results)
    correct, judged, expected = scores.count_by_prompt(results)
    draws = resample(len(correct))
    replicates = scores.accuracies(draws @ correct, draws @ judged)["Overall"]
    for times, value in list(zip(draws, replicates))[:20]:
        drawn = [r for r in results for _ in range(times[r.index])]
        assert value == pytest.approx(overall(drawn), abs=1e-12)
    assert s.interval == interval(replicates)
    points = [(sub, v) for r in results if r.scores for sub, v in zip(r.subs, r.scores)]
    for name, tally in s.primary.items():
        values = [v for sub, v in points if primary_of(sub) == name]
        assert tally.accuracy == sum(values) / len(values)


def many(rate, prompts=100, images=4, seed=1):
    """Style testpoints, right with probability `rate` for a whole prompt at a time."""
    right = (np.random.default_rng(seed).random(prompts) < rate).astype(int).tolist()
    return [result(i, ("Style",), [right[i]], j) for i, j in np.ndindex(prompts, images)]


def test_intervals_resample_prompts_and_need_some_that_differ():
    """Images of one prompt agree here, so the error is that of 100 draws, not of 400. A dimension
    of one prompt, or of prompts alike, has none: "100 to 100" would look like certainty."""
    one = [result(900, (COLOR,), [1], i) for i in range(4)]
    alike = [result(901 + n, (SIZE,), [1], i) for n in range(30) for i in range(4)]
    r = [*many(0.5), *one, *alike]
    s, style = score(r), score(many(0.5))
    low, high = style.interval
    error = np.sqrt(style.overall * (1 - style.overall) / 100)
    assert high - low == pytest.approx(2 * 1.96 * error, 0.1)
    assert low < style.overall < high and s.primary["Style"].interval and s.interval
    assert s.sub[COLOR].interval is s.sub[SIZE].interval is s.primary["Attribute"].interval is None
    rows = {row[0]: row for row in tables.compare_rows([s, s], compare(r, r))}
    assert {tuple(row[3:]) for row in rows.values()} == {("+0.00", "-", "+0.00")}


def test_compare_is_paired():
    """The second model is right where the first is, and on 10 prompts more."""
    first = many(0.5)
    wrong = sorted({r.index for r in first if r.scores == [0]})[:10]
    second = [r._replace(scores=[1]) if r.index in wrong else r for r in first]
    difference = compare(first, second)
    point, low, high = difference["Overall"]
    assert point == pytest.approx(0.1) and difference["Style"] == difference["Overall"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.1 * 0.9 / 100), rel=0.15)
    assert compare(second, first)["Style"][0] == pytest.approx(-0.1)
    assert list(difference) == ["Style", "Overall"]


def test_compare_shows_every_dimension_and_what_was_not_judged():
    """The second model failed to be judged where it would lose: the strict difference tells."""
    right = [result(i, (COLOR, SIZE), [1, int(i < 5)]) for i in range(10)]
    other = [r if r.scores[1] else r._replace(scores=None) for r in right]
    rows = tables.compare_rows([score(right), score(other)], compare(right, other))
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells) == ["Attribute", "- Color", "- Size", "Overall (mean over 1 of 10)"]
    assert cells["- Color"][:3] == ["100.00", "100.00", "+0.00"]
    assert cells["- Size"][:3] == ["50.00", "100.00", "+50.00"]
    assert [cells[name][4] for name in cells] == ["-25.00", "-50.00", "+0.00", "-25.00"]
    assert len(rows[0]) == len(["Dimension", "a", "b", *tables.COMPARE_HEADER])


def test_only_results_of_the_same_prompts_are_compared():
    other = [r._replace(prompt="other") if r.index == 0 else r for r in RESULTS]
    R.check_same_prompts(["a", "b"], [RESULTS, RESULTS[::-1]])
    with pytest.raises(ValueError, match=r"a and b .*\(1 differ.* index 2"):
        R.check_same_prompts(["a", "b"], [RESULTS, RESULTS[:4]])
    with pytest.raises(ValueError, match="a and c .* index 0"):
        R.check_same_prompts(["a", "b", "c"], [RESULTS, RESULTS, other])


# ----------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "odd", ["", '"', ",\n", "\r\n", "\\", "\\ud83d", "𝄞", *map(chr, (0, 12, 0x2028, 0xFEFF))]
)
def test_result_file_is_read_back(tmp_path, odd):
    """By ours and by what reads CSV files elsewhere, to the last character of an answer."""
    text = f"{odd}it's{odd}, {odd * 2}b{odd}"
    told = dict(output=text, descriptions=["a", text], reasons=[text] * 2)
    rows = [
        result(0, ("Style", COLOR), [1, 0], **told),
        result(1, (COLOR,), None, 1, output=text),
        *RESULTS[4:],
        result(7, ("Style",), [1], language="zh"),
    ]
    write_results(rows, tmp_path / "r.csv")
    assert read_results(tmp_path / "r.csv") == rows
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["index", "prompt", "testpoint", "output", "result_json", "img_path"]
    assert lines[0]["testpoint"] == "['Style', 'Attribute - Color']"  # as Python prints it
    assert [line["output"] for line in lines[:2]] == [text, text]
    assert ast.literal_eval(lines[0]["result_json"])["analysis"] == [text] * 2
    assert lines[1]["result_json"] == "null" and lines[-1]["testpoint"] == "['风格']"


def test_half_of_a_pair_of_surrogates_does_not_cost_the_file(tmp_path):
    """A judge's JSON may hold one; UTF-8 cannot. In result_json its escape is read as the same."""
    rows = [result(0, ("Style",), [1], output="cut \ud83d", reasons=["\\ud83d \\\ud83d"])]
    write_results(rows, tmp_path / "r.csv")
    assert read_results(tmp_path / "r.csv") == [rows[0]._replace(output="cut \\ud83d")]


def official_file(path, rows, **change):
    """As the official evaluator writes it: testpoint printed by Python, result_json indented.

    change: what a fault makes of the last row
    """
    columns = ["index", "testpoint", "prompt", "img_path", "output", "result_json"]
    lines = []
    for n, (labels, values) in enumerate(rows):
        analysis = ["x"] * len(values or ())
        told = dict(prompt="p", testpoint=labels, analysis=analysis, score=values)
        told = json.dumps(values and told, ensure_ascii=False, indent=4)
        lines.append(dict(zip(columns, [n, labels, "p", f"flux/{n}_0.png", "text", told])))
    lines[-1] |= change
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, columns)
        out.writeheader()
        out.writerows(lines)
    return path


ZH = {"Style": "风格", "Attribute": "属性", COLOR: "属性-颜色", SIZE: "属性-大小"}


@pytest.mark.parametrize("language, label", [("en", {x: x for x in ZH}), ("zh", ZH)])
def test_counts_equal_the_official_ones_in_both_languages(tmp_path, language, label):
    """Official rule: of rows with scores, testpoints by label and by what precedes the dash."""
    rows = [(["Style", COLOR], [1, 0]), ([COLOR, SIZE], [1, 1]), ([COLOR], None)]
    rows = [([label[sub] for sub in subs], values) for subs, values in rows]
    results = read_results(official_file(tmp_path / "r.csv", rows))
    assert results[0].language == language
    scores.write_scores(score(results), tmp_path / "s.json", language, {"judge": "me"})
    written = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    entries = written["primary_dimensions"] | written["sub_dimensions"]
    counts = {k: (v["correct"], v["total"], v["accuracy"]) for k, v in entries.items()}
    by_hand = {"Style": (1, 1, 1.0), "Attribute": (2, 3, 0.6667), COLOR: (1, 2, 0.5)}
    assert counts == {label[k]: v for k, v in (by_hand | {SIZE: (1, 1, 1.0)}).items()}
    assert entries[label[COLOR]]["strict"] == 0.3333  # of three, one of which was not judged
    assert written["overall"] == pytest.approx((1 + 2 / 3) / 2) and written["overall_over"] == 2
    assert written["coverage"] == {"expected": 5, "judged": 4, "unparsable": 1, "failed": 0}
    assert written["settings"] == {"judge": "me"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"result_json": '{"score": [1]}'}, "row 2: .*for each of 2 testpoints"),
        ({"result_json": '{"analysis": ["a", "b"]}'}, "row 2: .*for each of 2 testpoints"),
        ({"result_json": "{"}, "row 2: cannot read"),
        ({"testpoint": "['Colour']"}, "none of the 27"),
        ({"testpoint": "[]"}, "row 2: testpoint is not a list"),
        ({"index": "1.0"}, "row 2: index '1.0' is not a whole number"),
        ({"testpoint": f"['{'x' * 9999}']"}, "row 2: 'x.{298}$"),
        ({"testpoint": "[" * 100_000}, "row 2: "),
        ({"index": "0"}, "row 2: another prompt or other testpoints .* have the index 0"),
        ({"img_path": "flux/0_0.png", "index": "0"}, "row 2: image .*/0_0.png stands in row 1 too"),
    ],
)
def test_bad_result_rows_are_named(tmp_path, change, message):
    rows = [(["Style"], [1]), (["Style", COLOR], [1, 1])]
    with pytest.raises(ValueError, match=f"r.csv, {message}" if "row" in message else message):
        read_results(official_file(tmp_path / "r.csv", rows, **change))


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1.0, 0.0], [1, 0]),
        (["1", 1], [0, 1]),
        ([2, 0.5], [0, 0]),
        ([[1], 1], [0, 1]),
        ([True, 1], None),  # true, null and NaN are no words of Python, as which it reads the row
        ([None, 1], None),
        ([float("nan"), 1], None),
    ],
)
def test_odd_scores_are_read_as_the_official_scorer_reads_them(tmp_path, values, read):
    path = official_file(tmp_path / "r.csv", [(["Style"], [1]), ([COLOR, SIZE], values)])
    other, row = read_results(path)
    assert row.scores == read and other.scores == [1]
    assert row.state == ("judged" if read else "unparsable")
    assert score([row, other]).coverage == Coverage(3, 3 if read else 1, 0 if read else 2, 0)


def test_what_python_printed_and_an_analysis_too_short_are_read(tmp_path):
    printed = "{'score': [True, None], 'analysis': ['x']}"
    path = official_file(tmp_path / "r.csv", [([COLOR, SIZE], [1, 0])], result_json=printed)
    (row,) = read_results(path)
    assert row.scores == [1, 0] and row.reasons == []


def test_results_are_completed_from_their_prompts():
    points = [[(sub, "") for sub in r.subs] for r in RESULTS[::2]]
    prompts = [Prompt(i, f"prompt {i}", p, "", "", "en") for i, p in enumerate(points)]
    whole = R.complete(RESULTS[:3], prompts, images=2)
    assert whole[:3] == RESULTS[:3] and [r.index for r in whole[3:]] == [1, 2, 2]
    assert {r.state for r in whole[3:]} == {"failed"}
    assert score(whole).coverage == Coverage(12, 7, 0, 5)
    assert R.complete(RESULTS, prompts, images=2) == RESULTS
    with pytest.raises(ValueError, match="2 results are not of this prompt set, .* of index 2"):
        R.complete(RESULTS, prompts[:2], images=2)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"index,prompt\n", "is no result file: .* img_path"),
        (b"index;prompt\n0;a, b\n", "has no commas between its columns: 'index;prompt'; save it"),
    ],
)
def test_what_is_no_result_file_is_named(tmp_path, content, said):
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"r.csv {said}"):
        read_results(tmp_path / "r.csv")


@pytest.mark.parametrize("content", [b"{", b"null", b"\xff"])
def test_damaged_settings_are_named(tmp_path, content):
    (tmp_path / "r.settings.json").write_bytes(content)
    with pytest.raises(ValueError, match="r.settings.json is damaged .*; restore it, or remove it"):
        R.settings_of(tmp_path / "r.csv")


def test_results_without_a_suffix_have_files_of_their_own(tmp_path):
    """What follows the last point of a name is a suffix only where it is letters."""
    for of_path in (journal_path, R.settings_path):
        paths = {of_path(tmp_path / name) for name in ("flux.1-dev", "flux.1-schnell", "flux.2")}
        assert len(paths) == 3
        assert of_path(tmp_path / "a.csv") == tmp_path / of_path(Path("a.tsv"))
    for name in ("flux.1-dev", "flux.1-schnell"):
        write_results([Result(0, "p", ["Style"], "0_0.png", [1])], tmp_path / name)
    assert sorted(R.read_named([*tmp_path.iterdir()])) == ["flux.1-dev", "flux.1-schnell"]


def test_of_many_models_a_few_are_named():
    """Some servers give each answer's model another name."""
    rows = [result(n, ("Style",), [1], model=f"m-{n}" * 99) for n in range(800)]
    assert R.judged_by(rows).endswith(" and 795 more.") and len(R.judged_by(rows)) < 700
    assert R.models_of([result(0, ("Style",), None, model="m", output="?")]) == {}  # no judgment
