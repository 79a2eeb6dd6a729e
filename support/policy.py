"""The policy: the network sampled, scored again with gradient, moved, held against its base.

roll_out makes G images for each prompt and keeps each step's Gaussian; update replays those steps
and descends the clipped loss; check_on_policy and kl_to_base measure how far replay and base are
from it. Algorithm: sampler.py (one step, its log-prob) and grpo.py (ratio, loss); network: base.py.

    rollout = roll_out(pipe, cfg, prompts, seeds)               # cfg: train.Config
    metrics = update(pipe, cfg, policy, optimizer, rollout, advantages, frozen, sde_steps=(0, 2, 4))
"""

import functools
import logging
from typing import NamedTuple

import torch

import grpo
import sampler
from models.base import flux
from support import processes

log = logging.getLogger("train")


class Rollout(NamedTuple):
    text: flux.Text  # (B, ...) one row a sample
    trajectory: sampler.Trajectory
    images: list  # P lists of G


def roll_out(pipe, cfg, prompts: list[str], seeds: list[list[int]], encode=None) -> Rollout:
    """G sampled images for each of P prompts, and the trajectories that made them.

    seeds: P lists of G. encode: from prompts to flux.Text, if not flux.encode.
    Micro-batches are runs of samples; update() uses the same ones, so that replay sees the very
    batch shapes that rollout saw.
    """
    group = len(seeds[0])
    encode = encode or functools.partial(flux.encode, pipe)
    text = encode(prompts).rows(torch.arange(len(prompts)).repeat_interleave(group))
    noise = flux.initial_noise(
        pipe,
        cfg.size,
        cfg.size,
        [row[0] if cfg.same_noise else seed for row in seeds for seed in row],
    )
    generators = [torch.Generator().manual_seed(seed ^ 1) for row in seeds for seed in row]
    sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
    parts = []
    for rows in micro_batches(len(noise), cfg):
        velocity = flux.velocity_fn(pipe, text.rows(rows), cfg.size, cfg.size, cfg.guidance)
        parts.append(
            sampler.rollout(
                velocity,
                noise[rows],
                sigmas,
                cfg.noise_level,
                cfg.sde_kind,
                generator=generators[rows],
            )
        )
    trajectory = sampler.concatenate(parts)
    images = flux.decode(pipe, trajectory.clean, cfg.size, cfg.size)
    return Rollout(text, trajectory, [images[i : i + group] for i in range(0, len(images), group)])


def micro_batches(count: int, cfg) -> list[slice]:
    size = cfg.micro_batch or (cfg.group_size if cfg.judge == "openai" else count)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def join(rollouts: list[Rollout]) -> Rollout:
    """Rollouts of several chunks of prompts as one."""
    text = flux.Text(*map(torch.cat, zip(*(r.text for r in rollouts))))
    return Rollout(
        text,
        sampler.concatenate([r.trajectory for r in rollouts]),
        [group for r in rollouts for group in r.images],
    )


def replay_loss(
    pipe, cfg, policy, frozen, rollout: Rollout, advantages: torch.Tensor, k: int, rows: slice
) -> tuple[torch.Tensor, grpo.Loss, torch.Tensor]:
    """The loss of step k of some samples: (what to descend, its statistics, change of log-prob
    (b,))."""
    text, trajectory = rollout.text.rows(rows), rollout.trajectory
    velocity = flux.velocity_fn(pipe, text, cfg.size, cfg.size, cfg.guidance, policy)
    step, old = sampler.replay(velocity, trajectory, k, rows), trajectory.step(k, rows)
    if cfg.guard:
        log_ratio = grpo.normalised_log_ratio(step, old)
        scale = 1 / (trajectory.sigmas[k] - trajectory.sigmas[k + 1])
    else:
        log_ratio, scale = step.log_prob - old.log_prob, 1.0
    loss = grpo.clipped_loss(
        log_ratio, torch.zeros_like(log_ratio), advantages[rows], cfg.clip_range
    )
    objective = scale * loss.loss
    if cfg.kl_coef:
        with torch.no_grad(), flux.base_weights(pipe, frozen) as base:
            velocity = flux.velocity_fn(pipe, text, cfg.size, cfg.size, cfg.guidance, base)
            reference = sampler.replay(velocity, trajectory, k, rows)
        objective = objective + cfg.kl_coef * grpo.kl_to_reference(
            step.mean, reference.mean, step.std
        )
    return objective, loss, (step.log_prob - old.log_prob).detach()


