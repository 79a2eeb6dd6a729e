"""Pref-GRPO: the plain loop, for one process or several.

For each step: prompts -> G rollouts each of the flow as an SDE -> pictures -> all pairs compared by a
judge -> win rates -> advantages within the group -> replay the rollout's steps with gradient and
descend the clipped loss. arXiv 2508.20751; sampler.py, rewards.py and grpo.py hold the three ideas.

    python train.py                                  # the embedded default: minutes on a laptop CPU
    python train.py --steps 20 --out runs/short      # every field of Config is a flag
    python train.py --reward pointwise --out runs/pointwise
    torchrun --nproc_per_node=2 train.py             # gradients averaged over ranks, groups whole
    python train.py --resume                         # continue runs/shapes after Ctrl-C or a kill
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import flux
import grpo
import report
import sampler
import shapes
from heldout import Held, Heldout
from mllm import Cached, LocalMLLM, OpenAIMLLM
from rewards import JudgeError, MLLMScorer, PairwiseReward, PointwiseReward
from rundir import load_checkpoint, prepare_run, read_metrics, save_checkpoint, write_metrics

log = logging.getLogger("train")


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag. (P) paper, (C) released code, (T) tried here."""
    recipe: str = option("shapes", "a set of the values below; so far: shapes")
    model: str = option("assets/tiny-flux", "pipeline folder or hub name")
    out: str = option("runs/shapes", "the run directory")
    steps: int = option(110, "training steps, one update each")
    seed: int = option(0, "seed of prompts and noise")
    resume: bool = option(False, "continue the run in --out from its last checkpoint")
    # what is sampled
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
    judge: str = option("shapes", "shapes (verifier) | openai (a server) | local (in process)")
    base_url: str = option("", "of an OpenAI-compatible judge server, else $OPENAI_BASE_URL")
    judge_model: str = option("", "model name at the server, or folder of a local judge")
    judge_prompt: str = option("", "file with a comparison template; {prompt} is replaced")
    both_orders: bool = option(True, "judge each pair in both orders; disagreement is a tie")
    max_failed: float = option(0.05, "share of a step's comparisons that may be lost")
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
    micro_batch: int = option(0, "samples through the network at once; 0: all")
    # what is written
    eval_every: int = option(22, "steps between held-out evaluations")
    heldout: int = option(0, "held-out prompts to evaluate on; 0: all")
    checkpoint_every: int = option(10, "steps between checkpoints")
    device: str = option("", "cpu, cuda, ...; empty: cuda if there is one")


# Sets of values other than Config's defaults, side by side.
RECIPES = {
    "shapes": {},
}


class Processes(NamedTuple):
    """Where this process stands among those that torchrun started; alone without torchrun."""
    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, items: list) -> list:
        """The ranks' lists, one after another, on every rank."""
        if self.world == 1:
            return items
        parts = [None] * self.world
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]


def start_processes(device: str) -> Processes:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Processes(rank, world, torch.device(device))


# ----------------------------------------------------------------------------- one step, as data

class Rollout(NamedTuple):
    text: flux.Text  # (B, ...) one row a sample
    trajectory: sampler.Trajectory
    images: list  # P lists of G


