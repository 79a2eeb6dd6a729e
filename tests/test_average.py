"""The moving average of the weights: its arithmetic, and that it only stands in."""

import pytest
import torch

from training.checkpoint import EMA


def test_the_average_keeps_nine_tenths_of_itself():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = EMA(layer, 0.9)
    layer.weight.data.fill_(2.0)
    average.update()
    with average.swapped_in():
        assert layer.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert layer.weight.item() == 2.0  # training goes on from its own weights


def test_without_a_decay_the_live_weights_are_used():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = EMA(layer, 0.0)
    layer.weight.data.fill_(3.0)
    average.update()
    with average.swapped_in():
        assert layer.weight.item() == 3.0
