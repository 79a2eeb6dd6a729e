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
        (b"\n \n", "holds 0 distinct prompts"),
        (b"a\nb\na\n", "2 distinct prompts, one a line: too few"),
        ("Bär".encode("latin-1"), "not UTF-8"),
    ],
)
def test_unusable_files_get_one_sentence(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"^--prompts '.*prompts.txt'.*{sentence}"):
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
    weights, paths = tmp_path / "text_encoder" / "model.safetensors", []
    weights.parent.mkdir()
    for content in (b"first", b"second"):
        weights.write_bytes(content)
        paths += [TextCache("texts", str(tmp_path), torch.float32).path("a") for _ in range(2)]
    assert paths[0] == paths[1] != paths[2] == paths[3]


def test_seed_of_depends_on_every_part():
    assert seed_of(0, 1, "noise") == seed_of(0, 1, "noise")
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400


SMALL = Config(prompts_per_step=4, group_size=3, num_steps=6)


def drawn(step=1, rank=0, ranks=1, **settings):
    return make_batch(replace(SMALL, **settings), None, step, rank, ranks)


def test_all_of_a_batch_depends_on_seed_and_step_and_on_nothing_else():
    assert drawn(2) == drawn(2)
    three = [drawn(2), drawn(3), drawn(2, seed=1)]
    seeds = [seed for batch in three for seed in batch.noise_seeds + batch.step_seeds]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 4 * 3  # each image its own, each time
    assert len({tuple(batch.prompts) for batch in three}) == 3


def test_a_batch_is_that_of_its_ranks_and_that_of_its_parts():
    whole, ranks = drawn(), [drawn(rank=rank, ranks=2) for rank in range(2)]
    assert [ranks[p % 2].prompts[p // 2] for p in range(4)] == whole.prompts
    assert ranks[0].replayed == ranks[1].replayed == whole.replayed
    parts = whole.split(3)
    assert [len(part.prompts) for part in parts] == [3, 1]
    for name in ("prompts", "noise_seeds", "step_seeds"):
        assert sum((getattr(part, name) for part in parts), []) == getattr(whole, name)
        both = sum((getattr(rank, name) for rank in ranks), [])
        assert sorted(both) == sorted(getattr(whole, name))


def test_a_group_shares_its_noise_only_where_asked():
    shared = drawn(same_noise=True)
    groups = [shared.noise_seeds[i : i + 3] for i in range(0, 12, 3)]
    assert all(len(set(group)) == 1 for group in groups) and len(set(shared.noise_seeds)) == 4
    assert len(set(shared.step_seeds)) == 12  # what the SDE adds differs all the same


@pytest.mark.parametrize("fraction, count", [(1.0, 5), (0.6, 3), (0.01, 1)])
def test_a_share_of_the_stochastic_steps_is_replayed(fraction, count):
    batches = [drawn(step, timestep_fraction=fraction) for step in range(1, 9)]
    for batch in batches:
        assert len(set(batch.replayed)) == count and set(batch.replayed) <= set(range(5))
    if count == 3:
        assert {k for batch in batches for k in batch.replayed} == set(range(5))  # now and then


def test_a_window_is_drawn_from_seed_and_step_alone_and_replayed_whole():
    cfg = dict(num_steps=12, window=3)
    batches = [drawn(step, **cfg) for step in range(60)]
    for step, batch in enumerate(batches):
        assert batch.window == batch.replayed == list(range(batch.window[0], batch.window[0] + 3))
        others = [drawn(step, 1, 2, **cfg), drawn(step, group_size=7, same_noise=True, **cfg)]
        assert all(other.window == batch.window for other in others + batch.split(1))
    assert {batch.window[0] for batch in batches} == set(range(9))  # of 0..10, every place
    assert [drawn(step, seed=1, **cfg).window for step in range(60)] != [b.window for b in batches]
    ranged = {drawn(step, window_range="2:6", **cfg).window[0] for step in range(60)}
    assert ranged == {2, 3}
    plain = drawn(5, num_steps=12)  # and nothing else is drawn otherwise
    assert plain.window is None
    assert (plain.prompts, plain.noise_seeds) == (batches[5].prompts, batches[5].noise_seeds)
