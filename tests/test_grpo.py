"""Advantages against the paper's worked example, and the loss against its definition."""

import math
from collections import Counter

import pytest
import torch

import grpo
import rewards
import sampler
import train
from judges.scorers import PUBLISHED
from training.config import Config

# The paper's figure: four images of one prompt.
HPS = ([0.3457, 0.3530, 0.3496, 0.3494], [-1.44, 1.39, 0.07, -0.01])
WIN_RATES = ([0.0, 2 / 3, 1.0, 1 / 3], [-1.34, 0.45, 1.34, -0.45])


@pytest.mark.parametrize("scores, published", [HPS, WIN_RATES])
def test_the_papers_worked_example(scores, published):
    # by train.py's own floor, of --reward pointwise; win rates have the same by theirs
    scored = {"pointwise": rewards.Rewards(torch.tensor([scores]), Counter())}
    advantages, _ = train.normalize(scored, {}, Config().std_floor, 5.0)
    # the figure rounds rewards and results: 0.46 there is 0.447 from the exact third
    assert torch.allclose(advantages, torch.tensor([published]), atol=0.02)


ONE_OF_MANY = torch.eye(100)[:1]


@pytest.mark.parametrize(
    "values, settings, expected",
    [
        ([[0.1, 0.1, 0.1], [0.0, 0.5, 1.0]], {}, [[0, 0, 0], [-(1.5**0.5), 0, 1.5**0.5]]),
        ([[0.3] * 7] * 2, {}, [[0] * 7] * 2),
        ([[0.49, 0.51]], dict(std_floor=0.1), [[-0.1, 0.1]]),  # below the floor, which divides
        ([[0.49, 0.51]], dict(std_floor=0.001), [[-1, 1]]),
        # one decisive pair among ties: 2, and 1.87 with the released code's sample deviation
        ([[4 / 7, 3 / 7, *[0.5] * 6]], {}, [[2, -2, *[0] * 6]]),
    ],
)
def test_each_group_is_normalized_by_its_own_std(values, settings, expected):
    advantages = grpo.group_advantages(torch.tensor(values), **settings)
    expected = torch.tensor(expected).float()
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=1e-5)
    assert (advantages[(expected == 0).all(1)] == 0).all()  # without a spread, exactly


def test_advantages_are_clipped_on_either_side():
    assert grpo.group_advantages(ONE_OF_MANY)[0, 0] == 5.0
    assert grpo.group_advantages(-ONE_OF_MANY)[0, 0] == -5.0
    assert grpo.group_advantages(ONE_OF_MANY, clip=20.0)[0, 0] > 9


def test_the_share_of_groups_below_the_floor():
    assert grpo.frac_floor(torch.tensor([[0.49, 0.51], [0.0, 1.0]]), 0.012) == 0.5
    assert grpo.frac_floor(torch.tensor([[0.3] * 7, [0.0] * 6 + [1e-6]]), 0.0) == 0.5


