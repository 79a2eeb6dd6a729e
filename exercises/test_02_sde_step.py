"""Checks of exercise 2, in the order of the work: python -m pytest exercises/test_02_sde_step.py

By hand, for the step from 0.6 to 0.3: d = 0.7 * sqrt(0.6 / 0.4) = 0.8573 and std = d * sqrt(0.3).
"""

import functools
import itertools

import torch

from exercises import ex_02_sde_step as ex
from exercises.checks import (
    expect,
    expect_as_ours,
    expect_draws,
    expect_noise,
    expect_part,
    expect_unchanged,
)

SIGMAS = torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0])
PART = "part {} of the docstring of sde_step in exercises/ex_02_sde_step.py"
ALL = "all parts of the docstring of sde_step in exercises/ex_02_sde_step.py"
ALONE = "each element is drawn by itself."
BENT = {"mean 0": "centered", "std 1": "scaled", "mean square 1": "scaled"}
FLOAT32, DIFFUSION, GAUSSIAN, DRAW, LOG_PROB = map(PART.format, range(1, 6))


def each(*values, size=(3, 5)):
    """Latents of two samples, each with one value everywhere."""
    return torch.as_tensor(values)[:, None, None].expand(2, *size).clone()


def step_of(index, noise_level=0.7, size=(3, 5), **given):
    latents, velocity = each(1.2, -0.4, size=size), each(-0.5, 1.5, size=size)
    return ex.sde_step(latents, velocity, SIGMAS.clone(), index, noise_level, **given)


def test_the_standard_deviation_of_a_step():
    std = step_of(2).std
    shape = tuple(torch.as_tensor(std).shape)
    expect("the shape of std", shape, (2, 1, 1), GAUSSIAN)
    expect("std of the step from 0.6 to 0.3", std[0], 0.469574, GAUSSIAN)
    std = step_of(2, noise_level=0.35).std
    expect("the same with noise_level 0.35", std[0], 0.234787, DIFFUSION)
    odd = torch.tensor([1.0, 0.6123, 0.3, 0.0])
    std = ex.sde_step(each(1.2, -0.4), each(-0.5, 1.5), odd, 1, 0.35).std[0]
    expect("the same from 0.6123 to 0.3", std, 0.245804, DIFFUSION, tol=3e-5)


def test_the_mean_of_a_step():
    mean = step_of(2).mean
    expect("mean of the step from 0.6 to 0.3", mean[0, 0, 0], 1.16625, GAUSSIAN)
    expect("mean of the same step, sample 1", mean[1, 0, 0], -0.88675, GAUSSIAN)


def test_the_next_latents_are_drawn():
    step = step_of(2, size=(100, 100), generator=torch.Generator().manual_seed(0))
    both = step.next_latents - step.mean
    expect("the shape of next_latents", tuple(both.shape), (2, 100, 100), DRAW)
    expect("whether a draw differs from its mean", float(bool(both.any())), 1.0, DRAW)
    axes = {"samples": 0, "tokens": 1, "channels": 2}
    alike = [name for name, axis in axes.items() if (both - both.roll(1, axis)).abs().max() < 1e-4]
    what = "over what the noise is the same"
    expect(what, alike[0] if alike else "nothing", "nothing", DRAW)
    spread = both[0].std()
    expect("deviation of 10,000 drawn elements", spread, 0.4696, DRAW, tol=0.03)


def test_the_next_latents_that_are_given_are_kept():
    given = each(1.4, -1.0)
    kept = torch.equal(step_of(2, next_latents=given).next_latents, given)
    expect("whether given next latents come back as they are", kept, True, DRAW)
    kept = torch.equal(step_of(3, next_latents=given).next_latents, given)
    expect("whether they do in the last step", kept, True, DRAW)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    step_of(2, next_latents=given, generator=generator)
    still = torch.equal(generator.get_state(), before)
    expect("whether the generator stays as it was", still, True, DRAW)


def test_the_log_prob_of_a_step():
    log_prob = step_of(2, next_latents=each(1.4, -1.0)).log_prob
    expect("the shape of log_prob", tuple(log_prob.shape), (2,), LOG_PROB)
    expect("log_prob of 1.4, 0.4978 std from its mean", log_prob[0], -0.286908, LOG_PROB)


def test_the_inputs_are_left_alone():
    latents, velocity, given = each(1.2, -0.4), each(-0.5, 1.5), each(1.4, -1.0)
    inputs = dict(latents=latents, velocity=velocity, sigmas=SIGMAS.clone(), next_latents=given)
    call = functools.partial(ex.sde_step, index=2, noise_level=0.7)
    expect_unchanged(call, "the docstring of sde_step in exercises/ex_02_sde_step.py", **inputs)


def test_the_first_step_whose_sigma_is_1():
    std = step_of(0).std[0]
    expect("std of the step from 1 to 0.8", std, 0.7, DIFFUSION)
    expect("mean of the step from 1 to 0.8", step_of(0).mean[0, 0, 0], 1.006, GAUSSIAN)


def test_the_last_step_is_an_euler_step():
    step = step_of(3)
    expect("std of the step from 0.3 to 0", step.std[0], 0.0, DIFFUSION)
    expect("whether it is exactly 0", bool(step.std[0] == 0), True, DIFFUSION)
    expect("mean of the step from 0.3 to 0", step.mean[0, 0, 0], 1.35, DIFFUSION)
    same = (step.next_latents - step.mean).abs().max()
    expect("how far that step's next latents are from its mean", same, 0.0, DIFFUSION)
    one_step = torch.tensor([1.0, 0.0])
    only = ex.sde_step(each(1.2, -0.4), each(-0.5, 1.5), one_step, 0, 0.7).std[0]
    expect("std of the only step where K is 1", only, 0.0, DIFFUSION)
    shape = tuple(torch.as_tensor(step.log_prob).shape)
    expect("the shape of its log_prob", shape, (2,), LOG_PROB)
    expect("log_prob of the step from 0.3 to 0", step.log_prob[0], 0.0, LOG_PROB)
    quiet = step_of(2, noise_level=0.0).log_prob[0]
    expect("log_prob of any step with noise_level 0", quiet, 0.0, LOG_PROB)


