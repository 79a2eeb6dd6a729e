"""Group-relative policy optimization: advantages, ratio, clipped loss, KL. No models, no images.

Pref-GRPO, arXiv 2508.20751: for each prompt, G images; the reward of an image is its win rate
within the group; the advantage is the reward normalized within the group; the objective is PPO's
clipped ratio, averaged over images and denoising steps, less a KL penalty to the reference model.

Departures from the released code: the population standard deviation (as in the paper's worked
example; the code uses the sample deviation); a floor under it, so that a group whose images are all
alike is not blown up into advantages of size one. Log-probs are means over latent elements, so
a clip range means the same at every resolution.

    advantages = group_advantages(rewards)                                 # (P, G) -> (P, G)
    loss = clipped_loss(log_ratio, advantages.flatten(), clip_range=1e-4).loss
"""

from typing import NamedTuple

import torch

# below the spread of any published scorer (HPS: 0.0026); train.py sets it by reward
STD_FLOOR = 1e-3
LARGEST = 20.0  # of a log ratio


class Loss(NamedTuple):
    loss: torch.Tensor  # scalar, to descend
    ratio_mean: torch.Tensor  # scalars without gradient
    ratio_min: torch.Tensor
    ratio_max: torch.Tensor
    clip_frac: torch.Tensor  # share of samples whose ratio left the clip range


def group_advantages(
    rewards: torch.Tensor, std_floor: float = STD_FLOOR, clip: float = 5.0
) -> torch.Tensor:
    """Rewards (P, G) normalized within each group: (P, G) float32, population deviation, clipped.

    The deviation is no smaller than std_floor; a group without any spread gets exactly 0.
    Raises ValueError for rewards that are not (P, G) with G >= 2, or not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be (P, G) with G >= 2, got shape {tuple(rewards.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError(
            "rewards hold NaN or infinity; leave lost comparisons out before this point"
        )
    rewards = rewards.float().double()  # exact sums: equal rewards center to exactly 0
    std = rewards.std(1, correction=0, keepdim=True).clamp(min=max(std_floor, 1e-12))
    return ((rewards - rewards.mean(1, keepdim=True)) / std).clamp(-clip, clip).float()


def frac_floor(rewards: torch.Tensor, std_floor: float = STD_FLOOR) -> float:
    """Share of groups whose deviation is below the floor: they teach little or nothing."""
    return (rewards.std(1, correction=0) < std_floor).float().mean().item()


def combine_advantages(
    rewards: dict[str, torch.Tensor],
    weights: dict[str, float],
    std_floor: float = STD_FLOOR,
    clip: float = 5.0,
) -> torch.Tensor:
    """Several rewards, each (P, G): normalize each in its group, weigh, add, normalize over
    the batch.

    Released FLUX recipe, its `gdpo` switch: 0.4 pairwise + 0.6 CLIP. The floor applies to each
    reward in its own units, as a share of that reward's spread over the batch, since scales differ.
    Raises ValueError if the names of rewards and weights differ.
    """
    if rewards.keys() != weights.keys() or not rewards:
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same"
        )
    total = sum(
        weights[name] * group_advantages(r, std_floor * r.double().std(correction=0).item(), clip)
        for name, r in rewards.items()
    )
    std = total.std(correction=0)
    return ((total - total.mean()) / std if std > 0 else torch.zeros_like(total)).clamp(-clip, clip)


def clipped_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> Loss:
    """PPO's pessimistic clipped objective, as a loss: mean of max(-A ratio, -A clip(ratio)).

    log_ratio: (b,) log of the step's probability now over that in the rollout, one (sample, step)
    each; advantages: (b,). The gradient of a sample vanishes where its ratio has already moved past
    the clip range in the direction that its advantage asks for, and only there. Above e^20 a ratio
    grows no more, so that neither it nor its gradient overflows.
    """
    now = log_ratio.detach()
    ratio = torch.exp(now.clamp(max=LARGEST) + (log_ratio - now))  # + 0, which has the gradient
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range).float().mean()
        return Loss(loss, ratio.mean(), ratio.min(), ratio.max(), outside)


def normalized_log_ratio(step, old_step) -> torch.Tensor:
    """GRPO-Guard's log ratio (b,): centred and brought to one scale across steps.

    A small policy update shifts log_prob - old_log_prob downwards by mean((mean - old_mean)^2) /
    (2 step_std^2) on average, and by more at steps of small noise; adding the shift back and
    multiplying by step_std makes one clip range fit all steps. The loss is to be divided by
    -dsigma.
    Released code: `rationorm`. step, old_step: sampler.Step with mean (b, N, C), std (b, 1, 1).
    """
    shift = (step.mean - old_step.mean).square().mean((1, 2)) / (2 * step.std.flatten().square())
    return (step.log_prob - old_step.log_prob + shift) * step.std.flatten()


def kl_to_reference(mean: torch.Tensor, ref_mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL between two Gaussian steps of equal std, in nats per latent element, averaged: a scalar.

    mean, ref_mean: (b, N, C); std: (b, 1, 1) or a number.
    """
    return ((mean - ref_mean).square() / (2 * torch.as_tensor(std) ** 2)).mean()
