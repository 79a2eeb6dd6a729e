"""Agreement of two judges against tables worked by hand; the published board; both commands."""

import html
import json
import random
import re
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

import bench
from unigenbench import board
from unigenbench.agree import EVERY, KNOWN, agreement, agreement_rows, most_different
from unigenbench.results import Result, write_results
from unigenbench.scores import OVERALL
from unigenbench.testpoints import PRIMARIES

STYLE, COLOR = "Style", "Attribute - Color"


def results(*answers, subs=(STYLE,)) -> list[Result]:
    """One image a prompt; answers: a list of scores each, or None for one that was not judged."""
    return [
        Result(n, f"prompt {n}", list(subs), f"folder/{n}_0.png", scores)
        for n, scores in enumerate(answers)
    ]


def table(both, first_alone, second_alone, neither):
    """Results of two judges with these numbers of answers (1, 1), (1, 0), (0, 1), (0, 0)."""
    pairs = [(1, 1)] * both + [(1, 0)] * first_alone + [(0, 1)] * second_alone + [(0, 0)] * neither
    one, two = zip(*pairs)
    return results(*([a] for a in one)), results(*([b] for b in two))


def test_share_kappa_and_shift_are_those_of_a_table_worked_by_hand():
    """20, 5, 10, 15 of 50: 0.7 the same; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa 0.4."""
    found = agreement(*table(20, 5, 10, 15))
    style = found[STYLE]
    assert found[EVERY].shift == pytest.approx(style.shift)  # there is no other dimension
    assert style.count == 50 and style.share == pytest.approx(0.7)
    assert style.kappa == pytest.approx(0.4) and style.shift == pytest.approx(0.1)
    for value, (low, high) in (
        (0.7, style.share_interval),
        (0.4, style.kappa_interval),
        (0.1, style.shift_interval),
    ):
        assert low < value < high and 0.1 < high - low < 0.7
    # a share of 0.7 of 50 prompts: 1.96 * sqrt(0.7 * 0.3 / 50) = 0.127 to each side
    assert style.share_interval == pytest.approx((0.573, 0.827), abs=0.03)


def test_kappa_is_one_zero_or_unknown_where_it_has_to_be():
    assert agreement(*table(5, 0, 0, 5))[STYLE].kappa == pytest.approx(1)
    assert agreement(*table(5, 5, 5, 5))[STYLE].kappa == pytest.approx(0)
    same = agreement(*table(5, 0, 0, 0))[STYLE]
    assert same.share == 1 and same.kappa is None and same.share_interval is None


def test_dimensions_are_told_apart_and_the_benchmarks_own_score_shifts():
    """Style agrees in all, color in half: the overall score is the mean of both dimensions."""
    one = results([1, 1], [0, 1], [1, 0], [0, 0], subs=(STYLE, COLOR))
    two = results([1, 1], [0, 0], [1, 1], [0, 0], subs=(STYLE, COLOR))
    found = agreement(one, two)
    assert found[STYLE].share == 1 and found[COLOR].share == found["Attribute"].share == 0.5
    assert found[EVERY].count == 8 and found[EVERY].share == 0.75
    one[1] = one[1]._replace(scores=[0, 0])  # color: 1 of 4, then 2 of 4
    assert agreement(one, two)[OVERALL].shift == pytest.approx(0.125)
    alone = [Result(4, "prompt 4", [STYLE], "folder/4_0.png", [1])]  # of style, and of no color
    assert agreement(one + alone, two + alone)[COLOR].shift == pytest.approx(0.25)
    rows = agreement_rows(agreement(one, two))
    assert [row[0] for row in rows] == [STYLE, "Attribute", "- Color", EVERY, OVERALL]
    assert rows[-1][2] == "-" and rows[-1][6] == "+12.50"


def test_a_judge_with_ten_percent_errors_agrees_with_itself_as_often_as_it_has_to():
    """Two answers with independent errors of 10 % are the same in 0.9² + 0.1² = 82 %."""
    draw = random.Random(0)
    truth = [[draw.random() < 0.5 for _ in range(4)] for _ in range(1000)]
    subs = (STYLE, COLOR, "Grammar - Negation", "World Knowledge")
    one, two = (
        results(*([int(v ^ (draw.random() < 0.1)) for v in row] for row in truth), subs=subs)
        for _ in range(2)
    )
    every = agreement(one, two)[EVERY]
    low, high = every.share_interval
    assert low < 0.82 < high and high - low < 0.03
    assert every.kappa == pytest.approx(0.64, abs=0.03)


def test_what_one_of_them_did_not_judge_is_left_out_and_other_prompts_are_refused():
    one, two = table(3, 1, 0, 2)
    two[0] = two[0]._replace(scores=None)
    assert agreement(one, two)[STYLE].count == 5
    assert agreement(one, two[1:])[STYLE].count == 5  # an official file drops what failed
    with pytest.raises(ValueError, match="index 0 has another prompt"):
        agreement([one[0]._replace(prompt="other")], [two[0]])
    with pytest.raises(ValueError, match="no image that both judged"):
        agreement(one[:1], two[:1])
    elsewhere = [r._replace(image=r.image.replace("folder", "other/place")) for r in one]
    assert agreement(one, elsewhere)[STYLE].share == 1