def update(
    pipe,
    cfg,
    policy,
    optimizer,
    rollout: Rollout,
    advantages: torch.Tensor,
    frozen,
    sde_steps: tuple[int, ...],
) -> dict:
    """Replays stochastic steps of every sample and descends the clipped loss; its metrics.

    advantages: (B,). policy: the transformer, or its DDP wrapper. sde_steps: which steps to replay.
    With cfg.updates > 1 each update sees as many micro-batches, strided: images of every group.
    """
    batches = micro_batches(len(advantages), cfg)
    losses, deltas, norms = [], [], []
    for n in range(cfg.updates):
        parts = [(k, rows) for rows in batches[n :: cfg.updates] for k in sde_steps]
        count = sum(rows.stop - rows.start for _, rows in parts)
        for k, rows in parts:
            with processes.gradients(policy, average=(k, rows) == parts[-1]):
                objective, loss, delta = replay_loss(
                    pipe, cfg, policy, frozen, rollout, advantages, k, rows
                )
                ((rows.stop - rows.start) / count * objective).backward()
            losses.append(loss)
            deltas.append(delta.abs().max())
        norms.append(processes.clip_gradients(flux.trainable(pipe), cfg.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ratio_mean, ratio_min, ratio_max, clip_frac = (
        torch.stack(x) for x in zip(*(l[1:] for l in losses))
    )
    by_step = torch.stack(deltas).view(len(batches), len(sde_steps)).max(0).values
    return {
        "ratio_mean": ratio_mean.mean().item(),
        "ratio_min": ratio_min.min().item(),
        "ratio_max": ratio_max.max().item(),
        "clip_frac": clip_frac.mean().item(),
        "delta_log_prob": by_step.tolist(),
        "grad_norm": sum(norms) / len(norms),
    }


def check_on_policy(pipe, cfg, rollout: Rollout) -> list[float]:
    """Largest |ratio - 1| of each stochastic step before the first update: the noise floor of
    the ratio.

    Rollout and replay see the same batch shapes, so that in float32 on the CPU the floor is exactly
    0. Elsewhere kernels with gradient may round otherwise than those without: a floor above a tenth
    of the clip range is warned of. SystemExit where log-probs (means over latent elements) differ
    by more than rounding: every gradient would be one of something else.
    """
    floors, worst = [], 0.0
    rows = micro_batches(len(rollout.text.embeds), cfg)[0]
    velocity = flux.velocity_fn(pipe, rollout.text.rows(rows), cfg.size, cfg.size, cfg.guidance)
    for k in rollout.trajectory.sde_steps:
        step = sampler.Step(
            *(x.detach() for x in sampler.replay(velocity, rollout.trajectory, k, rows))
        )
        old = rollout.trajectory.step(k, rows)
        change = step.log_prob - old.log_prob
        log_ratio = grpo.normalised_log_ratio(step, old) if cfg.guard else change
        floors.append(torch.expm1(log_ratio).abs().max().item())
        worst = max(worst, change.abs().max().item())
    exact = cfg.dtype == "float32" and rollout.text.embeds.device.type == "cpu"
    bound = 0.0 if exact else {"float32": 1e-4, "bfloat16": 1e-3}[cfg.dtype]
    if not worst <= bound:
        raise SystemExit(
            f"replay does not reproduce rollout: log-probs differ by up to {worst:.2e} (bound "
            f"{bound:g}) before any update. Dropout, a changed model or a different batch shape "
            "would do this."
        )
    log.info(
        "on-policy check, largest |ratio - 1| by step: %s; clip range %g",
        " ".join(f"{floor:.1e}" for floor in floors),
        cfg.clip_range,
    )
    if max(floors) > 0.1 * cfg.clip_range:
        log.warning(
            "the ratio's noise floor %.1e is above a tenth of --clip_range %g: rounding "
            "decides what is clipped; use --dtype float32 or a wider --clip_range",
            max(floors),
            cfg.clip_range,
        )
    return floors


@torch.no_grad()
def kl_to_base(pipe, cfg, rollout: Rollout, frozen) -> float:
    """KL of the policy that made the rollout to the base, nats per latent element and step.

    Estimated on the first group (or micro-batch, if smaller), over all stochastic steps.
    """
    trajectory = rollout.trajectory
    rows = slice(0, min(cfg.group_size, cfg.micro_batch or cfg.group_size))
    total = 0.0
    with flux.base_weights(pipe, frozen) as base:
        velocity = flux.velocity_fn(
            pipe, rollout.text.rows(rows), cfg.size, cfg.size, cfg.guidance, base
        )
        for k in trajectory.sde_steps:
            reference = sampler.replay(velocity, trajectory, k, rows)
            total += grpo.kl_to_reference(trajectory.means[k][rows], reference.mean, reference.std)
    return total.item() / len(trajectory.sde_steps)
