"""What the checks of all exercises share: how a failure is told, and whose function is used.

A check is a function without arguments that calls `expect` once for each number it looks at. The
inputs are chosen so that each usual mistake gives a number of its own, by which it is recognized.

    expect("sigma in the middle", sigmas[2], 0.75, {0.5: "shift forgotten: ..."}, "part 2")
    sde_step = student("sde_step")          # in a later exercise: the student's if it passes
"""

import importlib
import math
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# exercise -> the names that the student writes, and the module in which our solution of each stands
EXERCISES = {
    "01_sigmas": {"sigma_schedule": "sampler"},
    "02_sde_step": {"sde_step": "sampler"},
    "03_rollout": dict.fromkeys(["rollout", "replay"], "sampler"),
    "04_win_rates": dict.fromkeys(["mean_points", "win_rates", "PairwiseReward"], "rewards"),
    "05_verdicts": {"parse_verdict": "judges.verdicts"},
    "06_advantages": {"group_advantages": "grpo"},
    "07_loss": dict.fromkeys(["clipped_loss", "normalized_log_ratio"], "grpo"),
    "08_window": {"draw_window": "support.prompts", "rollout": "sampler"},
    "09_bench_score": {"overall": "bench"},
    "10_hack": dict.fromkeys(["score", "hacked", "points"], "exercises.our_hack"),
}
UNFORESEEN_NUMBER = "none of the usual mistakes. Work this one number out by hand, term by term."
UNFORESEEN = (
    "This mistake is not one that we foresaw. Compare expected with got, and read the lines that "
    "are named below."
)
# What Python says where it stops -> what is likely meant by it.
STOPS = {
    "math domain error": "the root or logarithm of a number that has none: a wrong sign, or a 0 "
    "that needs an if of its own.",
    "expected a nonnegative input": "the root of a number below 0: look for a wrong sign.",
    "expected a positive input": "the logarithm of 0, or of a number below: look for a wrong sign.",
    "division by zero": "a case in which what divides is 0 needs an if of its own.",
    "'NoneType'": "None stands where a number or a tensor is meant: ask whether it `is None`, or "
    "look for a `return` that is missing.",
    "Boolean value of Tensor": "a tensor is asked whether it is true: ask whether it `is None`.",
    "refers to a single memory location": "a tensor that is given is written into: make a new one.",
    "can't set attribute": "a tuple with names stays as it is made: leave it, or make a new one.",
}
USED = {}  # name -> whose function later exercises build on, for the last lines of the output


def expect(what: str, got, wanted, mistakes: dict, read: str, tol: float = 1e-4) -> None:
    """Fails unless got is wanted, and then says which mistake gives what came.

    got: a number, a tensor that holds one, or anything with ==. mistakes: what a mistake gives ->
    its name and cause. read: where to read about it. tol: relative, and absolute below 1.
    """
    if math.prod(getattr(got, "shape", [0])) == 1:  # of torch or numpy
        got = got.item()
    assert not any(alike(value, wanted, tol) for value in mistakes), f"a mistake gives {wanted}"
    if not alike(got, wanted, tol):
        by_hand = all(isinstance(value, float) for value in (got, wanted))
        unknown = UNFORESEEN_NUMBER if by_hand else UNFORESEEN
        likely = next((said for v, said in mistakes.items() if alike(got, v, tol)), unknown)
        lines = dict(expected=shown(wanted), got=shown(got), likely=likely, read=read)
        told = "\n".join(f"  {name:<10}{text}" for name, text in lines.items())
        pytest.fail(f"{what}\n{told}", pytrace=False)


def expect_unchanged(call: Callable, read: str, **inputs: torch.Tensor) -> None:
    """Fails if call(**inputs) writes into a tensor that it is given, and says into which."""
    before = {name: value.clone() for name, value in inputs.items()}
    call(**inputs)
    changed = [name for name, value in inputs.items() if not torch.equal(value, before[name])]
    whose = "it is the caller's, who needs it again: make a new tensor, x = x + 1 for x += 1."
    mistakes = {name: f"{name} changed in place: {whose}" for name in inputs}
    expect("which input is written into", changed[0] if changed else "none", "none", mistakes, read)


def alike(one, other, tol: float) -> bool:
    """Equal; for numbers, up to tol. NaN is like NaN here."""
    if not all(isinstance(x, int | float) for x in (one, other)):
        return type(one) is type(other) and one == other
    return math.isclose(one, other, rel_tol=tol, abs_tol=tol) or (one != one and other != other)


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    shape = getattr(value, "shape", None)
    return str(value) if shape is None else f"a tensor of shape {tuple(shape)}, not one number"


def failure_of(check: Callable) -> str | None:
    """What a failing check has to say, also of a stub, a missing return, or what STOPS names; None
    if it passes.

    Any other exception comes from the student's lines and is left as it is, for its traceback.
    """
    try:
        check()
    except pytest.fail.Exception as failure:
        return failure.msg
    except Exception as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        file, name = Path(frame.f_code.co_filename).name, frame.f_code.co_name
        if isinstance(error, NotImplementedError) and file.startswith("ex_"):
            return (
                f"{name} is not written yet.\n  Its docstring in exercises/{file} says what it "
                f"returns; your lines take the place of\n  `raise NotImplementedError` in line "
                f"{line}. Then run this command again."
            )
        if "NoneType" in str(error) and file.startswith("test_"):
            return (
                f"Your function returned None: its `return` is missing (exercises/{file}:{line})."
            )
        likely = next((said for stop, said in STOPS.items() if stop in str(error)), None)
        if likely is None:
            raise
        lines = f"  {'got':<10}{error}, in line {line} of {file}\n  {'likely':<10}{likely}"
        return f"Python stops in {name}\n{lines}"
    return None


def unreadable(exercise: str) -> str | None:
    """Where Python cannot read the student's file, in one line; None if it can."""
    try:
        importlib.import_module(f"exercises.ex_{exercise}")
    except SyntaxError as error:  # an IndentationError is one
        file = Path(error.filename).name
        return f"exercises/{file}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    return None


def first_failure(exercise: str) -> str | None:
    """What the first failing check of an exercise says; None if all pass."""
    if failure := unreadable(exercise):
        return failure
    checks = vars(importlib.import_module(f"exercises.test_{exercise}"))
    for name in [name for name in checks if name.startswith("test_")]:
        try:
            failure = failure_of(checks[name])
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:
            return failure
    return None


def student(name: str) -> Callable:
    """The student's function of an earlier exercise if it passes its checks, else ours."""
    exercise = next(ex for ex, names in EXERCISES.items() if name in names)
    passes = first_failure(exercise) is None
    command = f"python -m pytest exercises/test_{exercise}.py"
    USED[name] = "yours" if passes else f"ours; yours does not pass yet ({command})"
    module = f"exercises.ex_{exercise}" if passes else EXERCISES[exercise][name]
    return getattr(importlib.import_module(module), name)
