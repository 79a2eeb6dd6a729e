"""Group-relative policy optimization: advantages, ratio, clipped loss, KL. No models, no images.

Pref-GRPO, arXiv 2508.20751: for each prompt, G images; the reward of an image is its win rate
within the group; the advantage is the reward normalized within the group; the objective is PPO's
clipped ratio, averaged over images and denoising steps, less a KL penalty to the reference model.

Departures from the released code: the population standard deviation (as in the paper's worked
example; the code uses the sample deviation); a std floor, so that a group whose images are all
alike is not blown up into advantages of size one (rewards.STD_FLOORS has each reward's). Log-probs
are means over latent elements, so a clip range means the same at every resolution.

    advantages = group_advantages(rewards)                                 # (P, G) -> (P, G)
    loss = clipped_loss(log_ratio, advantages.flatten(), clip_range=1e-4).loss
"""

from typing import NamedTuple

import torch

LARGEST = 20.0  # of a log ratio


class Loss(NamedTuple):
    loss: torch.Tensor  # scalar, to descend
    ratio_mean: torch.Tensor  # scalars without gradient
    ratio_min: torch.Tensor
    ratio_max: torch.Tensor
    clip_frac: torch.Tensor  # share of samples whose ratio left the clip range


def group_advantages(
    rewards: torch.Tensor, std_floor: float = 0.0, clip: float = 5.0
) -> torch.Tensor:
    """Rewards (P, G) normalized within each group: (P, G) float32, by its population std, clipped.

    The std that divides is at least std_floor, in the units of the rewards (0: the paper's z-score,
    without a floor); a group without any spread gets exactly 0.
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


def frac_floor(rewards: torch.Tensor, std_floor: float) -> float:
    """Share of groups whose std is below the floor, which divides in its place, or is exactly 0."""
    std = rewards.float().double().std(1, correction=0)
    return (std < max(std_floor, 1e-12)).float().mean().item()


def combine_advantages(
    rewards: dict[str, torch.Tensor],
    weights: dict[str, float],
    std_floor: float | dict[str, float] = 0.0,
    clip: float = 5.0,
) -> torch.Tensor:
    """Several rewards, each (P, G): normalize each in its group, weigh, add, normalize over
    the batch.

    Released FLUX recipe, its `gdpo` switch: 0.4 pairwise + 0.6 CLIP. std_floor: a number for all,
    or one for each reward, in its own units. The last division has a floor too, the std that
    unrelated rewards of full size would have, sqrt(sum w^2): else it would undo theirs, and blow a
    batch without a real difference up to full size after all.
    Raises ValueError if the names of rewards, weights and floors differ.
    """
    if not isinstance(std_floor, dict):
        std_floor = dict.fromkeys(rewards, std_floor)
    if not rewards or not rewards.keys() == weights.keys() == std_floor.keys():
        raise ValueError(
            f"rewards {sorted(rewards)}, weights {sorted(weights)} and floors {sorted(std_floor)} "
            "must name the same"
        )
    total = sum(w * group_advantages(rewards[n], std_floor[n], clip) for n, w in weights.items())
    least = sum(weight**2 for weight in weights.values()) ** 0.5
    std = total.std(correction=0).clamp(min=least)
    return ((total - total.mean()) / std).clamp(-clip, clip)


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
