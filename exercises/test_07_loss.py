"""Checks of exercise 7, in the order of the work: python -m pytest exercises/test_07_loss.py

Six steps, clip range 0.2. By hand, max(-A ratio, -A clipped) of each:
    ratio 1.5, A 1: -1.2       ratio 1.5, A -3: 4.5    ratio 0.5, A 0.6: -0.3
    ratio 0.5, A -1.6: 1.28    ratio 1.1, A 3: -3.3    ratio 0.9, A -1: 0.9      together 1.88
"""

import functools
import math

import torch

from exercises import ex_07_loss as ex
from exercises.checks import expect, expect_as_ours, expect_unchanged
from sampler import Step

RATIOS = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9])
ADVANTAGES = torch.tensor([1.0, -3.0, 0.6, -1.6, 3.0, -1.0])
PART = "part {} of the docstring of {} in exercises/ex_07_loss.py"
RATIO, CLIPPED, LOGGED = (PART.format(n, "clipped_loss") for n in (1, 2, 3))
SHIFT, SCALE = (PART.format(n, "normalized_log_ratio") for n in (1, 2))
BOTH = "parts 1 and 2 of the docstring of {} in exercises/ex_07_loss.py"


def loss_of(ratios, advantages):
    return ex.clipped_loss(torch.tensor(ratios).log(), torch.tensor(advantages), 0.2)


def pull(ratio, advantage):
    """The gradient of the loss of one step by its log ratio; None if there is none."""
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = ex.clipped_loss(log_ratio, torch.tensor([advantage]), 0.2).loss
    return torch.autograd.grad(loss, log_ratio)[0] if loss.requires_grad else None


def test_a_step_that_has_not_moved():
    mistakes = {
        2.0: "sign of the loss: it is made small, so it is the objective with a minus.",
        0.0: "exp forgotten: log_ratio itself is 0 where nothing has moved.",
        -0.4: "clipped to -clip_range ... clip_range: the range lies around 1.",
        0.8: "the loss clipped: clip the ratio, and multiply by -A afterwards.",
        -1.2: "the product clipped: clip the ratio, and multiply by -A afterwards.",
        -1.6: "log_ratio in the place of the clipped ratio: clip exp(log_ratio).",
    }
    got, read = loss_of([1.0], [2.0]).loss, BOTH.format("clipped_loss")
    expect("loss of a step with ratio 1 and advantage 2", got, -2.0, mistakes, read)


def test_the_inputs_are_left_alone():
    inputs = dict(log_ratio=RATIOS.log(), advantages=ADVANTAGES.clone())
    call = functools.partial(ex.clipped_loss, clip_range=0.2)
    expect_unchanged(call, BOTH.format("clipped_loss"), **inputs)


def test_the_loss_of_six_steps():
    before = "clipped before all else: the first of the two has the ratio as it is."
    mistakes = {
        0.183333: "never clipped, or the larger of two means: the larger loss counts in each step.",
        0.133333: "always clipped: this is the mean of -A * the clipped ratio.",
        0.003333: "the better of both: of two losses the larger one counts.",
        1.88: "sum for mean over the steps.",
        0.314761: "log_ratio clipped: the ratio is, after exp.",
        0.143589: before,
        0.147157: before,
        1.227171: "the ratio's range for log_ratio: clip the ratio, after exp.",
        0.432862: "upside down: exp(-log_ratio) is the old probability over the new one.",
        0.233333: "clipped above only: clamp(1 - clip_range, 1 + clip_range).",
        0.263333: "clipped below only: clamp(1 - clip_range, 1 + clip_range).",
        0.286832: "1 + log_ratio for exp(log_ratio): that holds near 1 only.",
    }
    got = ex.clipped_loss(RATIOS.log(), ADVANTAGES, 0.2).loss
    expect("loss of the six steps", got, 1.88 / 6, mistakes, CLIPPED)


def test_what_pulls_and_what_does_not():
    detached = "detached ratio: without a gradient nothing is learnt."
    got = pull(1.1, 3.0)
    half = "detached in one of the two losses: either has a gradient."
    expect("gradient at ratio 1.1 and advantage 3", got, -3.3, {None: detached, -1.65: half}, RATIO)


def test_what_is_logged():
    log_ratio = torch.tensor([1.5, 1.5, 1.3, 0.5, 0.9]).log().requires_grad_()
    loss = ex.clipped_loss(log_ratio, torch.tensor([1.0, -2.0, -1.0, -1.0, 1.0]), 0.2)
    numbers = "a Python number: the loop needs tensors of what is logged, so no .item()."
    kind = type(loss.ratio_mean).__name__
    expect("the type of ratio_mean", kind, "Tensor", {"float": numbers}, LOGGED)
    clipped = "statistics of the clipped ratio: what is logged is the ratio itself."
    expect("mean ratio", loss.ratio_mean, 1.14, {1.06: clipped}, LOGGED)
    expect("least ratio", loss.ratio_min, 0.5, {1.5: "least and largest swapped."}, LOGGED)
    mistakes = {
        0.4: "only those that nothing pulls at any more: count all outside, whatever their A.",
        0.6: "those above only: a ratio can leave the range below, too.",
        0.2: "the share inside: count those outside.",
        4.0: "sum for mean: it is a share, 0 to 1.",
    }
    expect("clip_frac", loss.clip_frac, 0.8, mistakes, LOGGED)
    got = loss.ratio_mean.requires_grad
    attached = "attached: detach what is logged, else it keeps all that the network computed."
    expect("whether what is logged has a gradient", got, False, {True: attached}, LOGGED)


