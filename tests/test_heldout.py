"""The headline of a run: held-out results written by hand, with their gain, interval and sides."""

import pytest
import torch

from judges.mllm import Answer
from rewards import PairwiseReward
from support.config import Config
from support.heldout import Held, Heldout
from support.processes import Processes

BASE = Held([[True, False], [False], [False, False, True]], [2.0, 4.0, 6.0], [0.5, 0.5, 0.5])
TRAINED = Held([[True, True], [True], [False, False, True]], [1.0, 2.0, 3.0], [1.0, 1.0, 0.5])


def test_metrics_by_hand():
    assert TRAINED.metrics() == {
        "heldout_accuracy": pytest.approx(4 / 6),  # testpoints weigh alike, not prompts
        "heldout_perfect": pytest.approx(2 / 3),
        "heldout_fidelity": pytest.approx(2.0),
        "win_rate_vs_base": pytest.approx(2.5 / 3),
    }


SUBS = [
    ["Attribute - Color", "Attribute - Size"],
    ["Style"],
    ["Style", "Style", "Attribute - Size"],
]


def test_each_dimension_has_its_share_and_what_fell_is_said():
    before, now = TRAINED._replace(subs=SUBS), BASE._replace(subs=SUBS)
    metrics = before.metrics()
    assert metrics["heldout/Attribute"] == 1 and metrics["heldout/Style"] == pytest.approx(1 / 3)
    said = now.against(before)
    assert said.endswith("worse than before: Attribute - Size 1.00 -> 0.50, Style 0.33 -> 0.00"), (
        said
    )
    assert before.against(now).endswith("worse than before: no sub dimension")


def test_the_gain_is_the_trained_less_the_base():
    gain, (low, high) = TRAINED.gain_over(BASE)
    assert gain == pytest.approx(2 / 6)
    assert low <= gain <= high and low < high
    lost, (low_lost, high_lost) = BASE.gain_over(TRAINED)
    assert (lost, low_lost, high_lost) == pytest.approx((-gain, -high, -low))


@pytest.mark.parametrize("prompts", [1, 20])
def test_an_interval_without_width_is_not_told_as_certainty(prompts):
    """One prompt, or prompts that all gain alike, say nothing of how sure gain and win rate are."""
    better = Held([[True, True]] * prompts, [1.0] * prompts, [1.0] * prompts)
    worse = Held([[True, False]] * prompts, [1.0] * prompts, [0.5] * prompts)
    assert better.gain_over(worse) == (0.5, None)
    said = better.against(worse)
    assert said.count("(no interval: its prompts do not differ)") == 2 and "95 %" not in said


def test_the_sentence_says_what_was_before_and_what_is_now():
    said = TRAINED.against(BASE)
    for part in (
        "held-out accuracy 0.333 -> 0.667: gain +0.333",
        "wholly right 0.00 -> 0.67",
        "fidelity 4.00 -> 2.00",
        "win rate against the base 0.833",
    ):
        assert part in said
    from_a_file = Held([], [], [1.0, 0.0])
    assert from_a_file.against(from_a_file).endswith("held-out prompts, by the judge of the reward")


def test_no_win_rate_is_claimed_that_was_not_read():
    part = TRAINED._replace(wins=[1.0, None, 0.5])
    assert part.metrics()["win_rate_vs_base"] == 0.75
    assert "on 2 of 3 held-out prompts, the others lost" in part.against(BASE)
    for held in (TRAINED._replace(wins=[None] * 3), Held([], [], [None, None])):
        said = held.against(BASE)
        assert held.metrics()["win_rate_vs_base"] is None
        assert "win rate against the base not measured" in said and "interval 0.5" not in said


class Numbers:
    """A model whose pictures are numbers: the base draws 0, the trained network 1."""

    transformer = 1

    def encode(self, prompts):
        return len(prompts)

    def noise(self, seeds):
        return torch.zeros(len(seeds), 1, 1)

    def velocity(self, text, transformer):
        return lambda latents, sigma: torch.full_like(latents, -float(transformer or 0))

    def decode(self, clean):
        return clean.flatten().tolist()

    def base(self):
        from contextlib import nullcontext

        return nullcontext(0)


class HigherWins:
    """A judge by the numbers, which may have nothing to say of the first pairs."""

    name, asked, lost = "higher wins", 0, 0

    def ask(self, queries):
        self.asked += 1
        better = [f"Image {1 if q.images[0] > q.images[1] else 2} is better" for q in queries]
        return [Answer(error="down")] * self.lost + list(map(Answer, better[self.lost :]))


def test_the_win_rate_against_the_base_is_the_trained_models_own():
    class File:
        heldout = ["a", "b", "c"]

    cfg = Config(heldout=3, num_steps=2)
    alone = Processes(0, 1, torch.device("cpu"))
    judge = HigherWins()
    held = Heldout(cfg, alone, Numbers(), PairwiseReward(judge), File())
    held.measure_base()
    assert not judge.asked  # of a picture against itself
    assert held.base.wins == [0.5] * 3 and held.base_images == [0.0] * 3
    assert held.evaluate().wins == [1.0] * 3
    judge.lost = 1  # one order of the first pair, and when it is asked again
    assert held.evaluate().wins == [None, 1.0, 1.0]
