"""What the loop costs beyond the bare network: prints four ratios, alternating within one process.

python -m measure.speed        # about a minute; not a test: times on a shared machine vary
"""

import statistics
import time

import torch

import grpo
import sampler
import train
from models import base
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from support.config import Config
from support.prompts import Batch

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
    how = (slice(0, len(advantages)), cfg.clip_range, cfg.guard, cfg.kl_coef)
    for k in rollout.trajectory.sde_steps:
        loss = train.objective(model, model.transformer, rollout, advantages, k, *how)
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
        return train.sample(model, batch, sigmas, cfg.noise_level, cfg.sde_kind, count)

    ratios = {name: [] for name in AGAINST}
    for _ in range(rounds):
        bare, _ = timed(bare_forward)
        sampled, _ = timed(rollout_alone)
        rolled, rollout = timed(sample)
        judged, scored = timed(reward, prompts, rollout.images)
        advantages = grpo.group_advantages(scored.values, cfg.std_floor).flatten()
        bare_learned, _ = timed(bare_update)
        learned, _ = timed(descend, model, optimizer, rollout, advantages, cfg)
        ratios["rollout"].append(sampled / bare)
        ratios["update"].append(learned / bare_learned)
        ratios["step without judging"].append((rolled + learned) / (bare + bare_learned))
        ratios["judging"].append(judged / (rolled + judged + learned))
    return ratios


def main(rounds: int = 8) -> None:
    for name, values in measure(rounds, Config()).items():
        values = sorted(values)
        print(
            f"{name} / {AGAINST[name]}: median {statistics.median(values):.3f}, "
            f"from {values[0]:.3f} to {values[-1]:.3f} over {rounds} rounds"
        )


if __name__ == "__main__":
    main()
