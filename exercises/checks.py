"""What the checks of all exercises share: how a failure is told, and whose function is used.

A check is a function without arguments that calls `expect` once for each number it looks at. The
inputs are chosen so that each usual mistake gives a number of its own, by which it is recognized:
likely.json has them, by what is looked at. The last check of an exercise compares with our solution
on many inputs of every kind.

    expect("the level after 2 of 4 steps with shift 3", sigmas[2], 0.75, "part 2")
    expect_as_ours(ex, "sigma_schedule", "of 7 steps", "part 1", num_steps=7)
    sde_step = student("sde_step")          # in a later exercise: the student's if it passes
"""

import ast
import copy
import importlib
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sampler

# exercise -> the names that the student writes, and the module in which our solution of each stands
EXERCISES = {
    "01_sigmas": {"sigma_schedule": "sampler"},
    "02_sde_step": {"sde_step": "sampler"},
    "03_rollout": dict.fromkeys(["rollout", "replay"], "sampler"),
    "04_win_rates": dict.fromkeys(["mean_points", "win_rates", "PairwiseReward"], "rewards"),
    "05_verdicts": {"parse_verdict": "judges.answers"},
    "06_advantages": {"group_advantages": "grpo"},
    "07_loss": dict.fromkeys(["clipped_loss", "normalized_log_ratio"], "grpo"),
    "08_window": {"draw_window": "training.data", "rollout": "sampler"},
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
    "unknown SDE kind": "what stands behind noise_level is told by name: next_latents=..., "
    "generator=..., since our sde_step has a parameter more there.",
    "can't set attribute": "a tuple with names stays as it is made: leave it, or make a new one.",
}
USED = {}  # name -> whose function later exercises build on, for the last lines of the output


def value_of(key: str):
    """What a key of likely.json stands for: a number, a tuple, True, None, or else its words."""
    for reads in (float, ast.literal_eval):
        try:
            return reads(key)
        except (ValueError, SyntaxError):
            continue
    return key


# what is looked at -> what a mistake makes of it -> the mistake's name and cause
LIKELY = {
    what: {value_of(key): said for key, said in mistakes.items()}
    for checks in json.loads(Path(__file__).with_name("likely.json").read_text()).values()
    for what, mistakes in checks.items()
}


def expect(what: str, got, wanted, read: str, mistakes: dict | None = None, tol=1e-4) -> None:
    """Fails unless got is wanted, and then says which mistake gives what came.

    what: brackets at its end may tell what was seen. got: a number, a tensor that holds one, or
    anything with ==. read: where to read about it.
    mistakes: what a mistake gives -> its name and cause, beside those of likely.json. tol:
    relative, and absolute below 1.
    """
    known = LIKELY.get(what) or LIKELY.get(what.rpartition(" (")[0], {})
    mistakes = known | (mistakes or {})
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


def expect_unchanged(call: Callable, read: str, **inputs) -> None:
    """Fails if call(**inputs) writes into a tensor or a list that it is given, and names it."""
    given, changed = copy.deepcopy(inputs), "none"
    call(**given)
    for name, value in inputs.items():
        pairs = zip(tensors_in(value), tensors_in(given[name]))
        listed = isinstance(value, list) and value != given[name]
        if listed or not all(torch.equal(*pair) for pair in pairs):
            changed = name
    whose = "it is the caller's, who needs it again: make a new tensor, x = x + 1 for x += 1."
    mistakes = {name: f"{name} changed in place: {whose}" for name in inputs}
    expect("which input is written into", changed, "none", read, mistakes)


def expect_as_ours(
    ex: ModuleType, name: str, what: str, read: str, mistaken: dict | None = None, **inputs
) -> None:
    """Fails unless ex's function of that name gives what ours gives, and leaves its inputs alone.

    mistaken: a mistake's name and cause -> the inputs, where they differ, with which ours gives
    what it gives: {"0.7 written for noise_level.": {"noise_level": 0.7}}. Every part of a tuple
    with names is compared, and the slope of a loss or log_prob by each input that requires one.
    """
    exercise = ex.__name__.rpartition("ex_")[2]
    ours = getattr(importlib.import_module(EXERCISES[exercise][name]), name)
    yours = getattr(ex, name)
    expect_unchanged(yours, read, **inputs)
    got, wanted = parts_of(yours, inputs), parts_of(ours, inputs)
    expect(f"the parts of what is returned {what}", list(got), list(wanted), read)
    wrong = {said: parts_of(ours, inputs | other) for said, other in (mistaken or {}).items()}
    for part in wanted:
        likely = {said: parts.get(part) for said, parts in wrong.items()}
        expect_part(f"{part} {what}", got[part], wanted[part], read, likely)


def parts_of(function: Callable, inputs: dict) -> dict:
    """What function(**inputs) returns, by name, and the slopes of what is to have a gradient."""
    inputs = copy.deepcopy(inputs)
    result = function(**inputs)
    parts = result._asdict() if hasattr(result, "_asdict") else {"what comes": result}
    by = [x for x in tensors_in(list(inputs.values())) if x.requires_grad]
    for name in parts.keys() & {"loss", "log_prob", "mean", "what comes"} if by else ():
        value = torch.as_tensor(parts[name])
        uneven = (value * torch.linspace(1, 2, value.numel()).view(value.shape)).sum()
        slopes = [None] * len(by)
        if uneven.requires_grad:
            slopes = torch.autograd.grad(uneven, by, retain_graph=True, allow_unused=True)
        zeros = (torch.zeros_like(x) if g is None else g for x, g in zip(by, slopes))
        parts |= {f"slope {n} of {name}": slope for n, slope in enumerate(zeros)}
    return parts


