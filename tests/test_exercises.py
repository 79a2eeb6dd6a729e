"""exercises/: the checks pass what is right, and name what is wrong. In process, without pytest's
own machinery: checks are plain functions."""

import csv
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from exercises import checks
from exercises.checks import EXERCISES, expect, first_failure, student
from shapes.read import read

FOLDER = Path(importlib.import_module("exercises").__file__).parent
with (FOLDER / "mistakes.csv").open(newline="") as file:
    MISTAKES = list(csv.DictReader(file))
TABLES = json.loads((FOLDER / "likely.json").read_text())


@functools.cache
def reading(mode, size, pixels):
    (found,) = read([Image.frombytes(mode, size, pixels)])
    return found


@pytest.fixture(autouse=True)
def pictures_are_read_once(monkeypatch):
    """The checks of exercise 10 read the same pictures again for each mistake."""
    once = lambda images: [reading(image.mode, image.size, image.tobytes()) for image in images]
    monkeypatch.setattr("exercises.ex_10_hack.read", once)


def hand_in(monkeypatch, exercise, functions):
    """Puts functions in the place of the student's."""
    stub = importlib.import_module(f"exercises.ex_{exercise}")
    for name, function in functions.items():
        monkeypatch.setattr(stub, name, function)


def ours(exercise):
    modules = EXERCISES[exercise].items()
    return {name: getattr(importlib.import_module(module), name) for name, module in modules}


def with_mistake(row):
    """Our functions, those of one module made from its source with the mistake in it."""
    solution = EXERCISES[row["exercise"]]
    files = {module: importlib.import_module(module).__file__ for module in solution.values()}
    sources = {module: Path(file).read_text() for module, file in files.items()}
    found = [module for module, source in sources.items() for _ in range(source.count(row["old"]))]
    assert len(found) == 1, f"{row['old']!r} must stand once in {' and '.join(sources)}"
    (wrong,) = found
    names = {"__name__": wrong, "__file__": files[wrong]}
    exec(sources[wrong].replace(row["old"], row["new"]), names)
    changed = {name: names[name] for name, module in solution.items() if module == wrong}
    return ours(row["exercise"]) | changed


def test_every_exercise_is_in_the_table():
    for kind in ("ex_", "test_"):
        files = {path.stem.removeprefix(kind) for path in FOLDER.glob(f"{kind}*.py")}
        assert files == set(EXERCISES)
    assert min(Counter(row["exercise"] for row in MISTAKES)[ex] for ex in files) >= 3
    assert len(checks.LIKELY) == sum(map(len, TABLES.values()))  # none is in two of them


@pytest.mark.parametrize("exercise", EXERCISES)
def test_our_solution_passes(exercise, monkeypatch):
    hand_in(monkeypatch, exercise, ours(exercise))
    asked = set()

    class Asked(dict):
        def get(self, what, default=None):
            asked.add(what)
            return super().get(what, default)

    monkeypatch.setattr(checks, "LIKELY", Asked(checks.LIKELY))
    assert first_failure(exercise) is None
    assert set(TABLES[exercise]) <= asked  # what no check looks at, it could not name


def test_a_forgotten_return_is_told(monkeypatch):
    hand_in(monkeypatch, "02_sde_step", {"sde_step": lambda *args, **kwargs: None})
    assert "`return` is missing" in first_failure("02_sde_step")


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


def test_a_file_that_python_cannot_read_is_told_in_one_line(tmp_path):
    """By pytest, as a student calls it, and where another exercise would build on the file."""
    shutil.copytree(FOLDER, tmp_path / "exercises", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "exercises" / "ex_02_sde_step.py").write_text("x = 1\n  y = 2\n")
    told = "exercises/ex_02_sde_step.py, line 2: IndentationError: unexpected indent"
    check = "exercises/test_02_sde_step.py"
    both = "import pytest; from exercises.checks import first_failure"
    both += f"; print(first_failure('02_sde_step')); pytest.main(['{check}'])"
    done = subprocess.run(
        [sys.executable, "-c", both],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{FOLDER.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines().count(told) == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_later_exercise_builds_on_what_passes(monkeypatch):
    import sampler

    theirs = lambda num_steps, shift=1.0: sampler.sigma_schedule(num_steps, shift)
    hand_in(monkeypatch, "01_sigmas", {"sigma_schedule": theirs})
    assert student("sigma_schedule") is theirs
    hand_in(monkeypatch, "01_sigmas", {"sigma_schedule": lambda num_steps, shift=1.0: None})
    assert student("sigma_schedule") is sampler.sigma_schedule


@pytest.mark.parametrize(
    "got, told",
    [(0.25, "halved"), (0.3, "none of the usual.* by hand"), (None, "got       None.*\n.*foresaw")],
)
def test_a_failure_names_the_likely_mistake_or_none(got, told):
    with pytest.raises(pytest.fail.Exception, match=told):
        expect("a number", got, 0.5, "here", {0.25: "halved"})
    expect("a number", 0.50001, 0.5, "here", {0.25: "halved"})
