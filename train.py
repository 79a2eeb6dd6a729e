"""Pref-GRPO: the plain loop, for one process or several.

For each step: prompts -> G rollouts each of the flow as an SDE -> pictures -> all pairs compared by
a judge -> win rates -> advantages within the group -> replay the rollout's steps with gradient and
descend the clipped loss. arXiv 2508.20751; sampler.py, rewards.py and grpo.py hold the three ideas;
train_step below is the algorithm.

    python train.py                                  # the embedded default: minutes on a laptop CPU
    python train.py --steps 20 --out runs/short      # every field of Config is a flag
    python train.py --reward pointwise --out runs/pointwise
    torchrun --nproc_per_node=2 train.py             # gradients averaged over ranks, groups whole
    python train.py --recipe flux-lora --prompts prompts.txt --base_url http://judge:8000/v1
    python train.py --resume                         # continue runs/shapes after Ctrl-C or a kill
"""

import argparse
import dataclasses
import functools
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import grpo
import sampler
from models.base import flux
from rewards import JudgeError, RewardBatch
from shapes.prompts import heldout_prompts
from support import pictures, processes
from support.checks import check_config
from support.heldout import Held, Heldout
from support.judging import call_budget, make_judge, make_reward
from support.learner import Learner, build
from support.mixture import parse_rewards
from support.overlap import roll_out_and_judge
from support.policy import Rollout, check_on_policy, join, kl_to_base, roll_out, update
from support.processes import Processes, start_processes
from support.prompts import Prompts, read_prompts, step_prompts
from support.rundir import make_logger, prepare_run, read_metrics, write_card, write_metrics