def tensors_in(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    within = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return [tensor for part in within for tensor in tensors_in(part)]


def expect_part(what: str, got, wanted, read: str, likely: dict | None = None) -> None:
    """As expect, of whole tensors and lists of numbers, and as exact as float32 allows."""
    if not isinstance(wanted, torch.Tensor | list):
        known = {v: s for s, v in (likely or {}).items() if v != wanted}
        return expect(what, got, wanted, read, known, 1e-6)
    kind = type(wanted)
    is_one = type(wanted).__name__ if isinstance(got, kind) else type(got).__name__
    expect(f"the kind of {what}", is_one, kind.__name__, read)
    numbers = [torch.as_tensor(x) for x in (got, wanted)]
    fit = {s: torch.as_tensor(v) for s, v in (likely or {}).items() if v is not None}
    for name in ("shape", "dtype"):
        one, other = (str(getattr(x, name)) for x in numbers)
        known = {"torch.float64": "float64 left as it came: it goes to float32, too."}
        known |= {str(getattr(v, name)): s for s, v in fit.items()}
        known.pop(other, None)
        expect(f"the {name} of {what}", one, other, read, known)
    if isinstance(got, torch.Tensor) and what.split()[0] not in ("next_latents", "mean"):
        attached = got.requires_grad and not wanted.requires_grad
        detach = {True: "attached: detach what is logged, else it keeps all that was computed."}
        expect(f"whether {what} has a gradient by mistake", attached, False, read, detach)
    got, wanted = (x.detach().double() for x in numbers)
    far = (got - wanted).abs().nan_to_num(math.inf) - 2e-5 * wanted.abs()
    if far.numel() and far.max() > 2e-6 * min(1, wanted.abs().max()):
        at = tuple(int(i) for i in torch.unravel_index(far.argmax(), far.shape))
        same = [s for s, v in fit.items() if torch.allclose(got, v.double(), 1e-4)]
        known = {got[at].item(): said for said in same}
        expect(f"{what}, at {at}", got[at].item(), wanted[at].item(), read, known, 0)


def expect_draws(draw: Callable, read: str) -> None:
    """Fails unless draw(generator) goes on from draw to draw, and disturbs no other numbers."""
    before = torch.get_rng_state()
    one, other = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    draws = [draw(one), draw(one), draw(other), draw(torch.Generator().manual_seed(3))]
    still = torch.equal(torch.get_rng_state(), before)
    expect("whether one seed gives one draw", torch.equal(draws[0], draws[3]), True, read)
    expect("whether torch's own numbers stay as they were", still, True, read)
    for k, which in ((1, "generator's second draw"), (2, "other seed's draw")):
        expect(f"whether one draw is the {which}", torch.equal(draws[0], draws[k]), False, read)
    same = torch.equal(draw(None), draw(None))
    expect("whether two draws without a generator are the same", same, False, read)


def expect_walk(
    trajectory, network: Callable, noise: torch.Tensor, sigmas: torch.Tensor, levels: list, read
) -> None:
    """Fails unless each step of a rollout is one of ours, from its latents at its noise level."""
    expect_part("the first latents", trajectory.latents[0], noise, read)
    expect_part("trajectory.sigmas", trajectory.sigmas, sigmas, read)
    steps = f" of {len(levels)} steps, noise levels {levels}"
    fixed = dict.fromkeys({5, 7} - {len(sigmas)}, "a number written for K: K is len(sigmas) - 1.")
    expect("how many latents" + steps, len(trajectory.latents), len(sigmas), read, fixed)
    drawn = []
    for k, level in enumerate(levels):
        before, after = trajectory.latents[k : k + 2]
        velocity = network(before, sigmas[k].expand(len(noise))).detach()
        cut = network(before, (1000 * sigmas[k]).long().div(1000).expand(len(noise))).detach()
        step, rounded, told = (
            sampler.sde_step(before, v, sigmas, k, a, next_latents=after)
            for v, a in ((velocity, level), (velocity, round(level, 1)), (cut, level))
        )
        for name in ("mean", "std", "log_prob"):
            got, wanted = getattr(trajectory, name + "s")[k], getattr(step, name)
            other = {"noise_level rounded: it may be any.": getattr(rounded, name)}
            other["thousandths: the network is told sigma itself."] = getattr(told, name)
            expect_part(f"{name} of step {k}{steps}", got, wanted, read, other)
        if step.std.max() > 0:
            drawn += [*(after - step.mean) / step.std]
        else:
            expect_part(f"latents after step {k}{steps}", after, step.mean, read)
    if drawn:
        expect_noise(torch.stack(drawn), "sample or step", read)


def expect_noise(noise: torch.Tensor, of: str, read: str) -> None:
    """Fails unless noise (S, ...) is a Gaussian's, and other noise for each of the S."""
    rows = torch.nn.functional.normalize(noise.flatten(1))
    near = ((rows @ rows.T).abs() > 0.9).sum() > len(rows)
    expect(f"whether one {of} has the noise of another", bool(near), False, read)
    moments = dict(mean=noise.mean(), std=noise.std(), fourth_power=noise.pow(4).mean())
    for (name, got), wanted in zip(moments.items(), (0.0, 1.0, 3.0)):
        room = {0.0: 6, 1.0: 6, 3.0: 60}[wanted] / noise.numel() ** 0.5
        what = f"whether the noise has a Gaussian's {name}, {wanted} (it has {got:.3f})"
        expect(what, bool((got - wanted).abs() < room), True, read)


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
