"""Prompts from a file, their order, and the text cache."""

import numpy as np
import pytest
import torch

from models import flux
from support.prompts import Prompts, TextCache, read_prompts, step_prompts

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


def test_without_a_file_the_shapes_world_is_drawn():
    texts = [step_prompts(None, 5, 1, 0, np.random.default_rng(3)) for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 5


def test_text_is_encoded_once_and_comes_back_as_it_was(tiny_flux, tmp_path):
    asked = []

    def encode(prompts):
        asked.extend(prompts)
        return flux.encode(tiny_flux, prompts)

    cache = TextCache(tmp_path, "tiny", torch.float32)
    cache.prepare(["a red circle", "a blue square", "a red circle"], encode)
    cache.prepare(["a blue square"], encode)
    assert asked == ["a red circle", "a blue square"]
    text = cache.load(["a blue square", "a red circle"], flux.Text, "cpu")
    direct = flux.encode(tiny_flux, ["a red circle", "a blue square"])
    assert torch.equal(text.embeds, direct.embeds.flip(0))
    assert torch.equal(text.pooled, direct.pooled.flip(0))
    for other in (
        TextCache(tmp_path, "tiny", torch.bfloat16),
        TextCache(tmp_path, "other", torch.float32),
    ):
        with pytest.raises(ValueError, match="no text embedding of 'a red circle'"):
            other.load(["a red circle"], flux.Text, "cpu")


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
