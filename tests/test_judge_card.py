"""The report card of judges of whom all is known; cases whose ground truth is in the pixels."""

import functools
import itertools
import json
import operator

import numpy as np
import pytest
from fakes import FakeMLLM

from judges.mllm import Answer
from measure import judge
from rewards import PairwiseReward
from shapes.render import COLORS, LIGHT, Scene, Thing, render
from shapes.server import served
from shapes.verifier import ShapesMLLM

SMALL = ("--pairs=78", "--size=32")
CASES = functools.cache(judge.draw_case)  # the same for all tests


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    monkeypatch.setattr(judge, "draw_case", CASES)


def card(capsys, out, *flags, chart=lambda *_: "") -> tuple[str, str]:
    """What the command prints, and its page, which takes longest to chart."""
    with pytest.MonkeyPatch.context() as within:
        within.setattr(judge, "chart", chart)
        judge.main([*SMALL, f"--out={out}", *flags])
    return capsys.readouterr().out, out.read_text()


def known(error_rate: float, first_bias: float, decided: bool) -> dict:
    """The share of pairs with each (signs of both orders), by hand of what ShapesMLLM says that it
    does; decided: the first image is better, else none is."""
    shares = {}
    ways = [(1, first_bias)]  # the place that is named (0: a tie), and how often so
    ways += [(place, (1 - first_bias) * error_rate / 2) for place in (1, 2)]
    right = (1 - first_bias) * (1 - error_rate)
    one, two = ([*ways, (place if decided else 0, right)] for place in (1, 2))
    for (a, p), (b, q) in itertools.product(one, two):
        signs = (0, 1, -1)[a], (0, -1, 1)[b]
        shares[signs] = shares.get(signs, 0) + p * q
    return shares


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.2), (0.2, 0.1)])
def test_of_a_judge_of_whom_all_is_known_the_card_says_that(errors):
    """Each share lies in its interval. (One in twenty may miss its own: here seed 3 has none.)"""
    cases, reward = [judge.draw_case(3, n) for n in range(52)], PairwiseReward(ShapesMLLM(*errors))
    lines = judge.ask_cases(reward, cases, 32)
    pairs = sum(map(judge.pairs_of, cases, lines), [])
    levels, _, points, rest = judge.sections_of(cases, lines, pairs).values()
    won, none = known(*errors, True), known(*errors, False)
    share = lambda of, test: sum(p for signs, p in of.items() if test(*signs))
    of_all = lambda test: (130 * share(won, test) + 26 * share(none, test)) / 156
    right, wrong = share(won, lambda a, b: a + b > 0), share(won, lambda a, b: a + b < 0)
    odds = right / (right + wrong)  # of a pair that is decided
    wanted = [right] * 3 + [share(none, lambda a, b: a + b == 0)] + [1.0] * len(points)
    wanted += [of_all(test) for test in (operator.eq, operator.gt, operator.lt)]
    wanted += [odds * (1 - odds), 0.0, 0.0, 0.0]
    for row, value in zip([*levels, *points, *rest], wanted, strict=True):
        low, high = row.interval
        assert row.n and low - 1e-9 <= value <= high + 1e-9, (row, value)
    assert sum(levels[0][1:2] + levels[0][3:]) == levels[0].n  # right, tied and wrong


def test_the_interval_is_exact_where_nothing_or_all_is_right():
    for row, ends in ((judge.Row("", 0, 20), (0, 0.16843)), (judge.Row("", 20, 20), (0.83157, 1))):
        assert row.interval == pytest.approx(ends, abs=1e-5)
    assert judge.Row("", 0, 0).interval is None and judge.Row("", 0, 0).cells()[2:4] == ["-", "-"]


def test_a_case_is_what_it_says_and_is_read_so_at_512_pixels():
    exact = PairwiseReward(ShapesMLLM())
    for case in (judge.draw_case(1, n) for n in range(39)):
        assert all(case.held[0]) and all(case.held[1])
        failed = [sub for (sub, _), held in zip(case.prompt.testpoints, case.held[2]) if not held]
        assert case.sub in failed
        if case.sub not in ("Attribute - Shape", "Compound - Feature Matching"):
            assert len(failed) == 1, case
    circle = render([Scene((Thing("circle", "red", 16.0, 16.0, 5.6),))], 512)
    soft = ~np.any([(circle == color).all(-1) for color in (LIGHT, COLORS["red"])], axis=0)
    assert 0 < soft.mean() < 0.01  # edges are as sharp as 512 pixels are
    for case in (judge.draw_case(1, n) for n in (0, 6, 8, 10, 13)):
        assert case.images(512)[0].size == (512, 512)
        (line,) = judge.ask_cases(exact, [case], 512)
        assert all(pair.said == pair.truth for pair in judge.pairs_of(case, line))
        assert line["scores"] == case.held[2]


