"""Intervals whose width is known: that of a hundred coin tosses."""

import numpy as np
import pytest

from common.bootstrap import interval, interval_text, mean_interval, resample


def test_each_replicate_draws_as_many_prompts_as_there_are():
    draws = resample(7)
    assert draws.shape == (2000, 7) and (draws.sum(1) == 7).all() and draws.min() == 0
    assert draws.mean(0) == pytest.approx(np.ones(7), abs=0.1)  # no prompt is preferred
    assert (resample(7) == draws).all() and draws.std(0).min() > 0


def test_prompts_that_are_alike_give_no_interval():
    for alike in ([0.7] * 30, [0.1], [1.0] * 100):
        assert mean_interval(alike) is None
    assert mean_interval([2, 4, 6], [1, 2, 3]) is None  # every prompt has the same ratio
    assert interval([np.nan, np.nan]) is interval([]) is interval([0.5, np.nan]) is None
    assert interval_text(None, str) == "no interval: its prompts do not differ"


def test_a_hundred_coin_tosses():
    """Half heads: the standard error is 0.05, so 95 % lie within 0.098."""
    assert interval(np.arange(1001)) == (25, 975)
    low, high = mean_interval([0, 1] * 50)
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)


def test_no_prompts():
    with pytest.raises(ValueError, match="at least one prompt"):
        mean_interval([])
