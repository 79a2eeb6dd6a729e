"""The house of the repository: which room may import which, read from the imports themselves."""

import ast
import importlib

import pytest
from conftest import ROOT

# From the top floor down: a file imports rooms below its own, or its own room. On one floor none
# imports another.
FLOORS = [
    ("study", "measure", "exercises"),
    ("train", "bench"),
    ("training",),
    ("unigenbench",),
    ("figures",),
    ("shapes",),
    ("rewards",),
    ("judges",),
    ("sampler", "grpo"),
    ("models",),
    ("common",),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported(path) -> set[str]:
    """The rooms that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} & FLOOR_OF.keys()


def test_every_room_has_its_floor():
    rooms = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "runs"}
    assert rooms | {path.stem for path in ROOT.glob("*.py")} == FLOOR_OF.keys()


@pytest.mark.parametrize("room", FLOOR_OF)
def test_imports_go_down_and_of_sampler_and_loss_nowhere(room):
    for path in sorted(ROOT.glob(f"{room}/*.py")) or [ROOT / f"{room}.py"]:
        for other in imported(path) - {room}:
            assert FLOOR_OF[other] > FLOOR_OF[room], f"{path.relative_to(ROOT)} imports {other}"
            assert room not in ("sampler", "grpo"), f"{room}.py imports {other}"


# What readers, the guide and checks outside this repository call by these names.
NAMES = {
    "sampler": "sigma_schedule sde_step Step rollout Trajectory replay ode_sample",
    "grpo": "group_advantages combine_advantages clipped_loss Loss normalized_log_ratio "
    "kl_to_reference",
    "rewards": "Verdict parse_verdict pair_schedule win_rates PairwiseReward PointwiseReward "
    "Comparison Rewards",
    "judges.mllm": "Query Answer MLLM",
    "judges.answers": "Outcome Verdict parse_verdict parse_scores",
    "bench": "load_prompts Prompt question parse_scores score",
}


@pytest.mark.parametrize("module", NAMES)
def test_each_module_has_the_names_that_it_is_called_by(module):
    assert set(NAMES[module].split()) <= set(dir(importlib.import_module(module)))
