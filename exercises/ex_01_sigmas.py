"""Exercise 1: the noise levels at which a picture is drawn. 10 minutes.

A flow-matching model draws a picture by removing noise in K steps. How much noise is left is told
by one number, `sigma`: 1 is noise alone, 0 is the clean picture, and in between

    latents = (1 - sigma) * clean + sigma * noise

You write the table of these numbers. Everything that follows looks its sigmas up in it by the
number of the step: step k goes from sigmas[k] to sigmas[k + 1].

The paper: flow matching as a decision process; its time t is our sigma.

    python -m pytest exercises/test_01_sigmas.py
"""

import torch


def sigma_schedule(num_steps: int, shift: float = 1.0) -> torch.Tensor:
    """The noise levels of K = num_steps steps: (K + 1,) float32, falling from 1 to exactly 0, which
    is how exercise 2 knows the last step.

    1. Evenly spaced numbers s from 1 to 0, both ends included. K steps lie between K + 1 levels,
       as K spaces lie between K + 1 fence posts.
    2. The shift, a number above 0. A large picture needs more of its steps where there is much
       noise, so a shift above 1 pushes the levels up, and leaves both ends where they are:

           sigma = shift * s / (1 + (shift - 1) * s)

       With shift = 1 nothing changes. With shift = 3 the middle, s = 0.5, becomes 0.75.

    Hint: torch.linspace(first, last, count), where count says how many numbers, not how many steps.
    """
    raise NotImplementedError
