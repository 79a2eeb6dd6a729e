"""What is checked before the first update and doubted after each step."""

import pytest
import torch
from conftest import ROOT

import sampler
import train
from models import base
from support.diagnostics import check_on_policy, doubts
from support.prompts import Batch


def checked(model, rollout, dtype="float32", clip_range=1e-4):
    return check_on_policy(model, rollout, slice(0, 4), dtype, True, clip_range)


@pytest.fixture
def tiny_rollout():
    model = base.load(str(ROOT / "assets" / "tiny-flux"), size=32)
    batch = Batch(["a large red circle"], [0, 1, 2, 3], [4, 5, 6, 7], [])
    return model, train.sample(
        model, batch, sampler.sigma_schedule(6), noise_level=0.7, kind="flow", micro_batch=4
    )


def test_the_noise_floor_of_the_ratio_is_warned_of(tiny_rollout, caplog):
    model, rollout = tiny_rollout
    tight = dict(dtype="bfloat16", clip_range=1e-7)  # float32 weights under the wider bound
    assert checked(model, rollout, **tight) == [0.0] * 5
    # other tests may have switched this logger's INFO lines on
    assert "noise floor" not in caplog.text
    with torch.no_grad():
        model.transformer.proj_out.bias += 1e-4
    assert 1e-8 < max(checked(model, rollout, **tight)) < 1e-4
    assert "noise floor" in caplog.text


def test_a_replay_that_differs_stops_the_run(tiny_rollout):
    model, rollout = tiny_rollout
    checked(model, rollout)
    with torch.no_grad():
        model.transformer.proj_out.bias += 1e-3
    with pytest.raises(SystemExit, match="does not reproduce rollout"):
        checked(model, rollout)


HEALTHY = dict(groups_lost=0, frac_floor=0.1, kl_to_base=0.01, tie_rate=0.3, first_rate=0.5)


@pytest.mark.parametrize(
    ("odd", "kind", "once"),
    [
        (dict(order_agreement=0.0, first_rate=1.0, tie_rate=1.0), "judge", True),  # position alone
        (dict(order_agreement=0.1, first_rate=0.5), "judge", True),
        (dict(first_rate=1.0), "judge", True),  # one order is asked
        (dict(first_rate=0.0), "judge", True),
        (dict(order_agreement=1.0, tie_rate=1.0), "judge", True),
        (dict(frac_floor=1.0), "floor", False),
        (dict(groups_lost=1), "lost", False),
        (dict(kl_to_base=1e9), "far", False),
    ],
    ids=str,
)
def test_learning_nothing_is_said_aloud(odd, kind, once):
    row = {"step": 1, "order_agreement": 0.9} | HEALTHY
    assert doubts(row, first=True) == doubts(row, first=False) == {}
    assert set(doubts(row | odd, first=True)) == {kind}
    assert set(doubts(row | odd, first=False)) == (set() if once else {kind})
