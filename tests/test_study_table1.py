"""Table 1 in kind, and its arms for longer: tables are remade from their CSVs, scorers learn from
choices and err, a judge that always names a winner is the exact judge where that one names one."""

import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import grpo
from judges.answers import Verdict, parse_verdict
from judges.mllm import Query
from judges.scorers import CLIPScorer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts, sample_scene
from shapes.scenes import render
from shapes.verifier import ShapesMLLM
from study import five_ways, kl, longer, scorers, summary, table1
from study.runs import RESULTS, Table
from training.config import parse_config

KL_TABLES = ("_prompts.csv", "_seeds.csv", "_seeds.md")


def content(folder, *endings):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in endings}


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """The folder of the smallest Table 1, with its runs."""
    here = tmp_path_factory.mktemp("smallest")
    with pytest.MonkeyPatch.context() as within:
        within.chdir(here)
        table1.main(["--smallest"])
        yield here / "runs" / "study" / "smallest"


@pytest.mark.slow
def test_the_smallest_table_is_whole_and_drawn_again_without_its_runs(smallest):
    folder = smallest
    first = content(folder, ".csv", ".md", ".png")
    names = ("scorers.csv", "scorers.md", "summary.csv", "summary.md", "dimensions.csv")
    names += ("dimensions.md", "prompts.csv", "curves.png", "radar.png", "pictures.png")
    assert first.keys() == {"table1.csv", *(f"table1_{name}" for name in names)}
    for arm in ("base", *table1.NAMES):
        assert f"\n| {arm} |" in first["table1_summary.md"].decode()
    shutil.rmtree(folder / "table1")
    for name in first.keys() - {"table1.csv", "table1_prompts.csv", "table1_pictures.png"}:
        (folder / name).unlink()
    table1.main(["--smallest"])
    assert content(folder, ".csv", ".md") == {k: v for k, v in first.items() if "png" not in k}
    assert content(folder, ".png").keys() == {name for name in first if name.endswith("png")}


@pytest.mark.slow
def test_the_smallest_longer_runs_are_whole(smallest):
    longer.main(["--smallest"])
    made = {name for name in content(smallest, ".csv", ".md", ".png") if "longer" in name}
    tables = {
        f"longer{name}.{kind}"
        for name in ("_arms", "_scorers", "_seeds", "_ways_summary")
        for kind in ("csv", "md")
    }
    lines = {f"longer{name}.csv" for name in ("", "_prompts", "_ways", "_ways_prompts")}
    assert made == tables | lines | {"longer_arms.png", "longer_ways.png"}
    told = (smallest / "longer_arms.md").read_text()
    assert all(f"\n| {arm} |" in told for arm in ("base", *longer.SHORT["longer_arms"]))


@pytest.mark.slow
def test_the_smallest_runs_under_the_kl_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kl.main(["--smallest"])
    made = content(tmp_path / "runs" / "study" / "smallest", ".csv", ".md", ".png")
    assert made.keys() == {f"kl{end}" for end in (".csv", ".png", *KL_TABLES)}
    assert made["kl_seeds.md"].count(b"\n| ") == 3


# ----------------------------------------------------------------------------- rewards


@pytest.fixture(scope="module")
def queries():
    """Every two of right, wrong and grainy pictures of one prompt, in both orders."""
    prompt, other = heldout_prompts()[:2]
    rng = np.random.default_rng(0)
    drawn = render([sample_scene(p, rng) for p in (prompt, prompt, other, other)])
    grained = (drawn + rng.normal(0, 4, drawn.shape)).clip(0, 255).astype(np.uint8)
    images = [Image.fromarray(picture) for picture in (*drawn, *grained)]
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt.text)
    return [Query((a, b), text) for a in images for b in images if a is not b]


def test_always_a_winner_and_the_exact_judges_where_it_names_one(queries):
    exact, forced = (
        [parse_verdict(answer.text) for answer in judge.ask(queries)]
        for judge in (ShapesMLLM(), table1.AlwaysAWinner())
    )
    assert exact.count(Verdict.TIE) > 4  # else the test asks nothing
    assert set(forced) == {Verdict.FIRST, Verdict.SECOND}
    assert all(f is e for f, e in zip(forced, exact) if e is not Verdict.TIE)
    again = [parse_verdict(answer.text) for answer in table1.AlwaysAWinner().ask(queries)]
    assert again == forced


