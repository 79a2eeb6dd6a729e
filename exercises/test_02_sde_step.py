"""Checks of exercise 2, in the order of the work: python -m pytest exercises/test_02_sde_step.py

By hand, for the step from 0.6 to 0.3: d = 0.7 * sqrt(0.6 / 0.4) = 0.8573 and std = d * sqrt(0.3).
"""

import functools
import math

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
TEN = "logarithm to base 10: nats are natural logarithms, math.log and torch.log."
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
    own = "each sample has its std, torch.full((B, 1, 1), std)."
    shapes = {
        (): f"one number for a tensor: {own}",
        (1, 1, 1): f"one std for the batch: {own}",
        (2,): f"std without its two ones, which line it up with (B, N, C): {own}",
    }
    expect("the shape of std", shape, (2, 1, 1), shapes, GAUSSIAN)
    mistakes = {
        0.857321: "factor sqrt(-dsigma) forgotten: this is d, the noise of a step of length 1.",
        0.257196: "root of -dsigma forgotten, or sqrt(-dsigma) applied twice: this is d * -dsigma.",
        0.2205: "variance for standard deviation: std is the root of this number.",
        math.nan: "the root of dsigma, which is negative, or of sigma - 1, which is, too.",
        0.575109: "root forgotten in d: d has the root of sigma / (1 - sigma).",
        0.313050: "upside down in d: sigma / (1 - sigma) is meant, and grows with the noise.",
        0.383406: "fraction forgotten in d: noise_level alone is another SDE, DanceGRPO's.",
        0.670820: "noise_level forgotten in d.",
        0.250998: "sigma_next for sigma: d belongs to the level at which the step begins.",
    }
    expect("std of the step from 0.6 to 0.3", std[0], 0.469574, mistakes, GAUSSIAN)
    std, fixed = step_of(2, noise_level=0.35).std, "0.7 written for noise_level: it may be any."
    expect("the same with noise_level 0.35", std[0], 0.234787, {0.469574: fixed}, DIFFUSION)
    odd = torch.tensor([1.0, 0.6123, 0.3, 0.0])
    std = ex.sde_step(each(1.2, -0.4), each(-0.5, 1.5), odd, 1, 0.35).std[0]
    cut = "sigma rounded: some networks are told int(1000 * sigma), the step itself is not."
    expect("the same from 0.6123 to 0.3", std, 0.245804, {0.24553: cut}, DIFFUSION, tol=3e-5)


def test_the_mean_of_a_step():
    mean = step_of(2).mean
    mistakes = {
        1.35: "drift forgotten: this is the Euler step.",
        1.53375: "sign of the drift: minus 0.5 * d**2 * score * dsigma, and minus in the score.",
        0.9825: "factor one half of the drift forgotten.",
        1.294875: "std for d in the drift: it would hold the length of the step twice.",
        1.135670: "square of d forgotten in the drift.",
        1.23375: "sign of dsigma: it is sigma_next - sigma, and noise falls.",
        1.221375: "1 - sigma forgotten in the score.",
        1.184625: "sigma for 1 - sigma in the score.",
        1.23975: "division by sigma forgotten in the score.",
        1.04375: "division by sigma twice in the score.",
        1.092750: "sign within the score: latents plus (1 - sigma) * velocity, then minus all.",
    }
    expect("mean of the step from 0.6 to 0.3", mean[0, 0, 0], 1.16625, mistakes, GAUSSIAN)
    mixed = {1.16625: "samples mixed: each has a mean of its own."}
    expect("mean of the same step, sample 1", mean[1, 0, 0], -0.88675, mixed, GAUSSIAN)


def test_the_next_latents_are_drawn():
    step = step_of(2, size=(100, 100), generator=torch.Generator().manual_seed(0))
    both = step.next_latents - step.mean
    none = {0.0: "no noise: the mean is returned in the place of a draw."}
    expect("the shape of next_latents", tuple(both.shape), (2, 100, 100), {}, DRAW)
    expect("whether a draw differs from its mean", float(bool(both.any())), 1.0, none, DRAW)
    axes = {"samples": 0, "tokens": 1, "channels": 2}
    alike = [name for name, axis in axes.items() if (both - both.roll(1, axis)).abs().max() < 1e-4]
    own = "each element has a draw of its own, torch.randn(mean.shape)."
    mistakes = {name: f"one noise for all {name}: {own}" for name in axes}
    what = "over what the noise is the same"
    expect(what, alike[0] if alike else "nothing", "nothing", mistakes, DRAW)
    mistakes = {
        0.2205: "variance for standard deviation: noise is multiplied by std, not by its square.",
        1.0: "std forgotten: noise is multiplied by it.",
        0.1356: "torch.rand for torch.randn: the noise is a Gaussian's.",
    }
    spread = both[0].std()
    expect("deviation of 10,000 drawn elements", spread, 0.4696, mistakes, DRAW, tol=0.03)
    again = step_of(2, size=(100, 100), generator=torch.Generator().manual_seed(0))
    same = torch.equal(step.next_latents, again.next_latents)
    ignored = {False: "generator ignored: pass it on to torch.randn."}
    expect("whether one seed gives one draw", same, True, ignored, DRAW)


