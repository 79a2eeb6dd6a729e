"""The arms of judging.py, table1.py, longer.py and kl.py: they differ in what they say and nothing
else, judges err as they claim, scorers learn from choices and err."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import grpo
from judges.answers import Verdict, parse_verdict
from judges.mllm import Query
from judges.scorers import CLIPScorer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import STD_FLOORS, PairwiseReward
from shapes.grammar import parse_prompt
from shapes.prompts import heldout_prompts, sample_scene
from shapes.render import render
from shapes.verifier import ShapesMLLM
from study import dropped, estimators, judging, kinds, kl, longer, scorers, table1

PROMPT, OTHER = heldout_prompts()[:2]
TEXT = PAIRWISE_TEMPLATE.replace("{prompt}", PROMPT.text)


def verdicts(judge, queries):
    return [parse_verdict(answer.text) for answer in judge.ask(queries)]


def pixels_of(*prompts, seed=0):
    rng = np.random.default_rng(seed)
    return render([sample_scene(prompt, rng) for prompt in prompts])


def grained(pixels, level):
    grain = np.random.default_rng(0).normal(0, level, pixels.shape)
    return (pixels + grain).clip(0, 255).astype(np.uint8)


def alike(count):
    """Images of the prompt that differ by one level in one pixel."""
    images = np.repeat(pixels_of(PROMPT, seed=2), count, 0)
    images[range(count), np.arange(count) // 32, np.arange(count) % 32] ^= 1
    return list(map(Image.fromarray, images))


# ----------------------------------------------------------------------------- setups and arms


@pytest.mark.parametrize("size", ["full", "quick"])
def test_every_setup_spends_the_budget_and_no_more(size):
    budget = judging.BUDGETS[size]
    for name, setup in judging.SETUPS.items():
        a_step = budget.groups * setup.reward().calls(budget.group_size)
        assert 0 <= budget.calls - budget.steps(setup) * a_step < a_step, name
    both, one = (judging.SETUPS[f"100 % right, {order}"] for order in judging.ORDERS)
    assert budget.steps(one) == 2 * budget.steps(both)


def test_each_contrast_is_of_setups_that_differ_in_one_thing():
    for name, other in judging.CONTRASTS.items():
        one, two = judging.SETUPS[name], judging.SETUPS[other]
        assert sum(a != b for a, b in zip(one, two)) == 1


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
    columns = {"first": (1.0, None, 2.0), "second": (3.0, None, 5.0)}
    rows = [{"step": n} | {key: column[n] for key, column in columns.items()} for n in range(3)]
    assert table1.own(rows, "two scorers mixed") == ([0, 2], [2.0, 3.5])


# ----------------------------------------------------------------------------- estimators


def rewards_of(images):
    """What each estimator makes of one group."""
    for name, estimator in estimators.ESTIMATORS.items():
        yield name, estimator.floor, estimator.reward()([PROMPT.text], [images]).values


def test_bias_alone_decides_between_right_images_unless_they_tie():
    """Images in all of which the demands are met; a grain tells them apart."""
    images = list(map(Image.fromarray, grained(pixels_of(*[PROMPT] * 6), 3)))
    values = {name: rewards for name, _, rewards in rewards_of(images)}
    ranks = values["plain ranks"]
    assert torch.equal(ranks.argsort(), values["z-scores"].argsort())
    assert sorted(ranks[0].tolist()) == pytest.approx([k / 5 for k in range(6)])
    assert values["ranks with ties"].tolist() == [[0.5] * 6]
    # Accuracy decides before it: the wrong image is as vivid as an image can be.
    images[5] = Image.new("RGB", (32, 32), (255, 0, 0))
    for _, floor, rewards in rewards_of(images):
        advantages = grpo.group_advantages(rewards, floor)[0]
        assert advantages.argmin() == 5 and advantages[5] < 0


# ----------------------------------------------------------------------------- judges that err


@pytest.fixture(scope="module")
def pairs():
    """200 times an image of the prompt and one of another, each with a grain of its own."""
    shown = grained(np.broadcast_to(pixels_of(PROMPT, OTHER), (200, 2, 32, 32, 3)), 2)
    return [tuple(map(Image.fromarray, two)) for two in shown]


@pytest.mark.parametrize(
    "setup, right, tied",
    [
        (judging.Setup(0.8, both_orders=False), 0.8, 0),
        (judging.Setup(0.6), 0.36, 0.48),  # the two orders err independently
        (judging.Setup(first_bias=0.5, both_orders=False), 1, 0),  # the right one is shown first
        (judging.Setup(first_bias=0.5), 0.5, 0.5),
    ],
)
def test_a_judge_errs_as_often_as_it_claims(pairs, setup, right, tied):
    points = [judging.first_points(setup.reward(), pair, TEXT) for pair in pairs]
    spread = 4 * 0.5 / len(points) ** 0.5
    assert np.mean([p == 1 for p in points]) == pytest.approx(right, abs=spread)
    assert np.mean([p == 0.5 for p in points]) == pytest.approx(tied, abs=spread)


def test_always_a_winner_and_the_exact_judges_where_it_names_one():
    """Every two of right, wrong and grainy images of one prompt, in both orders."""
    drawn = pixels_of(PROMPT, PROMPT, OTHER, OTHER)
    images = [Image.fromarray(image) for image in (*drawn, *grained(drawn, 4))]
    queries = [Query((a, b), TEXT) for a in images for b in images if a is not b]
    exact, forced = (verdicts(judge, queries) for judge in (ShapesMLLM(), table1.AlwaysAWinner()))
    assert exact.count(Verdict.TIE) > 4  # else the test asks nothing
    assert set(forced) == {Verdict.FIRST, Verdict.SECOND}
    assert all(f is e for f, e in zip(forced, exact) if e is not Verdict.TIE)
    assert verdicts(table1.AlwaysAWinner(), queries) == forced


def test_its_coin_favors_no_place():
    first, *others = alike(65)
    coin = table1.AlwaysAWinner()
    coin.JND = 10.0  # so that the coin decides
    given = verdicts(coin, [Query((first, other), TEXT) for other in others])
    assert 20 <= given.count(Verdict.FIRST) <= 44


@pytest.mark.parametrize(
    "judge, mean_square",  # of advantages
    [(ShapesMLLM(), 0), (table1.AlwaysAWinner(), 1), (kl.SoftWinner(), 0.07)],
)
def test_a_second_order_does_not_quiet_a_coin_and_a_third_or_a_soft_answer_does(judge, mean_square):
    """Of images that do not differ, in groups of eight."""
    images = alike(64)
    groups = [images[n : n + 8] for n in range(0, 64, 8)]
    judge.JND = max(judge.JND, 0.1)  # more than such a pixel makes, so that a coin decides
    soft = isinstance(judge, kl.SoftWinner)
    values = PairwiseReward(judge, soft=soft)([PROMPT.text] * 8, groups).values
    advantages = grpo.group_advantages(values, STD_FLOORS["pairwise"])
    assert advantages.square().mean().item() == pytest.approx(mean_square, abs=0.03)


@pytest.mark.parametrize("drop", [False, True])
def test_groups_without_a_difference_are_known_and_dropped_where_asked(drop):
    """A judge that must name a winner ranks both groups; only the first has a difference."""
    same, wrong = alike(8), Image.new("RGB", (32, 32))
    judge = dropped.Dropping(drop)
    values = judge([PROMPT.text] * 2, [[wrong, *same[1:]], same]).values
    assert judge.flat.tolist() == [False, True]
    different, same = values.std(1, correction=0).tolist()
    assert different > 0.15 and (same == 0 if drop else same > dropped.FLOOR)


def test_a_run_on_one_kind_sees_no_other():
    for arm in kinds.ARMS:
        run = SimpleNamespace(prompts=None)
        arm.prepare(run)
        texts = run.prompts.train if run.prompts else []
        assert {parse_prompt(text).kind for text in texts} <= {arm.name} and not arm.flags
        assert bool(texts) is (arm.name != kinds.ALL)


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


@pytest.mark.slow
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
