"""What the loop costs: beyond the bare network, one image at a time, by size, by processes.

    python -m measure.speed              # all of it, some ten minutes
    python -m measure.speed floor        # one part: floor, batching, growth or commands

What is compared alternates within one run, and each ratio comes with its spread. Not a test: times
on a shared machine vary.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import sampler
import train
from models import base
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.data import Batch, make_batch

AGAINST = {  # what is measured -> what it is held against
    "rollout": "K bare passes",
    "update": "as many bare forward and backward passes with the optimizer",
    "step without judging": "both",
    "judging": "a step",
}


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def descend(model, optimizer, rollout, advantages, cfg) -> None:
    """All stochastic steps of all samples, as the loop descends them."""
    rows = slice(0, len(advantages))
    how = dict(clip_range=cfg.clip_range, guard=cfg.guard, kl_coef=cfg.kl_coef)
    for k in rollout.trajectory.sde_steps:
        loss = train.objective(model, rollout, advantages, k, rows, **how)
        loss.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.trainable(), cfg.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def measure(rounds: int, cfg: Config) -> dict[str, list[float]]:
    """The ratios of each round."""
    model = base.load(cfg.model, cfg.size, cfg.guidance)
    model.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.trainable(), lr=0.0)
    prompts = [p.text for p in heldout_prompts()[: cfg.prompts_per_step]]
    count = len(prompts) * cfg.group_size
    batch = Batch(prompts, list(range(count)), list(range(count, 2 * count)), [])
    reward = PairwiseReward(ShapesMLLM())
    sigmas = sampler.sigma_schedule(cfg.num_steps)
    velocity = model.velocity(model.encode(prompts, cfg.group_size))
    noise, sigma = model.noise(range(count)), torch.full((count,), 0.5)

    def bare_forward():
        with torch.no_grad():
            for _ in range(cfg.num_steps):
                velocity(noise, sigma)

    def bare_update():
        for _ in range(cfg.num_steps - 1):
            velocity(noise, sigma).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def rollout_alone():
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        sampler.rollout(velocity, noise, sigmas, cfg.noise_level, generator=generators)

    def sample():
        return train.sample(
            model, batch, sigmas, noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=count
        )

    ratios = {name: [] for name in AGAINST}
    for _ in range(rounds):
        bare, _ = timed(bare_forward)
        sampled, _ = timed(rollout_alone)
        rolled, rollout = timed(sample)
        judged, scored = timed(reward, prompts, rollout.images)
        advantages, _ = train.normalize(
            {"pairwise": scored.values}, {}, cfg.std_floor, cfg.adv_clip
        )
        advantages = advantages.flatten()
        bare_learned, _ = timed(bare_update)
        learned, _ = timed(descend, model, optimizer, rollout, advantages, cfg)
        ratios["rollout"].append(sampled / bare)
        ratios["update"].append(learned / bare_learned)
        ratios["step without judging"].append((rolled + learned) / (bare + bare_learned))
        ratios["judging"].append(judged / (rolled + judged + learned))
    return ratios


def floor(rounds: int = 8) -> None:
    for name, values in measure(rounds, Config()).items():
        print(f"{name} / {AGAINST[name]}: {spread(values)}")


def spread(values) -> str:
    values = sorted(values)
    median = statistics.median(values)
    return f"median {median:.3f}, from {values[0]:.3f} to {values[-1]:.3f} in {len(values)} rounds"


# ----------------------------------------------------------------------------- by size


class Step:
    """A step without judging, at any size: rollout, decoding, the replay of all that it replays."""

    def __init__(self, cfg: Config):
        self.cfg, self.model = cfg, base.load(cfg.model, cfg.size, cfg.guidance)
        self.model.transformer.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.trainable(), lr=0.0)

    def seconds(self, micro_batch: int = 0, **sizes) -> float:
        """micro_batch: samples through the network at once; 0: all. sizes: of Config's fields."""
        cfg = dataclasses.replace(self.cfg, **sizes)
        drawn = make_batch(cfg, None, 1)
        count = len(drawn.noise_seeds)
        advantages, at_once = torch.linspace(-1, 1, count), micro_batch or count
        sigmas = sampler.sigma_schedule(cfg.num_steps)
        start = time.perf_counter()
        rollout = train.sample(
            self.model,
            drawn,
            sigmas,
            noise_level=cfg.noise_level,
            kind=cfg.sde_kind,
            micro_batch=at_once,
        )
        for rows in train.micro_batches(count, at_once):
            for k in drawn.replayed:
                how = dict(clip_range=cfg.clip_range, guard=cfg.guard, kl_coef=cfg.kl_coef)
                train.objective(self.model, rollout, advantages, k, rows, **how).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def batching(rounds: int = 3) -> None:
    """All samples at once, against one image at a time, as released code runs."""
    step = Step(Config())
    step.seconds(prompts_per_step=1)  # warms up
    for prompts in (4, 12, 24):
        ratios = []
        for _ in range(rounds):
            whole = step.seconds(prompts_per_step=prompts)
            ratios.append(step.seconds(micro_batch=1, prompts_per_step=prompts) / whole)
        print(f"B = {8 * prompts}: one image at a time / all at once: {spread(ratios)}")


def growth(rounds: int = 5) -> None:
    """How time grows with K, G and P: the exponent of the power law from the least to the most."""
    step = Step(Config())
    sizes = {"num_steps": (4, 8, 16), "group_size": (4, 8, 16), "prompts_per_step": (4, 8, 16)}
    for name, values in sizes.items():
        others = {"prompts_per_step": 8} if name != "prompts_per_step" else {}
        times = {value: [] for value in values}
        for turn in range(rounds + 1):  # the first warms up
            for value in values:
                seconds = step.seconds(**(others | {name: value}))
                times[value] += [seconds] if turn else []
        exponents = [
            math.log(last / first) / math.log(values[-1] / values[0])
            for first, last in zip(times[values[0]], times[values[-1]])
        ]
        print(f"time grows with {name} to the power of: {spread(exponents)}")


# ----------------------------------------------------------------------------- whole commands


def run(out: Path, launcher: list[str], threads: int) -> tuple[float, list[dict]]:
    """Seconds from the command to the first training step, and the lines of steps 2 to 4."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "train.py", "--steps=4", "--eval_every=99", f"--out={out}"],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start, log = time.perf_counter(), out / "metrics.jsonl"
    while not log.exists() and process.poll() is None:  # it is written when all is prepared
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.wait():
        raise SystemExit(f"train.py ended with status {process.returncode}")
    return seconds, [json.loads(line) for line in log.read_text().splitlines()][2:]


def commands(rounds: int = 3) -> None:
    """When the first step begins; two ranks of one thread against one process of two."""
    starts, ratios = [], []
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    seconds = lambda rows: sum(row["seconds_rollout"] + row["seconds_update"] for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            start, one = run(Path(folder) / f"one{turn}", [], 2)
            _, two = run(Path(folder) / f"two{turn}", torchrun, 1)
            starts.append(start)
            ratios.append(seconds(one) / seconds(two))
    print(f"seconds from the command to the first training step: {spread(starts)}")
    print(f"speed of two ranks of one thread / of one process of two threads: {spread(ratios)}")


PARTS = {"floor": floor, "batching": batching, "growth": growth, "commands": commands}


def main() -> None:
    asked = sys.argv[1:] or list(PARTS)
    if odd := set(asked) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(odd))}: choose from {', '.join(PARTS)}")
    for part in asked:
        PARTS[part]()


if __name__ == "__main__":
    main()