def test_the_next_latents_that_are_given_are_kept():
    given = each(1.4, -1.0)
    kept = torch.equal(step_of(2, next_latents=given).next_latents, given)
    lost = {False: "given next_latents ignored: a draw is made only where they are None."}
    expect("whether given next latents come back as they are", kept, True, lost, DRAW)
    kept = torch.equal(step_of(3, next_latents=given).next_latents, given)
    lost = {False: "the last step drops what is given: its mean is taken only where none are."}
    expect("whether they do in the last step", kept, True, lost, DRAW)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    step_of(2, next_latents=given, generator=generator)
    still = torch.equal(generator.get_state(), before)
    idle = {False: "a draw that nobody uses: it would change all draws that come after it."}
    expect("whether the generator stays as it was", still, True, idle, DRAW)


def test_the_log_prob_of_a_step():
    log_prob = step_of(2, next_latents=each(1.4, -1.0)).log_prob
    shapes = {
        (): "mean over the batch too: each sample has a log_prob of its own.",
        (2, 3): "mean over channels only: tokens are elements too.",
        (2, 5): "mean over tokens only: channels are elements too.",
        (2, 3, 5): "mean over the elements forgotten.",
    }
    expect("the shape of log_prob", tuple(log_prob.shape), (2,), shapes, LOG_PROB)
    mistakes = {
        -4.303618: "sum for mean over the 15 elements.",
        -0.860724: "sum for mean over the 3 tokens.",
        -1.434539: "sum for mean over the 5 channels.",
        -0.410806: "factor one half of the square forgotten.",
        -0.724906: "variance for standard deviation in the square: std to the fourth power.",
        -0.221189: "std for its square in the denominator.",
        0.469021: "log of the variance for log(std).",
        -1.042837: "log(std) forgotten: a draw from a narrow Gaussian is denser.",
        -1.798765: "sign of log(std): a draw from a narrow Gaussian is denser.",
        0.632031: "0.5 * log(2 * pi) forgotten.",
        -1.205846: "one half of log(2 * pi) forgotten.",
        0.286908: "sign of log_prob: it grows as x comes nearer to the mean.",
        0.750581: "density for its logarithm.",
        -0.239495: "one mean for both samples: each has a log_prob of its own.",
        -0.714556: TEN,
        -0.194706: TEN,
        0.232926: TEN,
    }
    expect("log_prob of 1.4, 0.4978 std from its mean", log_prob[0], -0.286908, mistakes, LOG_PROB)


def test_the_inputs_are_left_alone():
    latents, velocity, given = each(1.2, -0.4), each(-0.5, 1.5), each(1.4, -1.0)
    inputs = dict(latents=latents, velocity=velocity, sigmas=SIGMAS.clone(), next_latents=given)
    call = functools.partial(ex.sde_step, index=2, noise_level=0.7)
    expect_unchanged(call, "the docstring of sde_step in exercises/ex_02_sde_step.py", **inputs)


def test_the_first_step_whose_sigma_is_1():
    clamped = "1 - sigma made a little more than 0: sigmas[1] belongs there."
    small = (10**-k for k in range(2, 9))
    mistakes = {
        math.inf: "sigma = 1: the denominator is 0; sigmas[1] belongs there.",
        math.nan: "sigma = 1: the denominator is 0; sigmas[1] belongs there.",
        0.626099: "sigmas[1] twice: in the denominator only, sigma itself is 1.",
        0.0: "no noise in the first step: only the last one is an Euler step.",
    } | {0.7 * math.sqrt(0.2 / little): clamped for little in small}
    std = step_of(0).std[0]
    expect("std of the step from 1 to 0.8", std, 0.7, mistakes, DIFFUSION)
    mistakes = {0.963125: "sigmas[1] in the score too: it belongs in the denominator of d only."}
    expect("mean of the step from 1 to 0.8", step_of(0).mean[0, 0, 0], 1.006, mistakes, GAUSSIAN)


