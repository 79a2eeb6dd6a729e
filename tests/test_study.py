"""The study: its runs are the loop's, can be killed, and come out the same; its formulas describe
what the loop's own functions do; its pages show what its CSVs hold and nothing else."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from common.files import hold
from rewards import PointwiseReward
from study import (
    curves,
    dropped,
    estimators,
    judging,
    kinds,
    kl,
    longer,
    places,
    shares,
    spread,
    summary,
    table1,
)
from study.runs import OUT, RESULTS, TINY, Arm, Study, Table
from study.summary import ACCURACY, markdown, summarize
from training.config import parse_config

PAGES = {name: (ROOT / name).read_text() for name in ("STUDY.md", "docs/study.md")}


def files(folder, *endings):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in endings}


# ----------------------------------------------------------------------------- runs


FULL_ONLY = {"table1_slower", "table1_curves_slower", "longer_cures", "longer_faster"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "study", [estimators, judging, table1, longer, kl, dropped, kinds, places, spread]
)
def test_the_smallest_study_is_whole_and_made_again_without_its_runs(
    study, tmp_path_factory, monkeypatch
):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())  # of all studies: some build on others
    stem, folder = study.__name__.split(".")[1], OUT / "smallest"
    study.main(["--smallest"])
    mine = lambda *ends: {k: v for k, v in files(folder, *ends).items() if k.startswith(stem)}
    first = mine(".csv", ".md")
    made = {p.name for p in RESULTS.glob(f"{stem}*") if p.stem not in FULL_ONLY}
    assert first.keys() | mine(".png").keys() == made
    for runs in folder.glob(f"{stem}*/"):
        shutil.rmtree(runs)
    for table in folder.glob(f"{stem}*.md"):
        table.unlink()
        table.with_suffix(".csv").unlink()
    study.main(["--smallest"])
    assert mine(".csv", ".md") == first
    assert not (folder / stem).exists()  # nothing was trained again


class Breaking(PointwiseReward):
    """The score, until an error is raised at the call that is numbered `at`."""

    def __init__(self, at, error):
        super().__init__(estimators.Score())
        self.left, self.error = at, error

    def __call__(self, prompts, images):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().__call__(prompts, images)


def made(folder, reward):
    """A study of one arm and one seed in `folder`."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as within:
        within.chdir(folder)
        within.setattr("study.runs.TINY", (*TINY, "--steps=2", "--eval_every=1"))
        study = Study("a", "smallest", {})
        study.make([Arm("score", reward)], [0], estimators.watch)
    return study


def whole():
    return PointwiseReward(estimators.Score())


def test_a_run_gives_the_same_twice_even_if_it_is_stopped(tmp_path):
    with pytest.raises(SystemExit, match="to go on from there"):
        made(tmp_path / "a", lambda: Breaking(2, KeyboardInterrupt()))
    tables = tmp_path / "a" / OUT / "smallest"
    assert not (tables / "a.csv").exists()  # whole runs alone are kept
    made(tmp_path / "a", whole)
    made(tmp_path / "b", whole)
    assert files(tables, ".csv") == files(tmp_path / "b" / OUT / "smallest", ".csv")


def test_processes_share_the_runs(tmp_path):
    """A run that another process makes is passed over, and so is one that it has made since the
    table was read; what each has made joins the one table."""
    runs = tmp_path / OUT / "smallest" / "a"
    runs.mkdir(parents=True)
    with hold(runs / "score-0.lock"):
        early = made(tmp_path, whole)
    assert early.lines.seeds("score") == []
    made(tmp_path, whole)
    early.lines.path = tmp_path / early.lines.path
    early.lines.add("other", 0, [{"step": 0}])
    late = made(tmp_path, lambda: 1 / 0)
    assert late.lines.seeds("score") == late.lines.seeds("other") == [0]


def test_a_run_whose_numbers_run_away_counts_as_a_failure(tmp_path):
    study = made(tmp_path, lambda: Breaking(2, FloatingPointError("the loss is nan")))
    assert [row["step"] for row in study.lines.run("score", 0)] == [0, 1]
    assert [row["last"] for row in study.prompts.run("score", 0)] == [0, 0]
    rows = {row["quantity"]: row["mean"] for row in summarize(study, ["score"])}
    assert rows["accuracy"] == 0


def test_a_table_is_of_one_set_of_flags(tmp_path):
    Table(tmp_path / "a.csv", ["--steps=3"]).add("score", 0, [{"step": 0}])
    assert Table(tmp_path / "a.csv", ["--steps=3"]).seeds("score") == [0]
    with pytest.raises(ValueError, match="remove it"):
        Table(tmp_path / "a.csv", ["--steps=4"])


# ----------------------------------------------------------------------------- formulas