def guarded():
    """Two steps with stds of their own, 0.4 and 0.2; N = 2 tokens, C = 3 channels.

    By hand, the first: squares sum to 0.31, mean 0.0516667, shift 0.0516667 / 0.32 = 0.1614583.
    The second: squares sum to 0.06, mean 0.01, shift 0.01 / 0.08 = 0.125.
    """
    moved = [[[0.3, -0.1, 0.2], [0.0, 0.4, 0.1]], [[0.1, 0.0, 0.0], [0.2, -0.1, 0.0]]]
    std = torch.tensor([0.4, 0.2]).view(2, 1, 1)
    old = Step(None, torch.tensor([1.0, 1.0]), torch.zeros(2, 2, 3), std)
    new = Step(None, torch.tensor([0.96, 1.03]), torch.tensor(moved), std)
    return ex.normalized_log_ratio(new, old)


def test_guards_ratio():
    broadcast = "std not flattened: (b,) and (b, 1, 1) together give (b, 1, b)."
    shape = tuple(guarded().shape)
    expect("the shape for 2 steps", shape, (2,), {(2, 1, 2): broadcast}, SCALE)
    averaged = "std averaged over the batch: each step has its own."
    mistakes = {
        0.022542: "averaged over the batch too: .mean((1, 2)) leaves each step its own.",
        0.041292: "one shift for all: each step has its own.",
        -0.016: "shift forgotten.",
        -0.080583: "shift subtracted: it is what the move cost, and is given back.",
        0.036438: averaged,
        0.098815: averaged,
        0.074111: averaged,
        0.213167: "absolute values for squares.",
        0.3715: "sum for mean over the latents: log_prob is a mean, too.",
        0.012125: "square of the mean difference: first square, then average.",
        0.113167: "one half of the shift forgotten: 2 * std**2 divides.",
        0.009833: "std for std**2 in the shift.",
        0.121458: "not multiplied by std.",
        0.019433: "multiplied by std**2, the variance: std is meant.",
        0.303646: "divided by std: where std is small, the move counts for too much already.",
        0.024583: "brackets: log_prob - old_log_prob is multiplied by std, too.",
        0.145458: "brackets: the shift is multiplied by std, too.",
        0.080583: "upside down: log_prob - old_log_prob, new less old.",
        1.049783: "exp taken already: the function returns the logarithm.",
    }
    read = BOTH.format("normalized_log_ratio")
    expect("log ratio of a step with std 0.4", guarded()[0], 0.048583, mistakes, read)
    first = {0.0245: "the first step's std for all: each step has its own."}
    expect("log ratio of a step with std 0.2", guarded()[1], 0.031, first, read)


def test_guards_ratio_has_a_gradient():
    mean = torch.full((1, 2, 3), 0.3, requires_grad=True)
    old = Step(None, torch.zeros(1), torch.zeros(1, 2, 3), torch.full((1, 1, 1), 0.4))
    log_ratio = ex.normalized_log_ratio(old._replace(mean=mean), old)
    detached = "detached: the shift has a gradient too, through the present mean."
    got = log_ratio.requires_grad
    expect("whether the shift has a gradient", got, True, {False: detached}, SHIFT)


def test_any_ratios_and_clip_range():
    rng = torch.Generator().manual_seed(1)
    fixed = {"0.2 written for clip_range: it may be any.": {"clip_range": 0.2}}
    for count, clip_range, spread in ((1, 0.2, 1), (9, 0.05, 0.1), (40, 1e-3, 2e-3), (40, 0.6, 1)):
        log_ratio, advantages = torch.randn((2, count), generator=rng)
        for sign in (1, -1):
            what = f"of {count} steps, clip range {clip_range}"
            inputs = dict(
                log_ratio=(sign * spread * log_ratio).requires_grad_(),
                advantages=advantages,
                clip_range=clip_range,
            )
            expect_as_ours(ex, "clipped_loss", what, BOTH.format("clipped_loss"), fixed, **inputs)


def test_guards_ratio_of_any_steps():
    rng = torch.Generator().manual_seed(1)
    zero = "old_step's mean taken for 0: it is subtracted, whatever it is."
    for count, tokens, channels in ((1, 3, 2), (4, 5, 2), (3, 1, 4)):
        std = torch.rand((count, 1, 1), generator=rng) + 0.05
        log_probs = torch.randn((2, count), generator=rng)
        means = torch.randn((2, count, tokens, channels), generator=rng)
        step, old = (Step(None, x, mean, std) for x, mean in zip(log_probs.clone(), means.clone()))
        step = step._replace(
            log_prob=step.log_prob.requires_grad_(), mean=step.mean.requires_grad_()
        )
        what, read = f"of {count} steps", BOTH.format("normalized_log_ratio")
        other = {zero: {"old_step": old._replace(mean=0 * old.mean)}}
        inputs = dict(step=step, old_step=old)
        expect_as_ours(ex, "normalized_log_ratio", what, read, other, **inputs)