def test_the_last_step_is_an_euler_step():
    step = step_of(3)
    noisy = "noise in the last step: it would stay in the picture, so d is 0 there."
    expect("std of the step from 0.3 to 0", step.std[0], 0.0, {0.251: noisy}, DIFFUSION)
    little = {False: "a little more than 0 for std: 0 is meant, and log_prob has an if for it."}
    expect("whether it is exactly 0", bool(step.std[0] == 0), True, little, DIFFUSION)
    mistakes = {1.26075: "drift in the last step: d is 0 there, in the mean too."}
    expect("mean of the step from 0.3 to 0", step.mean[0, 0, 0], 1.35, mistakes, DIFFUSION)
    same = (step.next_latents - step.mean).abs().max()
    expect("how far that step's next latents are from its mean", same, 0.0, {}, DIFFUSION)
    one_step = torch.tensor([1.0, 0.0])
    only = ex.sde_step(each(1.2, -0.4), each(-0.5, 1.5), one_step, 0, 0.7).std[0]
    first = {0.7: "the first step before the last: with K = 1 the step is both, and d is 0."}
    expect("std of the only step where K is 1", only, 0.0, first, DIFFUSION)
    shape = tuple(torch.as_tensor(step.log_prob).shape)
    number = {(): "one 0 for all: each sample has its log_prob, torch.zeros(B)."}
    expect("the shape of its log_prob", shape, (2,), number, LOG_PROB)
    undefined = "std = 0: there is no density, and log_prob is 0."
    mistakes = {math.nan: undefined, math.inf: undefined, -math.inf: undefined}
    expect("log_prob of the step from 0.3 to 0", step.log_prob[0], 0.0, mistakes, LOG_PROB)
    quiet = step_of(2, noise_level=0.0).log_prob[0]
    expect("log_prob of any step with noise_level 0", quiet, 0.0, mistakes, LOG_PROB)


def test_the_log_prob_has_a_gradient():
    velocity = torch.full((1, 3, 5), -0.5, requires_grad=True)
    latents, given = each(1.2, 1.2)[:1], each(1.4, 1.4)[:1]
    log_prob = ex.sde_step(latents, velocity, SIGMAS, 2, 0.7, next_latents=given).log_prob
    cut = "detached: no .detach(), .item(), torch.no_grad() or torch.tensor(...) around velocity."
    expect("whether log_prob has a gradient", log_prob.requires_grad, True, {False: cut}, LOG_PROB)


def test_the_arithmetic_is_float32():
    given = dict(latents=each(1.2, -0.4), velocity=each(-0.5, 1.5), next_latents=each(1.4, -1.0))
    given = {name: value.bfloat16() for name, value in given.items()}
    score = functools.partial(ex.sde_step, sigmas=SIGMAS, index=2, noise_level=0.7)
    step, same = score(**given), score(**{name: value.float() for name, value in given.items()})
    half = {"torch.bfloat16": "16 bits: latents.float() and velocity.float() come first."}
    half["torch.float64"] = "64 bits: make float32 of it at the end, with .float()."
    for name in ("mean", "std", "log_prob"):
        dtype = str(getattr(step, name).dtype)
        expect(f"the dtype of {name}, all in 16 bits", dtype, "torch.float32", half, FLOAT32)
    before = "rounded to 16 bits on the way: .float() of all that is given comes before arithmetic."
    for name in ("mean", "log_prob"):
        equal = torch.equal(getattr(step, name), getattr(same, name))
        what = f"whether {name} is that of the same numbers in float32"
        expect(what, equal, True, {False: before}, FLOAT32)
    dtype = str(step.next_latents.dtype)
    made = {"torch.float32": "given next_latents changed to float32: they come back as they came."}
    expect("the dtype of the next_latents given", dtype, "torch.bfloat16", made, FLOAT32)


def test_every_draw_is_new_and_scored():
    expect_draws(lambda generator: step_of(2, generator=generator).next_latents, DRAW)
    step = step_of(2, size=(100, 100), generator=torch.Generator().manual_seed(0))
    expect_noise((step.next_latents - step.mean) / step.std, "sample", DRAW)
    scored = step_of(2, size=(100, 100), next_latents=step.next_latents).log_prob
    expect_part("log_prob of a draw", step.log_prob, scored, DRAW)


def test_any_latents_sigmas_and_noise_level():
    """Three samples whose tokens and channels differ, in tables of which only the ends agree."""
    rng = torch.Generator().manual_seed(1)
    fixed = {"0.7 written for noise_level: it may be any.": {"noise_level": 0.7}}
    for table in (
        [1, 0.95, 0.72, 0.31, 0],
        [1, 0.6, 0],
        [1, 0.99, 0.96, 0.8, 0.3, 0.05, 0],
        [1, 0],
    ):
        for noise_level in (0.02, 1.3, 0.0):
            latents, velocity, given = torch.randn((3, 3, 4, 2), generator=rng)
            for index in range(len(table) - 1):
                expect_as_ours(
                    ex,
                    "sde_step",
                    f"in step {index} of {table}, noise_level {noise_level}",
                    "all parts of the docstring of sde_step in exercises/ex_02_sde_step.py",
                    fixed,
                    latents=latents,
                    velocity=velocity.requires_grad_(),
                    sigmas=torch.tensor(table, dtype=torch.float32),
                    index=index,
                    noise_level=noise_level,
                    next_latents=given,
                )
