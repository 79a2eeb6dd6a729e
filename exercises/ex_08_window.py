"""Exercise 8: noise in a few steps only, the same few for all. 25 minutes.

Every stochastic step that is trained on costs a pass of the network forward and one backward. So
MixGRPO and Flow-GRPO-Fast have fewer of them: only a window of some steps in a row is stochastic,
and all other steps follow the ODE, without fresh noise. Only the window is replayed and trained on.
From one training step to the next it lies elsewhere, so that all steps are learned in the end.

Within one training step it lies at the same place for all images. Early steps decide what a picture
shows, late ones how it looks in detail. If each image of a group had a window of its own, images
would differ by where their windows lie, and the advantages would reward a lucky window. In one
known case such training collapsed after 28 steps; with a window for the whole group it went on
beyond 181.

The paper: flow matching as a decision process. Its released recipe has no window; train.py has one,
`--window` and `--window_range`.

    python -m pytest exercises/test_08_window.py
"""

from collections.abc import Callable

import numpy as np
import torch

from common.seeds import seed_of
from exercises.checks import student
from sampler import Step, Trajectory

sde_step = student("sde_step")  # yours of exercise 2 if it passes its checks, else ours


def draw_window(seed: int, step: int, low: int, high: int, width: int) -> list[int]:
    """The stochastic steps of one training step, ascending: width steps in a row.

    seed: of the whole run; step: the number of the training step
    low, high: the window lies in the denoising steps low, low + 1, ... high - 1. No caller gives a
        high above K - 1: the last step, number K - 1, is always an Euler step, and in no window
    Returns whole numbers; those of numpy's own kind (np.int64) do as well as Python's.

    1. Each place where the window fits in is equally likely: it may begin with low, and it may end
       with high - 1.
    2. Many processes draw one batch in pieces, without a word to each other. Each of them calls
       this function, perhaps for every single image, and all must get the same window. So what is
       drawn depends on seed and step, and on nothing else. A generator of your own does that. All
       must draw alike, so make it as they all do, and draw where the window begins by one call of
       rng.integers:

           rng = np.random.default_rng(seed_of(seed, step, "window"))

       seed_of makes one number out of all that it is given, the same in every process; Python's own
       hash of a text is another one in each. Do not set the seed of numpy's or torch's own
       generator instead: all other noise of the run is drawn from them.

    Hint: rng.integers(a, b) draws one of a, a + 1, ... b - 1.
    """
    raise NotImplementedError


def trajectory_of(latents: list, steps: list[Step], sigmas, sde_steps, noise_level) -> Trajectory:
    """Given: K + 1 latents and K steps as a Trajectory, with the names of the stochastic ones.

    What is trained on are the steps in trajectory.sde_steps.
    """
    _, *scored = (torch.stack(parts) for parts in zip(*steps))  # log_probs, means, stds
    return Trajectory(torch.stack(latents), *scored, sigmas, tuple(sde_steps), noise_level, "flow")


@torch.no_grad()
def rollout(
    velocity_fn: Callable,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    noise_level: float,
    sde_steps: list[int],
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Exercise 3's rollout, in which only the steps named by sde_steps are stochastic.

    velocity_fn: the network, velocity_fn(latents (B, N, C), sigma (B,)) -> velocity (B, N, C)
    noise: (B, N, C), the latents with which the first step begins; sigmas: (K + 1,)

    Step k, for k = 0, 1, ... K - 1, goes through

        sde_step(latents, velocity, sigmas, k, level, generator=generator)

    whose level is noise_level in the window, which never holds the last step, and 0 outside of it.
    With level 0 its std and drift are 0: it is an Euler step of the ODE. It cannot be left out,
    since the picture still has to get less noisy.
    sde_steps: numbers of steps, ascending; there may be none.
    Returns trajectory_of(...), whose noise_level is that of the window: replay needs it.

    Hint: sigmas[k].expand(B) holds one sigma B times.
    """
    raise NotImplementedError
