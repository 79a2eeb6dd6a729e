"""What progress is measured on: prompts and noise that stay the same and are never trained on.

The win rate that Pref-GRPO optimizes averages one half by construction, so it cannot show progress.
Held-out prompts do: the share of testpoints that hold, the share of images of which all do, render
error, and the win rate against the frozen base. Of prompts from a file nothing can be verified but
the win rate, by the judge that also gave the reward: --eval_rewards and --eval_judge measure beside
it what nothing is trained on.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

import sampler
from common.bootstrap import interval_text, mean_interval
from common.seeds import seed_of
from figures.pictures import sample_grid
from rewards import join
from shapes import prompts as shapes_prompts
from shapes import verifier
from shapes.grammar import parse_prompt
from shapes.read import read
from training.judging import answered, bare, check_lost
from unigenbench.testpoints import primary_of

BATCH = 64  # images drawn at once, unless --micro_batch says how many
GRID_ROWS, GRID_COLUMNS = 12, 4  # of the images that people look at


class Held(NamedTuple):
    """Held-out results, one entry a prompt."""

    met: list[list[bool]]  # which of its testpoints hold; empty for prompts from a file
    render_error: list[float]  # gray levels, lower is better; empty for prompts from a file
    wins: list[float | None]  # win rate against the base's image; None: comparison lost
    subs: Sequence[list[str]] = ()  # the sub dimension that each testpoint tests
    # What nothing is trained on, by its key in the log: a score or a win rate; None where lost.
    seen: dict[str, list[float | None]] = {}

    def by_dimension(self, name_of: Callable[[str], str]) -> dict[str, float]:
        """Share of testpoints that hold, by what name_of makes of their sub dimension."""
        held = defaultdict(list)
        for subs, met in zip(self.subs, self.met):
            for sub, holds in zip(subs, met, strict=True):
                held[name_of(sub)].append(holds)
        return {name: sum(met) / len(met) for name, met in sorted(held.items())}

    @property
    def known(self) -> list[float]:
        return [win for win in self.wins if win is not None]

    def metrics(self) -> dict[str, float | None]:
        """None for a win rate or score of which nothing is known."""
        values = {"win_rate_vs_base": self.wins, **self.seen}
        known = {key: [v for v in row if v is not None] for key, row in values.items()}
        means = {key: float(np.mean(row)) if row else None for key, row in known.items()}
        if not self.met:
            return means
        return {
            "heldout_accuracy": sum(map(sum, self.met)) / sum(map(len, self.met)),
            "heldout_all_correct": float(np.mean([all(met) for met in self.met])),
            "heldout_render_error": float(np.mean(self.render_error)),
            **{f"heldout/{k}": share for k, share in self.by_dimension(primary_of).items()},
            **means,
        }

    def gain_over(self, base: "Held") -> tuple[float, tuple[float, float] | None]:
        """Gain in accuracy over the base and its 95 % interval, by bootstrap over prompts."""
        count = [len(met) for met in self.met]
        gain = [sum(now) - sum(before) for now, before in zip(self.met, base.met, strict=True)]
        return sum(gain) / sum(count), mean_interval(gain, count)

    def against_base(self) -> str:
        """The win rate in words, with its 95 % interval; claims nothing that was not read."""
        if not self.known:
            return "win rate against the base not measured: no comparison could be read"
        bounds = interval_text(mean_interval(self.known), "{:.3f}".format)
        count = f"{len(self.known)} held-out prompts"
        if len(self.known) < len(self.wins):
            count = f"{len(self.known)} of {len(self.wins)} held-out prompts, the others lost"
        return f"win rate against the base {np.mean(self.known):.3f} ({bounds}) on {count}"

    def unrewarded(self, base: "Held") -> str:
        """How what nothing is trained on has changed, in words with 95 % intervals."""
        parts, before, now = [], base.metrics(), self.metrics()
        for key, row in self.seen.items():
            pairs = zip(row, base.seen[key], strict=True)
            gains = [new - old for new, old in pairs if None not in (new, old)]
            change = "not measured"
            if gains:
                bounds = interval_text(mean_interval(gains), "{:+.3f}".format)
                change = f"{before[key]:.3f} -> {now[key]:.3f} (the change: {bounds})"
            parts.append(f"{key} {change}")
        return f"; never trained on: {', '.join(parts)}" if parts else ""

    def against(self, base: "Held") -> str:
        """The result of a run in words, with its 95 % interval, and the sub dimensions of which
        less holds than in the base's images."""
        if not self.met:
            return f"{self.against_base()}, by the judge of the reward{self.unrewarded(base)}"
        now, before, (gain, bounds) = self.metrics(), base.metrics(), self.gain_over(base)
        changed = lambda key, digits: f"{before[key]:.{digits}f} -> {now[key]:.{digits}f}"
        text = (
            f"held-out accuracy {changed('heldout_accuracy', 3)}: gain {gain:+.3f} "
            f"({interval_text(bounds, '{:+.3f}'.format)}), "
            f"all-correct rate {changed('heldout_all_correct', 2)}, "
            f"render error {changed('heldout_render_error', 2)} of 255 levels, "
            + self.against_base()
            + self.unrewarded(base)
        )
        if not self.subs:
            return text
        now, before = self.by_dimension(str), base.by_dimension(str)
        fell = [f"{k} {before[k]:.2f} -> {now[k]:.2f}" for k in now if now[k] < before[k]]
        return f"{text}; worse than before: {', '.join(fell) or 'no sub dimension'}"