def test_its_coin_favors_no_place(queries):
    """Of pictures that differ in nothing that it judges, the first one wins about half the time."""
    prompt, rng = heldout_prompts()[0], np.random.default_rng(1)
    (scene,) = render([sample_scene(prompt, rng)])
    blank = Image.fromarray(scene)
    dotted = []
    for n in range(64):  # one pixel, one level: no other reading
        pixels = scene.copy()
        pixels[n // 32, n % 32] ^= 1
        dotted.append(Image.fromarray(pixels))
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt.text)
    coin = table1.AlwaysAWinner()
    coin.JND = 10.0  # so that the coin decides
    said = [parse_verdict(a.text) for a in coin.ask([Query((blank, d), text) for d in dotted])]
    assert 20 <= said.count(Verdict.FIRST) <= 44


@pytest.mark.parametrize(
    "judge, loud",  # the mean square of advantages
    [(ShapesMLLM(), 0), (table1.AlwaysAWinner(), 1), (kl.SoftWinner(), 0.07)],
)
def test_a_second_order_does_not_quiet_a_coin_and_a_third_or_a_soft_answer_does(judge, loud):
    """Of pictures that do not differ, in groups of eight."""
    prompt, rng = heldout_prompts()[0], np.random.default_rng(2)
    (scene,) = render([sample_scene(prompt, rng)])
    groups = np.repeat(scene[None], 64, 0)
    groups[range(64), np.arange(64) // 32, np.arange(64) % 32] ^= 1  # one pixel, one level
    groups = [list(map(Image.fromarray, group)) for group in groups.reshape(8, 8, *scene.shape)]
    judge.JND = max(judge.JND, 0.1)  # more than such a pixel makes, so that a coin decides
    soft = isinstance(judge, kl.SoftWinner)
    reward = PairwiseReward(judge, soft=soft)([prompt.text] * 8, groups).values
    advantages = grpo.group_advantages(reward, parse_config([]).std_floor)
    size = advantages.square().mean().item()
    assert size == pytest.approx(loud, abs=0.03)


def test_the_arms_differ_in_the_reward_the_floor_and_the_kl_alone():
    folders = {name: ROOT / name for name in scorers.NAMES}
    arms = table1.arms_of(folders)
    under = [arm for some in kl.arms_of("") for arm in some]
    for arm in (*arms, *table1.slower(arms), *longer.all_arms(folders), *under):
        names = {flag.split("=")[0] for flag in arm.flags}
        mine = {"--lr": "1e-4", "--kl_coef": "KL"}  # flags that the name tells
        assert names <= {"--reward", "--std_floor"} | {f for f in mine if mine[f] in arm.name}
    assert not any("third" in flag or "fourth" in flag for arm in arms for flag in arm.flags)


# ----------------------------------------------------------------------------- learned scorers


@pytest.fixture(scope="module")
def shown():
    prompts = [prompt.text for prompt in heldout_prompts()[:48]]
    return scorers.choices(prompts, ShapesMLLM(), seed=3)


def test_choices_are_the_judges_and_ties_are_left_out(shown):
    assert 10 < len(shown.chosen) < 48 and set(shown.chosen) == {0, 1}
    texts = [PAIRWISE_TEMPLATE.replace("{prompt}", prompt) for prompt in shown.prompts]
    queries = [Query(images[::-1], text) for images, text in zip(shown.images, texts)]
    said = [parse_verdict(answer.text) for answer in ShapesMLLM().ask(queries)]
    assert [int(verdict is Verdict.FIRST) for verdict in said] == shown.chosen


def test_a_scorer_learns_the_choices_that_it_is_tuned_to(shown):
    scorer = CLIPScorer(scorers.CLIP)

    def right():
        one, two = (scorer.score(shown.prompts, images) for images in zip(*shown.images))
        return np.mean((np.array(two) > one) == np.array(shown.chosen))

    before = right()
    scorers.tuned(scorer, shown, 30, np.random.default_rng(0))
    assert right() > max(0.9, before)
    assert not any(weight.requires_grad for weight in scorer.model.parameters())


@pytest.mark.slow
def test_scorers_are_the_same_twice_and_not_alike(smallest, tmp_path):
    made = []
    for folder in (smallest / "scorers", tmp_path):
        folders = scorers.learned(folder, scorers.SMALLEST)
        made.append([(folder / "model.safetensors").read_bytes() for folder in folders.values()])
    assert made[0] == made[1]
    assert len(set(made[0])) == len(scorers.NAMES)


# ----------------------------------------------------------------------------- tables and curves


def test_a_fall_counts_only_below_the_best_and_outside_its_interval():
    steady = np.array([[0.5, 0.7, 0.69], [0.5, 0.7, 0.71], [0.5, 0.7, 0.66]])
    assert table1.fallen(steady) == []
    falling = np.array([[0.3, 0.7, 0.6, 0.4], [0.3, 0.7, 0.5, 0.41], [0.3, 0.7, 0.71, 0.42]])
    assert table1.fallen(falling) == [3]
    assert table1.fallen(falling[:1]) == []  # of one seed nothing is known


def test_what_two_scorers_give_is_their_mean():
    rows = [
        {"step": 0, "first": 1.0, "second": 3.0},
        {"step": 1, "first": None, "second": None},
        {"step": 2, "first": 2.0, "second": 5.0},
    ]
    assert table1.own(rows, "two scorers mixed") == ([0, 2], [2.0, 3.5])


# ----------------------------------------------------------------------------- STUDY.md


@pytest.fixture(scope="module")
def results():
    flags = table1.SIZES["full"].flags
    return [Table(RESULTS / f"{name}.csv", flags) for name in ("table1", "table1_prompts")]


def test_the_tables_are_remade_from_the_csvs(results):
    shown = {
        "summary": table1.summary_rows(*results, table1.NAMES),
        "slower": table1.summary_rows(*results, table1.SLOW),
        "dimensions": table1.dimensions(results[0]),
    }
    for name, rows in shown.items():
        assert summary.markdown(rows) == (RESULTS / f"table1_{name}.md").read_text()


def test_the_base_is_the_same_in_all_runs(results):
    lines, _ = results
    arms = (*table1.NAMES, *table1.SLOW)
    first = [lines.run(arm, seed)[0] for arm in arms for seed in lines.seeds(arm)]
    columns = ("heldout_accuracy", "heldout_render_error", *scorers.NAMES, "judge")
    for row in first:
        assert [row[c] for c in columns] == pytest.approx([first[0][c] for c in columns], rel=1e-4)


def test_the_longer_tables_are_remade_from_the_csvs():
    flags = (*table1.COMMON, *longer.STEPS["full"])
    tables = [Table(RESULTS / f"longer{end}.csv", flags) for end in ("", "_prompts")]
    for stem, arms in longer.FIGURES.items():
        rows = table1.summary_rows(*tables, arms, longer.BESIDE)
        assert summary.markdown(rows) == (RESULTS / f"{stem}.md").read_text()
    arms = [arm.name for arm in longer.all_arms(dict.fromkeys(scorers.NAMES))]
    rows = longer.of_seeds(tables[0], arms)
    assert longer.seeds_table(rows) == (RESULTS / "longer_seeds.md").read_text()
    rows = kl.rows_of(Table(RESULTS / "kl.csv", flags), RESULTS / "longer.csv")
    assert longer.seeds_table(rows) == (RESULTS / "kl_seeds.md").read_text()
    flags = (*longer.WAYS_COMMON, *longer.STEPS["full"])
    tables = [Table(RESULTS / f"longer_ways{end}.csv", flags) for end in ("", "_prompts")]
    rows = summary.summarize(*tables, longer.WAYS, five_ways.CURE)
    assert summary.markdown(rows) == (RESULTS / "longer_ways_summary.md").read_text()


def test_each_longer_arm_has_the_seeds_that_are_said():
    """A run that broke down is not left out, and none is made until it pleases."""
    flags = (*table1.COMMON, *longer.STEPS["full"])
    lines = Table(RESULTS / "longer.csv", flags)
    for arm in {name for arms in longer.FIGURES.values() for name in arms}:
        wanted = [*longer.SEEDS["full"], *(longer.MORE if arm in longer.JUDGED else ())]
        assert sorted(lines.seeds(arm)) == wanted, arm
