"""Judge errors and cost: every way has the same budget of calls, and the judges err as they say."""

import shutil

import numpy as np
import pytest
from PIL import Image

from judges.templates import PAIRWISE_TEMPLATE
from shapes.prompts import heldout_prompts, sample_scene
from shapes.scenes import render
from study import judging, summary
from study.runs import RESULTS, Table


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.mark.slow
def test_the_smallest_study_is_whole_and_made_again_without_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judging.main(["--smallest"])
    folder = tmp_path / "runs" / "study" / "smallest"
    first = content(folder)
    tables = {
        f"judging_{name}.{kind}"
        for name in ("judges", "summary", "contrasts")
        for kind in ("csv", "md")
    }
    assert first.keys() == tables | {"judging.csv", "judging_prompts.csv", "judging.png"}
    assert b"\n| 100 % right, one order | 15 | 2 |" in first["judging_judges.md"]
    assert b"less both orders" in first["judging_contrasts.md"]
    shutil.rmtree(folder / "judging")
    for name in tables:
        (folder / name).unlink()
    judging.main(["--smallest"])
    again = content(folder)
    assert all(again[name] == first[name] for name in tables)


@pytest.mark.parametrize("size", ["full", "quick"])
def test_every_way_spends_the_budget_and_no_more(size):
    budget = judging.BUDGETS[size]
    for name, way in judging.WAYS.items():
        a_step = budget.groups * way.reward().calls(budget.group_size)
        assert 0 <= budget.calls - budget.steps(way) * a_step < a_step, name
    steps = {name: budget.steps(way) for name, way in judging.WAYS.items()}
    assert steps["100 % right, one order"] == 2 * steps["100 % right, both orders"]


def test_each_contrast_is_of_ways_that_differ_in_one_thing():
    for way, other in judging.CONTRASTS.items():
        one, two = judging.WAYS[way], judging.WAYS[other]
        assert sum(a != b for a, b in zip(one, two)) == 1


@pytest.fixture(scope="module")
def pairs():
    """400 times a picture of the prompt and one of another, each with a grain of its own."""
    prompt, other = heldout_prompts()[:2]
    rng = np.random.default_rng(0)
    drawn = render([sample_scene(p, rng) for p in (prompt, other)])
    grained = (drawn + rng.normal(0, 2, (400, *drawn.shape))).clip(0, 255).astype(np.uint8)
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt.text)
    return [(tuple(map(Image.fromarray, two)), text) for two in grained]


@pytest.mark.parametrize(
    "way, right, tied",
    [
        (judging.Way(0.8, both_orders=False), 0.8, 0),
        (judging.Way(0.8), 0.64, 0.32),  # the two orders err independently
        (judging.Way(0.6), 0.36, 0.48),
        (judging.Way(first_bias=0.5, both_orders=False), 1, 0),  # the right one is shown first
        (judging.Way(first_bias=0.5), 0.5, 0.5),
    ],
)
def test_a_judge_errs_as_often_as_it_says(pairs, way, right, tied):
    points = [judging.first_points(way.reward(), pair, text) for pair, text in pairs]
    spread = 4 * 0.5 / len(points) ** 0.5
    assert np.mean([p == 1 for p in points]) == pytest.approx(right, abs=spread)
    assert np.mean([p == 0.5 for p in points]) == pytest.approx(tied, abs=spread)


def test_the_tables_are_remade_from_the_csvs():
    flags = judging.SIZES["full"].flags
    lines, prompts = (
        Table(RESULTS / f"{name}.csv", flags) for name in ("judging", "judging_prompts")
    )
    shown = {
        "summary": judging.summary_rows(lines, prompts),
        "contrasts": judging.contrasts(lines, prompts),
    }
    for name, rows in shown.items():
        assert summary.markdown(rows) == (RESULTS / f"judging_{name}.md").read_text()
