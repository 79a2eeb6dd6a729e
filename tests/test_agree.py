"""Agreement of two judges against tables worked by hand; the published board."""

import random

import pytest

from unigenbench import board
from unigenbench.agree import (
    EVERY,
    agreement,
    agreement_rows,
    most_different,
)
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
    style = agreement(*table(20, 5, 10, 15))[STYLE]
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
    rows = agreement_rows(agreement(one, two))
    assert [row[0] for row in rows] == [STYLE, "Attribute", "- Color", EVERY, OVERALL]
    assert rows[-1][2] == "-" and rows[-1][6] == "+12.50"


def test_what_one_of_them_did_not_judge_is_left_out_and_other_images_are_refused():
    one, two = table(3, 1, 0, 2)
    two[0] = two[0]._replace(scores=None)
    assert agreement(one, two)[STYLE].count == 5
    assert agreement(one, two[1:])[STYLE].count == 5
    with pytest.raises(ValueError, match="index 0 has another prompt"):
        agreement([one[0]._replace(prompt="other")], [two[0]])
    for others in (two[:1], two[1:2]):
        with pytest.raises(ValueError, match="no image that both judged"):
            agreement(one[:1], others)
    elsewhere = [r._replace(image=r.image.replace("folder", "other/place")) for r in one]
    assert agreement(one, elsewhere)[STYLE].share == 1


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
    import bench

    mine = results(*([1] for _ in range(7)), *([0] for _ in range(3)))
    said = {"mine": ("openai:QwenVL", board.doubt("en", mine, "openai:QwenVL"))}
    rows = board.board_rows("en", {"mine": bench.score(mine)}, said)
    models = [row[0] for row in rows]
    assert models.index("FLUX.1-Krea") == models.index("> mine") + 1
    (row,) = [row for row in rows if row[0] == "> mine"]
    assert len({len(row) for row in rows} | {len(board.HEADER)}) == 1
    assert row[1] == "70.00" and "no: 10 of 600 prompts" in row
    assert "> mine" in board.board_text(rows) and "61.30" in board.board_text(rows)


def test_whether_rows_can_be_compared_goes_by_language_prompts_coverage_and_judge():
    whole = results(*([1] for _ in range(board.PROMPTS)))
    assert board.doubt("zh", whole, "") == "no: another language"
    assert board.doubt("en_long", whole, "j") == "no: another question"
    assert board.doubt("en", whole, "").startswith("only with the same judge")
    whole[3] = whole[3]._replace(scores=None)
    assert board.doubt("en", whole, "") == "no: not all was judged"


def command(line: str) -> int:
    import bench

    return bench.run(line.split())


def test_the_commands_print_and_write_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two = table(3, 2, 1, 2)
    for name, judged in (("a", one), ("b", two)):
        write_results(judged, f"{name}.csv")
    assert command("agree a.csv b.csv --out agree.html") == 0
    said = capsys.readouterr().out
    assert "Kappa" in said and "94 %" in said and "agree.html" in said
    page = (tmp_path / "agree.html").read_text()
    assert page.count("prompt 3") >= 1 and "Style" in page
    assert command("board a.csv --out board.png") == 0
    said = capsys.readouterr().out
    assert "> a" in said and "FLUX.2-dev" in said and "no: 8 of 600 prompts" in said
    assert (tmp_path / "board.png").stat().st_size > 10_000
    assert command("report a.csv --out r.html --against FLUX.1-dev") == 0
    assert "FLUX.1-dev (published)" in (tmp_path / "r.html").read_text()
    for line, why in (
        ("report a.csv --out r.html --against Z-Image", "no published dimensions of 'Z-Image'"),
        ("agree a.csv b.csv --out a.csv", "would be written over"),
    ):
        with pytest.raises(ValueError, match=why):
            command(line)


def test_published_models_are_found_by_name_and_others_are_named():
    found = board.find_published("en", "FLUX.1-dev, FLUX.2-dev")
    assert [row.primary["Style"] for row in found.values()] == [85.0, 96.6]
    with pytest.raises(ValueError, match="'FLUX.9' for en; there are: .*FLUX.1-dev"):
        board.find_published("en", "FLUX.9")
    with pytest.raises(ValueError, match="'Z-Image'"):
        board.find_published("en", "Z-Image")
