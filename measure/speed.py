"""What the loop costs: beyond the bare network, one image at a time, by processes.

    python -m measure.speed              # all of it, some ten minutes
    python -m measure.speed floor        # one part: floor, batching or commands

What is compared alternates within one run, and each ratio comes with its spread. Not a test: times
on a shared machine vary.
"""

import json
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
from measure.servers import ROOT
from measure.step import Step
from rewards import PairwiseReward
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.data import make_batch

AGAINST = {  # what is measured -> what it is held against
    "rollout": "K bare passes",
    "update": "as many bare forward and backward passes with the optimizer",
    "step without judging": "both",
    "judging": "a step",
}


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def spread(values) -> str:
    values = sorted(values)
    median = statistics.median(values)
    return f"median {median:.3f}, from {values[0]:.3f} to {values[-1]:.3f} in {len(values)} rounds"


# ----------------------------------------------------------------------------- parts


def measure(rounds: int, cfg: Config) -> dict[str, list[float]]:
    """The ratios of each round."""
    step, batch, reward = Step(cfg), make_batch(cfg, None, 1), PairwiseReward(ShapesMLLM())
    count, sigmas = len(batch.noise_seeds), sampler.sigma_schedule(cfg.num_steps)
    velocity = step.model.velocity(step.model.encode(batch.prompts, cfg.group_size))
    noise, sigma = step.model.noise(batch.noise_seeds), torch.full((count,), 0.5)

    def bare_forward():
        with torch.no_grad():
            for _ in range(cfg.num_steps):
                velocity(noise, sigma)

    def bare_update():
        for _ in batch.replayed:
            velocity(noise, sigma).square().mean().backward()
        step.optimizer.step()
        step.optimizer.zero_grad()

    def rollout_alone():
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        sampler.rollout(velocity, noise, sigmas, cfg.noise_level, generator=generators)

    ratios = {name: [] for name in AGAINST}
    for _ in range(rounds):
        bare, _ = timed(bare_forward)
        sampled, _ = timed(rollout_alone)
        rolled, rollout = timed(step.sample, cfg, batch, count)
        judged, scored = timed(reward, batch.prompts, rollout.images)
        rewards = {"pairwise": scored}
        advantages, _ = train.normalize(rewards, {}, cfg.std_floor, cfg.adv_clip)
        bare_learned, _ = timed(bare_update)
        rest = (rollout, advantages.flatten(), batch.replayed, count)
        learned, _ = timed(step.update, cfg, *rest)
        ratios["rollout"].append(sampled / bare)
        ratios["update"].append(learned / bare_learned)
        ratios["step without judging"].append((rolled + learned) / (bare + bare_learned))
        ratios["judging"].append(judged / (rolled + judged + learned))
    return ratios


def floor(rounds: int = 8) -> None:
    for name, values in measure(rounds, Config()).items():
        print(f"{name} / {AGAINST[name]}: {spread(values)}")


def batching(rounds: int = 3) -> None:
    """All samples at once, against one image at a time, as released code runs."""
    step = Step(Config())
    step.run(prompts_per_step=1)  # warms up
    for prompts in (4, 12, 24):
        ratios = []
        for _ in range(rounds):
            whole, _ = timed(step.run, prompts_per_step=prompts)
            single, _ = timed(step.run, micro_batch=1, prompts_per_step=prompts)
            ratios.append(single / whole)
        print(f"B = {8 * prompts}: one image at a time / all at once: {spread(ratios)}")


# ----------------------------------------------------------------------------- whole commands


def run(out: Path, launcher: list[str], threads: int) -> tuple[float, list[dict]]:
    """Seconds from the command to the first training step, and the lines of steps 2 to 4."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "train.py", "--steps=4", "--eval_every=99", f"--out={out}"],
        cwd=ROOT,
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


PARTS = {part.__name__: part for part in (floor, batching, commands)}


def main() -> None:
    asked = sys.argv[1:] or list(PARTS)
    if odd := set(asked) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(odd))}: choose from {', '.join(PARTS)}")
    for part in asked:
        PARTS[part]()


if __name__ == "__main__":
    main()
