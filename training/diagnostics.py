"""Measured of a rollout beside the algorithm: is replay the rollout, how far is the base?"""

import logging
import statistics

import torch

import grpo
import sampler

log = logging.getLogger("train")

ROUNDING = 1e-6  # of float32, as a share of a reward's mean
# What drift is warned of, by longer.csv and longer_estimators.csv of study/results: 47 runs of 240
# steps. Of 20 that end 0.06 or more below their best accuracy, 12 are warned of before it falls so
# far, 6 after, 2 never; by a judge or a known score 10 of 11 before, by learned scorers, which are
# hacked without this sign, 2 of 9. Of 27 that hold 3 are warned of; none of the 15 on win rates
# with ties at the default rate.
SPAN = 12  # steps over which the gradient's norm is averaged: the first ones and the last
GROWTH = 1.2  # of that mean
DRIFT = 0.08  # kl_to_base, median of the last ones


def check_on_policy(
    model, rollout, rows: slice, dtype: str, guard: bool, clip_range: float
) -> list[float]:
    """Largest |ratio - 1| of each stochastic step before the first update: the noise floor of
    the ratio.

    Rollout and replay see the same batch shapes, so that in float32 on the CPU the floor is exactly
    0. Elsewhere kernels with gradient may round otherwise than those without: a floor above a tenth
    of the clip range is warned of. SystemExit where log-probs differ by more than rounding: every
    gradient would be one of something else.
    """
    floors, changes = [], []
    velocity = model.velocity(rollout.text.rows(rows))
    for k in rollout.trajectory.sde_steps:
        step = sampler.replay(velocity, rollout.trajectory, k, rows)  # by the update's kernels
        step = sampler.Step(*(x.detach() for x in step))
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
    steps = " ".join(f"{floor:.1e}" for floor in floors)
    log.info("on-policy check, largest |ratio - 1| by step: %s; clip range %g", steps, clip_range)
    if max(floors) > 0.1 * clip_range:
        log.warning(
            "the ratio's noise floor %.1e is above a tenth of --clip_range %g: rounding "
            "decides what is clipped; use --dtype float32 or a wider --clip_range",
            max(floors),
            clip_range,
        )
    return floors


def warnings_of(metrics: list[dict], first: bool, advise_kl: bool = False) -> dict[str, str]:
    """What in the log's last line says that nothing is learned, or too much: sentences by kind.

    metrics: the log's lines, in order. first: a run's first step; the judge is doubted then, before
    more is paid for. advise_kl: no KL holds the policy.
    """
    row, found = metrics[-1], {}
    agree, favored = row.get("order_agreement", 1.0), row.get("first_rate", 0.5)
    if first and agree < 0.2:
        found["judge"] = (
            f"the judge contradicts itself in {1 - agree:.0%} of pairs when the images change "
            f"places, and names the first one in {favored:.0%} of decided answers: it goes by "
            "their order, or does not see them"
        )
    elif first and not 0.05 < favored < 0.95:
        place = "first" if favored > 0.5 else "second"
        found["judge"] = f"the judge names the {place} image in nearly all decided answers"
    elif first and row.get("tie_rate") == 1:
        found["judge"] = "the judge calls all pairs equal: it sees nothing that could be rewarded"
    if advise_kl and never_tied(metrics):
        found["winner"] = (
            f"in {SPAN} steps the judge called no pair equal: it names a winner where there is "
            "none, too. Such runs broke down in the study, and held with --kl_coef 0.1; or ask "
            "with a third answer (--judge_prompt)"
        )
    if lost := row["groups_lost"]:
        found["lost"] = f"no judgement of {lost} group(s) could be read: they teach nothing"
    rewards = [key.removesuffix("_std") for key in row if key.endswith("_std")]
    if all(row[f"{name}_std"] <= ROUNDING * abs(row[f"{name}_mean"]) for name in rewards):
        found["same"] = "rewards do not differ in any group: this step teaches nothing"
    far = f"the policy is {row['kl_to_base']:.2g} nats an element from the base"
    if growth := drifting(metrics):
        found["drift"] = (
            f"gradients have grown by {growth - 1:.0%} since the first {SPAN} steps, and {far}: "
            "runs that break down begin so, before held-out accuracy falls; a lower --lr or a "
            "--kl_coef may help"
        )
    if row["kl_to_base"] > 10:
        found["far"] = f"{far}: its weights run away, --lr may be too high"
    return found


def never_tied(metrics: list[dict]) -> bool:
    """Whether so far, after SPAN steps, pairs tied only where their two orders contradicted each
    other. (By --soft even those seldom do.)"""
    steps = [row for row in metrics if "tie_rate" in row]
    called = [row["tie_rate"] - (1 - row.get("order_agreement", 1.0)) for row in steps]
    return len(steps) == SPAN and max(called) < 1e-9


def drifting(metrics: list[dict]) -> float:
    """By how much gradients have grown, if that and the KL to the base are warned of; else 0."""
    norms = [row["grad_norm"] for row in metrics if "grad_norm" in row]
    if len(norms) < 2 * SPAN:
        return 0.0
    growth = statistics.fmean(norms[-SPAN:]) / max(statistics.fmean(norms[:SPAN]), 1e-30)
    far = statistics.median(row["kl_to_base"] for row in metrics[-SPAN:])
    return growth if growth > GROWTH and far > DRIFT else 0.0


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
