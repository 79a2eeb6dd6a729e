"""Pref-GRPO: the plain loop, for one process or several.

`train` is the algorithm: prompts -> G rollouts each of the flow as an SDE -> pictures -> all pairs
compared by a judge -> win rates -> advantages within the group -> replay of the rollout's steps
with gradient, and descent of the clipped loss. arXiv 2508.20751; sampler.py, rewards.py and grpo.py
hold the three ideas; support/ holds what a run needs besides.

    python train.py                                  # the embedded default: minutes on a laptop CPU
    python train.py --steps 20 --out runs/short      # every setting is a flag: support/config.py
    python train.py --reward pointwise --out runs/pointwise
    torchrun --nproc_per_node=2 train.py             # gradients averaged over ranks, groups whole
    python train.py --recipe flux-lora --prompts prompts.txt --base_url http://judge:8000/v1
    python train.py --resume                         # continue runs/shapes after Ctrl-C or a kill
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036, so that an older one ends in a sentence
    raise SystemExit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

from support.config import parse_config

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv):
    parse_config()  # answers and ends: before the libraries below, which take seconds to load

import logging
import time
from typing import NamedTuple

import torch

import grpo
import rewards
import sampler
from models.base import check_finite
from support import diagnostics, processes
from support.run import Run, started

log = logging.getLogger("train")


class Rollout(NamedTuple):
    """B = P * G samples."""

    text: tuple  # what the network sees of the prompts, one row a sample
    trajectory: sampler.Trajectory
    images: list  # P lists of G PIL images


def sample(model, batch, sigmas, noise_level: float, kind: str, micro_batch: int) -> Rollout:
    """G images for each of P prompts, and the trajectories that made them.

    Micro-batches are runs of samples; the update goes through the same ones, so that replay sees
    the very batch shapes that rollout saw. Raises FloatingPointError for numbers that are none.
    """
    noise = model.noise(batch.noise_seeds)  # (B, N, C)
    group_size = len(noise) // len(batch.prompts)
    text = model.encode(batch.prompts, group_size)  # B rows
    generators = [torch.Generator().manual_seed(seed) for seed in batch.step_seeds]
    parts = []
    for rows in micro_batches(len(noise), micro_batch):
        velocity, own = model.velocity(text.rows(rows)), generators[rows]
        parts.append(
            sampler.rollout(velocity, noise[rows], sigmas, noise_level, kind, batch.window, own)
        )
    trajectory = sampler.concatenate(parts)
    images = model.decode(trajectory.clean)
    check_finite([("the latents", trajectory.clean), ("the log-probs", trajectory.log_probs)])
    groups = [images[i : i + group_size] for i in range(0, len(images), group_size)]
    return Rollout(text, trajectory, groups)


def micro_batches(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def join(rollouts: list[Rollout]) -> Rollout:
    """Rollouts of several prompts as one."""
    text = type(rollouts[0].text)(*map(torch.cat, zip(*(r.text for r in rollouts))))
    trajectory = sampler.concatenate([r.trajectory for r in rollouts])
    return Rollout(text, trajectory, [group for r in rollouts for group in r.images])


def normalize(scored: dict, weights: dict, std_floor: float, clip: float):
    """Rewards by name, each (P, G) -> advantages (P, G), and the share of groups at the floor.

    One reward: each group by its own mean and std. Several: grpo.combine_advantages.
    std_floor: for all rewards; -1: each reward's own (rewards.STD_FLOORS).
    """
    floors = rewards.std_floors(scored, std_floor)
    shares = [grpo.frac_floor(values, floors[name]) for name, values in scored.items()]
    if len(scored) == 1:
        ((name, values),) = scored.items()
        advantages = grpo.group_advantages(values, floors[name], clip)
    else:
        advantages = grpo.combine_advantages(scored, weights, floors, clip)
    return advantages, sum(shares) / len(shares)


def train(cfg, procs, run: Run) -> None:
    """Pref-GRPO, a line of the log a step."""
    sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)  # (K+1,)
    for number in run.steps():
        step(cfg, procs, run, sigmas, number)


def step(cfg, procs, run: Run, sigmas, number: int) -> None:
    """Sample, compare, normalize, descend. An error in what is called alike ends all ranks."""
    # 1. Sample: G images of each prompt, every Gaussian step kept. Where a server judges, a few
    #    groups at a time, so that it compares some while the next ones are sampled.
    model, start, rollouts, judged = run.model, time.perf_counter(), [], []
    how = (sigmas, cfg.noise_level, cfg.sde_kind, run.micro_batch)
    for part in run.parts(number):
        rollouts.append(procs.alike(sample, model, part, *how))
        for name, reward in run.rewards.items():
            judged.append((name, run.submit(reward, part.prompts, rollouts[-1].images)))
    rollout, sampled = join(rollouts), time.perf_counter()  # B = P * G samples
    if number == 1:
        policy = (slice(0, run.micro_batch), cfg.dtype, cfg.guard, cfg.clip_range)
        procs.alike(diagnostics.check_on_policy, model, rollout, *policy)
    kl = diagnostics.kl_to_base(model, rollout, min(cfg.group_size, run.micro_batch))

    # 2. Compare: all pairs of a group, in both orders -> win rates (P, G), on every rank those
    #    of all ranks, so that losses are counted over the step and stop all ranks alike.
    asked = time.perf_counter()
    mine = {n: rewards.join([job() for m, job in judged if m == n]) for n in run.rewards}
    ranks = procs.gather([mine])
    scored = {name: rewards.join([rank[name] for rank in ranks]) for name in mine}
    for name, result in scored.items():
        rewards.check_lost(run.rewards[name].name, result, cfg.max_failed)
    answered = time.perf_counter()

    # 3. Normalize: advantages (P, G) of all ranks, and of them our own: (B,)
    values = {name: result.values for name, result in scored.items()}  # (P, G) each
    advantages, frac_floor = normalize(values, run.weights, cfg.std_floor, cfg.adv_clip)
    own = advantages.chunk(procs.world)[procs.rank].flatten().to(procs.device)

    # 4. Descend: replay some of the stochastic steps of every sample under the present weights.
    replayed, batches = part.replayed, micro_batches(len(own), run.micro_batch)
    losses, norms = [], []
    how = (cfg.clip_range, cfg.guard, cfg.kl_coef)
    for n in range(cfg.updates):  # with several, each sees images of every group
        parts = [(k, rows) for rows in batches[n :: cfg.updates] for k in replayed]
        samples = sum(rows.stop - rows.start for _, rows in parts)
        for i, (k, rows) in enumerate(parts, 1):
            with processes.gradients(run.policy, average=i == len(parts)):
                loss = objective(model, run.policy, rollout, own[rows], k, rows, *how)
                ((rows.stop - rows.start) / samples * loss.loss).backward()
            losses.append(grpo.Loss(*(x.detach() for x in loss)))
        procs.alike(check_finite, [("the loss", torch.stack([x.loss for x in losses]))])
        norms.append(processes.clip_gradients(model.trainable(), cfg.max_grad_norm))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    run.average.update()
    seconds = (sampled - start, answered - asked, time.perf_counter() - answered)
    run.log(number, scored, advantages, frac_floor, losses, norms, kl, seconds)


def objective(
    model,
    policy,
    rollout: Rollout,
    advantages,
    k: int,
    rows: slice,
    clip_range: float,
    guard: bool,
    kl_coef: float,
) -> grpo.Loss:
    """What step k of some samples adds to the loss: the clipped ratio, and the KL to the base.

    advantages: (b,) of these rows. guard: GRPO-Guard's ratio, whose loss is divided by -dsigma.
    """
    text, trajectory = rollout.text.rows(rows), rollout.trajectory
    new = sampler.replay(model.velocity(text, policy), trajectory, k, rows)  # with gradient
    old = trajectory.step(k, rows)
    if guard:
        log_ratio = grpo.normalized_log_ratio(new, old)  # (b,)
        weight = 1 / (trajectory.sigmas[k] - trajectory.sigmas[k + 1])
    else:
        log_ratio, weight = new.log_prob - old.log_prob, 1.0
    clipped = grpo.clipped_loss(log_ratio, advantages, clip_range)
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
        from support import dry_run

        return dry_run.main(cfg)
    with started(cfg) as run:  # whatever ends it says in one sentence why, and what is kept
        train(cfg, run.procs, run)
        run.finish()


if __name__ == "__main__":
    main()
