"""exercises/: the checks pass what is right, and name what is wrong. In process, without pytest's
own machinery: checks are plain functions."""

import csv
import importlib
from collections import Counter
from pathlib import Path

import pytest

from exercises.checks import EXERCISES, expect, first_failure, student

FOLDER = Path(importlib.import_module("exercises").__file__).parent
with (FOLDER / "mistakes.csv").open(newline="") as file:
    MISTAKES = list(csv.DictReader(file))


def hand_in(monkeypatch, exercise, functions):
    """Puts functions in the place of the student's."""
    stub = importlib.import_module(f"exercises.ex_{exercise}")
    for name in EXERCISES[exercise][1]:
        monkeypatch.setattr(stub, name, functions[name])


def ours(exercise):
    return importlib.import_module(EXERCISES[exercise][0])


def with_mistake(row):
    """What our module defines when its source has the mistake in it."""
    module = ours(row["exercise"])
    source = Path(module.__file__).read_text()
    assert source.count(row["old"]) == 1, f"{row['old']!r} must stand once in {module.__file__}"
    names = {"__name__": module.__name__, "__file__": module.__file__}
    exec(source.replace(row["old"], row["new"]), names)
    return names


def test_every_exercise_is_in_the_table():
    files = {path.stem.removeprefix("ex_") for path in FOLDER.glob("ex_*.py")}
    assert files == set(EXERCISES)
    assert {path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py")} == files
    assert min(Counter(row["exercise"] for row in MISTAKES)[ex] for ex in files) >= 3


@pytest.mark.parametrize("exercise", EXERCISES)
def test_our_solution_passes(exercise, monkeypatch):
    hand_in(monkeypatch, exercise, vars(ours(exercise)))
    assert first_failure(exercise) is None


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_stub_says_what_is_to_be_written(exercise):
    stub = FOLDER / f"ex_{exercise}.py"
    if "raise NotImplementedError" not in stub.read_text():
        pytest.skip("this exercise is solved here")
    assert f"exercises/{stub.name}" in first_failure(exercise)


@pytest.mark.parametrize("row", MISTAKES, ids=lambda row: f"{row['exercise']}: {row['mistake']}")
def test_a_mistake_gets_its_own_message(row, monkeypatch):
    hand_in(monkeypatch, row["exercise"], with_mistake(row))
    told = first_failure(row["exercise"]) or "all checks pass"
    rows = [other for other in MISTAKES if other["exercise"] == row["exercise"]]
    assert [r["mistake"] for r in rows if r["message"] in told] == [row["mistake"]], told


def test_a_forgotten_return_is_told(monkeypatch):
    hand_in(monkeypatch, "02_sde_step", {"sde_step": lambda *args, **kwargs: None})
    assert "`return` is missing" in first_failure("02_sde_step")


def test_a_later_exercise_builds_on_what_passes(monkeypatch):
    import sampler
    from exercises import ex_01_sigmas

    def theirs(num_steps, shift=1.0):
        return sampler.sigma_schedule(num_steps, shift)

    monkeypatch.setattr(ex_01_sigmas, "sigma_schedule", theirs)
    assert student("sigma_schedule") is theirs
    monkeypatch.setattr(ex_01_sigmas, "sigma_schedule", lambda num_steps, shift=1.0: None)
    assert student("sigma_schedule") is sampler.sigma_schedule


@pytest.mark.parametrize(
    "got, told",
    [
        (0.25, "halved"),
        (0.3, "none of the usual"),
        (float("nan"), "none of the usual"),
        (None, "got       None"),
    ],
)
def test_a_failure_names_the_likely_mistake_or_none(got, told):
    with pytest.raises(pytest.fail.Exception, match=told):
        expect("a number", got, 0.5, {0.25: "halved"}, "here")
    expect("a number", 0.50001, 0.5, {0.25: "halved"}, "here")
