"""What a step costs by its size: memory by micro-batch, G and prompts; time by K x B.

python -m measure.scaling     # some minutes on an idle machine; not a test, since times are not
"""

import statistics
import time
from pathlib import Path

import numpy as np
import torch

import train
from models import flux
from support.footprint import Alive

MODEL = str(Path(__file__).resolve().parent.parent / "assets" / "tiny-flux")
SIZES = [(4, 16), (8, 16), (16, 16), (4, 32), (8, 32), (4, 64)]  # K, B at micro-batches of 16
SHAPES = [(4, 4, 2), (8, 4, 2), (4, 8, 2), (4, 4, 4), (8, 8, 4)]  # micro-batch, G, prompts


def step(pipe, optimizer, cfg, prompts: int):
    """Rollout, decoding and the replay of all stochastic steps; no judge. The rollout."""
    seeds = [[2 * (cfg.group_size * p + g) for g in range(cfg.group_size)] for p in range(prompts)]
    rollout = train.roll_out(pipe, cfg, ["a red circle"] * prompts, seeds)
    train.update(
        pipe,
        cfg,
        pipe.transformer,
        optimizer,
        rollout,
        torch.ones(prompts * cfg.group_size),
        None,
        rollout.trajectory.sde_steps,
    )
    return rollout


def memory(pipe, optimizer) -> None:
    """Most bytes alive in a whole step, with and without what is cached of its samples."""
    print("micro-batch  G  prompts    peak MB  of which cached  the rest")
    for micro_batch, group, prompts in SHAPES:
        cfg = train.Config(
            model=MODEL, size=64, num_steps=3, micro_batch=micro_batch, group_size=group
        )
        with Alive() as alive:
            rollout = step(pipe, optimizer, cfg, prompts)
        cached = sum(x.nbytes for x in (*rollout.trajectory[:4], *rollout.text))
        print(
            f"{micro_batch:11} {group:2} {prompts:8} {alive.peak / 1e6:10.2f} "
            f"{cached / 1e6:16.2f} {(alive.peak - cached) / 1e6:9.2f}"
        )


def seconds(pipe, optimizer, rounds: int = 5) -> None:
    """Median times, and how far they are from a line through K x B."""
    times = {size: [] for size in SIZES}
    for turn in range(rounds + 1):  # alternating: a disturbance meets all sizes; the first warms up
        for num_steps, samples in SIZES:
            cfg = train.Config(model=MODEL, num_steps=num_steps, micro_batch=16, group_size=8)
            start = time.perf_counter()
            step(pipe, optimizer, cfg, samples // 8)
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


def main() -> None:
    pipe = flux.load(MODEL)
    pipe.vae.enable_slicing()  # else one batch of up to 64 images decides
    pipe.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(flux.trainable(pipe), lr=0.0)
    step(pipe, optimizer, train.Config(model=MODEL, num_steps=2), 1)  # the optimiser's states
    memory(pipe, optimizer)
    seconds(pipe, optimizer)


if __name__ == "__main__":
    main()
