"""What a step costs by its size: memory by micro-batch, G and prompts; time by K x B.

    python -m measure.scaling

Some minutes on an idle machine; not a test, since times vary.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import sampler
import train
from models import base
from training.config import Config
from training.data import Batch
from training.footprint import Alive

MODEL = str(Path(__file__).resolve().parent.parent / "assets" / "tiny-flux")
SIZES = [(4, 16), (8, 16), (16, 16), (4, 32), (8, 32), (4, 64)]  # K, B at micro-batches of 16
SHAPES = [(4, 4, 2), (8, 4, 2), (4, 8, 2), (4, 4, 4), (8, 8, 4)]  # micro-batch, G, prompts


def step(model, optimizer, cfg, prompts: int):
    """Rollout, decoding and the replay of all stochastic steps; no judge. The rollout."""
    count = prompts * cfg.group_size
    batch = Batch(["a red circle"] * prompts, list(range(count)), list(range(count)), [])
    sigmas = sampler.sigma_schedule(cfg.num_steps)
    rollout = train.sample(
        model,
        batch,
        sigmas,
        noise_level=cfg.noise_level,
        kind=cfg.sde_kind,
        micro_batch=cfg.micro_batch,
    )
    for rows in train.micro_batches(count, cfg.micro_batch):
        for k in rollout.trajectory.sde_steps:
            advantages = torch.ones(count)
            how = dict(clip_range=cfg.clip_range, guard=True, kl_coef=0.0)
            loss = train.objective(model, rollout, advantages, k, rows, **how)
            loss.loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rollout


def memory() -> None:
    """Most bytes alive in a whole step, with and without what is cached of its samples."""
    print("micro-batch  G  prompts    peak MB  of which cached  the rest")
    for micro_batch, group, prompts in SHAPES:
        cfg = Config(model=MODEL, size=64, num_steps=3, micro_batch=micro_batch, group_size=group)
        model, optimizer = load(cfg)
        with Alive() as alive:
            rollout = step(model, optimizer, cfg, prompts)
        cached = sum(x.nbytes for x in (*rollout.trajectory[:4], *rollout.text))
        print(
            f"{micro_batch:11} {group:2} {prompts:8} {alive.peak / 1e6:10.2f} "
            f"{cached / 1e6:16.2f} {(alive.peak - cached) / 1e6:9.2f}"
        )


def seconds(rounds: int = 5) -> None:
    """Median times, and how far they are from a line through K x B."""
    times = {size: [] for size in SIZES}
    model, optimizer = load(Config(model=MODEL, micro_batch=16))
    for turn in range(rounds + 1):  # alternating: a disturbance meets all sizes; the first warms up
        for num_steps, samples in SIZES:
            cfg = Config(model=MODEL, num_steps=num_steps, micro_batch=16, group_size=8)
            start = time.perf_counter()
            step(model, optimizer, cfg, samples // 8)
            if turn:
                times[num_steps, samples].append(time.perf_counter() - start)
    medians = {size: statistics.median(values) for size, values in times.items()}
    work = np.array([num_steps * samples for num_steps, samples in SIZES])
    slope, offset = np.polyfit(work, list(medians.values()), 1)
    for (num_steps, samples), median in medians.items():
        product, values = num_steps * samples, times[num_steps, samples]
        print(
            f"K {num_steps:3}  B {samples:3}  K x B {product:5}: {median:7.3f} s, line "
            f"{slope * product + offset:7.3f} s, {1e3 * median / product:.2f} ms per step and "
            f"sample ({min(values):.3f} .. {max(values):.3f} s over {rounds} rounds)"
        )
    print(
        f"line: {offset:.3f} s + {1e3 * slope:.2f} ms x K x B; correlation "
        f"{np.corrcoef(work, list(medians.values()))[0, 1]:.4f}"
    )


def load(cfg: Config):
    model = base.load(cfg.model, cfg.size, cfg.guidance)
    model.pipe.vae.enable_slicing()  # else one batch of up to 64 images decides
    model.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.trainable(), lr=0.0)
    step(model, optimizer, replace(cfg, num_steps=2), 1)  # the optimizer's states
    return model, optimizer


def main() -> None:
    memory()
    seconds()


if __name__ == "__main__":
    main()