def test_the_most_different_testpoints_come_first_with_their_images():
    image = lambda index, n, scores: Result(
        index, f"p{index}", [STYLE, COLOR], f"{index}_{n}.png", scores
    )
    one = [image(i, n, [1, 1]) for i in (3, 7) for n in range(4)]
    two = [image(3, n, [1, int(n > 0)]) for n in range(4)]
    two += [image(7, n, [int(n > 2), 1]) for n in range(4)]
    first, second = most_different(one, two)
    assert (first["index"], first["testpoint"], len(first["pairs"])) == (7, 0, 3)
    assert (second["index"], second["testpoint"], len(second["pairs"])) == (3, 1, 1)
    assert len(most_different(one, two, count=1)) == 1


# ----------------------------------------------------------------------------- board


@pytest.mark.parametrize("name", board.SETS)
def test_published_overall_scores_are_the_mean_of_their_ten_dimensions(name):
    rows = board.published(name)
    assert len(rows) >= 4 and list(rows) == sorted(rows, key=lambda m: -rows[m].overall)
    for row in rows.values():
        if row.primary:
            assert set(row.primary) == set(PRIMARIES)
            assert sum(row.primary.values()) / 10 == pytest.approx(row.overall, abs=0.006)
        assert row.date and row.source


def test_own_rows_stand_in_their_place_and_say_how_far_they_can_be_compared():
    own = bench.score(results(*([1] for _ in range(7)), *([0] for _ in range(3))))
    rows = board.board_rows("en", {"mine": own}, {"mine": ("QwenVL", "no: another question")})
    models = [row[0] for row in rows]
    assert models.index("FLUX.1-Krea") == models.index("> mine") + 1
    (mine,) = [row for row in rows if row[0] == "> mine"]
    assert len({len(row) for row in rows} | {len(board.HEADER)}) == 1
    assert mine[1:7] == ["70.00", "QwenVL", "", "yours", "no: another question", "70.00"]
    whole = results(*([1] for _ in range(600)))
    lost = [whole[0]._replace(scores=None), *whole[1:]]
    for name, judged, judge, why in [
        ("en_long", whole, "", "only with the same judge, question"),
        ("en", whole, "QwenVL", "no: another question"),
        ("zh", whole, "", "no: another language"),
        ("en", whole[1:], "", "no: 599 of 600 prompts"),
        ("en", lost, "", "no: not all was judged"),
    ]:
        assert board.doubt(name, judged, judge) == why


def test_the_published_rows_are_of_the_language_that_all_results_have():
    one, other = ([r._replace(language=name) for r in results([1])] for name in ("en", "zh"))
    assert [board.set_of({"a": a, "b": other}) for a in (one, other)] == ["en", "zh"]


def test_published_models_are_found_by_name_and_others_are_named():
    found = board.find_published("en", "FLUX.1-dev, FLUX.2-dev")
    assert [f"{row.primary['Style']}" for row in found.values()] == ["85.0", "96.6"]
    with pytest.raises(ValueError, match="'FLUX.9' for en; there are: .*FLUX.1-dev"):
        board.find_published("en", "FLUX.9")
    with pytest.raises(ValueError, match="'Z-Image'"):
        board.find_published("en", "Z-Image")


# ----------------------------------------------------------------------------- commands


