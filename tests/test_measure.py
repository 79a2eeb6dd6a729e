"""The scripts that measure run what the loop runs: a small round of each; times are not checked."""

import dataclasses
import itertools

import pytest

from measure import sparse, speed
from measure.step import Step
from training.config import Config

SMALL = dataclasses.replace(Config(), prompts_per_step=1, group_size=2, num_steps=2)


def test_speed_measures_each_of_its_ratios():
    ratios = speed.measure(1, SMALL)
    assert ratios.keys() == speed.AGAINST.keys()
    assert all(len(values) == 1 and values[0] > 0 for values in ratios.values())
    assert ratios["judging"][0] < 1


def test_a_step_is_run_at_other_sizes_and_one_image_at_a_time():
    step = Step(SMALL)
    for sizes in ({"num_steps": 3}, {"group_size": 3}, {"micro_batch": 1, "prompts_per_step": 3}):
        rollout = step.run(**sizes)
    assert rollout.trajectory.latents.shape[:2] == (3, 6)
    assert all(state["step"] == 3 for state in step.optimizer.state.values())


@pytest.mark.parametrize("size", [2, 5, 8, 13])
def test_a_tournament_finds_the_best_in_twice_as_many_comparisons(size):
    class Points(dict):
        asked = set()

        def __getitem__(self, pair):
            self.asked.add(pair)
            return super().__getitem__(pair)

    points = Points({(i, j): float(i > j) for i, j in itertools.combinations(range(size), 2)})
    for draw in range(5):
        points.asked.clear()
        ranks = sparse.tournament(points, size, draw)
        assert ranks.argmax() == size - 1 and len(points.asked) <= 2 * (size - 1)
        assert ranks[0] < 1 or size == 2  # the worst leaves at once, whatever it meets
