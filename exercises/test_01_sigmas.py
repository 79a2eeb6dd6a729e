"""Checks of exercise 1, in the order of the work: python -m pytest exercises/test_01_sigmas.py"""

from exercises import ex_01_sigmas as ex
from exercises.checks import expect, expect_as_ours

FIRST_LINE = "the first line of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"
EVEN = "part 1 of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"
SHIFT = "part 2 of the docstring of sigma_schedule in exercises/ex_01_sigmas.py"


def test_4_steps_lie_between_5_levels():
    levels = len(ex.sigma_schedule(4))
    expect("how many levels 4 steps have", levels, 5, EVEN)
    expect("what the levels are", type(ex.sigma_schedule(4)).__name__, "Tensor", EVEN)


def test_the_levels_are_float32():
    dtype = str(ex.sigma_schedule(4, 3.0).dtype)
    expect("the dtype of the levels", dtype, "torch.float32", FIRST_LINE)


def test_the_levels_fall_from_1_to_0():
    sigmas = ex.sigma_schedule(4)
    expect("the first level", sigmas[0], 1.0, EVEN)
    expect("the last of 4 steps' levels", sigmas[4], 0.0, EVEN)
    counts = (4, 1, 3, 6, 7, 10, 47, 50)
    inexact = [k for k in counts if ex.sigma_schedule(k)[-1] != 0]
    what = f"of {', '.join(map(str, counts))} steps, how many do not end at exactly 0"
    expect(what, len(inexact), 0, FIRST_LINE)
    expect("how many levels 1 step has", len(ex.sigma_schedule(1)), 2, EVEN)
    expect("the level after 1 of 4 steps without a shift", sigmas[1], 0.75, EVEN)


def test_a_shift_pushes_the_levels_up():
    sigmas = ex.sigma_schedule(4, 3.0)
    expect("the level after 2 of 4 steps with shift 3", sigmas[2], 0.75, SHIFT)
    middle = ex.sigma_schedule(4, 2.0)[2]
    expect("the level after 2 of 4 steps with shift 2", middle, 2 / 3, SHIFT)
    expect("the same with shift 0.5", ex.sigma_schedule(4, 0.5)[2], 1 / 3, SHIFT)


def test_any_number_of_steps_and_any_shift():
    for num_steps in (*range(1, 17), 28, 47, 100):
        for shift in (0.03, 0.3, 1.0, 1.7, 3.0, 6.5, 40.0):
            what = f"of {num_steps} steps, shift {shift}"
            expect_as_ours(ex, "sigma_schedule", what, SHIFT, num_steps=num_steps, shift=shift)
    expect_as_ours(ex, "sigma_schedule", "of 7 steps, no shift given", FIRST_LINE, num_steps=7)
