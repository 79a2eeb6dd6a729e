"""What the loop costs beyond the bare network: prints three ratios, alternating within one process.

python -m measure.speed  # about a minute; not a test, since times on a shared machine are not
"""

import statistics
import time
from pathlib import Path

import torch

import grpo
import train
from models import flux
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM

ROOT = Path(__file__).resolve().parent.parent


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def main(rounds: int = 8) -> None:
    cfg = train.Config(model=str(ROOT / "assets" / "tiny-flux"))
    pipe = flux.load(cfg.model)
    pipe.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(flux.trainable(pipe), lr=0.0)
    prompts = [p.text for p in heldout_prompts()[: cfg.prompts_per_step]]
    seeds = [[8 * p + 2 * g for g in range(cfg.group_size)] for p in range(len(prompts))]
    reward = PairwiseReward(ShapesMLLM())
    rows = torch.arange(len(prompts)).repeat_interleave(cfg.group_size)
    velocity = flux.velocity_fn(pipe, flux.encode(pipe, prompts).rows(rows), cfg.size, cfg.size)
    noise, sigma = torch.randn(len(rows), 16, 32), torch.full((len(rows),), 0.5)

    def bare_forward():
        with torch.no_grad():
            for _ in range(cfg.num_steps):
                velocity(noise, sigma)

    def bare_update():
        for _ in range(cfg.num_steps - 1):
            velocity(noise, sigma).square().mean().backward()
        optimizer.zero_grad()

    def rollout_alone():
        sigmas = train.sampler.sigma_schedule(cfg.num_steps)
        generators = [torch.Generator().manual_seed(i) for i in range(len(rows))]
        train.sampler.rollout(velocity, noise, sigmas, cfg.noise_level, generator=generators)

    ratios = {"rollout": [], "update": [], "judging": []}
    for _ in range(rounds):
        bare, _ = timed(bare_forward)
        sampled, _ = timed(rollout_alone)
        rolled, rollout = timed(train.roll_out, pipe, cfg, prompts, seeds)
        judged, batch = timed(reward, prompts, rollout.images)
        advantages = grpo.group_advantages(batch.rewards, cfg.std_floor).flatten()
        bare_learned, _ = timed(bare_update)
        learned, _ = timed(
            train.update,
            pipe,
            cfg,
            pipe.transformer,
            optimizer,
            rollout,
            advantages,
            None,
            rollout.trajectory.sde_steps,
        )
        ratios["rollout"].append(sampled / bare)
        ratios["update"].append(learned / bare_learned)
        ratios["judging"].append(judged / (rolled + judged + learned))
    for name, of in (
        ("rollout", "K bare passes"),
        ("update", "as many bare forward and backward passes"),
        ("judging", "a step"),
    ):
        values = sorted(ratios[name])
        print(
            f"{name} / {of}: median {statistics.median(values):.3f}, "
            f"from {values[0]:.3f} to {values[-1]:.3f} over {rounds} rounds"
        )


if __name__ == "__main__":
    main()
