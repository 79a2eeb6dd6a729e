"""The study: its runs are the loop's, can be killed, and come out the same; its formulas describe
what the loop's own functions do; STUDY.md shows what its CSVs hold and nothing else."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import grpo
from common.files import hold
from rewards import PointwiseReward
from shapes.prompts import heldout_prompts, sample_scene
from shapes.render import render
from study import five_ways, runs, spread, summary
from study.runs import Arm, Size, Table

STUDY = (ROOT / "STUDY.md").read_text()
RESULTS = ROOT / "study" / "results"


def files(folder, ending=".csv"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{ending}"))}


# ----------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_five_ways_is_whole_and_drawn_again_without_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    five_ways.main(["--smallest"])
    folder = tmp_path / "runs" / "study" / "smallest"
    first = files(folder)
    assert first.keys() == {
        "five_ways.csv",
        "five_ways_prompts.csv",
        "five_ways_summary.csv",
        "five_ways_spread.csv",
    }
    shutil.rmtree(folder / "five_ways")  # the run directories
    (folder / "five_ways.png").unlink()
    (folder / "five_ways_summary.csv").unlink()
    five_ways.main(["--smallest"])
    assert files(folder) == first
    assert (folder / "five_ways.png").exists()
    assert not (folder / "five_ways").exists()  # nothing was trained again


class Breaking(PointwiseReward):
    """The score, until an error is raised at the call that is numbered `at`."""

    def __init__(self, at, error):
        super().__init__(five_ways.Score())
        self.left, self.error = at, error

    def __call__(self, prompts, images):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().__call__(prompts, images)


def made(folder, arm):
    """A study of one arm and one seed in `folder`: its tables."""
    flags = (*five_ways.TINY, "--steps=2", "--eval_every=1")
    lines, prompts = Table(folder / "a.csv", flags), Table(folder / "b.csv", flags)
    size = Size((0,), flags, folder)
    runs.make_runs([arm], size, folder / "runs", lines, prompts, five_ways.watch)
    return lines, prompts


def test_a_run_gives_the_same_twice_even_if_it_is_stopped(tmp_path):
    whole = Arm("score", lambda: PointwiseReward(five_ways.Score()))
    stopped = Arm("score", lambda: Breaking(2, KeyboardInterrupt()))
    with pytest.raises(SystemExit, match="to go on from there"):
        made(tmp_path / "a", stopped)
    assert not (tmp_path / "a" / "a.csv").exists()  # whole runs alone are kept
    made(tmp_path / "a", whole)
    made(tmp_path / "b", whole)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_processes_share_the_runs(tmp_path):
    """A run that another process makes is passed over, and so is one that it has made since the
    table was read; what each has made joins the one table."""
    arm = Arm("score", lambda: PointwiseReward(five_ways.Score()))
    (tmp_path / "runs").mkdir()
    with hold(tmp_path / "runs" / "score-0.lock"):
        early, _ = made(tmp_path, arm)
    assert early.seeds("score") == []
    made(tmp_path, arm)
    early.add("other", 0, [{"step": 0}])
    assert Table(tmp_path / "a.csv", [early.head[2:]]).seeds("score") == [0]
    broken = Arm("score", lambda: 1 / 0)
    stale = [Table(tmp_path / f"{n}.csv", [early.head[2:]]) for n in "ab"]
    for table in stale:
        table.rows = []
    runs.make_runs([broken], Size((0,), (), tmp_path), tmp_path / "runs", *stale, five_ways.watch)


def test_a_run_whose_numbers_run_away_counts_as_a_failure(tmp_path):
    arm = Arm("score", lambda: Breaking(2, FloatingPointError("the loss is nan")))
    lines, prompts = made(tmp_path, arm)
    assert [row["step"] for row in lines.run("score", 0)] == [0, 1]
    assert [row["last"] for row in prompts.run("score", 0)] == [0, 0]
    (truth, *_) = summary.summarize(lines, prompts, ["score"], "score")
    assert (truth["quantity"], truth["mean"]) == ("truth", 0)


def test_a_table_is_of_one_set_of_flags(tmp_path):
    Table(tmp_path / "a.csv", ["--steps=3"]).add("score", 0, [{"step": 0}])
    assert Table(tmp_path / "a.csv", ["--steps=3"]).seeds("score") == [0]
    with pytest.raises(ValueError, match="remove it"):
        Table(tmp_path / "a.csv", ["--steps=4"])


# ----------------------------------------------------------------------------- the five ways


def right_pictures(count):
    """A prompt and pictures in all of which its demands are met; a grain tells them apart."""
    prompt, rng = heldout_prompts()[0], np.random.default_rng(0)
    drawn = render([sample_scene(prompt, rng) for _ in range(count)])
    grained = (drawn + rng.normal(0, 3, drawn.shape)).clip(0, 255).astype(np.uint8)
    return prompt.text, [Image.fromarray(picture) for picture in grained]


def test_taste_alone_decides_between_right_pictures_unless_they_tie():
    prompt, images = right_pictures(6)
    scores = five_ways.WAYS["z-scores"].reward()([prompt], [images]).values
    ranks = five_ways.WAYS["plain ranks"].reward()([prompt], [images])
    assert torch.equal(ranks.values.argsort(), scores.argsort())
    assert sorted(ranks.values[0].tolist()) == pytest.approx([k / 5 for k in range(6)])
    tied = five_ways.WAYS["ranks with ties"].reward()([prompt], [images])
    assert tied.values.tolist() == [[0.5] * 6]


def test_truth_decides_before_taste_in_every_way():
    """The wrong picture is as vivid as a picture can be."""
    prompt, images = right_pictures(3)
    images.append(Image.new("RGB", (32, 32), (255, 0, 0)))
    for way in five_ways.WAYS.values():
        values = way.reward()([prompt], [images]).values
        advantages = grpo.group_advantages(values, way.floor)[0]
        assert advantages.argmin() == 3 and advantages[3] < 0


def test_a_floor_of_one_divides_by_nothing():
    scores = torch.tensor([[0.0, 1.1, 0.0, 1.1], [0.5, 0.51, 0.5, 0.5]])  # the widest, and a narrow
    way = five_ways.WAYS["centered only"]
    centered = scores - scores.mean(1, keepdim=True)
    torch.testing.assert_close(spread.advantages_of(way, scores), centered)


# ----------------------------------------------------------------------------- formulas


@pytest.fixture(scope="module")
def simulated():
    return spread.simulated(1500)


def test_formulas_are_what_simulated_groups_give(simulated):
    for row in simulated:
        assert row["size_simulated"] == pytest.approx(row["size"], abs=0.03)
        if row["better"] is None:
            continue
        # the expectation of a ratio is that of large groups, and these are small
        assert row["better_simulated"] == pytest.approx(row["better"], abs=0.03)
        assert row["share_simulated"] == pytest.approx(row["share"], abs=0.03)


def test_small_noise_is_exact_relative_to_its_size(simulated):
    """An absolute tolerance would let a wrong power of s pass."""
    for row in simulated:
        if row["way"] in ("z-scores with floor", "centered only"):
            assert row["size_simulated"] == pytest.approx(row["size"], rel=0.1)


def test_expected_win_rates_with_and_without_ties():
    truth, noise = np.array([0.0, 0.1, 0.1, 0.4]), 0.1
    scores = truth + noise * np.random.default_rng(0).standard_normal((4000, 4))
    for margin in (0.0, 0.15):
        lead = scores[:, :, None] - scores[:, None]
        wins = (lead > margin) + 0.5 * (abs(lead) <= margin) - 0.5 * np.eye(4)
        rates = wins.sum(2).mean(0) / 3
        assert spread.mean_win_rates(truth, noise, margin) == pytest.approx(rates, abs=0.02)


def test_taste_is_what_differs_between_equally_good_pictures():
    truth = np.array([[1.0, 1.0, 0.0, 0.0]])
    assert spread.taste_share(np.array([[1.0, 1.0, -1.0, -1.0]]), truth) == 0
    assert spread.taste_share(np.array([[1.0, -1.0, 1.0, -1.0]]), truth) == 1
    assert spread.taste_share(np.array([[3.0, 1.0, -1.0, -3.0]]), truth) == pytest.approx(0.2)


@pytest.mark.slow
def test_spread_gives_the_same_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, made = tmp_path / "runs" / "study" / "smallest", []
    for _ in range(2):
        spread.main(["--smallest"])
        made.append(files(folder))
    assert made[0] == made[1] and made[0].keys() == {"spread.csv", "spread_pictures.csv"}


# ----------------------------------------------------------------------------- intervals


def table_of(path, runs_of):
    """A table of testpoints held before and after, by arm and seed; two testpoints a prompt."""
    table = Table(path, ["--flags"])
    for (arm, seed), held in runs_of.items():
        rows = [{"prompt": n, "testpoints": 2, "base": 1, "last": h} for n, h in enumerate(held)]
        table.add(arm, seed, rows)
    return table


def test_arms_are_compared_prompt_by_prompt_and_seed_by_seed(tmp_path):
    """b is a with one testpoint less in every prompt of seed 0: no interval over prompts is left,
    though prompts differ much, and one over seeds is."""
    a = {("a", 0): [2, 2, 1, 1], ("a", 1): [1, 2, 1, 2]}
    b = {("b", 0): [1, 1, 0, 0], ("b", 1): [1, 2, 1, 2]}
    prompts = table_of(tmp_path / "p.csv", a | b)
    lines = Table(tmp_path / "l.csv", ["--flags"])
    for arm, seed in a | b:
        beside = dict.fromkeys(summary.BESIDE, 0.5)
        curve = enumerate((0.5, 0.75, 0.625))
        lines.add(arm, seed, [{"step": n, summary.TRUTH: value} | beside for n, value in curve])
    rows = {
        (r["arm"], r["quantity"]): r for r in summary.summarize(lines, prompts, ["a", "b"], "a")
    }
    assert rows["a", "truth"]["mean"] == 0.75
    assert rows["a", "less the base"]["mean"] == 0.25
    less = rows["b", "less a"]
    assert less["mean"] == -0.25 and less["prompts_low"] is less["prompts_high"] is None
    # two seeds, -1/2 and 0: Student's t with one degree of freedom is 12.706
    assert less["seeds_low"] == pytest.approx(-0.25 - 12.706 * 0.25, abs=1e-3)
    assert ("a", "less a") not in rows
    assert rows["a", "below its best"]["mean"] == 0.125


def test_one_seed_has_no_interval_over_seeds_nor_have_equal_ones():
    assert summary.over_seeds([0.5]) == summary.over_seeds([0.7] * 3) == (None, None)


# ----------------------------------------------------------------------------- STUDY.md


def tables(text):
    """The tables of a text in Markdown, each with its lines."""
    blocks = text.split("\n\n")
    return [block.strip() + "\n" for block in blocks if block.strip().startswith("|")]


def test_each_table_of_the_page_is_one_that_a_command_wrote():
    written = {content.decode() for content in files(RESULTS, ".md").values()}
    assert len(tables(STUDY)) >= 3
    assert set(tables(STUDY)) == written


def test_the_tables_are_remade_from_the_csvs():
    size = five_ways.SIZES["full"]
    lines = Table(RESULTS / "five_ways.csv", size.flags)
    prompts = Table(RESULTS / "five_ways_prompts.csv", size.flags)
    shown = summary.summarize(lines, prompts, five_ways.WAYS, five_ways.CURE)
    assert summary.markdown(shown) == (RESULTS / "five_ways_summary.md").read_text()
    spreads = summary.spreads(lines, five_ways.SCALES)
    assert summary.markdown(spreads) == (RESULTS / "five_ways_spread.md").read_text()
