"""What is trained and what it is compared with: a pipeline, its base and an optimiser, by settings.

Weights: all of them (a frozen copy is the base), or a float32 LoRA over frozen weights (the base is
the adapter switched off, no copy). Places: one device, a replica a rank (LoRA), or shards (FSDP2).

    learner = build(cfg, procs, prompts=None)      # cfg: train.Config
"""

import copy
import functools
from typing import NamedTuple

import numpy as np
import torch

import sampler
from models.base import flux
from shapes.prompts import heldout_prompts
from support import processes
from support.processes import DTYPES, Processes
from support.prompts import Prompts, TextCache, step_prompts


class Learner(NamedTuple):
    """The model and what trains it."""

    pipe: object
    policy: torch.nn.Module  # the transformer, or its DDP wrapper
    optimizer: torch.optim.Optimizer
    frozen: torch.nn.Module | None  # the base; None where a LoRA can be switched off
    average: processes.MovingAverage
    encode: object  # prompts -> flux.Text


def build(cfg, procs: Processes, prompts: Prompts | None) -> Learner:
    """Loads the pipeline, decides what is trained, and puts it on the device or spreads it."""
    dtype = DTYPES[cfg.dtype]
    elsewhere = cfg.shard or cfg.offload  # the device never holds the whole transformer
    pipe = flux.load(cfg.model, "cpu" if elsewhere else procs.device, dtype)
    if cfg.vae_slicing:
        pipe.vae.enable_slicing()
    if cfg.lora_rank:
        torch.manual_seed(sampler.seed_of(cfg.seed, "lora"))  # its first matrices are random
        flux.add_lora(pipe, cfg.lora_rank)
        frozen = None
    else:
        frozen = copy.deepcopy(pipe.transformer)
        pipe.transformer.requires_grad_(True)
    if cfg.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    if cfg.compile:  # each in place, so that no weight changes its name
        for block in processes.blocks(pipe.transformer):
            block.compile()
    policy = pipe.transformer
    if cfg.shard:
        processes.shard(pipe.transformer, procs, dtype)
        processes.shard(frozen, procs, dtype, master=dtype)
    else:
        if cfg.offload:
            processes.offload(pipe.transformer, procs.device)
        policy = processes.replicate(pipe.transformer, procs)
    if elsewhere:
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "transformer":
                part.to(procs.device)
    optimizer = torch.optim.AdamW(flux.trainable(pipe), lr=cfg.lr, weight_decay=cfg.weight_decay)
    average = processes.MovingAverage(pipe.transformer, cfg.ema)
    return Learner(pipe, policy, optimizer, frozen, average, make_encode(pipe, cfg, procs, prompts))


def make_encode(pipe, cfg, procs: Processes, prompts: Prompts | None):
    """prompts -> flux.Text; with --text_cache all are encoded now and the encoders put away."""
    live = functools.partial(flux.encode, pipe)
    if not cfg.text_cache:
        return live
    cache = TextCache(cfg.text_cache, cfg.model, DTYPES[cfg.dtype])
    needed = list(prompts.heldout if prompts else [p.text for p in heldout_prompts()])
    for step in range(1, cfg.steps + 1):
        rng = np.random.default_rng(sampler.seed_of(cfg.seed, step, "prompts"))  # as in train_step
        needed += step_prompts(prompts, cfg.prompts_per_step, step, cfg.seed, rng)
    needed = list(dict.fromkeys(needed))
    cache.prepare(needed[procs.rank :: procs.world], live)
    procs.wait()
    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.to("cpu")
    return lambda texts: cache.load(texts, flux.Text, procs.device)