log = logging.getLogger("train")


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag. (P) paper, (C) released code, (T) tried here."""

    recipe: str = option("shapes", "a set of the values below: shapes | flux-lora | flux-full")
    model: str = option("assets/tiny-flux", "pipeline folder or hub name")
    out: str = option("runs/shapes", "the run directory")
    steps: int = option(96, "training steps, one update each")
    seed: int = option(0, "seed of prompts and noise")
    resume: bool = option(False, "continue the run in --out from its last checkpoint")
    # what is sampled
    prompts: str = option("", "UTF-8 file, one prompt a line; empty: prompts of the shapes world")
    prompts_per_step: int = option(16, "P, over all processes")
    group_size: int = option(8, "G, images a prompt (C: 8)")
    size: int = option(32, "height and width, pixels (C: 720)")
    num_steps: int = option(6, "K, denoising steps (C: 25)")
    shift: float = option(1.0, "bends the sigmas towards noise (C: 3)")
    noise_level: float = option(0.7, "exploration of the SDE (C: 0.7)")
    sde_kind: str = option("flow", "flow (Flow-GRPO) | dance (DanceGRPO)")
    guidance: float = option(3.5, "guidance input of a distilled FLUX (C: 3.5)")
    same_noise: bool = option(False, "one initial noise for the whole group (C: yes)")
    # how it is judged
    reward: str = option("pairwise", "pairwise (win rate) | pointwise (score)")
    rewards: str = option(
        "", "several instead: NAME[=SOURCE]:WEIGHT,... (C: pairwise:0.4,clip:0.6)"
    )
    judge: str = option("shapes", "shapes (verifier) | openai (a server) | local (in process)")
    base_url: str = option("", "of an OpenAI-compatible judge server, else $OPENAI_BASE_URL")
    judge_model: str = option("", "model name at the server, or folder of a local judge")
    judge_prompt: str = option("", "file with a comparison template; {prompt} is replaced")
    judge_tokens: int = option(2048, "longest answer, tokens")
    judge_seed: int = option(0, "sent to a judge server; -1: none, for servers that refuse it")
    soft: bool = option(False, "count P(first is better), which a judge in process can give")
    both_orders: bool = option(True, "judge each pair in both orders; disagreement is a tie")
    opponents: int = option(0, "compare each image with so many others (sparse); 0: all pairs")
    max_failed: float = option(0.05, "share of a step's comparisons that may be lost")
    max_calls: int = option(0, "cap on calls to a judge server, each process; 0: none")
    concurrency: int = option(16, "calls in flight at a judge server, each process")
    call_timeout: float = option(60.0, "seconds for one call of a judge server")
    patience: float = option(180.0, "seconds without any answer after which a judge server is dead")
    # how it learns
    lr: float = option(1e-4, "AdamW (C: 1e-5 at full FLUX size; T: 5e-4 destroys the tiny one)")
    weight_decay: float = option(1e-4, "(C)")
    max_grad_norm: float = option(1.0, "(C)")
    lora_rank: int = option(0, "0 trains all weights (C: 16 for LoRA)")
    guard: bool = option(True, "GRPO-Guard's ratio and step weights (C: yes)")
    clip_range: float = option(1e-4, "of the ratio (C)")
    adv_clip: float = option(5.0, "of advantages (C)")
    std_floor: float = option(0.05, "least deviation of a group's rewards that divides")
    timestep_fraction: float = option(
        0.6, "share of the stochastic steps that is replayed (C: 0.6)"
    )
    kl_coef: float = option(0.0, "weight of the KL to the base (C: none)")
    updates: int = option(1, "optimiser steps a rollout, each on its part of every rank's samples")
    ema: float = option(
        0.9, "decay of the weights' moving average that is evaluated and saved; 0: none"
    )
    # what fits
    micro_batch: int = option(
        0, "samples through the network at once; 0: all, or a group if a server judges"
    )
    dtype: str = option(
        "float32", "of the network: float32 | bfloat16; what is trained stays float32"
    )
    gradient_checkpointing: bool = option(
        False, "each block's activations are computed again backwards"
    )
    shard: bool = option(False, "FSDP2: weights, gradients and optimiser spread over all processes")
    text_cache: str = option("", "folder for text embeddings; the text encoders then leave the GPU")
    vae_slicing: bool = option(False, "decode one image at a time")
    offload: bool = option(False, "a LoRA's frozen blocks wait in main memory, fetched to run")
    compile: bool = option(False, "torch.compile of the transformer's blocks")
    # what is written
    eval_every: int = option(32, "steps between held-out evaluations")
    heldout: int = option(0, "held-out prompts to evaluate on; 0: all of the shapes world's")
    checkpoint_every: int = option(10, "steps between checkpoints")
    logger: str = option("", "tensorboard | wandb, beside metrics.jsonl")
    device: str = option("", "cpu, cuda, ...; empty: cuda if there is one")
    dry_run: bool = option(False, "print what the run needs in memory and work, and stop")
    gpu_memory: float = option(80.0, "GB a GPU, for --dry_run")
    ranks: int = option(0, "processes to plan for with --dry_run; 0: those of torchrun")


# Sets of values other than Config's defaults, side by side. (C) where no other source is named; the
# README says where the paper's text differs. FLUX.1-dev needs --prompts and a judge server.
RELEASED = {
    "model": "black-forest-labs/FLUX.1-dev",
    "judge": "openai",
    "size": 720,
    "num_steps": 25,
    "shift": 3.0,
    "same_noise": True,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "vae_slicing": True,
    "rewards": "pairwise:0.4,clip:0.6",
    "text_cache": "runs/text_cache",
    "eval_every": 40,
    "heldout": 64,  # ours, all three
    "checkpoint_every": 20,
    # (C) too, by Config's defaults: group_size, noise_level, guidance, timestep_fraction,
    # clip_range, guard, adv_clip, weight_decay, max_grad_norm, kl_coef. Ours there: both_orders,
    # std_floor, ema.
}
RECIPES = {
    "shapes": {},
    "flux-lora": RELEASED
    | {  # one 80 GB GPU; untried on one, see README
        "out": "runs/flux-lora",
        "lora_rank": 16,
        "lr": 1e-4,  # ours: (C) gives no LoRA rate
        "prompts_per_step": 4,
        "steps": 600,  # ours: what one GPU samples in days, not weeks
        "micro_batch": 4,
        "updates": 2,
    },
    "flux-full": RELEASED
    | {  # 8 nodes of 8 GPUs, one prompt a GPU
        "out": "runs/flux-full",
        "shard": True,
        "lr": 1e-5,
        "prompts_per_step": 64,
        "steps": 465,  # 3 epochs over 9,999 prompts less those held out
        "micro_batch": 1,
        "updates": 2,  # 8 images in accumulations of 4
    },
}


# ----------------------------------------------------------------------------- the loop


def sample_and_judge(
    learner: Learner, cfg: Config, prompts: list[str], seeds: list[list[int]], reward
) -> tuple[Rollout, RewardBatch, dict]:
    """The step's rollout, its rewards, and the seconds of both: one after the other, or, where a
    server judges, in chunks of whole groups and micro-batches, each judged while the next ones roll
    out."""
    sample = functools.partial(roll_out, learner.pipe, cfg, encode=learner.encode)
    if cfg.judge == "openai":
        groups = math.lcm(cfg.micro_batch or cfg.group_size, cfg.group_size) // cfg.group_size
        chunks = [
            (prompts[p : p + groups], seeds[p : p + groups]) for p in range(0, len(prompts), groups)
        ]
        rollouts, batch, seconds = roll_out_and_judge(sample, reward, chunks)
        return join(rollouts), batch, seconds
    start = time.perf_counter()
    rollout = sample(prompts, seeds)
    rolled = time.perf_counter()
    batch = reward(prompts, rollout.images)
    return (
        rollout,
        batch,
        {
            "seconds_rollout": rolled - start,
            "seconds_judge": time.perf_counter() - rolled,
            "seconds_judge_hidden": 0.0,
        },
    )


def make_advantages(cfg: Config, procs: Processes, rewards: torch.Tensor):
    """Rewards of this rank's groups, (P, G) or several (P, G, R) -> advantages (P, G), share at
    the floor."""
    if rewards.ndim == 2:
        return (
            grpo.group_advantages(rewards, cfg.std_floor, cfg.adv_clip),
            grpo.frac_floor(rewards, cfg.std_floor),
        )
    weights = {name: part.weight for name, part in parse_rewards(cfg.rewards).items()}
    batch = torch.cat(procs.gather([rewards]))  # of all ranks: combined over the whole batch
    combined = grpo.combine_advantages(
        dict(zip(weights, batch.unbind(-1))), weights, cfg.std_floor, cfg.adv_clip
    )
    # of each reward, as combine_advantages has it
    floor = cfg.std_floor * batch.std((0, 1), correction=0)
    return combined.split(len(rewards))[procs.rank], grpo.frac_floor(rewards, floor)


def train_step(learner: Learner, cfg, procs, reward, source: Prompts | None, step: int) -> dict:
    """One step of Pref-GRPO on this rank's share of the prompts; its metrics."""
    pipe, policy, optimizer, frozen = learner[:4]
    # prompts: P strings for all ranks, of which each takes every world-th
    rng = np.random.default_rng(sampler.seed_of(cfg.seed, step, "prompts"))
    texts = step_prompts(source, cfg.prompts_per_step, step, cfg.seed, rng)
    mine = range(procs.rank, cfg.prompts_per_step, procs.world)
    prompts = [texts[p] for p in mine]
    # even seeds: roll_out draws the noise of the steps from the odd ones beside them
    seeds = [
        [sampler.seed_of(cfg.seed, step, p, g) & ~1 for g in range(cfg.group_size)] for p in mine
    ]

    # rollout -> images -> compared -> win rates (P, G)
    rollout, (rewards, stats), seconds = procs.together(
        sample_and_judge, learner, cfg, prompts, seeds, reward
    )
    if step == 1:
        check_on_policy(pipe, cfg, rollout)
    kl = kl_to_base(pipe, cfg, rollout, frozen)

    # advantages (P, G) -> replay some of the stochastic steps, alike on all ranks, and descend
    advantages, frac_floor = make_advantages(cfg, procs, rewards)
    start, sde_steps = time.perf_counter(), rollout.trajectory.sde_steps
    count = max(1, round(cfg.timestep_fraction * len(sde_steps)))
    replayed = tuple(sorted(rng.choice(sde_steps, count, replace=False).tolist()))
    learned = update(
        pipe,
        cfg,
        policy,
        optimizer,
        rollout,
        advantages.flatten().to(procs.device),
        frozen,
        replayed,
    )
    learner.average.update()
    return {
        "step": step,
        "reward_mean": rewards.mean().item(),
        "reward_std": rewards.std(1, correction=0).mean().item(),
        "frac_floor": frac_floor,
        **stats,
        **learned,
        "kl_to_base": kl,
        **seconds,
        "seconds_update": time.perf_counter() - start,
    }


