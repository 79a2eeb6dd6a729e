"""Several rewards by name: what --rewards accepts, the layers, and a run on two of them."""

import json

import pytest
import torch
from conftest import ROOT
from support.mixture import MixedReward, Part, parse_rewards

import grpo
import train
from rewards import JudgeError, RewardBatch
from shapes import verifier


@pytest.mark.parametrize(
    "text, parts",
    [
        ("pairwise:0.4,clip:0.6", {"pairwise": Part("", 0.4), "clip": Part("", 0.6)}),
        (
            "clip=assets/tiny-clip:0.6 , pointwise:2",
            {"clip": Part("assets/tiny-clip", 0.6), "pointwise": Part("", 2.0)},
        ),
        ("hpsv2", {"hpsv2": Part("", 1.0)}),
        (
            "pickscore=someone/name,aesthetic:1e-1",
            {"pickscore": Part("someone/name", 1.0), "aesthetic": Part("", 0.1)},
        ),
    ],
)
def test_parse_rewards(text, parts):
    assert parse_rewards(text) == parts
    assert list(parse_rewards(text)) == list(parts)  # the order of the layers


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("elo:1", "unknown reward 'elo'"),
        ("pairwise:0.4,", "unknown reward ''"),
        (":1", "unknown reward ''"),
        ("clip:0.4,clip=x:0.6", "'clip' stands twice"),
        ("pairwise=x:1", "only a scorer takes =SOURCE"),
        ("clip=:1", "only a scorer takes =SOURCE"),
        ("clip:much", "weight 'much' of 'clip'"),
        ("clip:0", "above 0"),
        ("clip:-1", "above 0"),
        ("clip:nan", "above 0"),
        ("clip:inf", "above 0"),
        ("clip:", "weight '' of 'clip'"),
    ],
)
def test_wrong_mixtures_get_one_sentence(text, sentence):
    with pytest.raises(ValueError, match="--rewards") as error:
        parse_rewards(text)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="--rewards"):
        train.check_config(train.Config(rewards=text), 1)


class Fixed:
    """A reward that gives what it was made with, to whatever it is shown."""

    def __init__(self, batch):
        self.batch = batch

    def judge(self, prompts, images):
        return len(images)

    def result(self, parts):
        assert list(parts) == [2]
        return self.batch


def test_layers_stand_in_order_and_counts_add_up():
    a, b = torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([[20.0, 24.0], [30.0, 30.0]])
    mixed = MixedReward(
        {
            "pairwise": Fixed(RewardBatch(a, {"comparisons": 4, "tie_rate": 0.5})),
            "clip": Fixed(RewardBatch(b, {"comparisons": 3, "failed": 1})),
        }
    )
    rewards, stats = mixed(["x", "y"], [[1, 2], [3, 4]])
    assert torch.equal(rewards, torch.stack([a, b], -1))
    assert stats == {
        "comparisons": 7,
        "tie_rate": 0.5,
        "failed": 1,
        "pairwise_mean": 0.5,
        "pairwise_std": 0.25,
        "clip_mean": 26.0,
        "clip_std": 1.0,
    }


def test_a_lost_reward_is_not_swallowed():
    class Broken(Fixed):
        def result(self, parts):
            raise JudgeError("gone")

    with pytest.raises(JudgeError, match="gone"):
        MixedReward({"pairwise": Broken(None)})(["x"], [[1, 2]])


def test_advantages_are_those_of_the_whole_batch_on_every_rank():
    rewards = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(0))
    rewards *= torch.tensor([1.0, 30.0])
    cfg = train.Config(rewards="pairwise:0.4,clip:0.6")

    class Rank(train.Processes):
        def gather(self, items):
            return list(rewards.split(2))

    parts = [
        train.make_advantages(cfg, Rank(rank, 2, "cpu"), mine)[0]
        for rank, mine in enumerate(rewards.split(2))
    ]
    whole = grpo.combine_advantages(
        {"pairwise": rewards[..., 0], "clip": rewards[..., 1]},
        {"pairwise": 0.4, "clip": 0.6},
        cfg.std_floor,
        cfg.adv_clip,
    )
    assert torch.equal(torch.cat(parts), whole)
    swapped = train.make_advantages(
        train.Config(rewards="pairwise:0.6,clip:0.4"), train.Processes(0, 1, "cpu"), rewards
    )[0]
    assert not torch.allclose(swapped, whole)


def test_the_share_at_the_floor_is_in_each_rewards_own_units():
    rewards = torch.tensor([[[0.0, 0.0], [1.0, 0.001]], [[0.0, 5.0], [1.0, 9.0]]])  # (P, G, R)
    cfg = train.Config(rewards="pairwise:1,clip:1")
    assert train.make_advantages(cfg, train.Processes(0, 1, "cpu"), rewards)[1] == 0.25


def test_a_step_on_two_rewards():
    mixture = f"pairwise:0.4,clip={ROOT / 'assets' / 'tiny-clip'}:0.6"
    cfg = train.Config(
        model=str(ROOT / "assets" / "tiny-flux"), prompts_per_step=2, group_size=4, rewards=mixture
    )
    procs = train.Processes(0, 1, torch.device("cpu"))
    learner = train.build(cfg, procs, None)
    reward = train.make_reward(cfg, verifier.ShapesMLLM(), procs.device)
    row = train.train_step(learner, cfg, procs, reward, None, 1)
    assert row["pairwise_mean"] == pytest.approx(0.5)
    assert row["clip_std"] > 0 and row["grad_norm"] > 0
    assert row["comparisons"] == 2 * 4 * 3 + 2 * 4  # pairs in both orders, and each image once
    assert {"pairwise_std", "clip_mean", "tie_rate", "failed"} <= set(row)
    json.dumps(row)  # what the loop writes
