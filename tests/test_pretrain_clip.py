"""The learned scorer: its loss against CLIP's own, its questions, what the shipped one knows."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from judges.scorers import CLIPScorer
from shapes import pretrain_clip
from shapes.grammar import parse_prompt
from shapes.prompts import all_prompts
from shapes.read import read
from shapes.render import SIZE
from shapes.verifier import satisfied


@pytest.fixture(scope="module")
def pairs():
    return pretrain_clip.one_attribute_pairs(200, np.random.default_rng(5))


def test_without_hard_captions_the_loss_is_clips_own():
    model, processor = pretrain_clip.build(seed=1)
    texts = ["a large red circle", "two green squares", "a small blue triangle"]
    ids = processor.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    own = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    none = ids[:, None].repeat(1, 2, 1)  # hard captions that are the caption itself do not count
    loss = pretrain_clip.contrastive_loss(model, pixels, ids, none)
    assert loss.item() == pytest.approx(own.item(), abs=1e-5)
    hard = ids.roll(1, 0)[:, None]
    assert pretrain_clip.contrastive_loss(model, pixels, ids, hard) > own + 0.1
    # The same picture and caption twice: no negatives of one another, so nothing is left to tell.
    twice = torch.tensor([0, 0])
    alone = pretrain_clip.contrastive_loss(model, pixels[twice], ids[twice], none[twice])
    assert alone.item() == pytest.approx(0, abs=1e-6)


def test_batches_are_neighbors():
    texts = 8 * [p.text for pool in all_prompts("train").values() for p in pool]
    orders = pretrain_clip.neighbors(texts)
    assert [texts[i] for i in orders[0]] == sorted(texts, key=str.split)
    assert all(sorted(order) == list(range(len(texts))) for order in orders)
    rows = pretrain_clip.draw_batch(orders, np.random.default_rng(0))
    assert len(rows) == pretrain_clip.RUNS * pretrain_clip.RUN

    def shared(groups):  # words that two captions side by side have in common
        return np.mean(
            [
                len({*texts[a].split()} & {*texts[b].split()})
                for group in groups
                for a, b in zip(group[:-1], group[1:])
            ]
        )

    drawn = np.random.default_rng(1).permutation(len(texts))[: len(rows)]
    assert shared(rows.reshape(pretrain_clip.RUNS, -1)) > 1.25 * shared([drawn])


def test_hard_captions_change_one_thing():
    texts = ["a large red circle", "a red circle inside a blue square"]
    for text, several in zip(texts, pretrain_clip.hard_captions(texts, np.random.default_rng(0))):
        assert len(several) == pretrain_clip.HARD and text not in several
        for other in several:
            changed = sum(a != b for a, b in zip(text.split(), other.split(), strict=True))
            assert changed == 1


def test_pairs_have_one_answer(pairs):
    heldout = {p.text for pool in all_prompts("heldout").values() for p in pool}
    assert set(pairs["right"]) <= heldout and len(pairs["right"]) > 150
    for picture, yes, no in (("picture", "right", "wrong"), ("other", "wrong", "right")):
        for text, reading in zip(pairs[yes], read(pairs[picture])):
            assert all(satisfied(parse_prompt(text), reading))
        for text, reading in zip(pairs[no], read(pairs[picture])):
            assert not all(satisfied(parse_prompt(text), reading))


def test_the_shipped_scorer_is_good_and_fallible(pairs):
    scorer = CLIPScorer(str(ROOT / "assets" / "tiny-clip"), batch_size=100)
    right = pretrain_clip.accuracy(scorer, pairs)
    for name in ("caption", "picture"):
        assert 0.8 <= right[name].mean() < 1, name  # 0.89 on 1,879 pairs


def test_training_writes_what_the_scorer_loads(tmp_path, capsys):
    out = tmp_path / "clip"
    pretrain_clip.main(["--pictures=40", "--steps=1", "--pairs=10", f"--out={out}"])
    scorer = CLIPScorer(str(out))
    assert scorer.model.logit_scale.exp() <= 100
    assert capsys.readouterr().out.count("one-attribute pairs") == 2
