"""What progress is measured on: fixed prompts and fixed noise, sampled with the ODE, never trained on.

The win rate that Pref-GRPO optimises averages one half by construction, so it cannot show progress.
Held-out prompts do: the share of testpoints that hold, the share of pictures wholly right, fidelity,
and the win rate of the current model against the frozen base under the same judge.
"""

from typing import NamedTuple

import numpy as np
import torch

import flux
import sampler
import scenes
import shapes
from rewards import PairwiseReward


class Held(NamedTuple):
    """Held-out results, one entry a prompt."""
    met: list[list[bool]]  # testpoints
    fidelity: list[float]  # grey levels, lower is better
    wins: list[float]  # against the base

    def metrics(self) -> dict[str, float]:
        return {"heldout_accuracy": sum(map(sum, self.met)) / sum(map(len, self.met)),
                "heldout_perfect": float(np.mean([all(m) for m in self.met])),
                "heldout_fidelity": float(np.mean(self.fidelity)),
                "win_rate_vs_base": float(np.mean(self.wins))}

    def gain_over(self, base: "Held", draws: int = 10_000) -> tuple[float, float, float]:
        """Gain in accuracy and its 95 % interval, by bootstrap over prompts."""
        count = np.array([len(m) for m in self.met])
        gain = np.array([sum(m) for m in self.met]) - np.array([sum(m) for m in base.met])
        rows = np.random.default_rng(0).integers(len(gain), size=(draws, len(gain)))
        low, high = np.percentile(gain[rows].sum(1) / count[rows].sum(1), [2.5, 97.5])
        return gain.sum() / count.sum(), low, high


class Heldout:
    """The held-out prompts with the base's pictures of them; `evaluate` measures the current model."""

    GRID_ROWS, GRID_COLUMNS = 12, 4

    def __init__(self, pipe, cfg, procs, judge, frozen):
        self.pipe, self.cfg, self.procs = pipe, cfg, procs
        self.prompts = shapes.heldout_prompts()[:cfg.heldout or None]
        self.seeds = [sampler.seed_of("heldout", i) for i in range(len(self.prompts))]
        self.compare = PairwiseReward(judge)
        kinds = {p.kind: p.text for p in reversed(self.prompts)}
        self.grid_prompts = list(kinds.values())[:self.GRID_ROWS]
        with flux.base_weights(pipe, frozen) as base:
            self.base_images = self.sample([p.text for p in self.prompts], self.seeds, base)
            self.base_grid = self.grid_images(base)
        self.base = self.measure(self.base_images)

    @torch.no_grad()
    def sample(self, prompts: list[str], seeds: list[int], transformer, batch_size: int = 64) -> list:
        """One picture a prompt, in order; the ranks share the work."""
        cfg, images = self.cfg, []
        mine = list(range(self.procs.rank, len(prompts), self.procs.world))
        sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
        for i in range(0, len(mine), cfg.micro_batch or batch_size):
            rows = mine[i:i + (cfg.micro_batch or batch_size)]
            text = flux.encode(self.pipe, [prompts[r] for r in rows])
            noise = flux.initial_noise(self.pipe, cfg.size, cfg.size, [seeds[r] for r in rows])
            velocity = flux.velocity_fn(self.pipe, text, cfg.size, cfg.size, cfg.guidance, transformer)
            clean = sampler.ode_sample(velocity, noise, sigmas)
            images += zip(rows, flux.decode(self.pipe, clean, cfg.size, cfg.size))
        return [image for _, image in sorted(self.procs.gather(images), key=lambda pair: pair[0])]

    def grid_images(self, transformer) -> list[list]:
        columns = self.GRID_COLUMNS
        prompts = [p for p in self.grid_prompts for _ in range(columns)]
        images = self.sample(prompts, [sampler.seed_of("grid", i) for i in range(len(prompts))], transformer)
        return [images[i:i + columns] for i in range(0, len(images), columns)]

    def measure(self, images: list) -> Held:
        met, fidelity = [], []
        for prompt, reading in zip(self.prompts, scenes.read(images)):
            met.append(shapes.satisfied(prompt, reading))
            fidelity.append(reading.fidelity)
        pairs = [[new, old] for new, old in zip(images, self.base_images)]
        wins = self.compare([p.text for p in self.prompts], pairs).rewards[:, 0]
        return Held(met, fidelity, wins.tolist())

    def evaluate(self) -> Held:
        return self.measure(self.sample([p.text for p in self.prompts], self.seeds, self.pipe.transformer))
