"""Table 1 in kind, and its arms for longer: scorers learn from choices and err; a judge that always
names a winner is the exact judge where that one names one."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import grpo
from judges.answers import Verdict, parse_verdict
from judges.mllm import Query
from judges.scorers import CLIPScorer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import STD_FLOORS, PairwiseReward
from shapes.prompts import heldout_prompts, sample_scene
from shapes.render import render
from shapes.verifier import ShapesMLLM
from study import kl, longer, scorers, table1


def verdicts(judge, queries):
    return [parse_verdict(answer.text) for answer in judge.ask(queries)]


def alike(count):
    """A prompt and images of it that differ by one level in one pixel."""
    prompt = heldout_prompts()[0]
    images = np.repeat(render([sample_scene(prompt, np.random.default_rng(2))]), count, 0)
    images[range(count), np.arange(count) // 32, np.arange(count) % 32] ^= 1
    return prompt.text, list(map(Image.fromarray, images))


def test_always_a_winner_and_the_exact_judges_where_it_names_one():
    """Every two of right, wrong and grainy images of one prompt, in both orders."""
    prompt, other = heldout_prompts()[:2]
    rng = np.random.default_rng(0)
    drawn = render([sample_scene(p, rng) for p in (prompt, prompt, other, other)])
    grained = (drawn + rng.normal(0, 4, drawn.shape)).clip(0, 255).astype(np.uint8)
    images = [Image.fromarray(image) for image in (*drawn, *grained)]
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt.text)
    queries = [Query((a, b), text) for a in images for b in images if a is not b]
    exact, forced = (verdicts(judge, queries) for judge in (ShapesMLLM(), table1.AlwaysAWinner()))
    assert exact.count(Verdict.TIE) > 4  # else the test asks nothing
    assert set(forced) == {Verdict.FIRST, Verdict.SECOND}
    assert all(f is e for f, e in zip(forced, exact) if e is not Verdict.TIE)
    assert verdicts(table1.AlwaysAWinner(), queries) == forced


def test_its_coin_favors_no_place():
    prompt, (first, *others) = alike(65)
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt)
    coin = table1.AlwaysAWinner()
    coin.JND = 10.0  # so that the coin decides
    given = verdicts(coin, [Query((first, other), text) for other in others])
    assert 20 <= given.count(Verdict.FIRST) <= 44


@pytest.mark.parametrize(
    "judge, mean_square",  # of advantages
    [(ShapesMLLM(), 0), (table1.AlwaysAWinner(), 1), (kl.SoftWinner(), 0.07)],
)
def test_a_second_order_does_not_quiet_a_coin_and_a_third_or_a_soft_answer_does(judge, mean_square):
    """Of images that do not differ, in groups of eight."""
    prompt, images = alike(64)
    groups = [images[n : n + 8] for n in range(0, 64, 8)]
    judge.JND = max(judge.JND, 0.1)  # more than such a pixel makes, so that a coin decides
    soft = isinstance(judge, kl.SoftWinner)
    values = PairwiseReward(judge, soft=soft)([prompt] * 8, groups).values
    advantages = grpo.group_advantages(values, STD_FLOORS["pairwise"])
    assert advantages.square().mean().item() == pytest.approx(mean_square, abs=0.03)


def test_the_arms_differ_in_the_reward_the_floor_and_the_kl_alone():
    folders = {name: ROOT / name for name in scorers.NAMES}
    arms = table1.arms_of(folders)
    under = [arm for some in kl.arms_of("") for arm in some]
    for arm in (*arms, *table1.slower(arms), *longer.all_arms(folders), *under):
        names = {flag.split("=")[0] for flag in arm.flags}
        mine = {"--lr": "1e-4", "--kl_coef": "KL"}  # flags that the name tells
        assert names <= {"--reward", "--std_floor"} | {f for f in mine if mine[f] in arm.name}
    assert not any("third" in flag or "fourth" in flag for arm in arms for flag in arm.flags)


def test_what_two_scorers_give_is_their_mean():
    rows = [
        {"step": 0, "first": 1.0, "second": 3.0},
        {"step": 1, "first": None, "second": None},
        {"step": 2, "first": 2.0, "second": 5.0},
    ]
    assert table1.own(rows, "two scorers mixed") == ([0, 2], [2.0, 3.5])


# ----------------------------------------------------------------------------- learned scorers


@pytest.fixture(scope="module")
def shown():
    prompts = [prompt.text for prompt in heldout_prompts()[:48]]
    return scorers.choices(prompts, ShapesMLLM(), seed=3)


def test_choices_are_the_judges_and_ties_are_left_out(shown):
    assert 10 < len(shown.chosen) < 48 and set(shown.chosen) == {0, 1}
    texts = [PAIRWISE_TEMPLATE.replace("{prompt}", prompt) for prompt in shown.prompts]
    swapped = [Query(images[::-1], text) for images, text in zip(shown.images, texts)]
    given = verdicts(ShapesMLLM(), swapped)
    assert [int(verdict is Verdict.FIRST) for verdict in given] == shown.chosen


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
def test_scorers_are_the_same_twice_and_not_alike(tmp_path):
    made = []
    for root in (tmp_path / "a", tmp_path / "b"):
        folders = scorers.learned(root, scorers.SMALLEST)
        made.append([(folder / "model.safetensors").read_bytes() for folder in folders.values()])
    assert made[0] == made[1]
    assert len(set(made[0])) == len(scorers.NAMES)