def test_stopped_anywhere_it_goes_on_and_says_the_same(capsys, tmp_path, monkeypatch):
    left, verifier = [10**6], ShapesMLLM(error_rate=0.4)

    def answer(query):
        left[0] -= 1
        if left[0] < 0:
            return Answer(error="dead", unreachable=True)
        return verifier.ask([query])[0]._replace(model="m", usage=(700, 20))

    fake = FakeMLLM(answer, verifier.name)
    monkeypatch.setattr(judge.start, "judge_of", lambda cfg: fake)
    whole = card(capsys, tmp_path / "whole.html", chart=judge.chart)
    assert len(fake.asked) == 26 * 7 and "question 700 tokens, answer 20" in whole[0]
    assert "answered by: m." in whole[0] and "--recipe shapes asks 896 calls" in whole[0]
    assert "'80 % right, both orders' is nearest" in whole[0] and "gain of +0.055" in whole[0]
    assert all(said in whole[1] for said in ("cleanness only", 'table" src="data:', "differ in"))
    out, journal = tmp_path / "card.html", tmp_path / "card.journal.jsonl"
    left[0] = 61  # two chunks and a bit
    with pytest.raises(SystemExit, match="does not answer: dead; what it answered is kept"):
        card(capsys, out)
    with open(journal, "a") as file:
        file.write('{"case": 9')  # as a kill leaves it
    left[0] = 10**6
    fake.asked.clear()
    again = card(capsys, out)
    assert len(fake.asked) == 26 * 7 - 56  # what was answered is not asked again
    cut = lambda text: [
        row for row in text.splitlines() if " calls at " not in row and "open" not in row
    ]
    assert cut(again[0]) == cut(whole[0])
    with pytest.raises(SystemExit, match="was begun for"):
        card(capsys, out, "--seed=1")


def test_a_server_is_measured_by_the_command(capsys, tmp_path):
    with served(ShapesMLLM(first_bias=1.0)) as server:
        flags = (f"--base_url={server.url}", "--judge_model=shapes")
        printed, _ = card(capsys, tmp_path / "card.html", *flags)
    rows = {line[:40].strip(): line[40:].split() for line in printed.splitlines()}
    assert rows["pairs: the first place wins"][:2] == ["78", "100.00"]
    assert rows["a testpoint"][-2:] == ["39", "0"]  # all tied
    assert "none of them as poor (51% right, 49% tied, 0% wrong)" in printed


def test_of_answers_without_a_verdict_the_status_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(judge.start, "judge_of", lambda cfg: FakeMLLM(lambda query: "Nice."))
    with pytest.raises(SystemExit, match="nothing could be measured"):
        card(capsys, tmp_path / "words.html")
    assert "answers: without a verdict" in (tmp_path / "words.html").read_text()


def test_soft_answers_are_measured_by_their_probabilities(capsys, tmp_path, monkeypatch):
    judging = ShapesMLLM()
    judging.first_probability = lambda queries: [0.25 for _ in queries]
    monkeypatch.setattr(judge.start, "judge_of", lambda cfg: judging)
    card(capsys, tmp_path / "soft.html", "--base_url=http://x", "--soft")
    lines = [json.loads(x) for x in (tmp_path / "soft.journal.jsonl").read_text().splitlines()[1:]]
    assert lines and all(pair["points"] == 0.25 for line in lines for pair in line["pairs"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pairs=9"], "at least 78"),
        (["--size=100"], "multiple of 32"),
        (["--judge=openai"], "needs --base_url"),
        (["--judge_model=x"], "--judge_model needs --judge openai or local"),
        (["--local=."], "cannot load a vision-language model from '.'"),
        (["--soft"], "--soft needs --judge openai or local"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(flags, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        judge.main([*SMALL, f"--out={tmp_path / 'card.html'}", *flags])
    assert ended.value.code and said in f"{ended.value} {capsys.readouterr().err}"
