"""What of a run is kept: the moving average of its weights, its last whole step, its checkpoints.

A checkpoint is a folder of torch.distributed.checkpoint, RUN/checkpoint/step_N: trainable weights,
optimizer state and average. It resumes on any number of ranks, sharded or not.
"""

import contextlib
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

from training.distributed import Processes


class EMA:
    """Exponential moving average of the trainable weights, in float32, sharded as they are."""

    def __init__(self, transformer: torch.nn.Module, decay: float):
        self.decay = decay
        self.live = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
        self.mean = {n: p.detach().float().clone() for n, p in self.live.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        for name, mean in self.mean.items():
            mean.lerp_(self.live[name].detach().float(), 1 - self.decay)

    @contextlib.contextmanager
    def swapped_in(self):
        """The average stands in for the live weights; without a decay nothing is exchanged."""
        kept = {n: self.live[n].detach().clone() for n in self.mean}
        try:
            self._put(self.mean)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.live[name].copy_(value)


# ----------------------------------------------------------------------------- checkpoints


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


class LastWhole:
    """The state after the last whole step, which stays the run's to save while the next is at work.

    It lies in the live tensors until the optimizer moves them. Where a step has several updates, a
    copy of it in main memory is made then: to finish the step would take as long as its other
    updates, which may be minutes.
    """

    def __init__(self, transformer, optimizer, average: EMA, updates: int):
        self.live, self.updates = (transformer, optimizer, average), updates
        self.whole()
        optimizer.register_step_pre_hook(self._before_update)

    def whole(self) -> None:
        """The step is over: its state is in the live tensors."""
        self.moved, self.copy = False, None

    def _before_update(self, *_) -> None:
        if not self.moved:
            self.moved = True
            self.copy = copied(training_state(*self.live)) if self.updates > 1 else None

    @property
    def known(self) -> bool:
        return not self.moved or self.copy is not None

    def state(self) -> dict:
        return self.copy or training_state(*self.live)


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
    procs.wait()
    try:
        dcp.save(state, checkpoint_id=str(target))
    except dcp.api.CheckpointException as error:  # on all ranks, and no Exception
        if procs.is_main:
            shutil.rmtree(target, ignore_errors=True)  # what is left of the disk is of use
        raise RuntimeError(str(next(iter(error.failures.values()))[0])) from None
    procs.wait()
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
