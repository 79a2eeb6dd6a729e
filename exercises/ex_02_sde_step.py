"""Exercise 2: one step of drawing as a draw from a Gaussian, and its log-probability. 40 minutes.

A network sees latents (the picture as numbers, with noise in it) and their noise level sigma, and
predicts `velocity`, its estimate of noise - clean. The plain way to take a step is

    next_latents = latents + velocity * dsigma          dsigma = sigma_next - sigma, below 0

This is an Euler step of an ODE, an equation without chance: from the same noise it always leads to
the same picture. Reinforcement learning needs chance, so that it can try things and make more
probable what went well. So fresh noise is added in each step, and the mean is corrected by what is
called a drift, which takes away as much noise as was added. Such an equation is an SDE. If steps
are small, its latents are spread as those of the ODE are, at every sigma; but each step is a draw
from a Gaussian,

    next_latents = mean + std * fresh noise

and a Gaussian's density is known. That is all that GRPO needs of a sampler.

The paper: flow matching as a decision process, after Flow-GRPO. A step is an action, the
Gaussian is the policy. Other code calls noise_level `a` or `eta`, and dsigma `dt`.

    python -m pytest exercises/test_02_sde_step.py
"""

import math

import torch

from sampler import Step  # Step(next_latents, log_prob, mean, std), a tuple with names


def sde_step(
    latents: torch.Tensor,
    velocity: torch.Tensor,
    sigmas: torch.Tensor,
    index: int,
    noise_level: float,
    next_latents: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Step:
    """Draws next_latents, or takes those that are given, and says how probable they are.

    latents, velocity: (B, N, C), B samples of N tokens with C channels each, of any float dtype
    sigmas: (K + 1,), falling from 1 to 0; this step goes from sigmas[index] to sigmas[index + 1]
    Returns Step: next_latents and mean (B, N, C), log_prob (B,), std (B, 1, 1); all are float32,
    but next_latents that are given come back as they are. What is given is not written into.

    1. latents.float() and velocity.float() before all arithmetic: a network may compute in 16 bits,
       which would round away the small differences between log-probs that the loss is made of. With
       next_latents that are given in 16 bits, log_prob reckons in float32 too.
    2. The diffusion, noise per square root of sigma, a number:

           d = noise_level * sqrt(sigma / (1 - sigma))

       In the first step sigma is 1, and one would divide by 0. There, and in this denominator only,
       sigmas[1] takes its place. In the last step, whose sigma_next is 0, d is 0: it is always an
       Euler step, so that the picture has no fresh noise left in it. (Ask for sigma_next == 0 or
       for the last index: it is the same step.) With K = 1 the only step is the first and the
       last: d is 0. With noise_level 0 every step is an Euler step.
    3. The Gaussian. The score is the direction in which latents grow more probable; half of d
       squared times it is the drift. Mind the signs: dsigma is negative.

           score = -(latents + (1 - sigma) * velocity) / sigma
           mean  = latents + velocity * dsigma - 0.5 * d**2 * score * dsigma
           std   = d * sqrt(-dsigma)

       std is the standard deviation of the whole step, and the same for all elements:
       torch.full((B, 1, 1), std).
    4. next_latents, if they are not given: mean + std * noise, where the noise is
       torch.randn(mean.shape, generator=generator). If they are given, nothing is drawn, and they
       are returned, in the last step too. (Whether an Euler step draws noise, to multiply it by 0,
       makes no difference here.)
    5. log_prob, of each sample: the log density of a Gaussian, averaged over its N * C elements (a
       mean, not a sum, so that one clip range suits pictures of every size), in nats, which means
       natural logarithms. Of one element x of next_latents it is

           -(x - mean)**2 / (2 * std**2) - log(std) - 0.5 * log(2 * pi)

       Where std is 0 there is no density: log_prob is 0 in an Euler step, for each sample.

    Gradients flow from log_prob through mean into velocity. Whether a draw is detached makes no
    difference, since training scores next_latents that are given. Hint: write d as a Python number,
    with an if for each of its two special cases.
    """
    raise NotImplementedError
