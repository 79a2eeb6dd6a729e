"""What is checked before the first update and doubted after each step."""

import csv
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from real_runs import ALONE
from test_loop import BATCH, SIGMAS, TOY, Toy, sampled

import grpo
import sampler
from training.config import Config
from training.diagnostics import check_on_policy, drifting, kl_to_base, warnings_of
from training.run import Run


class Odd(torch.nn.Module):
    """The toy's network, off by so much at the second of its steps."""

    def __init__(self, network, off):
        super().__init__()
        self.network, self.off = network, off

    def forward(self, latents, sigma):
        return self.network(latents, sigma) + self.off * (sigma == SIGMAS[1]).view(-1, 1, 1)


@pytest.mark.parametrize("guard", [True, False])
def test_the_floor_is_the_largest_of_each_step_and_the_worst_step_decides(guard, caplog):
    model = Toy(0.5)
    rollout, rows = sampled(model, BATCH, 4), slice(0, 4)

    def floors(dtype, clip_range):
        return check_on_policy(model, rollout, rows, dtype, guard, clip_range)

    assert floors("float32", 1e-4) == [0.0] * 3 and "noise floor" not in caplog.text
    model.transformer = Odd(model.transformer, 1e-3)
    new = sampler.replay(model.velocity(rollout.text), rollout.trajectory, 1)
    old = rollout.trajectory.step(1)
    plain = new.log_prob - old.log_prob
    ratio = (grpo.normalized_log_ratio(new, old) if guard else plain).exp()
    largest = (ratio - 1).abs().max().item()
    assert plain.abs().max() < 1e-3  # the bound in bfloat16
    with pytest.raises(SystemExit, match="does not reproduce rollout"):
        floors("float32", 1.0)
    found = floors("bfloat16", 5 * largest)
    assert found == pytest.approx([0.0, largest, 0.0], abs=1e-6) and largest > 1e-5
    assert "noise floor" in caplog.text
    model.transformer.off *= 2e-3 / plain.abs().max().item()  # a mean over steps is below the bound
    with pytest.raises(SystemExit, match="does not reproduce rollout"):
        floors("bfloat16", 1.0)


def test_the_kl_to_the_base_is_the_mean_over_steps_of_the_first_samples():
    """By hand: of a constant diffusion d, a velocity that differs by v moves the mean by
    v dsigma (1 + d^2 (1 - sigma) / (2 sigma)), against a deviation of d sqrt(-dsigma)."""
    weight, d = 0.3, TOY.noise_level
    rollout, expected = sampled(Toy(weight), BATCH, 4), []
    for k in (0, 1, 2):
        sigma, dsigma = SIGMAS[k], SIGMAS[k] - SIGMAS[k + 1]
        moved = weight * rollout.trajectory.latents[k, :2] * dsigma
        moved = moved * (1 + d**2 * (1 - sigma) / (2 * sigma))
        expected.append((moved**2).mean() / (2 * d**2 * dsigma))
    kl = kl_to_base(Toy(weight), rollout, 2)
    assert kl == pytest.approx(torch.stack(expected).mean().item(), rel=1e-3)


# as bad as it may be
HEALTHY = dict(groups_lost=0, kl_to_base=9.9, tie_rate=0.99, first_rate=0.94, order_agreement=0.21)
HEALTHY |= dict(reward_mean=0.5, reward_std=0.03, frac_floor=1.0, grad_norm=0.07)
MIXED = dict(clip_mean=28.0, clip_std=1e-6)  # the spread is rounding


@pytest.mark.parametrize(
    ("odd", "kind", "once"),
    [
        (dict(order_agreement=0.0, first_rate=1.0, tie_rate=1.0), "judge", True),  # position alone
        (dict(first_rate=1.0), "judge", True),  # one order is asked
        (dict(first_rate=0.0), "judge", True),
        (dict(order_agreement=1.0, tie_rate=1.0), "judge", True),
        (dict(reward_std=0.0) | MIXED, "same", False),
        (dict(groups_lost=1), "lost", False),
        (dict(kl_to_base=1e9), "far", False),
    ],
    ids=str,
)
def test_learning_nothing_is_said_aloud(odd, kind, once):
    assert warnings_of([HEALTHY], first=True) == {}
    assert warnings_of([HEALTHY | MIXED], first=False) == {}
    assert set(warnings_of([HEALTHY | odd], first=True)) == {kind}
    assert set(warnings_of([HEALTHY | odd], first=False)) == (set() if once else {kind})


def test_a_judge_that_never_ties_is_warned_of_once_where_no_kl_holds_the_policy():
    both = HEALTHY | dict(tie_rate=0.3, order_agreement=0.7)
    one = {k: v for k, v in HEALTHY.items() if k != "order_agreement"} | dict(tie_rate=0.0)
    soft = HEALTHY | dict(tie_rate=0.0, order_agreement=0.7)  # 0.6 in one order, 0.3 in the other
    for row in (both, one, soft):
        log = [{"step": 0}, *[row] * 20]
        said = [n for n in range(1, 21) if "winner" in warnings_of(log[: n + 1], n == 1, True)]
        assert said == [12]
        assert not any(warnings_of(log[: n + 1], False, False) for n in range(1, 21))
        tied = [*log[:5], row | dict(tie_rate=0.31), *log[6:]]
        assert "winner" not in warnings_of(tied[:13], False, True)
    assert "--kl_coef 0.1" in warnings_of([both] * 12, False, True)["winner"]


@pytest.mark.parametrize(("settings", "said"), [(dict(soft=True), 1), (dict(kl_coef=0.1), 0)])
def test_a_run_by_probabilities_is_advised_too(settings, said, caplog):
    cfg, log = Config(**settings), [HEALTHY | dict(tie_rate=0.0, step=12)] * 12
    Run.warn(SimpleNamespace(cfg=cfg, metrics=log, warned=Counter(step=11), procs=ALONE))
    assert caplog.text.count("called no pair equal") == said


def test_a_warning_is_given_the_first_second_fourth_and_eighth_time(caplog):
    run = SimpleNamespace(cfg=Config(), warned=Counter(step=1), procs=ALONE)
    for step in range(1, 11):
        run.metrics = [HEALTHY | dict(groups_lost=1, step=step)]
        Run.warn(run)
    said = [record.args[0] for record in caplog.records if "teach nothing" in record.message]
    assert said == [1, 2, 4, 8]


def test_a_run_that_breaks_down_is_warned_of_before_its_accuracy_falls():
    """The study's runs of 240 steps: accuracy falls for good at the steps that STUDY.md draws."""
    runs = {}
    lines = (ROOT / "study" / "results" / "longer.csv").read_text().splitlines()[1:]
    for row in csv.DictReader(lines):
        numbers = {k: float(row[k]) for k in ("grad_norm", "kl_to_base") if row[k]}
        runs.setdefault(row["arm"], {}).setdefault(row["seed"], []).append(numbers)

    def warned(arm) -> list[int]:
        """The step at which each run is first warned of, 0 for never."""
        steps = ((n for n in range(1, len(m)) if drifting(m[: n + 1])) for m in runs[arm].values())
        return [next(found, 0) for found in steps]

    fell = [168, 216, None, 168, 144]  # 0.06 below the best, by seed
    for at, end in zip(warned("win rates one order at 1e-4"), fell, strict=True):
        assert 0 < at < end if end else at == 0
    for arm in ("win rates both orders at 1e-4", "both orders without floor at 1e-4"):
        assert warned(arm) == [0] * 5  # these hold
