"""A run's checkpoints: trainable weights, optimizer state and moving average after a step.

RUN/checkpoint/step_N, a folder of torch.distributed.checkpoint, which any number of ranks takes up,
sharded or not.
"""

import copy
import shutil
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from training.distributed import EMA, Processes


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps whose states are kept whole, ascending: .metadata is written after all else."""
    return sorted(step_of(file.parent) for file in folder.glob("step_*/.metadata"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint."""
    steps = checkpoint_steps(folder)
    return folder / f"step_{steps[-1]:06d}" if steps else None


def training_state(transformer, optimizer, average: EMA) -> dict:
    weights = {n: p.detach() for n, p in transformer.named_parameters() if p.requires_grad}
    options = StateDictOptions(ignore_frozen_params=True)
    return {
        "weights": weights,
        "average": average.mean,
        "optimizer": get_optimizer_state_dict(transformer, optimizer, options=options),
    }


def copied(state):
    """A copy in main memory of nested dicts of tensors."""
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    return copy.deepcopy(state)


def save_checkpoint(folder: Path, procs: Processes, state: dict, step: int, keep=()) -> None:
    """A training_state, each rank its part.

    Then drops older ones, but for the last before it and those of the steps in `keep`.
    """
    target = folder / f"step_{step:06d}"
    if procs.broadcast((target / ".metadata").exists):
        return  # the same state: a run has but one after each step
    if procs.is_main and target.exists():
        shutil.rmtree(target)  # what a killed run left half written
    procs.meet()
    try:
        dcp.save(state, checkpoint_id=str(target))
    except dcp.api.CheckpointException as error:  # on all ranks, and no Exception
        if procs.is_main:
            shutil.rmtree(target, ignore_errors=True)  # what is left of the disk is of use
        raise RuntimeError(str(next(iter(error.failures.values()))[0])) from None
    procs.meet()
    if procs.is_main:
        kept = {*checkpoint_steps(folder)[-2:], step, *keep}
        for old in folder.glob("step_*"):
            if step_of(old) not in kept:
                shutil.rmtree(old)


def load_checkpoint(checkpoint: Path, transformer, optimizer, average) -> None:
    """Puts a checkpoint back, each rank its part of it. Raises ValueError if it is damaged."""
    state = training_state(transformer, optimizer, average)
    try:  # in place: weights and average are the live tensors
        dcp.load(state, checkpoint_id=str(checkpoint))
    except dcp.api.CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise ValueError(
            f"'{checkpoint}' cannot be read ({reason}): remove it to go on from the one before"
        ) from None
    set_optimizer_state_dict(
        transformer,
        optimizer,
        state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True),
    )