def roll_out(pipe, cfg: Config, prompts: list[str], seeds: list[list[int]]) -> Rollout:
    """G sampled images for each of P prompts, and the trajectories that made them.

    seeds: P lists of G. Micro-batches are runs of samples; update() uses the same ones, so that
    replay sees the very batch shapes that rollout saw.
    """
    group = len(seeds[0])
    text = flux.encode(pipe, prompts).rows(torch.arange(len(prompts)).repeat_interleave(group))
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
    size = cfg.micro_batch or count
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


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
    """Replays stochastic steps of every sample and descends the clipped loss once; its metrics.

    advantages: (B,). policy: the transformer, or its DDP wrapper. sde_steps: which steps to replay.
    """
    batches = micro_batches(len(advantages), cfg)
    parts = [(k, rows) for rows in batches for k in sde_steps]
    losses, deltas = [], []
    for i, (k, rows) in enumerate(parts):
        hold = policy.no_sync if hasattr(policy, "no_sync") and i < len(parts) - 1 else contextlib.nullcontext
        with hold():  # DDP averages gradients once, in the last backward pass
            objective, loss, delta = replay_loss(pipe, cfg, policy, frozen, rollout, advantages, k, rows)
            share = (rows.stop - rows.start) / len(advantages) / len(sde_steps)
            (share * objective).backward()
        losses.append(loss)
        deltas.append(delta.abs().max())
    norm = torch.nn.utils.clip_grad_norm_(flux.trainable(pipe), cfg.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    ratio_mean, ratio_min, ratio_max, clip_frac = (torch.stack(x) for x in zip(*(l[1:] for l in losses)))
    by_step = torch.stack(deltas).view(len(batches), len(sde_steps)).max(0).values
    return {"ratio_mean": ratio_mean.mean().item(), "ratio_min": ratio_min.min().item(),
            "ratio_max": ratio_max.max().item(), "clip_frac": clip_frac.mean().item(),
            "delta_log_prob": by_step.tolist(), "grad_norm": norm.item()}


def check_on_policy(pipe, cfg: Config, rollout: Rollout) -> None:
    """Stops unless replay gives ratio 1 before the first update: else every gradient is of something else.

    Rollout and replay see the same batch shapes, so that in float32 on one device the ratio is exactly
    1; elsewhere rounding may move the log-prob, a mean over latent elements, by up to 1e-4.
    """
    worst = 0.0
    for rows in micro_batches(len(rollout.text.embeds), cfg)[:1]:
        velocity = flux.velocity_fn(pipe, rollout.text.rows(rows), cfg.size, cfg.size, cfg.guidance)
        for k in rollout.trajectory.sde_steps:
            with torch.no_grad():
                step = sampler.replay(velocity, rollout.trajectory, k, rows)
            change = step.log_prob - rollout.trajectory.step(k, rows).log_prob
            worst = max(worst, change.abs().max().item())
    exact = rollout.text.embeds.dtype == torch.float32 and rollout.text.embeds.device.type == "cpu"
    bound = 0.0 if exact else 1e-4
    if worst > bound:
        raise SystemExit(
            f"replay does not reproduce rollout: log-probs differ by up to {worst:.2e} (bound {bound:g}) "
            "before any update. Dropout, a changed model or a different batch shape would do this.")
    log.info("on-policy check: largest |log ratio| before the first update %.1e (bound %g)", worst, bound)


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

def make_judge(cfg: Config, out: Path):
    """The judge behind mllm.MLLM; answers of real ones are kept on disk, so that nothing is asked twice."""
    if cfg.judge == "shapes":
        return shapes.ShapesMLLM()
    judge = (OpenAIMLLM(base_url=cfg.base_url or None, model=cfg.judge_model or None)
             if cfg.judge == "openai" else LocalMLLM(cfg.judge_model))
    return Cached(judge, out / "judge_cache")


def make_reward(cfg: Config, judge):
    if cfg.reward == "pointwise":
        return PointwiseReward(MLLMScorer(judge))
    template = Path(cfg.judge_prompt).read_text() if cfg.judge_prompt else None
    return PairwiseReward(judge, both_orders=cfg.both_orders, template=template, max_failed=cfg.max_failed)


def train_step(pipe, cfg, procs, policy, optimizer, frozen, reward, step) -> dict:
    """One step of Pref-GRPO on this rank's share of the prompts; its metrics."""
    start = time.perf_counter()
    rng = np.random.default_rng(sampler.seed_of(cfg.seed, step, "prompts"))
    prompts = [p.text for p in shapes.sample_prompts(cfg.prompts_per_step, rng)]
    mine = range(procs.rank, cfg.prompts_per_step, procs.world)
    seeds = [[sampler.seed_of(cfg.seed, step, p, g) & ~1 for g in range(cfg.group_size)] for p in mine]
    prompts = [prompts[p] for p in mine]
    rollout = roll_out(pipe, cfg, prompts, seeds)
    rolled = time.perf_counter()
    rewards, stats = reward(prompts, rollout.images)
    judged = time.perf_counter()
    if step == 1:
        check_on_policy(pipe, cfg, rollout)
    advantages = grpo.group_advantages(rewards, cfg.std_floor, cfg.adv_clip)
    kl = kl_to_base(pipe, cfg, rollout, frozen)
    replayed = time.perf_counter()
    all_steps = rollout.trajectory.sde_steps
    count = max(1, round(cfg.timestep_fraction * len(all_steps)))
    sde_steps = tuple(sorted(rng.choice(all_steps, count, replace=False).tolist()))  # alike on all ranks
    learned = update(pipe, cfg, policy, optimizer, rollout, advantages.flatten().to(procs.device), frozen,
                     sde_steps)
    return {"step": step, "reward_mean": rewards.mean().item(),
            "reward_std": rewards.std(1, correction=0).mean().item(),
            "frac_floor": grpo.frac_floor(rewards, cfg.std_floor), **stats, **learned, "kl_to_base": kl,
            "seconds_rollout": rolled - start, "seconds_judge": judged - rolled,
            "seconds_update": time.perf_counter() - replayed}


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
    out = prepare_run(dataclasses.asdict(cfg)) if procs.first else Path(cfg.out)
    pipe = flux.load(cfg.model, procs.device)
    if cfg.lora_rank:
        flux.add_lora(pipe, cfg.lora_rank)
        frozen = None
    else:
        frozen = copy.deepcopy(pipe.transformer)
        pipe.transformer.requires_grad_(True)
    policy = DistributedDataParallel(pipe.transformer) if procs.world > 1 else pipe.transformer
    optimizer = torch.optim.AdamW(flux.trainable(pipe), lr=cfg.lr, weight_decay=cfg.weight_decay)
    judge = make_judge(cfg, out)
    reward = make_reward(cfg, judge)

    heldout = Heldout(pipe, cfg, procs, judge, frozen)
    if cfg.resume:
        start = load_checkpoint(out, pipe, optimizer, procs.device)
        metrics = read_metrics(out, start)
    else:
        start, metrics = 0, [{"step": 0, **heldout.base.metrics()}]
    if procs.first:
        write_metrics(out, metrics)
    held = None
    bar = tqdm(range(start + 1, cfg.steps + 1), initial=start, total=cfg.steps, desc="training",
               disable=not procs.first)
    for step in bar:
        row = average(procs.gather([train_step(pipe, cfg, procs, policy, optimizer, frozen, reward, step)]))
        if step % cfg.eval_every == 0 or step == cfg.steps:
            held = heldout.evaluate()
            row |= held.metrics()
            grid = heldout.grid_images(pipe.transformer)
        metrics.append(row)
        if not procs.first:
            continue
        with open(out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        if "heldout_accuracy" in row:
            bar.set_postfix_str(f"held-out accuracy {row['heldout_accuracy']:.3f}")
            report.sample_grid(grid, heldout.grid_prompts, out / "samples" / f"step_{step:05d}.png")
            report.training_curves(metrics, out / "curves.png")
        if step % cfg.checkpoint_every == 0 or step == cfg.steps:
            save_checkpoint(out, pipe, optimizer, step)
    held, grid = held or heldout.evaluate(), heldout.grid_images(pipe.transformer)
    if procs.first:
        finish(pipe, cfg, out, heldout, held, grid)


def finish(pipe, cfg: Config, out: Path, heldout: Heldout, held: Held, grid: list[list]) -> None:
    """final/, the pictures before and after, and the result in one line."""
    flux.save(pipe, out / "final")
    rows = [before + after for before, after in zip(heldout.base_grid, grid)]
    columns = ["before"] * heldout.GRID_COLUMNS + ["after"] * heldout.GRID_COLUMNS
    report.sample_grid(rows, heldout.grid_prompts, out / "before_after.png", columns)
    base, now = heldout.base.metrics(), held.metrics()
    gain, low, high = held.gain_over(heldout.base)
    print(f"held-out accuracy {base['heldout_accuracy']:.3f} -> {now['heldout_accuracy']:.3f}: "
          f"gain {gain:+.3f} (95 % interval {low:+.3f} .. {high:+.3f}), "
          f"wholly right {base['heldout_perfect']:.2f} -> {now['heldout_perfect']:.2f}, "
          f"fidelity {base['heldout_fidelity']:.2f} -> {now['heldout_fidelity']:.2f} grey levels, "
          f"win rate against the base {now['win_rate_vs_base']:.3f}\n"
          f"look at {out / 'before_after.png'} and {out / 'curves.png'}; the model is in {out / 'final'}")


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


def check_config(cfg: Config, world: int) -> None:
    """SystemExit with one sentence for settings that cannot work, before anything expensive starts."""
    def need(ok, sentence):
        if not ok:
            raise SystemExit(sentence)

    need(cfg.steps >= 1, f"--steps {cfg.steps}: training needs at least 1 step")
    need(cfg.group_size >= 2, f"--group_size {cfg.group_size}: a group needs at least 2 images, since "
         "rewards and advantages compare images of one prompt")
    need(cfg.num_steps >= 2, f"--num_steps {cfg.num_steps}: at least 2, since the last step is not "
         "stochastic and carries no gradient")
    need(cfg.prompts_per_step >= 1 and cfg.prompts_per_step % world == 0,
         f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of the {world} process(es): "
         "a group never spans ranks")
    need(0 < cfg.timestep_fraction <= 1,
         f"--timestep_fraction {cfg.timestep_fraction}: a share of the steps, above 0 and up to 1")
    need(cfg.noise_level > 0, f"--noise_level {cfg.noise_level}: without noise there is no policy to learn")
    for name, choices in (("reward", ("pairwise", "pointwise")), ("sde_kind", ("flow", "dance")),
                          ("judge", ("shapes", "openai", "local"))):
        need(getattr(cfg, name) in choices,
             f"--{name} '{getattr(cfg, name)}': choose from {', '.join(choices)}")
    need(not cfg.judge_prompt or Path(cfg.judge_prompt).is_file(),
         f"--judge_prompt '{cfg.judge_prompt}': no such file")
    need(cfg.judge != "local" or cfg.judge_model, "--judge local needs --judge_model, a folder or hub name")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    cfg = parse_config()
    check_config(cfg, int(os.environ.get("WORLD_SIZE", 1)))
    procs = start_processes(cfg.device)
    try:
        train(cfg, procs)
    except (ValueError, JudgeError) as error:
        raise SystemExit(str(error))
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; continue with: python train.py --out {cfg.out} --resume")
    finally:
        if procs.world > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
