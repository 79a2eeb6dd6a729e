"""Exercise 7: the clipped loss, and GRPO-Guard's ratio that makes one clip range fit all steps.
35 minutes.

A step of denoising was drawn by the weights of the rollout. How much more probable is it under the
present weights? The answer is the ratio,

    ratio = exp(log_ratio)          log_ratio = log_prob - old_log_prob

1 as long as the weights have not changed. Where the advantage A of the image is above 0, training
is to raise the ratio, and where it is below 0, to lower it. The objective to be made large is
A * ratio. But the drawn steps tell only about weights close to those that drew them. So beyond a
clip range around 1 nothing more is to be gained: the objective is taken with the ratio, and with
the ratio clipped to that range, and the smaller of the two counts. A loss is what the optimizer
makes small: the objective with a minus.

Steps differ in how much noise they have, and where there is much the same move changes log_ratio
little. The released recipe for FLUX therefore uses GRPO-Guard's ratio, your second function.

The paper: the objective, a clipped ratio times the advantage, averaged over images and steps.

    python -m pytest exercises/test_07_loss.py
"""

import torch

from grpo import Loss  # Loss(loss, ratio_mean, ratio_min, ratio_max, clip_frac), a tuple with names
from sampler import Step  # Step(next_latents, log_prob, mean, std), as in exercise 2


def clipped_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> Loss:
    """The clipped objective of b steps as a loss to descend, and what is logged of their ratios.

    log_ratio, advantages: (b,), one entry for each step; in what follows A is advantages

    1. ratio = exp(log_ratio). The gradient flows through it, and through nothing else.
    2. loss, one number: the mean over the b steps of the larger of

           -A * ratio      and      -A * clipped

       where clipped is the ratio, not the product, clipped to 1 - clip_range ... 1 + clip_range.
       The larger of two losses is the smaller of two objectives.
       So nothing pulls any more at a step whose ratio has left the clip range in the direction that
       A asks for; one that left it in the other direction is pulled back.
    3. What is logged, numbers without gradient (detach): mean, least and largest ratio; clip_frac,
       the share of steps whose ratio lies outside of the clip range, whatever their A.

    Hint: torch.maximum takes two tensors, element by element; clamp clips.
    """
    raise NotImplementedError


def normalized_log_ratio(step: Step, old_step: Step) -> torch.Tensor:
    """GRPO-Guard's log ratio (b,), to be used in place of log_prob - old_log_prob.

    step: under the present weights, old_step: in the rollout; of each log_prob (b,), mean
    (b, N, C), std (b, 1, 1), which is the same in both

    1. An update that moves the mean of a step makes the drawn latents less probable on average,
       even if the move is a good one. How much, is known, and is added back, to each step its own:

           shift = mean over N and C of (mean - old_mean)**2, divided by 2 * std**2        (b,)

    2. Where std is small, the same move changes log_prob by more. Multiplied by std it does not:

           (log_prob - old_log_prob + shift) * std

    Returns one number for each of the b steps; mind that std has two dimensions more.
    Hint: std.flatten() is (b,).
    """
    raise NotImplementedError
