"""Pref-GRPO: the plain loop, for one process or several.

For each step: prompts -> G rollouts each of the flow as an SDE -> pictures -> all pairs compared by a
judge -> win rates -> advantages within the group -> replay the rollout's steps with gradient and
descend the clipped loss. arXiv 2508.20751; sampler.py, rewards.py and grpo.py hold the three ideas.

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
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import grpo
import parallel
import report
import sampler
import shapes
from base import flux
from checks import check_config
from heldout import Held, Heldout
from judging import call_budget, make_judge, make_reward
from learner import Learner, build
from mixture import parse_rewards
from overlap import roll_out_and_judge
from parallel import Processes, start_processes
from prompts import Prompts, read_prompts, step_prompts
from rewards import JudgeError, RewardBatch
from rundir import make_logger, prepare_run, read_metrics, write_card, write_metrics

log = logging.getLogger("train")


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag. (P) paper, (C) released code, (T) tried here."""
    recipe: str = option("shapes", "a set of the values below: shapes | flux-lora | flux-full")
    model: str = option("assets/tiny-flux", "pipeline folder or hub name")
    out: str = option("runs/shapes", "the run directory")
    steps: int = option(78, "training steps, one update each")
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
    rewards: str = option("", "several instead: NAME[=SOURCE]:WEIGHT,... (C: pairwise:0.4,clip:0.6)")
    judge: str = option("shapes", "shapes (verifier) | openai (a server) | local (in process)")
    base_url: str = option("", "of an OpenAI-compatible judge server, else $OPENAI_BASE_URL")
    judge_model: str = option("", "model name at the server, or folder of a local judge")
    judge_prompt: str = option("", "file with a comparison template; {prompt} is replaced")
    both_orders: bool = option(True, "judge each pair in both orders; disagreement is a tie")
    opponents: int = option(0, "compare each image with so many others (sparse); 0: all pairs")
    max_failed: float = option(0.05, "share of a step's comparisons that may be lost")
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
    timestep_fraction: float = option(0.6, "share of the stochastic steps that is replayed (C: 0.6)")
    kl_coef: float = option(0.0, "weight of the KL to the base (C: none)")
    updates: int = option(1, "optimiser steps a rollout, each on its part of every rank's samples")
    ema: float = option(0.9, "decay of the weights' moving average that is evaluated and saved; 0: none")
    # what fits
    micro_batch: int = option(0, "samples through the network at once; 0: all, or a group if a "
                              "server judges")
    dtype: str = option("float32", "of the network: float32 | bfloat16; what is trained stays float32")
    gradient_checkpointing: bool = option(False, "each block's activations are computed again backwards")
    shard: bool = option(False, "FSDP2: weights, gradients and optimiser spread over all processes")
    text_cache: str = option("", "folder for text embeddings; the text encoders then leave the GPU")
    vae_slicing: bool = option(False, "decode one image at a time")
    compile: bool = option(False, "torch.compile of the transformer's blocks")
    # what is written
    eval_every: int = option(26, "steps between held-out evaluations")
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
    "model": "black-forest-labs/FLUX.1-dev", "judge": "openai", "size": 720, "num_steps": 25, "shift": 3.0,
    "same_noise": True, "dtype": "bfloat16", "gradient_checkpointing": True, "vae_slicing": True,
    "rewards": "pairwise:0.4,clip:0.6", "text_cache": "runs/text_cache", "eval_every": 40, "heldout": 64,  # ours, all three
    "checkpoint_every": 20,
}
RECIPES = {
    "shapes": {},
    "flux-lora": RELEASED | {  # one 80 GB GPU; untried on one, see README
        "out": "runs/flux-lora", "lora_rank": 16, "lr": 1e-4,  # ours: (C) gives no LoRA rate
        "prompts_per_step": 4, "steps": 600,  # ours: what one GPU samples in days, not weeks
        "micro_batch": 4, "updates": 2,
    },
    "flux-full": RELEASED | {  # 8 nodes of 8 GPUs, one prompt a GPU
        "out": "runs/flux-full", "shard": True, "lr": 1e-5,
        "prompts_per_step": 64, "steps": 465,  # 3 epochs over 9,999 prompts less those held out
        "micro_batch": 1, "updates": 2,  # 8 images in accumulations of 4
    },
}


# ----------------------------------------------------------------------------- one step, as data

class Rollout(NamedTuple):
    text: flux.Text  # (B, ...) one row a sample
    trajectory: sampler.Trajectory
    images: list  # P lists of G


