"""The headline of a run: held-out results written by hand, with their gain, interval and sides."""

import contextlib
import math
import types
from collections import Counter

import pytest
import torch
from real_runs import ALONE, together

from judges.answers import Outcome
from rewards import Comparison, Rewards
from training.config import Config
from training.heldout import Held, Heldout
from training.judging import JudgeError
from training.start import points_by

BASE = Held([[True, False], [False], [False, False, True]], [2.0, 4.0, 6.0], [0.5, 0.5, 0.5])
TRAINED = Held([[True, True], [True], [False, False, True]], [1.0, 2.0, 3.0], [1.0, 1.0, 0.5])


def test_metrics_by_hand():
    assert TRAINED.metrics() == {
        "heldout_accuracy": pytest.approx(4 / 6),  # testpoints weigh alike, not prompts
        "heldout_all_correct": pytest.approx(2 / 3),
        "heldout_render_error": pytest.approx(2.0),
        "win_rate_vs_base": pytest.approx(2.5 / 3),
    }


SUBS = [["Attribute - Color", "Attribute - Size"], ["Style"]]
SUBS += [["Style", "Style", "Attribute - Size"]]


def test_each_dimension_has_its_share_and_what_fell_is_said():
    before, now = TRAINED._replace(subs=SUBS), BASE._replace(subs=SUBS)
    metrics = before.metrics()
    assert metrics["heldout/Attribute"] == 1 and metrics["heldout/Style"] == pytest.approx(1 / 3)
    worse = "worse than before: Attribute - Size 1.00 -> 0.50, Style 0.33 -> 0.00"
    assert now.against(before).endswith(worse)
    assert before.against(now).endswith("worse than before: no sub dimension")


def test_the_gain_is_the_trained_less_the_base():
    gain, (low, high) = TRAINED.gain_over(BASE)
    assert gain == pytest.approx(2 / 6)
    assert low <= gain <= high and low < high
    lost, (low_lost, high_lost) = BASE.gain_over(TRAINED)
    assert (lost, low_lost, high_lost) == pytest.approx((-gain, -high, -low))
    half, none = ([[True, True]] * 10 + [[False, False]] * 10), [[False, False]] * 20
    gain, (low, high) = Held(half, [], []).gain_over(Held(none, [], []))
    assert low < gain == 0.5 < high  # of testpoints, of which each prompt has two


@pytest.mark.parametrize("prompts", [1, 20])
def test_an_interval_without_width_is_not_told_as_certainty(prompts):
    """One prompt, or prompts that all gain alike, say nothing of how sure gain and win rate are."""
    better = Held([[True, True]] * prompts, [1.0] * prompts, [1.0] * prompts)
    worse = Held([[True, False]] * prompts, [1.0] * prompts, [0.5] * prompts)
    assert better.gain_over(worse) == (0.5, None)
    said = better.against(worse)
    assert said.count("(no interval: its prompts do not differ)") == 2 and "95 %" not in said


def test_the_sentence_says_what_was_before_and_what_is_now_and_claims_nothing_unread():
    sentence = TRAINED.against(BASE)
    accuracy, rate = "held-out accuracy 0.333 -> 0.667: gain +0.333", "rate 0.00 -> 0.67"
    assert accuracy in sentence and rate in sentence and "error 4.00 -> 2.00" in sentence
    part = TRAINED._replace(wins=[1.0, None, 0.5])
    assert part.metrics()["win_rate_vs_base"] == 0.75
    assert "on 2 of 3 held-out prompts, the others lost" in part.against(BASE)
    from_a_file = Held([], [], [1.0, 0.0])
    assert from_a_file.against(from_a_file).endswith("held-out prompts, by the judge of the reward")
    for held in (TRAINED._replace(wins=[None] * 3), Held([], [], [None, None])):
        said = held.against(BASE)
        assert held.metrics()["win_rate_vs_base"] is None
        assert "win rate against the base not measured" in said and "interval 0.5" not in said


class Numbers:
    """A model whose images are numbers: the noise of a seed, to which the trained network adds
    sigma times what the prompt says, integrated over its steps."""

    transformer, sizes = 1.0, ()

    def resized(self, size):
        self.size = size
        return self

    def schedule_shift(self, steps):
        return 3.0 if steps == 2 else 1.0

    def encode(self, prompts):
        self.sizes = (*self.sizes, len(prompts))
        return torch.tensor([float(prompt) for prompt in prompts]).view(-1, 1, 1)

    def noise(self, seeds):
        return torch.tensor([seed % 2**20 / 2**20 for seed in seeds]).view(-1, 1, 1)

    def velocity(self, text, transformer):
        return lambda latents, sigma: -transformer * text * sigma.view(-1, 1, 1)

    def decode(self, clean):
        return clean.flatten().tolist()

    def base(self):
        return contextlib.nullcontext(0.0)


