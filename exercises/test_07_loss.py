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
    got, read = loss_of([1.0], [2.0]).loss, BOTH.format("clipped_loss")
    expect("loss of a step with ratio 1 and advantage 2", got, -2.0, read)


def test_the_inputs_are_left_alone():
    inputs = dict(log_ratio=RATIOS.log(), advantages=ADVANTAGES.clone())
    call = functools.partial(ex.clipped_loss, clip_range=0.2)
    expect_unchanged(call, BOTH.format("clipped_loss"), **inputs)


def test_the_loss_of_six_steps():
    got = ex.clipped_loss(RATIOS.log(), ADVANTAGES, 0.2).loss
    expect("loss of the six steps", got, 1.88 / 6, CLIPPED)
    left_out = {-2.0: "steps with advantage 0 left out of the mean: it is over all b."}
    got = loss_of([1.0, 1.0], [2.0, 0.0]).loss
    expect("loss of two steps, of which one has advantage 0", got, -1.0, CLIPPED, left_out)
    whole = bool(loss_of([3000.0], [-1.0]).loss > 2999)
    said = {False: "capped: a ratio that left the clip range against A counts in full."}
    expect("whether a step of ratio 3000 and A -1 has a loss of 3000", whole, True, CLIPPED, said)


def test_what_pulls_and_what_does_not():
    got = pull(1.1, 3.0)
    expect("gradient at ratio 1.1 and advantage 3", got, -3.3, RATIO)


def test_what_is_logged():
    log_ratio = torch.tensor([1.5, 1.5, 1.3, 0.5, 0.9]).log().requires_grad_()
    loss = ex.clipped_loss(log_ratio, torch.tensor([1.0, -2.0, -1.0, -1.0, 1.0]), 0.2)
    kind = type(loss.ratio_mean).__name__
    expect("the type of ratio_mean", kind, "Tensor", LOGGED)
    expect("mean ratio", loss.ratio_mean, 1.14, LOGGED)
    expect("least ratio", loss.ratio_min, 0.5, LOGGED)
    expect("clip_frac", loss.clip_frac, 0.8, LOGGED)
    edge = {1.0: "the ends counted as outside: what lies at an end of the clip range is within."}
    got = ex.clipped_loss(torch.zeros(1), torch.ones(1), 0.0).clip_frac
    expect("clip_frac of a ratio at the end of the clip range", got, 0.0, LOGGED, edge)
    got = loss.ratio_mean.requires_grad
    expect("whether what is logged has a gradient", got, False, LOGGED)


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
    shape = tuple(guarded().shape)
    expect("the shape for 2 steps", shape, (2,), SCALE)
    read = BOTH.format("normalized_log_ratio")
    expect("log ratio of a step with std 0.4", guarded()[0], 0.048583, read)
    expect("log ratio of a step with std 0.2", guarded()[1], 0.031, read)


def test_guards_ratio_has_a_gradient():
    mean = torch.full((1, 2, 3), 0.3, requires_grad=True)
    old = Step(None, torch.zeros(1), torch.zeros(1, 2, 3), torch.full((1, 1, 1), 0.4))
    log_ratio = ex.normalized_log_ratio(old._replace(mean=mean), old)
    got = log_ratio.requires_grad
    expect("whether the shift has a gradient", got, True, SHIFT)


def test_any_ratios_and_clip_range():
    rng = torch.Generator().manual_seed(1)
    fixed = {"0.2 written for clip_range: it may be any.": {"clip_range": 0.2}}
    for count, clip_range, spread in ((1, 0.2, 1), (9, 0.05, 0.1), (40, 1e-3, 2e-3), (40, 0.6, 4)):
        log_ratio, advantages = torch.randn((2, count), generator=rng)
        advantages[1::3] = 0.0
        advantages[0] *= 9
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
        std[0] = 0.004
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