def test_the_log_prob_has_a_gradient():
    velocity = torch.full((1, 3, 5), -0.5, requires_grad=True)
    latents, given = each(1.2, 1.2)[:1], each(1.4, 1.4)[:1]
    log_prob = ex.sde_step(latents, velocity, SIGMAS, 2, 0.7, next_latents=given).log_prob
    expect("whether log_prob has a gradient", log_prob.requires_grad, True, LOG_PROB)


def test_the_arithmetic_is_float32():
    given = dict(latents=each(1.2, -0.4), velocity=each(-0.5, 1.5), next_latents=each(1.4, -1.0))
    given = {name: value.bfloat16() for name, value in given.items()}
    score = functools.partial(ex.sde_step, sigmas=SIGMAS, index=2, noise_level=0.7)
    step, same = score(**given), score(**{name: value.float() for name, value in given.items()})
    for name in ("mean", "std", "log_prob"):
        dtype = str(getattr(step, name).dtype)
        expect(f"the dtype of {name}, all in 16 bits", dtype, "torch.float32", FLOAT32)
    for name in ("mean", "log_prob"):
        equal = torch.equal(getattr(step, name), getattr(same, name))
        expect(f"whether {name} is that of the same numbers in float32", equal, True, FLOAT32)
    dtype = str(step.next_latents.dtype)
    expect("the dtype of the next_latents given", dtype, "torch.bfloat16", FLOAT32)


def test_every_draw_is_new_and_scored():
    expect_draws(lambda generator: step_of(2, generator=generator).next_latents, DRAW)
    step = step_of(2, size=(100, 100), generator=torch.Generator().manual_seed(0))
    expect_noise((step.next_latents - step.mean) / step.std, "sample", DRAW)
    scored = step_of(2, size=(100, 100), next_latents=step.next_latents).log_prob
    expect_part("log_prob of a draw", step.log_prob, scored, DRAW)
    far = each(30.0, -40.0, size=(100, 100))
    step = ex.sde_step(far, far / 30, SIGMAS, 2, 0.7)
    widest = ((step.next_latents - step.mean) / step.std).abs().max()
    what = f"whether 20,000 draws around 30 end 3.1 to 7 std from it (at {widest:.2f})"
    expect(what, bool(3.1 < widest < 7), True, DRAW, {False: "cut off: any draw may come."})
    both = (each(1.2, -0.4).bfloat16(), each(1.2, -0.4).bfloat16().float())
    seeds = [torch.Generator().manual_seed(0) for _ in both]
    one, other = (
        ex.sde_step(latents, each(-0.5, 1.5), SIGMAS, 2, 0.7, generator=seed).next_latents
        for latents, seed in zip(both, seeds)
    )
    expect("whether the noise is that of latents in float32", torch.equal(one, other), True, DRAW)
    few = step_of(2, size=(1, 2), generator=torch.Generator().manual_seed(0))
    noise = ((few.next_latents - few.mean) / few.std).flatten(1)
    bent = {"mean 0": noise.mean(1), "std 1": noise.std(1) - 1}
    bent["mean square 1"] = noise.square().mean(1) - 1
    kind = next((name for name, odd in bent.items() if odd.abs().max() < 1e-3), "nothing")
    said = {name: f"noise {how} within a sample: {ALONE}" for name, how in BENT.items()}
    expect("what the noise of a sample's two elements has", kind, "nothing", DRAW, said)


def test_any_latents_sigmas_and_noise_level():
    """Tokens and channels differ, of one sample and of three; of the tables only the ends agree.

    In most steps one of what is given is of another dtype, as a network's velocity may be.
    """
    rng = torch.Generator().manual_seed(1)
    fixed = {"0.7 written for noise_level: it may be any.": {"noise_level": 0.7}}
    tables = (
        [1, 0.95, 0.72, 0.31, 0],
        [1, 0.6, 0],
        [1, 0.9995, 0.9991, 0.96, 0.8, 0.3, 0.004, 0],
        [1, 0],
    )
    for table, noise_level in itertools.product(tables, (0.02, 2.7, 0.0)):
        samples = 1 if len(table) == 3 else 3
        latents, velocity, given = torch.randn((3, samples, 4, 2), generator=rng)
        tensors = dict(latents=latents, velocity=velocity, next_latents=given)
        settings = dict(sigmas=torch.tensor(table, dtype=torch.float32), noise_level=noise_level)
        for index in range(len(table) - 1):
            short = (*tensors, "nothing")[index % 4]
            dtype = (torch.bfloat16, torch.float16, torch.float64)[(index + 2 * len(table)) % 3]
            what = f"in step {index} of {table}, noise_level {noise_level}, {short} in {dtype}"
            inputs = {n: x.to(dtype) if n == short else x.clone() for n, x in tensors.items()}
            rounded = {n: inputs[n].to(dtype).float() for n in ("latents", "velocity")}
            said = "rounded to the dtype of the other input: each goes to float32 by itself."
            mistaken = fixed | {said: rounded}
            inputs["velocity"].requires_grad_()
            expect_as_ours(ex, "sde_step", what, ALL, mistaken, index=index, **inputs, **settings)