class Difference:
    """A PairwiseReward by the numbers, in tenths, and by the prompt; loses the first so many."""

    name = "difference"

    def __init__(self, lost=0):
        self.lost, self.asked = lost, []

    def __call__(self, prompts, images):
        self.asked.append(len(prompts))
        points = [(a - b) * float(p) / 100 for p, (a, b) in zip(prompts, images)]
        points[: self.lost] = [None] * self.lost
        counts = Counter(wanted=len(points), failed=self.lost, groups_lost=self.lost)
        compared = tuple(Comparison(p, 0, 1, Outcome(won)) for p, won in enumerate(points))
        return Rewards(torch.zeros(len(points), 2), counts, None, compared)


PROMPTS = ["3", "1", "2", "1", "5"]


def measured(procs=ALONE, lost=0, measures=None, **settings):
    """Of PROMPTS: the Heldout, its judge, and what evaluation finds."""
    cfg = Config(**dict(heldout=len(PROMPTS), num_steps=2, shift=3.0) | settings)
    prompts = types.SimpleNamespace(heldout=PROMPTS)
    held = Heldout(cfg, procs, Numbers(), Difference(lost), prompts, measures=measures)
    held.measure_base()
    assert not held.compare.asked  # of an image against itself
    return held, held.evaluate()


@pytest.fixture(autouse=True)
def undrawn():
    """Images for people are drawn as they are."""


def test_the_trained_draw_what_the_base_draws_and_what_they_learned():
    """From sigmas 1, 3/4, 0: 1 * 1/4 + 3/4 * 3/4 of each prompt's number."""
    held, found = measured()
    trained = held.sample(held.texts, held.seeds, 1.0)
    gains = [float(prompt) * 13 / 16 for prompt in PROMPTS]
    assert [a - b for a, b in zip(trained, held.base_images)] == pytest.approx(gains)
    assert found.wins == pytest.approx([g * float(p) / 100 for g, p in zip(gains, PROMPTS)])
    assert held.base.wins == [0.5] * 5
    grid = sum(held.base_grid, [])
    assert len({*held.base_images, *grid}) == 5 + 5 * 4  # each from its own noise


def test_evaluation_has_a_size_steps_and_the_pipelines_shift_of_its_own():
    held, found = measured()
    assert held.model.size == 32 and measured(size=16)[0].model.size == 16
    larger, same = measured(shift=0.0, eval_size=64)  # the same schedule by the pipeline's own
    assert larger.model.size == 64 and same.wins == found.wins
    one, found = measured(shift=0.0, eval_steps=1)  # from sigma 1 to 0 at once
    assert found.wins == pytest.approx([float(p) ** 2 / 100 for p in PROMPTS])


def test_neither_batches_nor_ranks_change_what_is_measured():
    held, found = measured()
    for other, again in together(lambda procs: measured(procs, micro_batch=2)):
        assert other.base_images == held.base_images and other.base_grid == held.base_grid
        assert again.wins == pytest.approx(found.wins)
        assert max(other.model.sizes) == 2 and other.compare.asked == [3]  # its share


def test_a_lost_comparison_has_no_win_rate_and_too_many_end_the_run_on_all_ranks():
    assert measured(lost=1, max_failed=0.3)[1].wins.count(None) == 1

    def of_rank(procs):
        with pytest.raises(JudgeError, match="2 of 6 judgements lost"):
            measured(procs, lost=0 if procs.rank else 2)

    together(of_rank)


def tenfold(prompts, images, _):
    """Ten times the prompt and the image; that of the prompt 5 is no number."""
    return [math.nan if p == "5" else 10 * float(p) + i for p, i in zip(prompts, images)]


def points(lost):
    return lambda *asked: points_by(Difference(lost), ALONE, None, set(), *asked)


def test_what_nothing_is_trained_on_is_measured_on_the_same_images_by_all_ranks():
    alone, plain = measured()
    images = alone.sample(alone.texts, alone.seeds, 1.0)
    scores = [10 * float(p) + i for p, i in zip(PROMPTS[:4], images)]
    look = lambda procs: measured(procs, measures={"a": tenfold, "b": points(0)})
    for held, found in (look(ALONE), *together(look)):
        assert found.seen == {"a": [*map(pytest.approx, scores), None], "b": found.wins}
        assert found.wins == pytest.approx(plain.wins)
        assert list(found.metrics()) == list(held.base.metrics()) == ["win_rate_vs_base", "a", "b"]
        assert found.metrics()["a"] == pytest.approx(sum(scores) / 4)
        assert held.base.metrics()["b"] == 0.5
    assert list(plain.metrics()) == ["win_rate_vs_base"]


def test_a_judge_that_rewards_nothing_ends_no_run_and_the_sentence_says_what_it_saw():
    held, found = measured(measures={"a": tenfold, "b": points(5)})
    assert found.metrics()["b"] is None
    assert found.against(held.base).endswith("), b not measured")
    before = Held([], [], [0.5] * 3, (), {"a": [1.0, None, 4.0]})
    said = before._replace(seen={"a": [2.0, 9.0, 7.0]}).against(before)
    bounds = "95 % interval +1.000 .. +3.000"
    assert said.endswith(f"; never trained on: a 2.500 -> 6.000 (the change: {bounds})")