@pytest.mark.parametrize(
    "values, said",
    [
        (torch.rand(8), r"\(P, G\) with G >= 2"),
        (torch.rand(4, 1), r"\(P, G\) with G >= 2"),
        (torch.tensor([[0.0, math.nan]]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_normalized_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        grpo.group_advantages(values)


def test_combined_rewards_weigh_alike_whatever_their_scale():
    a, b = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
    small = grpo.combine_advantages({"a": a, "b": b}, {"a": 0.4, "b": 0.6})
    large = grpo.combine_advantages({"a": a, "b": 1000 * b}, {"a": 0.4, "b": 0.6})
    assert torch.allclose(small, large, atol=1e-4)
    assert 0.9 < small.std(correction=0) < 1.1
    for weight, other in ((1e-6, b), (1e6, a)):  # which of the two decides is the weights' doing
        decided = grpo.combine_advantages({"a": a, "b": b}, {"a": weight, "b": 1.0})
        assert torch.allclose(decided, grpo.combine_advantages({"c": other}, {"c": 1.0}), atol=1e-4)
    only = grpo.combine_advantages({"a": a}, {"a": 0.4})
    assert torch.allclose(only, grpo.group_advantages(a), atol=1e-5)
    same = torch.full((2, 4), 0.5)
    assert (grpo.combine_advantages({"a": same}, {"a": 1.0}) == 0).all()
    for weights, floors in (({"b": 1.0}, 0.0), ({"a": 1.0}, {"b": 1.0})):
        with pytest.raises(ValueError, match="must name the same"):
            grpo.combine_advantages({"a": a}, weights, floors)


RECIPE = {"pairwise": 0.4, "clip": 0.6}


@pytest.mark.parametrize(
    ("spread", "least", "most"), [(1e-6, 0, 1e-4), (1e-3, 0.02, 0.05), (0.05, 1.0, 2.5)]
)
def test_a_mixture_leaves_a_difference_below_the_floor_small(spread, least, most):
    """The recipe's: four groups of eight, all pairs tied, CLIP scores that differ by little or
    much."""
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    scored = {"pairwise": torch.full((4, 8), 0.5), "clip": 28 + spread * noise}
    advantages = grpo.combine_advantages(scored, RECIPE, rewards.std_floors(RECIPE))
    assert least <= advantages.abs().max() < most
    # one group that is decided is learned from, and the others do not grow by it
    scored["pairwise"][0] = torch.linspace(0, 1, 8)
    decided = grpo.combine_advantages(scored, RECIPE, rewards.std_floors(RECIPE))
    assert decided[0].abs().max() > 0.58
    torch.testing.assert_close(decided[1:], advantages[1:], atol=0.05, rtol=0)


def test_the_last_division_of_a_mixture_is_by_the_larger_of_two():
    """At the boundary: rewards of full size that are one and the same have a std of 1, unrelated
    ones sqrt(sum w^2), and what is less than that is not blown up to it."""
    up, across = torch.tensor([[1.0, 1, -1, -1]]), torch.tensor([[1.0, -1, 1, -1]])
    full = sum(w**2 for w in RECIPE.values()) ** 0.5
    for other, std in ((up, 1.0), (across, full), (-up, 0.2), (0 * up, 0.4)):
        mixed = grpo.combine_advantages({"pairwise": up, "clip": other}, RECIPE)
        assert mixed.std(correction=0).item() == pytest.approx(std / max(std, full))
    clipped = grpo.combine_advantages({"pairwise": up, "clip": up}, RECIPE, clip=0.9)
    assert clipped.abs().max() == pytest.approx(0.9)


def test_a_floor_belongs_to_its_reward():
    a, b = torch.tensor([[0.0, 0.02]]), torch.tensor([[0.0, 2.0]])
    mixed = grpo.combine_advantages({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 1.0})
    torch.testing.assert_close(mixed, torch.tensor([[-1.1, 1.1]]) / 2**0.5)
    assert rewards.std_floors(["pairwise", "clip"], 0.2) == {"pairwise": 0.2, "clip": 0.2}
    assert set(rewards.STD_FLOORS) == {*rewards.JUDGED, *PUBLISHED}


@pytest.mark.parametrize("log_ratio", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_gradient_vanishes_outside_the_clip_on_the_right_side_only(log_ratio, advantage):
    ratio = torch.tensor([log_ratio], requires_grad=True)
    grpo.clipped_loss(ratio, torch.tensor([advantage]), 0.2).loss.backward()
    moves = log_ratio * advantage <= 0  # a risen ratio is enough for a good image, not for a bad
    assert ratio.grad.item() == pytest.approx(-advantage * math.exp(log_ratio) if moves else 0.0)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [25.0, 3e38, -3e38])
def test_a_sample_far_past_the_clip_has_a_finite_gradient(log_ratio, advantage):
    ratio = torch.tensor([log_ratio, 0.0], requires_grad=True)
    loss = grpo.clipped_loss(ratio, torch.tensor([advantage, 1.0]), 1e-4)
    loss.loss.backward()
    assert torch.isfinite(torch.stack(loss)).all() and torch.isfinite(ratio.grad).all()
    pulled_back = advantage < 0 < log_ratio  # likelier by far, and bad: pulled with all its might
    assert (ratio.grad[0] > 1e6) if pulled_back else (ratio.grad[0].abs() < 1e-30)
    assert ratio.grad[1] == -0.5  # and the others learn as ever


def test_loss_statistics():
    loss = grpo.clipped_loss(torch.tensor([0.5, -0.5, 0.1]).log1p(), torch.ones(3), 0.2)
    assert loss.loss.item() == pytest.approx(-(1.2 + 0.5 + 1.1) / 3)
    assert [x.item() for x in loss[1:]] == pytest.approx([3.1 / 3, 0.5, 1.5, 2 / 3])


def test_guard_ratio_is_centered_and_scaled():
    """Under a moved mean the log ratio is biased. This one is linear in the noise that was drawn,
    and so 0 on average, and it is as large for a small noise as for a large one."""
    noise, moved = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0]).view(-1, 1, 1)

    def step(mean):
        log_prob = torch.distributions.Normal(mean, std).log_prob(std * noise).mean((1, 2))
        return sampler.Step(std * noise, log_prob, mean, std)

    old = step(torch.zeros(5, 4, 8))
    guarded = grpo.normalized_log_ratio(step(moved), old)
    torch.testing.assert_close(guarded, (noise * moved).mean((1, 2)), atol=1e-4, rtol=1e-4)
    assert (grpo.normalized_log_ratio(old, old) == 0).all()


def test_kl_matches_torch():
    mean, other, std = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.rand(3, 1, 1) + 0.5
    now, base = (torch.distributions.Normal(m, std.expand_as(m)) for m in (mean, other))
    expected = torch.distributions.kl_divergence(now, base).mean()
    assert torch.allclose(grpo.kl_to_reference(mean, other, std), expected, rtol=1e-5)