def average(rows: list[dict]) -> dict:
    """The ranks' metrics as one line: sums of counts, extremes of extremes, means of the rest."""
    how = {
        "step": max,
        "ratio_min": min,
        "ratio_max": max,
        "unparsable": sum,
        "failed": sum,
        "comparisons": sum,
    }
    result = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, list):
            result[key] = [max(v) for v in zip(*values)]
        else:
            result[key] = how[key](values) if key in how else sum(values) / len(values)
    return result


def train(cfg: Config, procs: Processes) -> None:
    prompts = read_prompts(cfg.prompts, cfg.heldout, cfg.prompts_per_step) if cfg.prompts else None
    out = prepare_run(dataclasses.asdict(cfg)) if procs.first else Path(cfg.out)
    write = make_logger(cfg.logger, out, dataclasses.asdict(cfg)) if procs.first else None
    learner = build(cfg, procs, prompts)
    pipe, state = learner.pipe, (learner.pipe.transformer, learner.optimizer, learner.average)
    judge = make_judge(cfg, out)
    reward = make_reward(cfg, judge, procs.device, procs.gather)

    if procs.first and cfg.judge != "shapes":
        log.info(
            call_budget(
                cfg,
                reward,
                len(prompts.heldout if prompts else heldout_prompts()[: cfg.heldout or None]),
            )
        )
    heldout = Heldout(
        pipe, cfg, procs, judge, learner.frozen, learner.encode, prompts and prompts.heldout
    )
    if cfg.resume and processes.newest_checkpoint(out / "checkpoint"):  # none: stopped before it
        start = processes.load_checkpoint(out / "checkpoint", *state)
        metrics = read_metrics(out, start)
    else:
        start, metrics = 0, [{"step": 0, **heldout.base.metrics()}]
    if procs.first:
        write_metrics(out, metrics)
    try:
        last = run_steps(learner, cfg, procs, reward, prompts, heldout, metrics, write)
    except JudgeError as error:  # raised on all ranks alike, before weights change
        if procs.first:
            write_metrics(out, metrics)
        processes.save_checkpoint(out / "checkpoint", procs, *state, metrics[-1]["step"])
        raise JudgeError(
            f"{error}; the state after step {metrics[-1]['step']} is saved in "
            f"'{out}': when the judge answers again, repeat the command with --resume"
        )
    with learner.average.in_place():
        held, grid = last or (heldout.evaluate(), heldout.grid_images(pipe.transformer))
        weights = processes.full_weights(pipe.transformer) if cfg.shard else None
        if procs.first:
            finish(pipe, cfg, out, heldout, held, grid, weights)