def test_a_floor_of_one_divides_by_nothing():
    scores = torch.tensor([[0.0, 1.1, 0.0, 1.1], [0.5, 0.51, 0.5, 0.5]])  # the widest, and a narrow
    centered = scores - scores.mean(1, keepdim=True)
    made = spread.advantages_of(estimators.ESTIMATORS["centered only"], scores)
    torch.testing.assert_close(made, centered)


def test_formulas_are_what_simulated_groups_give():
    for row in spread.simulated(600):
        assert row["size_simulated"] == pytest.approx(row["size"], abs=0.03)
        if row["share"] is not None:  # of large groups, and these are small
            assert row["share_simulated"] == pytest.approx(row["share"], abs=0.03)
        # an absolute tolerance would let a wrong power of s pass
        if row["estimator"] in ("z-scores with floor", "centered only"):
            assert row["size_simulated"] == pytest.approx(row["size"], rel=0.1)


def test_bias_is_what_differs_between_equally_good_images():
    truth = np.array([[1.0, 1.0, 0.0, 0.0]])
    assert spread.bias_share(np.array([[1.0, 1.0, -1.0, -1.0]]), truth) == 0
    assert spread.bias_share(np.array([[1.0, -1.0, 1.0, -1.0]]), truth) == 1
    assert spread.bias_share(np.array([[3.0, 1.0, -1.0, -3.0]]), truth) == pytest.approx(0.2)


# ----------------------------------------------------------------------------- intervals


def test_arms_are_compared_prompt_by_prompt_and_seed_by_seed(tmp_path, monkeypatch):
    """b is a with one testpoint less in every prompt of seed 0: no interval over prompts is left,
    though prompts differ much, and one over seeds is."""
    monkeypatch.chdir(tmp_path)
    study = Study("s", "smallest", {})
    held = {("a", 0): [2, 2, 1, 1], ("a", 1): [1, 2, 1, 2]}
    held |= {("b", 0): [1, 1, 0, 0], ("b", 1): [1, 2, 1, 2]}
    for (arm, seed), last in held.items():
        rows = [{"prompt": n, "testpoints": 2, "base": 1, "last": h} for n, h in enumerate(last)]
        study.prompts.add(arm, seed, rows)
        beside = dict.fromkeys(summary.BESIDE, 0.5)
        curve = enumerate((0.5, 0.75, 0.625))
        study.lines.add(arm, seed, [{"step": n, ACCURACY: value} | beside for n, value in curve])
    rows = {(row["arm"], row["quantity"]): row for row in summarize(study, ["a", "b"], "a")}
    assert rows["base", "accuracy"]["mean"] == 0.5
    assert rows["a", "accuracy"]["mean"] == 0.75
    assert rows["a", "less the base"]["mean"] == 0.25
    less = rows["b", "less a"]
    assert less["mean"] == -0.25 and less["prompts_low"] is less["prompts_high"] is None
    # two seeds, -1/2 and 0: Student's t with one degree of freedom is 12.706
    assert less["seeds_low"] == pytest.approx(-0.25 - 12.706 * 0.25, abs=1e-3)
    assert ("a", "less a") not in rows
    assert rows["a", "below its best"]["mean"] == 0.125


def test_one_seed_has_no_interval_over_seeds_nor_have_equal_ones():
    assert summary.over_seeds([0.5]) == summary.over_seeds([0.7] * 3) == (None, None)


def test_a_fall_counts_only_below_the_best_and_outside_its_interval():
    steady = np.array([[0.5, 0.7, 0.69], [0.5, 0.7, 0.71], [0.5, 0.7, 0.66]])
    assert curves.fallen(steady) == []
    falling = np.array([[0.3, 0.7, 0.6, 0.4], [0.3, 0.7, 0.5, 0.41], [0.3, 0.7, 0.71, 0.42]])
    assert curves.fallen(falling) == [3]
    assert curves.fallen(falling[:1]) == []  # of one seed nothing is known


# ----------------------------------------------------------------------------- the pages


ALL = [arm.name for arm in longer.all_arms(dict.fromkeys(table1.scorers.NAMES))]
TABLES = {  # of each study those that come of its runs, by the end of their names; its flags
    "estimators": (estimators.tables, estimators.FLAGS),
    "judging": (judging.tables, judging.FLAGS),
    "table1": (table1.tables, table1.FLAGS),
    "longer": (lambda study: longer.tables(study, longer.FIGURES, ALL), longer.FLAGS),
    "longer_estimators": (lambda s: estimators.tables(s, longer.PAIR), longer.PAIR_FLAGS),
    "kl": (kl.tables, longer.FLAGS),
    "dropped": (dropped.tables, longer.FLAGS),
    "places": (places.tables, places.FLAGS),
    "kinds": (kinds.tables, kinds.FLAGS),
    "shares": (shares.tables, shares.FLAGS),
}


LONG = ("longer", "table1", "kl")  # to resample


