"""The splits: every prompt reads back, training and held-out ones share no combination."""

from collections import Counter

import numpy as np

from shapes.grammar import KINDS, parse_prompt, parse_testpoint
from shapes.prompts import all_prompts, heldout_prompts, sample_prompts


def test_every_prompt_reads_back_and_its_testpoints_too():
    for split in ("train", "heldout"):
        for kind, prompts in all_prompts(split).items():
            for prompt in prompts:
                assert parse_prompt(prompt.text) == prompt and prompt.kind == kind
                assert all(parse_testpoint(*t) is not None for t in prompt.testpoints)
    assert parse_prompt("a cat on a mat") is None


def test_train_and_heldout_combinations_are_disjoint():
    train = {p.text for prompts in all_prompts("train").values() for p in prompts}
    heldout = {p.text for p in heldout_prompts()}
    assert len(heldout) >= 300 and not train & heldout
    assert {p.kind for p in heldout_prompts()} == set(KINDS)
    sampled = sample_prompts(500, np.random.default_rng(0))
    assert {p.text for p in sampled} <= train
    assert min(Counter(p.kind for p in sampled)[kind] for kind in KINDS) > 25  # of 45
    assert len({p.kind for p in heldout_prompts()[:60]}) > 6  # mixed, also in its first ones


def test_eight_primary_dimensions_are_covered():
    subs = {sub for p in heldout_prompts() for sub, _ in p.testpoints}
    assert {sub.split(" - ")[0] for sub in subs} == {
        "Attribute",
        "Entity Layout",
        "Relationship",
        "Grammar",
        "Compound",
        "Logical Reasoning",
        "World Knowledge",
        "Style",
    }