def roll_out(pipe, cfg: Config, prompts: list[str], seeds: list[list[int]], encode=None) -> Rollout:
    """G sampled images for each of P prompts, and the trajectories that made them.

    seeds: P lists of G. encode: from prompts to flux.Text, if not flux.encode.
    Micro-batches are runs of samples; update() uses the same ones, so that replay sees the very batch
    shapes that rollout saw.
    """
    group = len(seeds[0])
    encode = encode or functools.partial(flux.encode, pipe)
    text = encode(prompts).rows(torch.arange(len(prompts)).repeat_interleave(group))
    noise = flux.initial_noise(pipe, cfg.size, cfg.size, [
        row[0] if cfg.same_noise else seed for row in seeds for seed in row])
    generators = [torch.Generator().manual_seed(seed ^ 1) for row in seeds for seed in row]
    sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
    parts = []
    for rows in micro_batches(len(noise), cfg):
        velocity = flux.velocity_fn(pipe, text.rows(rows), cfg.size, cfg.size, cfg.guidance)
        parts.append(sampler.rollout(velocity, noise[rows], sigmas, cfg.noise_level, cfg.sde_kind,
                                     generator=generators[rows]))
    trajectory = sampler.concatenate(parts)
    images = flux.decode(pipe, trajectory.clean, cfg.size, cfg.size)
    return Rollout(text, trajectory, [images[i:i + group] for i in range(0, len(images), group)])


def micro_batches(count: int, cfg: Config) -> list[slice]:
    size = cfg.micro_batch or (cfg.group_size if cfg.judge == "openai" else count)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def join(rollouts: list[Rollout]) -> Rollout:
    """Rollouts of several chunks of prompts as one."""
    text = flux.Text(*map(torch.cat, zip(*(r.text for r in rollouts))))
    return Rollout(text, sampler.concatenate([r.trajectory for r in rollouts]),
                   [group for r in rollouts for group in r.images])


def sample_and_judge(learner: Learner, cfg: Config, prompts: list[str], seeds: list[list[int]],
                     reward) -> tuple[Rollout, RewardBatch, dict]:
    """The step's rollout, its rewards, and the seconds of both: one after the other, or, where a server
    judges, in chunks of whole groups and micro-batches, each judged while the next ones roll out."""
    sample = functools.partial(roll_out, learner.pipe, cfg, encode=learner.encode)
    if cfg.judge == "openai":
        groups = math.lcm(cfg.micro_batch or cfg.group_size, cfg.group_size) // cfg.group_size
        chunks = [(prompts[p:p + groups], seeds[p:p + groups]) for p in range(0, len(prompts), groups)]
        rollouts, batch, seconds = roll_out_and_judge(sample, reward, chunks)
        return join(rollouts), batch, seconds
    start = time.perf_counter()
    rollout = sample(prompts, seeds)
    rolled = time.perf_counter()
    batch = reward(prompts, rollout.images)
    return rollout, batch, {"seconds_rollout": rolled - start, "seconds_judge": time.perf_counter() - rolled,
                            "seconds_judge_hidden": 0.0}


def replay_loss(pipe, cfg: Config, policy, frozen, rollout: Rollout, advantages: torch.Tensor,
                k: int, rows: slice) -> tuple[torch.Tensor, grpo.Loss, torch.Tensor]:
    """The loss of step k of some samples: (what to descend, its statistics, change of log-prob (b,))."""
    text, trajectory = rollout.text.rows(rows), rollout.trajectory
    velocity = flux.velocity_fn(pipe, text, cfg.size, cfg.size, cfg.guidance, policy)
    step, old = sampler.replay(velocity, trajectory, k, rows), trajectory.step(k, rows)
    if cfg.guard:
        log_ratio = grpo.normalised_log_ratio(step, old)
        scale = 1 / (trajectory.sigmas[k] - trajectory.sigmas[k + 1])
    else:
        log_ratio, scale = step.log_prob - old.log_prob, 1.0
    loss = grpo.clipped_loss(log_ratio, torch.zeros_like(log_ratio), advantages[rows], cfg.clip_range)
    objective = scale * loss.loss
    if cfg.kl_coef:
        with torch.no_grad(), flux.base_weights(pipe, frozen) as base:
            velocity = flux.velocity_fn(pipe, text, cfg.size, cfg.size, cfg.guidance, base)
            reference = sampler.replay(velocity, trajectory, k, rows)
        objective = objective + cfg.kl_coef * grpo.kl_to_reference(step.mean, reference.mean, step.std)
    return objective, loss, (step.log_prob - old.log_prob).detach()


