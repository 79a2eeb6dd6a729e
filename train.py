"""Pref-GRPO: the plain loop, for one process or several.

`train` is the algorithm: prompts -> G rollouts each of the flow as an SDE -> pictures -> all pairs
compared by a judge -> win rates -> advantages within the group -> replay of the rollout's steps
with gradient, and descent of the clipped loss. arXiv 2508.20751; sampler.py, rewards.py and grpo.py
hold the three ideas; training/ holds what a run needs besides.

    python train.py                                  # the embedded default: minutes on a laptop CPU
    python train.py --steps 20 --out runs/short      # every setting is a flag: training/config.py
    python train.py --reward pointwise --out runs/pointwise
    torchrun --nproc_per_node=2 train.py             # gradients averaged over ranks, groups whole
    python train.py --recipe flux-lora --prompts prompts.txt --base_url http://judge:8000/v1
    python train.py --resume                         # continue runs/shapes after Ctrl-C or a kill
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036, so that an older one ends in a sentence
    raise SystemExit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

from training.config import parse_config

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv):
    parse_config()  # answers and ends: before the libraries below, which take seconds to load

import common.environment  # noqa: F401, before torch

# isort: split
import logging
from typing import NamedTuple

import torch

import grpo
import sampler
from models.base import check_finite
from rewards import std_floors
from training import distributed
from training.run import Run
from training.session import started

log = logging.getLogger("train")


class Rollout(NamedTuple):
    """B = P * G samples."""

    prompts: list[str]  # P
    text: tuple  # what the network sees of the prompts, one row a sample
    trajectory: sampler.Trajectory
    images: list  # P lists of G PIL images


class TrainStep(NamedTuple):
    """What a training step made, for those that write down, show and measure it."""

    step: int
    rollout: Rollout  # of this rank
    compared: dict  # rewards.Rewards by name, of this rank, with each comparison
    rewards: dict  # the same of all ranks, without
    advantages: torch.Tensor  # (P, G) of all ranks
    frac_floor: float
    losses: list[grpo.Loss]  # of each backward pass
    norms: list[float]  # of the gradient, one an update


def train(cfg, run: Run) -> None:
    """Pref-GRPO: each pass of the loop is a training step, a line of the log."""
    optimizer = torch.optim.AdamW(run.model.trainable(), cfg.lr, weight_decay=cfg.weight_decay)
    average = distributed.EMA(run.model.transformer, cfg.ema)
    shift = cfg.shift or run.model.schedule_shift(cfg.num_steps)  # 0: the pipeline's own
    sigmas = sampler.sigma_schedule(cfg.num_steps, shift)  # (K+1,)
    how = dict(noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=run.micro_batch)
    for step, parts in run.batches(optimizer, average):
        # 1. Sample: G images of each prompt, every Gaussian step kept; where a server judges, a few
        #    groups at a time, so that it compares some while the next ones are sampled.
        with run.timed("rollout"):
            rollouts = []
            for part in parts:
                rollouts.append(run.procs.on_all_ranks(sample, run.model, part, sigmas, **how))
                run.judging.submit(part.prompts, rollouts[-1].images)
            rollout = join(rollouts)  # B = P * G samples
        run.check(step, rollout)
        # 2. Compare: all pairs of a group, in both orders -> win rates (P, G), of all ranks, so
        #    that losses are counted over the step and stop all ranks alike.
        with run.timed("judge"):
            compared, rewards = run.judging.collect()
        # 3. Normalize within the group: advantages (P, G).
        advantages, frac_floor = normalize(rewards, run.weights, cfg.std_floor, cfg.adv_clip)
        # 4. Update: replay some stochastic steps of every sample under the present weights.
        with run.timed("update"):
            losses, norms = update(cfg, run, rollout, run.own(advantages), parts[0].replayed)
        done = (rollout, compared, rewards, advantages, frac_floor, losses, norms)
        run.after(TrainStep(step, *done))


def sample(model, batch, sigmas, *, noise_level: float, kind: str, micro_batch: int) -> Rollout:
    """G images for each of P prompts, and the trajectories that made them.

    Micro-batches are runs of samples; the update goes through the same ones, so that replay sees
    the very batch shapes that rollout saw. Raises FloatingPointError for numbers that are none.
    """
    noise = model.noise(batch.noise_seeds)  # (B, N, C)
    group_size = len(noise) // len(batch.prompts)
    text = model.encode(batch.prompts, group_size)  # B rows
    generators = [torch.Generator().manual_seed(seed) for seed in batch.step_seeds]
    how, parts = dict(kind=kind, sde_steps=batch.window), []
    for rows in micro_batches(len(noise), micro_batch):
        velocity, how["generator"] = model.velocity(text.rows(rows)), generators[rows]
        parts.append(sampler.rollout(velocity, noise[rows], sigmas, noise_level, **how))
    trajectory = sampler.concatenate(parts)
    images = model.decode(trajectory.clean)
    check_finite([("the latents", trajectory.clean), ("the log-probs", trajectory.log_probs)])
    groups = [images[i : i + group_size] for i in range(0, len(images), group_size)]
    return Rollout(batch.prompts, text, trajectory, groups)


def micro_batches(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def join(rollouts: list[Rollout]) -> Rollout:
    """Rollouts of several prompts as one."""
    prompts, texts, trajectories, images = zip(*rollouts)
    text = type(texts[0])(*map(torch.cat, zip(*texts)))
    return Rollout(sum(prompts, []), text, sampler.concatenate(trajectories), sum(images, []))


def normalize(rewards: dict, weights: dict, std_floor: float, clip: float):
    """Rewards by name, values (P, G) -> advantages (P, G), and the share of groups at the floor.

    One reward: each group by its own mean and std. Several: grpo.combine_advantages.
    std_floor: for all rewards; -1: each reward's own (rewards.STD_FLOORS).
    """
    values = {name: reward.values for name, reward in rewards.items()}
    floors = std_floors(values, std_floor)
    shares = [grpo.frac_floor(v, floors[name]) for name, v in values.items()]
    if len(values) == 1:
        ((name, only),) = values.items()
        advantages = grpo.group_advantages(only, floors[name], clip)
    else:
        advantages = grpo.combine_advantages(values, weights, floors, clip)
    return advantages, sum(shares) / len(shares)


def update(cfg, run: Run, rollout: Rollout, advantages, replayed: list[int]):
    """Optimizer steps on one rollout: losses of each backward pass, norms of the gradients.

    advantages: (B,) of this rank; replayed: the stochastic steps that are trained.
    """
    batches, losses, norms = micro_batches(len(advantages), run.micro_batch), [], []
    how = dict(clip_range=cfg.clip_range, guard=cfg.guard, kl_coef=cfg.kl_coef)
    # Each of N updates takes every N-th micro-batch: images of every group if N times --micro_batch
    # divides --group_size, as in the recipes, else of some groups alone.
    for n in range(cfg.updates):
        parts = [(k, rows) for rows in batches[n :: cfg.updates] for k in replayed]
        samples = sum(rows.stop - rows.start for _, rows in parts)
        for i, (k, rows) in enumerate(parts, 1):
            complete = cfg.reduce_each or i == len(parts)
            with distributed.gradients(run.model.policy, average=complete):
                loss = objective(run.model, rollout, advantages, k, rows, **how)
                ((rows.stop - rows.start) / samples * loss.loss).backward()
            losses.append(grpo.Loss(*(x.detach() for x in loss)))
        run.procs.on_all_ranks(check_finite, [("the loss", torch.stack([x.loss for x in losses]))])
        norms.append(distributed.clip_gradients(run.model.trainable(), cfg.max_grad_norm))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    run.average.update()
    return losses, norms


def objective(
    model, rollout: Rollout, advantages, k: int, rows: slice, *, clip_range, guard, kl_coef
) -> grpo.Loss:
    """What step k of some samples adds to the loss: the clipped ratio, and the KL to the base.

    advantages: (B,). guard: GRPO-Guard's ratio, whose loss is divided by -dsigma.
    """
    text, trajectory = rollout.text.rows(rows), rollout.trajectory
    new = sampler.replay(model.velocity(text, model.policy), trajectory, k, rows)  # with gradient
    old = trajectory.step(k, rows)
    if guard:
        log_ratio = grpo.normalized_log_ratio(new, old)  # (b,)
        weight = 1 / (trajectory.sigmas[k] - trajectory.sigmas[k + 1])
    else:
        log_ratio, weight = new.log_prob - old.log_prob, 1.0
    clipped = grpo.clipped_loss(log_ratio, advantages[rows], clip_range)
    loss = weight * clipped.loss
    if kl_coef:
        with torch.no_grad(), model.base() as base:
            reference = sampler.replay(model.velocity(text, base), trajectory, k, rows)
        loss = loss + kl_coef * grpo.kl_to_reference(new.mean, reference.mean, new.std)
    return clipped._replace(loss=loss)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    cfg = parse_config()
    if cfg.dry_run:
        from training import dry_run

        return dry_run.main(cfg)
    with started(cfg) as run:  # whatever ends it says in one sentence why, and what is kept
        if cfg.export:
            return run.export()
        train(cfg, run)
        run.finish()


if __name__ == "__main__":
    main()
