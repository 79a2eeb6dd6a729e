"""Checks of exercise 6, in the order of the work: python -m pytest exercises/test_06_advantages.py

Two groups lie far apart, so that a mean or a deviation taken over the wrong images shows. By hand:
the first, 1, 2, 3, 6, has mean 3 and squared differences 4, 1, 0, 9: deviation sqrt(14 / 4).
"""

import torch

from exercises import ex_06_advantages as ex
from exercises.checks import expect, expect_as_ours

GROUPS = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 40.0, 20.0, 30.0], [5.0, 5.0, 9.0, 9.0]])
PART = "part {} of the docstring of group_advantages in exercises/ex_06_advantages.py"
NORMAL, FLOOR, CLIP = map(PART.format, (1, 2, 3))
HEAD = "the examples at the head of exercises/ex_06_advantages.py"


def test_advantages_are_normalized_in_their_own_group():
    apart = "The size of tensor a (4) must match the size of tensor b (3)"  # so torch says it
    try:
        advantages, flat = ex.group_advantages(GROUPS.clone()), False
    except RuntimeError as error:
        if apart not in str(error):
            raise
        flat = True
    expect("whether (3, 4) rewards met the (3,) numbers of their rows", flat, False, NORMAL)
    expect("the shape of advantages", tuple(advantages.shape), (3, 4), NORMAL)
    expect("advantage of reward 6 among 1, 2, 3, 6", advantages[0, 3], 1.603567, NORMAL)


def test_the_papers_scores_are_blown_up():
    scores = torch.tensor([[0.3457, 0.3530, 0.3496, 0.3494]])
    advantages = ex.group_advantages(scores)[0]
    widest = advantages.max() - advantages.min()
    expect("largest difference of advantages of the HPS scores", widest, 2.826172, HEAD)
    advantages = ex.group_advantages(scores, std_floor=0.05)[0]
    widest = advantages.max() - advantages.min()
    expect("the same with a floor of 0.05", widest, 0.146, FLOOR)


def test_a_group_without_spread_teaches_nothing():
    advantages = ex.group_advantages(torch.full((1, 4), 0.5), std_floor=0.0)
    expect("advantage in a group of equal rewards, floor 0", advantages[0, 0], 0.0, FLOOR)
    blown = ex.group_advantages(torch.full((1, 7), 0.3), std_floor=0.0).abs().max()
    expect("largest advantage among seven rewards of 0.3, floor 0", blown, 0.0, FLOOR)
    given = torch.full((1, 7), 22.42, dtype=torch.float64)
    blown = ex.group_advantages(given, std_floor=0.0).abs().max()
    what = "largest advantage among seven float64 rewards of 22.42, floor 0"
    expect(what, blown, 0.0, FLOOR)


def test_advantages_are_clipped():
    rewards = torch.zeros(1, 100)
    rewards[0, 0] = 1
    top = ex.group_advantages(rewards)[0, 0]
    expect("advantage of one image that beats 99", top, 5.0, CLIP)
    low = ex.group_advantages(-rewards)[0, 0]
    expect("advantage of one image that 99 beat", low, -5.0, CLIP)
    wide = ex.group_advantages(rewards, clip=7.0)[0, 0]
    expect("advantage of one image that beats 99, clip 7", wide, 7.0, CLIP)


def test_the_dtype():
    dtype = str(ex.group_advantages(GROUPS.double()).dtype)
    expect("the dtype of advantages", dtype, "torch.float32", NORMAL)


def test_any_groups_floor_and_clip():
    """Groups of one call lie on both sides of the floor, and far from 0, up to few and many."""
    rng = torch.Generator().manual_seed(1)
    mistaken = {
        "0.001 written for std_floor: it may be any.": {"std_floor": 1e-3},
        "5 written for clip: it may be any.": {"clip": 5.0},
    }
    for groups, size in ((1, 2), (4, 3), (5, 8), (2, 40)):
        spreads = torch.tensor([0.3, 0.049, 0.00101, 4e-4, 30.0])[:groups, None]
        rewards = torch.randn((groups, size), generator=rng) ** 5
        rewards = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, False, keepdim=True)
        rewards = spreads * rewards + torch.tensor([0.5, -2.0, 0.3, 0.0, 90.0])[:groups, None]
        for settings in ({}, {"std_floor": 0.05}, {"std_floor": 2.0, "clip": 0.4}, {"clip": 6.0}):
            for given in (rewards, rewards.double(), rewards.half(), rewards.flip(0)):
                what = f"of {groups} groups of {size}, {settings}"
                args = (ex, "group_advantages", what, FLOOR, mistaken if settings else {})
                expect_as_ours(*args, rewards=given, **settings)
    least = {"1e-8 for the least that divides: it is 1e-12.": {"std_floor": 1e-8}}
    what, tiny = "of a tiny spread, floor 0", torch.tensor([[0.0, 1e-9, 3e-9, 5e-9]])
    expect_as_ours(ex, "group_advantages", what, FLOOR, least, rewards=tiny)
    what, near = "of a small spread beside a large mean", torch.tensor([[22.42, 22.4201, 22.42015]])
    expect_as_ours(ex, "group_advantages", what, FLOOR, rewards=near, std_floor=0.0)
    whole = torch.tensor([[0, 1, 1], [7, 7, 9]])
    expect_as_ours(ex, "group_advantages", "of whole numbers", NORMAL, rewards=whole, std_floor=0.0)