def verify(prompts: list, images: list) -> tuple[list[list[bool]], list[float]]:
    """Which testpoints hold in one image of each prompt, and each image's render error."""
    readings = read(images)
    met = [verifier.satisfied(p, reading) for p, reading in zip(prompts, readings, strict=True)]
    return met, [reading.render_error for reading in readings]


class Heldout:
    """The held-out prompts with the base's images; `evaluate` measures the present model."""

    def __init__(self, cfg, procs, model, compare, prompts=None, *, record=None, measures=None):
        """compare: the run's PairwiseReward; record: judging.Record of what it answers.
        prompts: data.Prompts of a file; None: those of shapes. measures: what nothing is trained
        on, by its key in the log, of prompts, images and the base's images, a number each or None.
        """
        self.cfg, self.procs, self.model = cfg, procs, model
        self.compare, self.record, self.measures = compare, record, measures or {}
        self.scenes = None if prompts else shapes_prompts.heldout_prompts()[: cfg.heldout or None]
        self.texts = prompts.heldout if prompts else [p.text for p in self.scenes]
        self.seeds = [seed_of("heldout", i) for i in range(len(self.texts))]
        kinds = self.texts if prompts else {p.kind: p.text for p in reversed(self.scenes)}.values()
        self.grid_prompts = list(kinds)[:GRID_ROWS]

    def measure_base(self) -> None:
        """The base's images, which all later ones are held against. They are their own equals:
        nobody is asked."""
        with self.model.base() as base:
            self.base_images = self.sample(self.texts, self.seeds, base)
            self.base_grid = self.grid_images(base)
        self.base = self.held(self.base_images, [0.5] * len(self.base_images))

    @torch.no_grad()
    def sample(self, prompts: list[str], seeds: list[int], transformer) -> list:
        """One image per prompt, in order; the ranks share the work."""
        images, size = [], self.cfg.micro_batch or BATCH
        mine = self.procs.my_share(len(prompts))
        model = self.model.resized(self.cfg.eval_size or self.cfg.size)
        steps = self.cfg.eval_steps or self.cfg.num_steps
        sigmas = sampler.sigma_schedule(steps, self.cfg.shift or model.schedule_shift(steps))

        def drawn(rows: list[int]) -> list:
            text = model.encode([prompts[r] for r in rows])
            noise = model.noise([seeds[r] for r in rows])
            clean = sampler.ode_sample(model.velocity(text, transformer), noise, sigmas)
            return model.decode(clean)

        for i in range(0, len(mine), size):
            rows = mine[i : i + size]
            images += zip(rows, self.procs.on_all_ranks(drawn, rows))
        return [image for _, image in sorted(dict(self.procs.gather(images)).items())]

    def grid_images(self, transformer) -> list[list]:
        """Rows of images for people: several of each of a few held-out prompts."""
        prompts = [p for p in self.grid_prompts for _ in range(GRID_COLUMNS)]
        seeds = [seed_of("grid", i) for i in range(len(prompts))]
        images = self.sample(prompts, seeds, transformer)
        return [images[i : i + GRID_COLUMNS] for i in range(0, len(images), GRID_COLUMNS)]

    def evaluate(self) -> Held:
        """Every rank has all images and asks the judge about its own share of them."""
        images = self.sample(self.texts, self.seeds, self.model.transformer)
        mine = self.procs.my_share(len(images))
        asked = [self.texts[i] for i in mine], [[images[i], self.base_images[i]] for i in mine]
        compared = answered(self.procs, self.record, self.compare, *asked)
        won = {i: compared.points(p)[0][1] for p, i in enumerate(mine)}  # None where it is lost
        ranks = self.procs.gather([(won, bare(compared))])
        check_lost(self.compare.name, join([part for _, part in ranks]), self.cfg.max_failed)
        wins = {i: win for won, _ in ranks for i, win in won.items()}
        return self.held(images, [win for _, win in sorted(wins.items())])

    def held(self, images: list, wins: list) -> Held:
        met, render_error = ([], []) if self.scenes is None else verify(self.scenes, images)
        tested = [[sub for sub, _ in scene.testpoints] for scene in self.scenes or ()]
        return Held(met, render_error, wins, tested, self.seen(images))

    def seen(self, images: list) -> dict[str, list[float | None]]:
        """What nothing is trained on, of each image; the ranks share the work."""
        mine, found = self.procs.my_share(len(images)), {}
        asked = [[row[i] for i in mine] for row in (self.texts, images, self.base_images)]
        for key, measure in self.measures.items():
            values = zip(mine, self.procs.on_all_ranks(measure, *asked))
            every = sorted(dict(self.procs.gather([*values])).items())
            found[key] = [v if v is not None and math.isfinite(v) else None for _, v in every]
        return found

    def draw(self, grid: list[list], path, columns: list[str] | None = None) -> None:
        """A grid for people; below each image which testpoints hold, where that can be verified."""
        marks = None
        if self.scenes is not None:
            prompts = [parse_prompt(text) for text in self.grid_prompts]
            marks = [verify([p] * len(row), row)[0] for p, row in zip(prompts, grid)]
        sample_grid(grid, self.grid_prompts, path, columns, marks)
