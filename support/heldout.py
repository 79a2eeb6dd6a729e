"""What progress is measured on: prompts and noise that stay the same and are never trained on.

The win rate that Pref-GRPO optimises averages one half by construction, so it cannot show progress.
Held-out prompts do: the share of testpoints that hold, the share of pictures wholly right,
fidelity, and the win rate of the current model against the frozen base under the same judge.
Testpoints become the benchmark's own results, scored by the benchmark's own code.
For prompts from a file nothing can be verified: the win rate alone is measured, by the judge that
also gave the reward. It says that the judge's taste was learnt; score final/ with bench.py for a
second view.
"""

from typing import NamedTuple

import numpy as np
import torch

import sampler
from models.base import flux
from shapes import scenes
from shapes.prompts import heldout_prompts
from shapes.verifier import Caption, satisfied
from support.judging import make_comparison
from unigenbench.results import Result, score


class Held(NamedTuple):
    """Held-out results, one entry a prompt."""

    results: list[Result]  # empty for prompts from a file, as fidelity
    fidelity: list[float]  # grey levels, lower is better
    wins: list[float]  # against the base

    def metrics(self) -> dict[str, float]:
        if not self.results:
            return {"win_rate_vs_base": float(np.mean(self.wins))}
        return {
            "heldout_accuracy": score(self.results).accuracy,
            "heldout_perfect": float(np.mean([all(r.scores) for r in self.results])),
            "heldout_fidelity": float(np.mean(self.fidelity)),
            "win_rate_vs_base": float(np.mean(self.wins)),
        }

    def gain_over(self, base: "Held", draws: int = 10_000) -> tuple[float, float, float]:
        """Gain in accuracy and its 95 % interval, by bootstrap over prompts."""
        count = np.array([len(r.scores) for r in self.results])
        gain = np.array(
            [
                sum(new.scores) - sum(old.scores)
                for new, old in zip(self.results, base.results, strict=True)
            ]
        )
        rows = np.random.default_rng(0).integers(len(gain), size=(draws, len(gain)))
        low, high = np.percentile(gain[rows].sum(1) / count[rows].sum(1), [2.5, 97.5])
        return gain.sum() / count.sum(), low, high

    def against(self, base: "Held") -> str:
        """The result of a run in words, with its 95 % interval."""
        now, before = self.metrics(), base.metrics()
        wins = np.array(self.wins)
        draws = wins[np.random.default_rng(0).integers(len(wins), size=(10_000, len(wins)))].mean(1)
        low, high = np.percentile(draws, [2.5, 97.5])
        text = (
            f"win rate against the base {now['win_rate_vs_base']:.3f} (95 % interval "
            f"{low:.3f} .. {high:.3f}) on {len(wins)} held-out prompts"
        )
        if not self.results:
            return text + ", by the judge of the reward"
        gain, low, high = self.gain_over(base)
        return (
            f"held-out accuracy {before['heldout_accuracy']:.3f} -> "
            f"{now['heldout_accuracy']:.3f}: gain {gain:+.3f} "
            f"(95 % interval {low:+.3f} .. {high:+.3f}), "
            f"wholly right {before['heldout_perfect']:.2f} -> {now['heldout_perfect']:.2f}, "
            f"fidelity {before['heldout_fidelity']:.2f} -> {now['heldout_fidelity']:.2f} grey "
            "levels, " + text
        )


def verify(prompts: list[Caption], images: list) -> tuple[list[Result], list[float]]:
    """What the verifier says of one picture a prompt, and each picture's fidelity in grey
    levels."""
    readings = scenes.read(images)
    results = [
        Result(
            index,
            prompt.text,
            [sub for sub, _ in prompt.testpoints],
            "",
            list(map(int, satisfied(prompt, reading))),
        )
        for index, (prompt, reading) in enumerate(zip(prompts, readings, strict=True))
    ]
    return results, [reading.fidelity for reading in readings]


class Heldout:
    """The held-out prompts with the base's pictures of them; `evaluate` measures the current
    model."""

    GRID_ROWS, GRID_COLUMNS = 12, 4

    def __init__(self, pipe, cfg, procs, judge, frozen, encode, texts: list[str] | None = None):
        """encode: prompts -> flux.Text. texts: prompts of a file; None: those of the shapes
        world."""
        self.pipe, self.cfg, self.procs, self.encode = pipe, cfg, procs, encode
        self.scenes = None if texts else heldout_prompts()[: cfg.heldout or None]
        self.texts = texts or [p.text for p in self.scenes]
        self.seeds = [sampler.seed_of("heldout", i) for i in range(len(self.texts))]
        self.compare = make_comparison(cfg, judge, procs.gather)
        kinds = self.texts if texts else {p.kind: p.text for p in reversed(self.scenes)}.values()
        self.grid_prompts = list(kinds)[: self.GRID_ROWS]
        with flux.base_weights(pipe, frozen) as base:
            self.base_images = self.sample(self.texts, self.seeds, base)
            self.base_grid = self.grid_images(base)
        self.base = self.measure(self.base_images)

    @torch.no_grad()
    def sample(
        self, prompts: list[str], seeds: list[int], transformer, batch_size: int = 64
    ) -> list:
        """One picture a prompt, in order; the ranks share the work."""
        cfg, images = self.cfg, []
        mine = self.procs.share(len(prompts))
        sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
        for i in range(0, len(mine), cfg.micro_batch or batch_size):
            rows = mine[i : i + (cfg.micro_batch or batch_size)]
            text = self.encode([prompts[r] for r in rows])
            noise = flux.initial_noise(self.pipe, cfg.size, cfg.size, [seeds[r] for r in rows])
            velocity = flux.velocity_fn(
                self.pipe, text, cfg.size, cfg.size, cfg.guidance, transformer
            )
            clean = sampler.ode_sample(velocity, noise, sigmas)
            images += zip(rows, flux.decode(self.pipe, clean, cfg.size, cfg.size))
        return [image for _, image in sorted(dict(self.procs.gather(images)).items())]

    def grid_images(self, transformer) -> list[list]:
        columns = self.GRID_COLUMNS
        prompts = [p for p in self.grid_prompts for _ in range(columns)]
        images = self.sample(
            prompts, [sampler.seed_of("grid", i) for i in range(len(prompts))], transformer
        )
        return [images[i : i + columns] for i in range(0, len(images), columns)]

    def measure(self, images: list) -> Held:
        """Every rank has all images and asks the judge about its own share of them."""
        mine = self.procs.share(len(images))

        def judged() -> list[float]:
            pairs = [[images[i], self.base_images[i]] for i in mine]
            return self.compare([self.texts[i] for i in mine], pairs).rewards[:, 0].tolist()

        wins = list(zip(mine, self.procs.together(judged)))
        wins = [win for _, win in sorted(dict(self.procs.gather(wins)).items())]
        results, fidelity = ([], []) if self.scenes is None else verify(self.scenes, images)
        return Held(results, fidelity, wins)

    def evaluate(self) -> Held:
        return self.measure(self.sample(self.texts, self.seeds, self.pipe.transformer))
