"""Checks of exercise 1, in the order of the work: python -m pytest exercises/test_01_sigmas.py"""

from exercises import ex_01_sigmas as ex
from exercises.checks import expect, expect_as_ours

FIRST_LINE = "the first line of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"
EVEN = "part 1 of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"
SHIFT = "part 2 of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"


def test_4_steps_lie_between_5_levels():
    levels = len(ex.sigma_schedule(4))
    few = "K levels instead of K + 1: 4 steps need 5 levels, since each step has two ends."
    many = "K + 2 levels instead of K + 1: linspace has both ends already."
    expect("how many levels 4 steps have", levels, 5, {4: few, 6: many}, EVEN)
    kinds = {
        "ndarray": "numpy's array for torch's tensor: torch.linspace makes a tensor.",
        "list": "a list for a tensor: torch.linspace makes a tensor.",
    }
    expect("what the levels are", type(ex.sigma_schedule(4)).__name__, "Tensor", kinds, EVEN)


def test_the_levels_are_float32():
    dtype = str(ex.sigma_schedule(4, 3.0).dtype)
    double = "float64: convert at the end with .float(), as the latents are float32 too."
    expect("the dtype of the levels", dtype, "torch.float32", {"torch.float64": double}, FIRST_LINE)


def test_the_levels_fall_from_1_to_0():
    sigmas = ex.sigma_schedule(4)
    rising = "upside down: sigma is the share of noise, and drawing begins with noise alone."
    minus = "shift instead of shift - 1 in the denominator."
    expect("the first level", sigmas[0], 1.0, {0.0: rising, 0.5: minus}, EVEN)
    short = "a range that stops before 0: some noise would stay in the picture."
    one_more = "divided by K + 1 instead of K: some noise would stay in the picture."
    expect("the last of 4 steps' levels", sigmas[4], 0.0, {0.25: short, 0.2: one_more}, EVEN)
    nearly = "nearly 0: what is left of the noise would stay in the picture, so end at 0 itself."
    counts = (4, 1, 3, 6, 7, 10, 25, 50)
    inexact = [k for k in counts if ex.sigma_schedule(k)[-1] != 0]
    what = f"of {', '.join(map(str, counts))} steps, how many do not end at exactly 0"
    summed = "fractions added up, which leaves a trace of noise: linspace ends where it is told."
    mistakes = dict.fromkeys(range(1, 8), summed) | {8: nearly}
    expect(what, len(inexact), 0, mistakes, FIRST_LINE)
    least = "a step too many: K = 1 is a number of steps as any other."
    expect("how many levels 1 step has", len(ex.sigma_schedule(1)), 2, {3: least}, EVEN)
    curved = "uneven levels: without a shift they are evenly spaced, 1, 0.75, 0.5, 0.25, 0."
    brackets = "brackets forgotten: 1 + shift - 1 * s is something else than 1 + (shift - 1) * s."
    twice = "0 twice: linspace(1, 0, K + 1) ends with it already, so none is to be added."
    mistakes = {0.5625: curved, 0.866: curved, 0.6: brackets, 2 / 3: twice}
    expect("the level after 1 of 4 steps without a shift", sigmas[1], 0.75, mistakes, EVEN)


def test_a_shift_pushes_the_levels_up():
    sigmas = ex.sigma_schedule(4, 3.0)
    mistakes = {
        0.5: "shift ignored: this is s itself.",
        0.25: "shift upside down: multiplied where you should divide, which pushes levels down.",
        1.5: "denominator forgotten: shift * s alone rises above 1, which is more than all noise.",
        0.9: "shift applied twice.",
        2.5: "brackets forgotten: everything after the division sign belongs to the denominator.",
    }
    expect("the level after 2 of 4 steps with shift 3", sigmas[2], 0.75, mistakes, SHIFT)
    what, fixed = "the level after 2 of 4 steps with shift 2", "3 written for shift: it may be any."
    expect(what, ex.sigma_schedule(4, 2.0)[2], 2 / 3, {0.75: fixed}, SHIFT)
    what, least = "the same with shift 0.5", "a shift below 1 ignored: it pushes the levels down."
    whole = "shift cut to a whole number: it may be any number above 0."
    expect(what, ex.sigma_schedule(4, 0.5)[2], 1 / 3, {0.5: least, 0.0: whole}, SHIFT)


def test_any_number_of_steps_and_any_shift():
    for num_steps in (*range(1, 17), 28, 50):
        for shift in (0.3, 1.0, 1.7, 3.0, 6.5):
            what = f"of {num_steps} steps, shift {shift}"
            expect_as_ours(ex, "sigma_schedule", what, SHIFT, num_steps=num_steps, shift=shift)
    expect_as_ours(ex, "sigma_schedule", "of 7 steps, no shift given", FIRST_LINE, num_steps=7)
