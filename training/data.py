"""Prompts from a file: which of them a step trains on, and their text embeddings, made once.

The order is a new shuffle each epoch, computed from seed and step: there is no state to save, and a
resumed run goes on where it stood.

    prompts = read_prompts("prompts.txt", heldout=64)
    make_batch(cfg, prompts, step=1)            # cfg: config.Config
"""

import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from common.seeds import seed_of
from shapes import prompts as shapes_prompts

log = logging.getLogger("train")

ENCODED_AT_ONCE = 16  # prompts a batch where text is cached


class Prompts(NamedTuple):
    train: list[str]
    heldout: list[str]  # the last ones of the file, never trained on


def read_prompts(path: str, heldout: int, at_least: int = 1) -> Prompts:
    """The distinct non-empty lines of a UTF-8 file, in order; the last `heldout` are kept apart.

    at_least: how many must be left to train on, one step's worth.
    Raises ValueError for a missing, unreadable or too short file.
    """
    try:
        # at line ends alone: splitlines would also cut at characters that may stand within a prompt
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"--prompts '{path}': {error.strerror}; it must hold one prompt a line")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts '{path}' is not UTF-8 (byte {error.start}): save it as UTF-8")
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(prompts) < heldout + at_least:
        raise ValueError(
            f"--prompts '{path}' holds {len(prompts)} distinct prompts, one a line: too few for "
            f"{heldout} held out (--heldout) and {at_least} a step (--prompts_per_step)"
        )
    return Prompts(prompts[: len(prompts) - heldout], prompts[len(prompts) - heldout :])


class Batch(NamedTuple):
    """All that is drawn for one step on one rank."""

    prompts: list[str]  # P of this rank
    noise_seeds: list[int]  # B = P * G, of the initial noise
    step_seeds: list[int]  # B, of the noise that the SDE adds
    replayed: list[int]  # the stochastic steps that are trained, alike on all ranks
    window: list[int] | None = None  # the stochastic steps, alike on all ranks; None: all

    def split(self, groups: int) -> list["Batch"]:
        """Parts of so many groups each."""
        size, parts = len(self.noise_seeds) // len(self.prompts), []
        for p in range(0, len(self.prompts), groups):
            rows = slice(p * size, (p + groups) * size)
            seeds = dict(noise_seeds=self.noise_seeds[rows], step_seeds=self.step_seeds[rows])
            parts.append(self._replace(prompts=self.prompts[p : p + groups], **seeds))
        return parts


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, epoch, "order")).permutation(count)


def step_prompts(prompts: Prompts | None, count: int, step: int, seed: int, rng) -> list[str]:
    """The `count` prompts of a step (counted from 1), alike on all ranks.

    From a file: the next ones of an endless row of shuffled epochs. Without one: drawn with `rng`
    from shapes, which never run out.
    """
    if prompts is None:
        return [p.text for p in shapes_prompts.sample_prompts(count, rng)]
    size = len(prompts.train)
    positions = range((step - 1) * count, step * count)
    return [prompts.train[epoch_order(size, seed, i // size)[i % size]] for i in positions]


def window_range(cfg) -> tuple[int, int]:
    """The first and the last step, plus one, in which --window may lie.

    Raises ValueError if the text is no range, or the window does not fit into it.
    """
    last = cfg.num_steps - 1  # always an ODE step, and so outside
    low, colon, high = (cfg.window_range or f"0:{last}").partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise ValueError(f"--window_range '{cfg.window_range}': two step numbers A:B, such as 1:4")
    if not int(low) + cfg.window <= int(high) <= last:
        raise ValueError(
            f"--window {cfg.window} must fit into --window_range {low}:{high}, and that into "
            f"0:{last}: the last of {cfg.num_steps} steps is not stochastic"
        )
    return int(low), int(high)


def draw_window(seed: int, step: int, low: int, high: int, width: int) -> list[int]:
    """The stochastic steps of a training step: width in a row out of low to high - 1."""
    rng = np.random.default_rng(seed_of(seed, step, "window"))
    start = int(rng.integers(low, high - width + 1))
    return list(range(start, start + width))


def make_batch(cfg, prompts: Prompts | None, step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """What this rank samples and replays in a step: it depends on the seed and the step alone, so
    that a resumed run goes on as if it had not stopped. Each rank takes every ranks-th prompt."""
    rng = np.random.default_rng(seed_of(cfg.seed, step, "prompts"))
    texts = step_prompts(prompts, cfg.prompts_per_step, step, cfg.seed, rng)
    mine = range(rank, cfg.prompts_per_step, ranks)
    images = [(p, g) for p in mine for g in range(cfg.group_size)]
    noise = [seed_of(cfg.seed, step, p, 0 if cfg.same_noise else g, "noise") for p, g in images]
    steps = [seed_of(cfg.seed, step, p, g, "steps") for p, g in images]
    if cfg.window:
        replayed = window = draw_window(cfg.seed, step, *window_range(cfg), cfg.window)
    else:
        stochastic, window = cfg.num_steps - 1, None
        count = max(1, round(cfg.timestep_fraction * stochastic))
        replayed = sorted(rng.choice(range(stochastic), count, replace=False).tolist())
    return Batch([texts[p] for p in mine], noise, steps, replayed, window)


class TextCache:
    """Text embeddings on disk, one safetensors file for each prompt and model: about 4 MB at
    FLUX.1-dev's size in bfloat16 (512 tokens x 4096).

    A local folder counts as another model once its encoders' files have changed.
    """

    def __init__(self, folder: str | Path, model: str, dtype: torch.dtype):
        stats = [file.stat() for file in sorted(Path(model).glob("text_encoder*/*.safetensors"))]
        self.folder = Path(folder)
        self.name = f"{model}|{dtype}|{[(stat.st_size, stat.st_mtime_ns) for stat in stats]}"

    def path(self, prompt: str) -> Path:
        name = hashlib.blake2b(f"{self.name}|{prompt}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.safetensors"

    def prepare(self, prompts: list[str], encode) -> None:
        """Encodes what is not there yet; ranks of one file system may do so side by side.

        encode: from P prompts to a NamedTuple of tensors with P rows, as Model.text_of.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [p for p in dict.fromkeys(prompts) if not self.path(p).exists()]
        for i in range(0, len(missing), ENCODED_AT_ONCE):
            chunk = missing[i : i + ENCODED_AT_ONCE]
            text = encode(chunk)._asdict()
            for row, prompt in enumerate(chunk):
                temporary = self.path(prompt).with_suffix(f".{os.getpid()}.tmp")
                save_file({k: v[row].cpu().contiguous() for k, v in text.items()}, temporary)
                temporary.replace(self.path(prompt))
        if missing:
            log.info("text of %d prompts encoded into %s", len(missing), self.folder)

    def load(self, prompts: list[str], kind, device):
        """What encode(prompts) gave, as `kind`. ValueError for a prompt that was not prepared."""
        for prompt in prompts:
            if not self.path(prompt).exists():
                raise ValueError(f"no text embedding of '{prompt[:60]}' in '{self.folder}'")
        rows = [load_file(self.path(prompt)) for prompt in prompts]
        return kind(**{key: torch.stack([row[key] for row in rows]).to(device) for key in rows[0]})