def run(line):
    return bench.run(line.split())


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.csv and b.csv differ in the color of two of three images, in c.csv one was not judged."""
    monkeypatch.chdir(tmp_path)
    for n in range(3):
        Image.new("RGB", (32, 32), "red").save(f"{n}_0.png")
    told = dict(reasons=["inked", "<b>blue</b>"], descriptions=["ink", "red"])
    judged = [
        Result(n, f"prompt {n}", [STYLE, COLOR], f"{n}_0.png", [1, 0], **told) for n in range(3)
    ]
    write_results(judged, "a.csv")
    write_results([r._replace(scores=[1, int(r.index > 0)]) for r in judged], "b.csv")
    write_results(judged[1:], "c.csv")
    write_results([r._replace(prompt="other") for r in judged], "d.csv")
    write_results([r._replace(language="zh") for r in judged], "zh.csv")
    Path("a.settings.json").write_text(json.dumps({"judge": "QwenVL"}))


@pytest.mark.parametrize(
    "change, said", [({"model": "copy"}, ""), ({"weights": "w", "steps": 9}, "(steps, weights)")]
)
def test_agree_says_where_the_images_are_others_of_the_same_names(files, capsys, change, said):
    made = {"model": "m", "weights": "v", "steps": 6}
    for name, images in [("a", made), ("b", made | change), ("c", None)]:
        Path(f"{name}.settings.json").write_text(json.dumps({"judge": "m", "images": images}))
    assert run("agree a.csv b.csv c.csv") == 0
    told = capsys.readouterr().out
    assert f"drawn otherwise {said}: these" in told if said else "drawn otherwise" not in told


def page_data(path):
    page = Path(path).read_text()
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_agree_prints_each_later_judge_against_the_first_and_writes_a_page(files, capsys):
    assert run("agree a.csv b.csv c.csv") == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^b against a\n.*^All testpoints +6 +66.67 .* 0.33 .*^c against a\n", said, re.M | re.S
    )
    assert "\nb against a: 3 images.\nc against a: 2 images; 1 that one of them did not" in said
    assert KNOWN in said and " -0.00" not in said and not Path("agree.html").exists()
    assert run("agree a.csv b.csv --out agree.html") == 0
    page, groups = page_data("agree.html")
    assert "<h1>Agreement of judges</h1>" in page and html.escape(KNOWN) in page
    assert "<img alt" not in page and "@@" not in page
    assert [(g["model"], g["index"]) for g in groups] == [("b against a", 1), ("b against a", 2)]
    (image,) = groups[0]["images"]
    assert image["src"].startswith("data:image/png") and image["points"] == [
        [COLOR, "a: red", False, "<b>blue</b>"],
        [COLOR, "b: red", True, "<b>blue</b>"],
    ]


def test_board_prints_and_draws_own_rows_among_published_ones(files, capsys):
    assert run("board a.csv b.csv --out board.png") == 0
    said = capsys.readouterr().out
    overall, dimensions, note = said.split("\n\n")
    (mine,) = [line for line in overall.splitlines() if line.startswith("> a ")]
    assert re.split(" {2,}", mine) == ["> a", "50.00", "QwenVL", "yours", "no: 3 of 600 prompts"]
    assert "> b  " in dimensions and "Z-Image" not in dimensions and "59.39" in note
    with Image.open("board.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    assert run("board") == 0 and "GPT-4o-1.5" in capsys.readouterr().out
    for line in ("board --prompts zh_long", "board zh.csv --prompts zh_long"):
        assert run(line) == 0 and "Hunyuan-2.1" in capsys.readouterr().out
    assert run("board zh.csv") == 0 and "81.69" in capsys.readouterr().out  # its own language


def test_the_chart_has_the_published_rows_nearest_to_ones_own(files):
    own = {"mine": bench.score(results(*([1] for _ in range(7)), *([0] for _ in range(3))))}
    near, best = board.nearest("en", own), board.nearest("en", {})
    assert [*near][:2] == ["FLUX.1-dev-PrefGRPO (published)", "SD-3.5-Large (published)"]
    assert [*best][0] == "GPT-4o-1.5 (published)" and len(near) == len(best) == board.FEW


@pytest.mark.parametrize("names", ["a.csv", "a.csv b.csv"])
def test_report_against_published_models_has_their_columns_and_says_whose_they_are(files, names):
    plain = f"report {names} --out"
    assert run(f"{plain} r.html") == run(f"{plain} p.html --against FLUX.1-dev,FLUX.2-dev") == 0
    old, new = (Path(f"{name}.md").read_text().splitlines() for name in "rp")
    cells = {row.split("|")[1].strip(): row.split("|")[-3:-1] for row in new if row.startswith("|")}
    assert cells["Dimension"] == [" FLUX.1-dev (published) ", " FLUX.2-dev (published) "]
    assert cells["Style"] == [" 85.00 ", " 96.60 "] and cells["- Color"] == ["  ", "  "]
    assert cells["Overall (mean over 2 of 10)"] == [" 60.97 ", " 84.76 "]
    assert new[-1] == board.AGAINST and len(old) == len(new) - 2
    assert new[2].startswith(old[2].rstrip("|"))
    charts = [Path(f"{name}.radar.png").read_bytes() for name in "rp"]
    assert charts[0] != charts[1] and board.AGAINST.split(";")[1][:30] in Path("p.html").read_text()


@pytest.mark.parametrize(
    "line, said",
    [
        ("agree a.csv d.csv", "a and d: index 0 has another prompt"),
        ("agree a.csv a.csv", "same name"),
        ("agree a.csv b.csv --out b.csv", "choose another output"),
        ("board a.csv --out a.settings.json", "choose another output"),
        (f"report a.csv --out {ROOT}", "is a folder"),
        ("board no.csv", "no.csv"),
        ("report a.csv --against FLUX.9", "'FLUX.9' for en; there are: GPT-4o-1.5"),
        ("report a.csv --against FLUX.1-dev --prompts zh", "for zh; there are: none"),
    ],
)
def test_refusals_are_one_sentence(files, line, said, tmp_path):
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises((ValueError, OSError)) as told:
        run(line)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