def run_steps(
    learner: Learner,
    cfg: Config,
    procs: Processes,
    reward,
    prompts: Prompts | None,
    heldout: Heldout,
    metrics: list[dict],
    write,
) -> tuple[Held, list] | None:
    """All steps that are left, each added to metrics and written; the last evaluation, if any."""

    def evaluates(step: int) -> bool:
        return step > 0 and (step % cfg.eval_every == 0 or step == cfg.steps)

    out, pipe = Path(cfg.out), learner.pipe
    last, start = None, metrics[-1]["step"]
    if evaluates(start) and "win_rate_vs_base" not in metrics[-1]:
        start -= 1  # the judge failed within its evaluation: only that is left of it
    bar = tqdm(
        range(start + 1, cfg.steps + 1),
        initial=start,
        total=cfg.steps,
        desc="training",
        disable=not procs.first,
    )
    for step in bar:
        if step > metrics[-1]["step"]:
            row = train_step(learner, cfg, procs, reward, prompts, step)
            metrics.append(average(procs.gather([row])))
        if evaluates(step):
            with learner.average.in_place():
                held, grid = last = heldout.evaluate(), heldout.grid_images(pipe.transformer)
            metrics[-1] |= held.metrics()
        # The log first: a kill in between leaves a line after the checkpoint, which --resume drops.
        if procs.first:
            write_metrics(out, metrics)
            write(metrics[-1])
        if step % cfg.checkpoint_every == 0 or step == cfg.steps:
            processes.save_checkpoint(
                out / "checkpoint",
                procs,
                learner.pipe.transformer,
                learner.optimizer,
                learner.average,
                step,
            )
        if procs.first and evaluates(step):
            name, value = next(iter(held.metrics().items()))
            bar.set_postfix_str(f"{name} {value:.3f}")
            pictures.sample_grid(
                grid, heldout.grid_prompts, out / "samples" / f"step_{step:05d}.png"
            )
            pictures.training_curves(metrics, out / "curves.png")
    return last


