"""The splits: every prompt reads back, training and held-out ones share no combination."""

from collections import Counter

import numpy as np

from shapes.grammar import KINDS, parse_prompt, parse_testpoint
from shapes.prompts import all_prompts, heldout_prompts, sample_prompts


def test_every_prompt_reads_back_and_the_splits_share_none():
    texts = {}
    for split in ("train", "heldout"):
        prompts = [(kind, p) for kind, pool in all_prompts(split).items() for p in pool]
        texts[split] = {p.text for _, p in prompts}
        for kind, prompt in prompts:
            assert parse_prompt(prompt.text) == prompt and prompt.kind == kind
            assert all(parse_testpoint(*t) is not None for t in prompt.testpoints)
    assert parse_prompt("a cat on a mat") is None
    assert not texts["train"] & texts["heldout"]
    benchmark = heldout_prompts()
    assert {p.text for p in benchmark} <= texts["heldout"] and len(benchmark) >= 300
    assert {p.kind for p in benchmark} == set(KINDS)
    assert len({p.kind for p in benchmark[:60]}) > 6  # mixed, also in its first ones
    sampled = sample_prompts(500, np.random.default_rng(0))
    assert {p.text for p in sampled} <= texts["train"]
    assert min(Counter(p.kind for p in sampled)[kind] for kind in KINDS) > 25  # of 45
