"""Settings: what --reward accepts, help in groups, recipes; and the advantages of a mixture."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import grpo
import train
from support.config import GROUPS, Config, Part, check_config, parse_config, parse_rewards


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
    with pytest.raises(ValueError, match="--reward") as error:
        parse_rewards(text)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="--reward"):
        check_config(Config(reward=text), 1)


def test_advantages_of_a_mixture_are_normalized_over_the_batch_of_all_ranks():
    generator = torch.Generator().manual_seed(0)
    win, clip = torch.rand(4, 6, generator=generator), 30 * torch.rand(4, 6, generator=generator)
    scored, weights = {"pairwise": win, "clip": clip}, {"pairwise": 0.4, "clip": 0.6}
    advantages, _ = train.normalize(scored, weights, 0.05, 5.0)
    assert torch.equal(advantages, grpo.combine_advantages(scored, weights, 0.05, 5.0))
    swapped, _ = train.normalize(scored, {"pairwise": 0.6, "clip": 0.4}, 0.05, 5.0)
    assert not torch.allclose(swapped, advantages)


def test_the_share_at_the_floor_is_in_each_rewards_own_units():
    win = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    logit = torch.tensor([[0.0, 0.001], [5.0, 9.0]])  # one group of four is below the floor
    _, share = train.normalize({"a": win, "b": logit}, {"a": 1.0, "b": 1.0}, 0.05, 5.0)
    assert share == 0.25


def test_a_lone_reward_is_normalized_group_by_group():
    rewards = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    advantages, share = train.normalize({"pairwise": rewards}, {"pairwise": 1.0}, 0.05, 5.0)
    assert advantages.tolist() == [[-1.0, 1.0], [0.0, 0.0]] and share == 0.5


def test_help_shows_every_setting_in_its_group_and_loads_no_library():
    program = "import sys, support.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"  # so that --help answers at once
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert all(f"{title}:" in done.stdout for title in GROUPS.values())
    assert all(f"--{f.name}" in done.stdout for f in dataclasses.fields(Config))


def test_flags_stand_above_the_recipe_and_the_recipe_above_the_defaults():
    cfg = parse_config(["--recipe", "flux-lora", "--lr", "3e-4", "--no-guard"])
    assert (cfg.lr, cfg.guard, cfg.size, cfg.clip_range) == (3e-4, False, 720, 1e-4)
    assert cfg.reward == "pairwise:0.4,clip:0.6"


def test_what_only_says_where_a_run_happens_is_free_to_change():
    free = {f.name for f in dataclasses.fields(Config) if f.metadata["free"]}
    assert {"out", "steps", "device", "base_url", "micro_batch", "shard"} <= free
    assert not {"lr", "seed", "reward", "group_size", "judge", "model"} & free