@pytest.mark.parametrize(
    "stem", [pytest.param(s, marks=[pytest.mark.slow] if s in LONG else []) for s in TABLES]
)
def test_the_tables_are_remade_from_the_csvs(stem):
    tables, flags = TABLES[stem]
    for end, rows in tables(Study(stem, "full", flags)).items():
        assert markdown(rows) == (RESULTS / f"{stem}{end}.md").read_text(), end


def test_the_pages_link_every_table_and_figure():
    linked = set(re.findall(r"study/results/([\w.]+)", "".join(PAGES.values())))
    assert linked == {p.name for end in ("md", "png") for p in RESULTS.glob(f"*.{end}")}


NUMBER = re.compile(r"(?<!\d)[-+]?\d\.\d{3}(?: \.\. [-+]?\d\.\d{3})?(?!\d)")


@pytest.mark.parametrize("page", PAGES)
def test_each_number_of_a_page_stands_in_a_table_that_its_paragraph_links(page):
    """Numbers with three decimals, and intervals of two of them, with their signs."""
    checked = 0
    for paragraph in re.split(r"\n(?:\n|(?=- |\d\. ))", PAGES[page]):
        names = re.findall(r"study/results/(\w+\.md)", paragraph)
        held = "".join((RESULTS / name).read_text() for name in names)
        for number in NUMBER.findall(paragraph):
            assert re.search(rf"(?<![-+\d]){re.escape(number)}(?!\d)", held), (number, paragraph)
            checked += 1
    assert checked > 10


def test_each_longer_arm_has_the_seeds_that_are_claimed():
    """A run that broke down is not left out, and none is made until it pleases."""
    lines = Study("longer", "full", longer.FLAGS).lines
    for arm in {name for arms in longer.FIGURES.values() for name in arms}:
        wanted = [*longer.SEEDS, *(longer.MORE if arm in longer.JUDGED else ())]
        assert sorted(lines.seeds(arm)) == wanted, arm


def test_shares_before_and_after_are_those_of_the_images(tmp_path, monkeypatch):
    """By hand: two prompts of a kind and one of another; two models, of which one learned."""
    before, learned = [(0.0, 0.5), (0.2, 0.5), (1.0, 1.0)], [(0.5, 0.5), (0.8, 1.0), (1.0, 1.0)]
    monkeypatch.chdir(tmp_path)
    study = Study("shares", "smallest", {})
    for arm, seed, found in ((shares.BASE, 0, before), ("a", 0, learned), ("a", 1, before)):
        each = zip(("count", "count", "style"), found)
        study.lines.add(arm, seed, [{"kind": k, "right": r, "others": o} for k, (r, o) in each])
    of_share, of_kind = shares.tables(study).values()
    assert [row["share"] for row in of_share] == ["none", "above 0.1 to 0.25", "above 0.75 to 1"]
    assert [row["right_after"] for row in of_share] == [0.25, 0.5, 1.0]
    count, style = of_kind
    assert (count["prompts"], count["right_before"], count["right_after"]) == (2, 0.1, 0.375)
    both = 1 - 0.2**8 - 0.8**8  # of the second prompt; the first one's groups hold none
    assert count["groups_with_both"] == pytest.approx(both / 2) and style["groups_with_both"] == 0
    assert count["named_for_before"] == pytest.approx(0.2 / 1.0)
    assert count["named_for_after"] == pytest.approx((0.2 + 1.3) / (1.0 + 1.5))


def test_a_model_that_is_the_base_has_the_bases_shares_and_is_drawn_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="python -m study.kinds first"):
        shares.main(["--smallest"])
    run = Study("kinds", "smallest", kinds.FLAGS).run_folder(kinds.ALL, 1)
    run.mkdir(parents=True)
    (run / "final").symlink_to(ROOT / "assets" / "tiny-flux")
    asked, load = [], shares.base.load
    monkeypatch.setattr(shares.base, "load", lambda *how: asked.append(Path(how[0])) or load(*how))
    shares.main(["--smallest"])
    assert asked == [Path(parse_config([]).model), run / "final"]  # each once
    rows = Study("shares", "smallest", {}).lines.rows
    base, model = ([r["right"] for r in rows if r["arm"] == a] for a in (shares.BASE, kinds.ALL))
    assert len(base) == 2 and base == model and set(map(float, base)) <= {0, 0.333333, 0.666667, 1}
    met = [[True, False], [True, True], [False, True]]  # of three images of a prompt
    with monkeypatch.context() as within:
        within.setattr(shares, "verify", lambda *_: (met, None))
        (row,) = shares.drawn(str(run / "final"), TINY, 1)
    assert (row["right"], row["others"]) == pytest.approx((1 / 3, 2 / 3))
    first = files(OUT / "smallest", ".csv", ".md")
    shutil.rmtree(run)
    monkeypatch.setattr(shares, "drawn", lambda *_: pytest.fail("drawn again"))
    shares.main(["--smallest"])
    assert files(OUT / "smallest", ".csv", ".md") == first and len(first) == 5
