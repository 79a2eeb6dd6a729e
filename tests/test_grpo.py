"""Advantages against the paper's worked example, and the loss against its definition."""

import pytest
import torch

import grpo
import sampler

# The paper's figure: four images of one prompt.
HPS = ([0.3457, 0.3530, 0.3496, 0.3494], [-1.44, 1.39, 0.07, -0.01])
WIN_RATES = ([0.0, 2 / 3, 1.0, 1 / 3], [-1.34, 0.45, 1.34, -0.45])


@pytest.mark.parametrize("rewards, published", [HPS, WIN_RATES])
def test_the_papers_worked_example(rewards, published):
    advantages = grpo.group_advantages(torch.tensor([rewards]))
    # the figure rounds rewards and results: 0.46 there is 0.447 from the exact third
    assert torch.allclose(advantages, torch.tensor([published]), atol=0.02)


def test_a_group_without_spread_gets_exactly_zero():
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.5, 1.0]])
    advantages = grpo.group_advantages(rewards)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).sum() == 2
    assert (grpo.group_advantages(torch.full((2, 7), 0.3), std_floor=0.0) == 0).all()


def test_a_spread_below_the_floor_is_divided_by_the_floor():
    rewards = torch.tensor([[0.49, 0.51]])
    assert torch.allclose(
        grpo.group_advantages(rewards, std_floor=0.1), torch.tensor([[-0.1, 0.1]])
    )
    assert torch.allclose(
        grpo.group_advantages(rewards, std_floor=0.001), torch.tensor([[-1.0, 1.0]])
    )
    assert grpo.frac_floor(torch.tensor([[0.49, 0.51], [0.0, 1.0]]), 0.012) == 0.5


def test_one_decisive_pair_among_ties():
    rewards = torch.full((1, 8), 0.5)
    rewards[0, 0] += 0.5 / 7
    rewards[0, 1] -= 0.5 / 7
    assert grpo.group_advantages(rewards)[0, 0].item() == pytest.approx(2.0, abs=1e-4)
    sample = grpo.group_advantages(rewards)[0, 0].item() * (7 / 8) ** 0.5
    assert sample == pytest.approx(1.87, abs=0.01)  # with the sample deviation of the released code


def test_groups_are_normalised_apart():
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1], [2], [3], [4], [5]]
    )
    advantages = grpo.group_advantages(rewards)
    assert torch.allclose(advantages.mean(1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(advantages.std(1, correction=0), torch.ones(5), atol=1e-5)


def test_advantages_are_clipped():
    rewards = torch.zeros(1, 100)
    rewards[0, 0] = 1
    assert grpo.group_advantages(rewards)[0, 0] == 5.0
    assert grpo.group_advantages(-rewards)[0, 0] == -5.0  # on either side
    assert grpo.group_advantages(rewards, clip=20.0)[0, 0] > 9


@pytest.mark.parametrize("rewards", [torch.rand(8), torch.rand(4, 1)])
def test_advantages_reject_shapes(rewards):
    with pytest.raises(ValueError, match=r"\(P, G\) with G >= 2"):
        grpo.group_advantages(rewards)


def test_advantages_reject_nan():
    with pytest.raises(ValueError, match="NaN or infinity"):
        grpo.group_advantages(torch.tensor([[0.0, float("nan")]]))


def test_combined_rewards_weigh_alike_whatever_their_scale():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 8, generator=generator)
    small = grpo.combine_advantages({"a": a, "b": b}, {"a": 0.4, "b": 0.6})
    large = grpo.combine_advantages({"a": a, "b": 1000 * b}, {"a": 0.4, "b": 0.6})
    assert torch.allclose(small, large, atol=1e-4)
    assert small.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    for weight, other in ((1e-6, b), (1e6, a)):  # which of the two decides is the weights' doing
        decided = grpo.combine_advantages({"a": a, "b": b}, {"a": weight, "b": 1.0})
        assert torch.allclose(decided, grpo.combine_advantages({"c": other}, {"c": 1.0}), atol=1e-4)
    only = grpo.combine_advantages({"a": a}, {"a": 0.4})
    assert torch.allclose(only, grpo.group_advantages(a), atol=1e-5)
    with pytest.raises(ValueError, match="must name the same"):
        grpo.combine_advantages({"a": a}, {"b": 1.0})
    same = torch.full((2, 4), 0.5)
    assert (grpo.combine_advantages({"a": same}, {"a": 1.0}) == 0).all()


@pytest.mark.parametrize(
    "log_ratio, advantage, moves",
    [
        (0.0, 1.0, True),
        (0.0, -1.0, True),
        # the ratio rose: enough for a good image, not for a bad one
        (0.3, 1.0, False),
        (0.3, -1.0, True),
        (-0.3, 1.0, True),
        (-0.3, -1.0, False),
    ],
)
def test_the_gradient_vanishes_outside_the_clip_on_the_right_side_only(log_ratio, advantage, moves):
    ratio = torch.tensor([log_ratio], requires_grad=True)
    grpo.clipped_loss(ratio, torch.tensor([advantage]), 0.2).loss.backward()
    expected = -advantage * torch.tensor(log_ratio).exp().item() if moves else 0.0
    assert ratio.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [25.0, 100.0, 1e9, 3e38, -100.0, -3e38])
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


def test_guard_ratio_is_centred_and_scaled():
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
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, std.expand_as(mean)), normal(other, std.expand_as(mean))
    ).mean()
    assert torch.allclose(grpo.kl_to_reference(mean, other, std), expected, rtol=1e-5)
