"""The sampler: a flow-matching ODE turned into an SDE whose every step is a Gaussian policy.

A flow-matching model predicts `velocity = noise - clean` on
`latents = (1 - sigma) clean + sigma noise`. Following it down from sigma = 1 to 0 is an ODE.
Flow-GRPO and DanceGRPO add noise to each step and a drift that undoes the noise's effect on the
marginals: then one denoising step is a draw from a Gaussian whose density is known, which is what
GRPO needs ("flow matching as a decision process").

Symbols elsewhere -> here:

    paper, Flow-GRPO    t in [0, 1]   dt                   a             x_{t+dt}      x_0
    DanceGRPO code      sigma         dsigma               eta           prev_sample   pred_original
    diffusers           sigma         sigma_next - sigma   -             prev_sample   -
    here                sigma         dsigma (negative)    noise_level   next_latents  clean

Axes: B samples, K steps, N latent tokens, C channels. Arithmetic is float32 for any model's dtype.
Departure from the released code: one explicit sigma table serves rollout, replay and evaluation,
indexed by step; the last step is an ODE step, which yields exactly the predicted clean latents (the
released code decodes those same latents and drops the last transition from training).

    trajectory = rollout(velocity_fn, noise, sigma_schedule(6), noise_level=0.7)
    step = replay(velocity_fn, trajectory, index=2)  # scored again, with gradient
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Step(NamedTuple):
    next_latents: torch.Tensor  # (B, N, C)
    log_prob: torch.Tensor  # (B,) nats per latent element; 0 for an ODE step
    mean: torch.Tensor  # (B, N, C)
    std: torch.Tensor  # (B, 1, 1) step_std, the factor sqrt(-dsigma) included; 0 for an ODE step


class Trajectory(NamedTuple):
    latents: torch.Tensor  # (K+1, B, N, C), noise first
    log_probs: torch.Tensor  # (K, B)
    means: torch.Tensor  # (K, B, N, C)
    stds: torch.Tensor  # (K, B, 1, 1)
    sigmas: torch.Tensor  # (K+1,)
    sde_steps: tuple[int, ...]  # the stochastic steps, ascending
    noise_level: float
    kind: str

    @property
    def clean(self) -> torch.Tensor:
        """What is decoded and judged, (B, N, C)."""
        return self.latents[-1]

    def step(self, index: int, rows=slice(None)) -> Step:
        """One stored transition, as rollout made it."""
        tensors = (self.latents[1:], self.log_probs, self.means, self.stds)
        return Step(*(tensor[index][rows] for tensor in tensors))


def sigma_schedule(num_steps: int, shift: float = 1.0) -> torch.Tensor:
    """Noise fractions (K+1,) float32 falling from 1 to 0, bent towards 1 by shift > 1.

    Raises ValueError unless num_steps >= 1 and shift is finite and above 0.
    """
    if num_steps < 1 or not 0 < shift < math.inf:
        raise ValueError(f"need num_steps >= 1 and a finite shift > 0, got {num_steps}, {shift}")
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).float()


# What makes one SDE differ from another is its diffusion d: noise added per square root of dsigma.
# kind -> d(sigma, noise_level, second, sigma_next), shaped as sigma (B, 1, 1); second is sigmas[1].
# A new kind is a new line.
DIFFUSIONS = {
    # Flow-GRPO. 1 - sigma is 0 at the very start: there the first step borrows the second's sigma.
    "flow": lambda sigma, noise_level, second, sigma_next: (
        noise_level * torch.sqrt(sigma / (1 - torch.where(sigma == 1, second, sigma)))
    ),
    # DanceGRPO.
    "dance": lambda sigma, noise_level, second, sigma_next: noise_level * torch.ones_like(sigma),
    # Flow-CPS: a share of the noise that the next state has, for a noise_level of at most 1.
    "cps": lambda sigma, noise_level, second, sigma_next: (
        sigma_next * torch.sin(noise_level * math.pi / 2) / torch.sqrt(sigma - sigma_next)
    ),
}


def sde_step(
    latents: torch.Tensor,
    velocity: torch.Tensor,
    sigmas: torch.Tensor,
    index,
    noise_level: float,
    kind: str = "flow",
    next_latents: torch.Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Step:
    """One transition of the policy: draw next_latents, or score the given ones.

    The reverse SDE whose marginals are those of the ODE, for any diffusion d; released code:
    flow_grpo_step, dance_grpo_step, which are this equation with two different d.
    latents, velocity: (B, N, C); sigmas: (K+1,); index: int, or (B,) so that a batch mixes steps.
    generator: one, or a list with one for each sample, so that a sample's noise is the same in
    every batch.
    noise_level = 0 gives the Euler step of the ODE, and so does the last step, to sigma = 0,
    always: std is 0 there, log_prob 0, and the last step's result is the predicted clean latents.
    Raises ValueError for an unknown kind, and for one of "cps" with a noise_level above 1.
    """
    if kind not in DIFFUSIONS:
        raise ValueError(f"unknown SDE kind '{kind}': choose from {', '.join(DIFFUSIONS)}")
    if kind == "cps" and noise_level > 1:
        raise ValueError(f"noise_level {noise_level} is above 1: 'cps' has no more noise to renew")
    latents, velocity = latents.float(), velocity.float()
    index = torch.as_tensor(index, device=latents.device).expand(len(latents))
    sigmas = sigmas.to(latents.device)
    sigma, sigma_next = sigmas[index].view(-1, 1, 1), sigmas[index + 1].view(-1, 1, 1)
    dsigma = sigma_next - sigma  # (B, 1, 1), negative
    level = noise_level * (sigma_next > 0)  # 0 in the last step
    d = DIFFUSIONS[kind](sigma, level, sigmas[1], sigma_next)
    score = -(latents + (1 - sigma) * velocity) / sigma  # gradient of the log marginal density
    mean = latents + velocity * dsigma - 0.5 * d**2 * score * dsigma
    std = d * torch.sqrt(-dsigma)
    if kind == "cps":
        # Above, the estimated noise -sigma * score is kept by sigma_next - std²/(2 sigma), which
        # with the fresh noise is more than sigma_next. Coefficients are preserved by kept² + std².
        kept = torch.sqrt(sigma_next**2 - std**2)
        mean = mean - (kept - sigma_next + std**2 / (2 * sigma)) * sigma * score
    if next_latents is None:
        next_latents = mean + std * randn_tensor(mean.shape, generator, mean.device, torch.float32)
    safe_std = torch.where(std > 0, std, torch.ones_like(std))
    z = (next_latents.float().detach() - mean) / safe_std
    log_density = (-0.5 * z**2).mean((1, 2)) - safe_std.log().flatten()
    log_prob = torch.where(std.flatten() > 0, log_density - 0.5 * math.log(2 * math.pi), 0.0)
    return Step(next_latents, log_prob, mean, std)


def check_sde_steps(sde_steps: Iterable[int] | None, num_steps: int) -> tuple[int, ...]:
    """The stochastic steps, ascending: all but the last by default (None).

    Raises ValueError for a step outside 0 .. K-2: the last step is always an ODE step.
    """
    steps = tuple(range(num_steps - 1)) if sde_steps is None else tuple(sorted(set(sde_steps)))
    if any(not 0 <= k < num_steps - 1 for k in steps):
        raise ValueError(
            f"sde_steps {steps} must lie in 0..{num_steps - 2}: the last of {num_steps} steps is "
            "always an ODE step"
        )
    return steps


@torch.no_grad()
def rollout(
    velocity_fn: Velocity,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    noise_level: float,
    kind: str = "flow",
    sde_steps: Iterable[int] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Trajectory:
    """Sample B images and keep what GRPO needs to score each step again.

    noise: (B, N, C); sde_steps: the stochastic steps (a sub-range is MixGRPO's / Flow-GRPO-Fast's
    window), the others follow the ODE. Nothing is read back to the host within the loop.
    """
    num_steps = len(sigmas) - 1
    sde_steps = check_sde_steps(sde_steps, num_steps)
    sigmas = sigmas.to(noise.device)
    states, steps = [noise.float()], []
    for k in range(num_steps):
        velocity = velocity_fn(states[k], sigmas[k].expand(len(noise)))  # (B, N, C)
        level = noise_level if k in sde_steps else 0.0
        steps.append(sde_step(states[k], velocity, sigmas, k, level, kind, generator=generator))
        states.append(steps[k].next_latents)
    _, *scored = map(torch.stack, zip(*steps))  # log-probs, means, stds: (K, B, ...)
    return Trajectory(torch.stack(states), *scored, sigmas, sde_steps, noise_level, kind)


def replay(velocity_fn: Velocity, trajectory: Trajectory, index, rows=slice(None)) -> Step:
    """Score stored transitions under the current weights, with gradient: rollout's own arithmetic.

    index: a stochastic step, or (b,) of them, one a row; rows: which samples (slice or (b,)
    indices). velocity_fn takes the latents of those rows. At unchanged weights log_prob equals the
    stored one.
    Raises ValueError if an int index is not a stochastic step of the trajectory.
    """
    if isinstance(index, int) and index not in trajectory.sde_steps:
        raise ValueError(f"step {index} was not stochastic; choose from {trajectory.sde_steps}")
    t, device = trajectory, trajectory.latents.device
    samples = torch.arange(t.latents.shape[1], device=device)[rows]  # (b,)
    index = torch.as_tensor(index, device=device).expand(len(samples))  # (b,)
    latents, next_latents = t.latents[index, samples], t.latents[index + 1, samples]  # (b, N, C)
    velocity = velocity_fn(latents, t.sigmas[index])
    return sde_step(latents, velocity, t.sigmas, index, t.noise_level, t.kind, next_latents)


def ode_sample(velocity_fn: Velocity, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Clean latents (B, N, C) by Euler steps along the flow: evaluation draws so, without noise."""
    return rollout(velocity_fn, noise, sigmas, noise_level=0.0).clean


def concatenate(parts: list[Trajectory]) -> Trajectory:
    """Trajectories of several micro-batches as one, samples in order."""
    tensors = ("latents", "log_probs", "means", "stds")  # each has its samples in dimension 1
    joined = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in tensors}
    return parts[0]._replace(**joined)