def update(pipe, cfg: Config, policy, optimizer, rollout: Rollout, advantages: torch.Tensor,
           frozen, sde_steps: tuple[int, ...]) -> dict:
    """Replays stochastic steps of every sample and descends the clipped loss; its metrics.

    advantages: (B,). policy: the transformer, or its DDP wrapper. sde_steps: which steps to replay.
    With cfg.updates > 1 each update sees as many micro-batches, strided: images of every group.
    """
    batches = micro_batches(len(advantages), cfg)
    losses, deltas, norms = [], [], []
    for n in range(cfg.updates):
        parts = [(k, rows) for rows in batches[n::cfg.updates] for k in sde_steps]
        count = sum(rows.stop - rows.start for _, rows in parts)
        for k, rows in parts:
            with parallel.gradients(policy, average=(k, rows) == parts[-1]):
                objective, loss, delta = replay_loss(pipe, cfg, policy, frozen, rollout, advantages, k, rows)
                ((rows.stop - rows.start) / count * objective).backward()
            losses.append(loss)
            deltas.append(delta.abs().max())
        norms.append(parallel.clip_gradients(flux.trainable(pipe), cfg.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ratio_mean, ratio_min, ratio_max, clip_frac = (torch.stack(x) for x in zip(*(l[1:] for l in losses)))
    by_step = torch.stack(deltas).view(len(batches), len(sde_steps)).max(0).values
    return {"ratio_mean": ratio_mean.mean().item(), "ratio_min": ratio_min.min().item(),
            "ratio_max": ratio_max.max().item(), "clip_frac": clip_frac.mean().item(),
            "delta_log_prob": by_step.tolist(), "grad_norm": sum(norms) / len(norms)}


def check_on_policy(pipe, cfg: Config, rollout: Rollout) -> list[float]:
    """Largest |ratio - 1| of each stochastic step before the first update: the noise floor of the ratio.

    Rollout and replay see the same batch shapes, so that in float32 on the CPU the floor is exactly 0.
    Elsewhere kernels with gradient may round otherwise than those without: a floor above a tenth of
    the clip range is warned of. SystemExit where log-probs (means over latent elements) differ by more
    than rounding: every gradient would be one of something else.
    """
    floors, worst = [], 0.0
    rows = micro_batches(len(rollout.text.embeds), cfg)[0]
    velocity = flux.velocity_fn(pipe, rollout.text.rows(rows), cfg.size, cfg.size, cfg.guidance)
    for k in rollout.trajectory.sde_steps:
        step = sampler.Step(*(x.detach() for x in sampler.replay(velocity, rollout.trajectory, k, rows)))
        old = rollout.trajectory.step(k, rows)
        change = step.log_prob - old.log_prob
        log_ratio = grpo.normalised_log_ratio(step, old) if cfg.guard else change
        floors.append(torch.expm1(log_ratio).abs().max().item())
        worst = max(worst, change.abs().max().item())
    exact = cfg.dtype == "float32" and rollout.text.embeds.device.type == "cpu"
    bound = 0.0 if exact else {"float32": 1e-4, "bfloat16": 1e-3}[cfg.dtype]
    if not worst <= bound:
        raise SystemExit(
            f"replay does not reproduce rollout: log-probs differ by up to {worst:.2e} (bound {bound:g}) "
            "before any update. Dropout, a changed model or a different batch shape would do this.")
    log.info("on-policy check, largest |ratio - 1| by step: %s; clip range %g",
             " ".join(f"{floor:.1e}" for floor in floors), cfg.clip_range)
    if max(floors) > 0.1 * cfg.clip_range:
        log.warning("the ratio's noise floor %.1e is above a tenth of --clip_range %g: rounding decides "
                    "what is clipped; use --dtype float32 or a wider --clip_range",
                    max(floors), cfg.clip_range)
    return floors


@torch.no_grad()
def kl_to_base(pipe, cfg: Config, rollout: Rollout, frozen) -> float:
    """KL of the policy that made the rollout to the base, nats per latent element and step.

    Estimated on the first group (or micro-batch, if smaller), over all stochastic steps.
    """
    trajectory = rollout.trajectory
    rows = slice(0, min(cfg.group_size, cfg.micro_batch or cfg.group_size))
    total = 0.0
    with flux.base_weights(pipe, frozen) as base:
        velocity = flux.velocity_fn(pipe, rollout.text.rows(rows), cfg.size, cfg.size, cfg.guidance, base)
        for k in trajectory.sde_steps:
            reference = sampler.replay(velocity, trajectory, k, rows)
            total += grpo.kl_to_reference(trajectory.means[k][rows], reference.mean, reference.std)
    return total.item() / len(trajectory.sde_steps)


# ----------------------------------------------------------------------------- the loop

def make_advantages(cfg: Config, procs: Processes, rewards: torch.Tensor):
    """Rewards of this rank's groups, (P, G) or several (P, G, R) -> advantages (P, G), share at the floor."""
    if rewards.ndim == 2:
        return (grpo.group_advantages(rewards, cfg.std_floor, cfg.adv_clip),
                grpo.frac_floor(rewards, cfg.std_floor))
    weights = {name: part.weight for name, part in parse_rewards(cfg.rewards).items()}
    batch = torch.cat(procs.gather([rewards]))  # of all ranks: combined over the whole batch
    combined = grpo.combine_advantages(dict(zip(weights, batch.unbind(-1))), weights, cfg.std_floor, cfg.adv_clip)
    floor = cfg.std_floor * batch.std((0, 1), correction=0)  # of each reward, as combine_advantages has it
    return combined.split(len(rewards))[procs.rank], grpo.frac_floor(rewards, floor)


def train_step(learner: Learner, cfg, procs, reward, source: Prompts | None, step: int) -> dict:
    """One step of Pref-GRPO on this rank's share of the prompts; its metrics."""
    pipe, policy, optimizer, frozen = learner[:4]
    rng = np.random.default_rng(sampler.seed_of(cfg.seed, step, "prompts"))
    texts = step_prompts(source, cfg.prompts_per_step, step, cfg.seed, rng)
    mine = range(procs.rank, cfg.prompts_per_step, procs.world)
    seeds = [[sampler.seed_of(cfg.seed, step, p, g) & ~1 for g in range(cfg.group_size)] for p in mine]
    prompts = [texts[p] for p in mine]
    rollout, (rewards, stats), seconds = procs.together(sample_and_judge, learner, cfg, prompts, seeds, reward)
    if step == 1:
        check_on_policy(pipe, cfg, rollout)
    advantages, frac_floor = make_advantages(cfg, procs, rewards)
    kl = kl_to_base(pipe, cfg, rollout, frozen)
    replayed = time.perf_counter()
    all_steps = rollout.trajectory.sde_steps
    count = max(1, round(cfg.timestep_fraction * len(all_steps)))
    sde_steps = tuple(sorted(rng.choice(all_steps, count, replace=False).tolist()))  # alike on all ranks
    learned = update(pipe, cfg, policy, optimizer, rollout, advantages.flatten().to(procs.device), frozen,
                     sde_steps)
    learner.average.update()
    return {"step": step, "reward_mean": rewards.mean().item(),
            "reward_std": rewards.std(1, correction=0).mean().item(),
            "frac_floor": frac_floor, **stats, **learned, "kl_to_base": kl,
            **seconds, "seconds_update": time.perf_counter() - replayed}


def average(rows: list[dict]) -> dict:
    """The ranks' metrics as one line: sums of counts, extremes of extremes, means of the rest."""
    how = {"step": max, "ratio_min": min, "ratio_max": max, "unparsable": sum, "failed": sum,
           "comparisons": sum}
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
    reward = make_reward(cfg, judge, procs.device)

    if procs.first and cfg.judge != "shapes":
        log.info(call_budget(cfg, reward, len(prompts.heldout if prompts
                                              else shapes.heldout_prompts()[:cfg.heldout or None])))
    heldout = Heldout(pipe, cfg, procs, judge, learner.frozen, learner.encode, prompts and prompts.heldout)
    if cfg.resume:
        start = parallel.load_checkpoint(out / "checkpoint", *state)
        metrics = read_metrics(out, start)
    else:
        start, metrics = 0, [{"step": 0, **heldout.base.metrics()}]
    if procs.first:
        write_metrics(out, metrics)
    try:
        held = run_steps(learner, cfg, procs, reward, prompts, heldout, metrics, write)
    except JudgeError as error:  # raised on all ranks alike, before weights change
        if procs.first:
            write_metrics(out, metrics)
        parallel.save_checkpoint(out / "checkpoint", procs, *state, metrics[-1]["step"])
        raise JudgeError(f"{error}; the state after step {metrics[-1]['step']} is saved in '{out}': when the "
                         "judge answers again, repeat the command with --resume")
    with learner.average.in_place():
        held, grid = held or heldout.evaluate(), heldout.grid_images(pipe.transformer)
        weights = parallel.full_weights(pipe.transformer) if cfg.shard else None
        if procs.first:
            finish(pipe, cfg, out, heldout, held, grid, weights)


def run_steps(learner: Learner, cfg: Config, procs: Processes, reward, prompts: Prompts | None,
              heldout: Heldout, metrics: list[dict], write) -> Held | None:
    """All steps that are left, each added to metrics and written; the last evaluation, if any."""
    def evaluates(step: int) -> bool:
        return step > 0 and (step % cfg.eval_every == 0 or step == cfg.steps)

    out, pipe = Path(cfg.out), learner.pipe
    held, start = None, metrics[-1]["step"]
    if evaluates(start) and "win_rate_vs_base" not in metrics[-1]:
        start -= 1  # the judge failed within its evaluation: only that is left of it
    bar = tqdm(range(start + 1, cfg.steps + 1), initial=start, total=cfg.steps, desc="training",
               disable=not procs.first)
    for step in bar:
        if step > metrics[-1]["step"]:
            row = train_step(learner, cfg, procs, reward, prompts, step)
            metrics.append(average(procs.gather([row])))
        if evaluates(step):
            with learner.average.in_place():
                held, grid = heldout.evaluate(), heldout.grid_images(pipe.transformer)
            metrics[-1] |= held.metrics()
        # The log first: a kill in between leaves a line after the checkpoint, which --resume drops.
        if procs.first:
            write_metrics(out, metrics)
            write(metrics[-1])
        if step % cfg.checkpoint_every == 0 or step == cfg.steps:
            parallel.save_checkpoint(out / "checkpoint", procs, learner.pipe.transformer, learner.optimizer,
                                     learner.average, step)
        if procs.first and evaluates(step):
            name, value = next(iter(held.metrics().items()))
            bar.set_postfix_str(f"{name} {value:.3f}")
            report.sample_grid(grid, heldout.grid_prompts, out / "samples" / f"step_{step:05d}.png")
            report.training_curves(metrics, out / "curves.png")
    return held


def finish(pipe, cfg: Config, out: Path, heldout: Heldout, held: Held, grid: list[list], weights) -> None:
    """final/ with its card, the pictures before and after, and the result in words."""
    flux.save(pipe, out / "final", weights)
    result = held.against(heldout.base)
    changed = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)
               if getattr(cfg, f.name) != f.default or f.name in ("recipe", "reward", "judge")}
    write_card(out / "final", type(pipe).__name__, cfg.model, bool(cfg.lora_rank), changed, result,
               {"base": heldout.base.metrics(), "trained": held.metrics()})
    rows = [before + after for before, after in zip(heldout.base_grid, grid)]
    columns = ["before"] * heldout.GRID_COLUMNS + ["after"] * heldout.GRID_COLUMNS
    report.sample_grid(rows, heldout.grid_prompts, out / "before_after.png", columns)
    print(f"{result}\nlook at {out / 'before_after.png'} and {out / 'curves.png'}; "
          f"the model is in {out / 'final'}")


def parse_config(arguments: list[str] | None = None) -> Config:
    """Config from the command line: recipe first, then the flags that were given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for f in dataclasses.fields(Config):
        kind = ({"action": argparse.BooleanOptionalAction} if f.type == "bool" or f.type is bool
                else {"type": f.type})
        parser.add_argument(f"--{f.name}", default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} [{f.default}]", **kind)
    given = vars(parser.parse_args(arguments))
    recipe = given.get("recipe", "shapes")
    if recipe not in RECIPES:
        raise SystemExit(f"unknown --recipe '{recipe}': choose from {', '.join(RECIPES)}")
    return Config(**(RECIPES[recipe] | given))


def print_plan(cfg: Config) -> None:
    """What the run needs, on the real configuration without weights; SystemExit if it does not fit."""
    import plan

    settings = plan.Settings(**{name: getattr(cfg, name) for name in plan.Settings._fields})
    try:
        planned = plan.make_plan(cfg.model, settings, cfg.ranks or int(os.environ.get("WORLD_SIZE", 1)))
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
        raise SystemExit(f"stopped; to continue the run in '{cfg.out}', repeat the command with --resume")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
