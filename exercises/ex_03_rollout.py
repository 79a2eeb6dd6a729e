"""Exercise 3: draw pictures while writing down every step, and score the steps again. 25 minutes.

A rollout is one walk from noise to the clean latents of a picture. Its stochastic steps are what
the policy did, and training makes them more or less probable. To know how much, each of them is
scored a second time under the weights as they are by then; this is called replay:

    ratio = exp(log_prob under the present weights - log_prob in the rollout)

As long as the weights have not changed, every ratio is exactly 1. A ratio that is off by a
thousandth there is a defect: the released recipe for FLUX treats a ten-thousandth as a large change
(exercise 7). So rollout and replay do the very same arithmetic on the very same numbers: both call
`sde_step` of exercise 2.

The paper: flow matching as a decision process, with its states, actions and trajectories.

    python -m pytest exercises/test_03_rollout.py
"""

from collections.abc import Callable

import torch

from exercises.checks import student
from sampler import Step, Trajectory

sde_step = student("sde_step")  # yours of exercise 2 if it passes its checks, else ours


def trajectory_of(latents: list, steps: list[Step], sigmas, noise_level) -> Trajectory:
    """Given: a list of K + 1 latents and a list of K steps, as a Trajectory. Of its parts you need

    latents (K + 1, B, N, C): what each step begins with, and at the end the clean latents
    log_probs (K, B): 0 for the last step, which is an Euler step
    sigmas (K + 1,) and noise_level, as they were given
    """
    _, *scored = (torch.stack(parts) for parts in zip(*steps))  # log_probs, means, stds
    stochastic = tuple(range(len(steps) - 1))
    return Trajectory(torch.stack(latents), *scored, sigmas, stochastic, noise_level, "flow")


@torch.no_grad()
def rollout(
    velocity_fn: Callable,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    noise_level: float,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Draws B pictures at once, and keeps each step: trajectory_of(latents, steps, ...).

    velocity_fn: the network, velocity_fn(latents (B, N, C), sigma (B,)) -> velocity (B, N, C); its
    second argument holds the same sigma B times
    noise: (B, N, C), the latents with which the first step begins; sigmas: (K + 1,)

    The list of latents begins with the noise. Step k, for k = 0, 1, ... K - 1: ask the network for
    the velocity at the latents and the sigma with which the step begins; let

        sde_step(latents, velocity, sigmas, k, noise_level, generator=generator)

    draw; its next_latents are what step k + 1 begins with.

    Hint: sigmas[k].expand(B) holds one sigma B times. `@torch.no_grad()` above is meant: the
    rollout needs no gradient, and without one it need not keep what the network computed within.
    """
    raise NotImplementedError


def replay(velocity_fn: Callable, trajectory: Trajectory, index: int) -> Step:
    """Scores the stored step number `index` under the present weights, with gradient.

    Nothing is drawn: the network is asked again about the stored latents with which the step
    began, at the same sigma, and sde_step is told by next_latents=... which latents came next.
    Returns sde_step's Step; its log_prob has a gradient that reaches the network's weights.
    """
    raise NotImplementedError