def finish(
    pipe, cfg: Config, out: Path, heldout: Heldout, held: Held, grid: list[list], weights
) -> None:
    """final/ with its card, the pictures before and after, and the result in words."""
    flux.save(pipe, out / "final", weights)
    result = held.against(heldout.base)
    changed = {
        f.name: getattr(cfg, f.name)
        for f in dataclasses.fields(cfg)
        if getattr(cfg, f.name) != f.default or f.name in ("recipe", "reward", "judge")
    }
    write_card(
        out / "final",
        type(pipe).__name__,
        cfg.model,
        bool(cfg.lora_rank),
        changed,
        result,
        {"base": heldout.base.metrics(), "trained": held.metrics()},
    )
    rows = [before + after for before, after in zip(heldout.base_grid, grid)]
    columns = ["before"] * heldout.GRID_COLUMNS + ["after"] * heldout.GRID_COLUMNS
    pictures.sample_grid(rows, heldout.grid_prompts, out / "before_after.png", columns)
    print(
        f"{result}\nlook at {out / 'before_after.png'} and {out / 'curves.png'}; "
        f"the model is in {out / 'final'}"
    )


def parse_config(arguments: list[str] | None = None) -> Config:
    """Config from the command line: recipe first, then the flags that were given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for f in dataclasses.fields(Config):
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if f.type == "bool" or f.type is bool
            else {"type": f.type}
        )
        parser.add_argument(
            f"--{f.name}",
            default=argparse.SUPPRESS,
            help=f"{f.metadata['help']} [{f.default}]",
            **kind,
        )
    given = vars(parser.parse_args(arguments))
    recipe = given.get("recipe", "shapes")
    if recipe not in RECIPES:
        raise SystemExit(f"unknown --recipe '{recipe}': choose from {', '.join(RECIPES)}")
    return Config(**(RECIPES[recipe] | given))


def print_plan(cfg: Config) -> None:
    """What the run needs, on the real configuration without weights; SystemExit if it does
    not fit."""
    from support import plan

    settings = plan.Settings(**{name: getattr(cfg, name) for name in plan.Settings._fields})
    try:
        planned = plan.make_plan(
            cfg.model, settings, cfg.ranks or int(os.environ.get("WORLD_SIZE", 1))
        )
    except ValueError as error:
        raise SystemExit(str(error))
    print(plan.table(planned))
    plan.refuse(planned, cfg.gpu_memory)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    cfg = parse_config()
    if cfg.dry_run:
        return print_plan(cfg)
    check_config(cfg, int(os.environ.get("WORLD_SIZE", 1)))
    procs = start_processes(cfg.device, cfg.shard)
    try:
        train(cfg, procs)
    except (ValueError, JudgeError) as error:
        raise SystemExit(str(error))
    except KeyboardInterrupt:
        raise SystemExit(
            f"stopped; to continue the run in '{cfg.out}', repeat the command with --resume"
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
