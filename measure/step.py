"""A training step without judging, at any size, by the loop's own functions.

step = Step(Config())
step.run(group_size=16)                     # rollout, decoding, the replay of all that it replays
"""

import dataclasses
from types import SimpleNamespace

import torch

import sampler
import train
from models import base
from training.config import Config
from training.data import Batch, make_batch
from training.distributed import Processes


class Step:
    def __init__(self, cfg: Config):
        self.cfg, self.model = cfg, base.load(cfg.model, cfg.size, cfg.guidance)
        self.model.transformer.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.trainable(), lr=0.0)

    def sample(self, cfg: Config, batch: Batch, micro_batch: int) -> train.Rollout:
        sigmas = sampler.sigma_schedule(cfg.num_steps)
        how = dict(noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=micro_batch)
        return train.sample(self.model, batch, sigmas, **how)

    def update(self, cfg: Config, rollout, advantages, replayed, micro_batch: int) -> None:
        run = SimpleNamespace(
            model=self.model,
            optimizer=self.optimizer,
            micro_batch=micro_batch,
            procs=Processes(0, 1, torch.device("cpu")),
            average=SimpleNamespace(update=lambda: None),
        )
        train.update(cfg, run, rollout, advantages, replayed)

    def run(self, micro_batch: int = 0, **sizes) -> train.Rollout:
        """micro_batch: samples through the network at once; 0: all. sizes: of Config's fields."""
        cfg = dataclasses.replace(self.cfg, **sizes)
        batch = make_batch(cfg, None, 1)
        count = len(batch.noise_seeds)
        rollout = self.sample(cfg, batch, micro_batch or count)
        advantages = torch.linspace(-1, 1, count)
        self.update(cfg, rollout, advantages, batch.replayed, micro_batch or count)
        return rollout
