"""Measured of a rollout beside the algorithm: is replay the rollout, how far is the base?"""

import logging

import torch

import grpo
import sampler

log = logging.getLogger("train")


def check_on_policy(
    model, rollout, rows: slice, dtype: str, guard: bool, clip_range: float
) -> list[float]:
    """Largest |ratio - 1| of each stochastic step before the first update: the noise floor of
    the ratio.

    Rollout and replay see the same batch shapes, so that in float32 on the CPU the floor is exactly
    0. Elsewhere kernels with gradient may round otherwise than those without: a floor above a tenth
    of the clip range is warned of. SystemExit where log-probs (means over latent elements) differ
    by more than rounding: every gradient would be one of something else.
    """
    floors, changes = [], []
    velocity = model.velocity(rollout.text.rows(rows))
    for k in rollout.trajectory.sde_steps:
        step = sampler.Step(
            *(x.detach() for x in sampler.replay(velocity, rollout.trajectory, k, rows))
        )
        old = rollout.trajectory.step(k, rows)
        change = step.log_prob - old.log_prob
        log_ratio = grpo.normalized_log_ratio(step, old) if guard else change
        floors.append(torch.expm1(log_ratio).abs().max().item())
        changes.append(change.abs().max())
    exact = dtype == "float32" and rollout.text.embeds.device.type == "cpu"
    bound = 0.0 if exact else {"float32": 1e-4, "bfloat16": 1e-3}[dtype]
    worst = torch.stack(changes).max().item()  # NaN where any is, as Python's max is not
    if not worst <= bound:
        raise SystemExit(
            f"replay does not reproduce rollout: log-probs differ by up to {worst:.2e} (bound "
            f"{bound:g}) before any update. Dropout, a changed model or a different batch shape "
            "would do this."
        )
    log.info(
        "on-policy check, largest |ratio - 1| by step: %s; clip range %g",
        " ".join(f"{floor:.1e}" for floor in floors),
        clip_range,
    )
    if max(floors) > 0.1 * clip_range:
        log.warning(
            "the ratio's noise floor %.1e is above a tenth of --clip_range %g: rounding "
            "decides what is clipped; use --dtype float32 or a wider --clip_range",
            max(floors),
            clip_range,
        )
    return floors


def doubts(row: dict, first: bool) -> dict[str, str]:
    """What in a step's line says that nothing is learned: sentences by kind.

    first: a run's first step; the judge is doubted then, before more is paid for.
    """
    said, agree = {}, row.get("order_agreement", 1.0)
    favored = row.get("first_rate", 0.5)
    if first and agree < 0.2:
        said["judge"] = (
            f"the judge contradicts itself in {1 - agree:.0%} of pairs when the pictures change "
            f"places, and names the first one in {favored:.0%} of decided answers: it goes by "
            "their order, or does not see them"
        )
    elif first and not 0.05 < favored < 0.95:
        place = "first" if favored > 0.5 else "second"
        said["judge"] = f"the judge names the {place} picture in nearly all decided answers"
    elif first and row.get("tie_rate") == 1:
        said["judge"] = "the judge calls all pairs equal: it sees nothing that could be rewarded"
    if row["groups_lost"]:
        said["lost"] = (
            f"of {row['groups_lost']} group(s) no judgement could be read: set aside, they teach "
            "nothing"
        )
    if row["frac_floor"] == 1:
        said["floor"] = "in no group do rewards differ by --std_floor: next to nothing is learned"
    if row["kl_to_base"] > 10:
        said["far"] = (
            f"the policy is {row['kl_to_base']:.2g} nats an element from the base: its weights run "
            "away, --lr may be too high"
        )
    return said


@torch.no_grad()
def kl_to_base(model, rollout, count: int) -> float:
    """KL of the policy that made the rollout to the base, nats per latent element and step.

    Estimated on the first `count` samples, over all stochastic steps.
    """
    trajectory, rows, total = rollout.trajectory, slice(0, count), 0.0
    with model.base() as base:
        velocity = model.velocity(rollout.text.rows(rows), base)
        for k in trajectory.sde_steps:
            reference = sampler.replay(velocity, trajectory, k, rows)
            total += grpo.kl_to_reference(trajectory.means[k][rows], reference.mean, reference.std)
    return total.item() / len(trajectory.sde_steps)
