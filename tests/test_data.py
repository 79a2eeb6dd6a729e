"""Prompts from a file, their order, and the text cache."""

from dataclasses import replace

import pytest
import torch

from common.seeds import seed_of
from models.flux import Text
from training.config import Config
from training.data import Prompts, TextCache, make_batch, read_prompts, step_prompts

LINES = [f"prompt {i}" for i in range(10)]


def test_lines_are_stripped_distinct_and_the_last_are_held_out(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein Bär \r\n\n  \nein Bär\r\n熊\na\u2028b\x85c\nfourth\n".encode())
    train = ["ein Bär", "熊", "a\u2028b\x85c"]
    assert read_prompts(str(file), heldout=1) == Prompts(train, ["fourth"])


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "No such file"),
        (b"\n \n", "holds no prompt"),
        (b"a\nb\na\n", "2 distinct prompts: too few"),
        ("Bär".encode("latin-1"), "not UTF-8"),
    ],
)
def test_unusable_files_get_one_sentence(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(str(tmp_path / "prompts.txt"), heldout=1, at_least=2)


def test_each_epoch_is_a_new_shuffle_of_all_and_a_step_needs_no_history():
    prompts = Prompts(LINES, ["held"])
    steps = [step_prompts(prompts, 4, step, 0, None) for step in range(1, 11)]
    row = sum(steps, [])
    epochs = [row[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == LINES for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert step_prompts(prompts, 4, 7, 0, None) == steps[6]  # asked alone, as a resumed run does
    assert step_prompts(prompts, 4, 7, 1, None) != steps[6]


def test_text_is_encoded_once_and_comes_back_as_it_was(tiny_flux, tmp_path):
    asked = []

    def encode(prompts):
        asked.extend(prompts)
        return tiny_flux.encode(prompts)

    cache = TextCache(tmp_path, "tiny", torch.float32)
    cache.prepare(["a red circle", "a blue square", "a red circle"], encode)
    cache.prepare(["a blue square"], encode)
    assert asked == ["a red circle", "a blue square"]
    text = cache.load(["a blue square", "a red circle"], Text, "cpu")
    direct = tiny_flux.encode(["a red circle", "a blue square"])
    assert torch.equal(text.embeds, direct.embeds.flip(0))
    assert torch.equal(text.pooled, direct.pooled.flip(0))
    for model, dtype in (("tiny", torch.bfloat16), ("other", torch.float32)):
        with pytest.raises(ValueError, match="no text embedding of 'a red circle'"):
            TextCache(tmp_path, model, dtype).load(["a red circle"], Text, "cpu")


def test_a_model_retrained_in_its_folder_is_encoded_again(tmp_path):
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")

    def path():
        return TextCache(tmp_path / "texts", str(tmp_path / "model"), torch.float32).path("a")

    old = path()
    assert path() == old
    weights.write_bytes(b"second")
    assert path() != old


def test_seed_of_depends_on_every_part():
    assert seed_of(0, 1, "noise") == seed_of(0, 1, "noise")
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400


SMALL = Config(prompts_per_step=4, group_size=3, num_steps=6)


def test_all_of_a_batch_depends_on_seed_and_step_and_on_nothing_else():
    batch = make_batch(SMALL, None, 2)
    assert batch == make_batch(SMALL, None, 2)
    three = [batch, make_batch(SMALL, None, 3), make_batch(replace(SMALL, seed=1), None, 2)]
    seeds = [seed for drawn in three for seed in drawn.noise_seeds + drawn.step_seeds]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 4 * 3  # each image its own, each time
    assert len({tuple(drawn.prompts) for drawn in three}) == 3


def test_ranks_share_the_prompts_and_replay_the_same_steps():
    whole = make_batch(SMALL, None, 1)
    ranks = [make_batch(SMALL, None, 1, rank, 2) for rank in range(2)]
    assert [ranks[p % 2].prompts[p // 2] for p in range(4)] == whole.prompts
    for field in ("noise_seeds", "step_seeds"):
        both = sum((getattr(rank, field) for rank in ranks), [])
        assert sorted(both) == sorted(getattr(whole, field))
    assert ranks[0].replayed == ranks[1].replayed == whole.replayed


def test_a_group_shares_its_noise_only_where_asked():
    shared = make_batch(replace(SMALL, same_noise=True), None, 1)
    groups = [shared.noise_seeds[i : i + 3] for i in range(0, 12, 3)]
    assert all(len(set(group)) == 1 for group in groups) and len(set(shared.noise_seeds)) == 4
    assert len(set(shared.step_seeds)) == 12  # what the SDE adds differs all the same


@pytest.mark.parametrize("fraction, count", [(1.0, 5), (0.6, 3), (0.01, 1)])
def test_a_share_of_the_stochastic_steps_is_replayed(fraction, count):
    drawn = [make_batch(replace(SMALL, timestep_fraction=fraction), None, s) for s in range(1, 9)]
    for batch in drawn:
        assert len(set(batch.replayed)) == count and set(batch.replayed) <= set(range(5))
    if count == 3:
        assert {k for batch in drawn for k in batch.replayed} == set(range(5))  # each now and then


def test_a_window_is_drawn_from_seed_and_step_alone_and_replayed_whole():
    cfg = replace(SMALL, num_steps=12, window=3)
    drawn = [make_batch(cfg, None, step) for step in range(60)]
    for step, batch in enumerate(drawn):
        assert batch.window == batch.replayed == list(range(batch.window[0], batch.window[0] + 3))
        ranks = [make_batch(cfg, None, step, rank, 2).window for rank in range(2)]
        wider = replace(cfg, group_size=7, same_noise=True)
        assert [*ranks, make_batch(wider, None, step).window] == [batch.window] * 3
        assert all(part.window == batch.window for part in batch.split(1))
    assert {batch.window[0] for batch in drawn} == set(range(9))  # of 0..10, every place
    other = [make_batch(replace(cfg, seed=1), None, step).window for step in range(60)]
    assert other != [batch.window for batch in drawn]
    ranged = replace(cfg, window_range="2:6")
    assert {make_batch(ranged, None, s).window[0] for s in range(60)} == {2, 3}
    plain = make_batch(replace(cfg, window=0), None, 5)  # and nothing else is drawn otherwise
    assert plain.window is None
    assert (plain.prompts, plain.noise_seeds) == (drawn[5].prompts, drawn[5].noise_seeds)


def test_a_batch_in_parts_is_the_batch():
    whole = make_batch(SMALL, None, 1)
    parts = whole.split(3)
    assert [len(part.prompts) for part in parts] == [3, 1]
    for field in ("prompts", "noise_seeds", "step_seeds"):
        assert sum((getattr(part, field) for part in parts), []) == getattr(whole, field)
