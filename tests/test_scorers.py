"""Published scorers on tiny models of their real classes, saved and loaded as the published are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModelWithProjection,
)

from judges import scorers
from judges.mllm import Answer
from shapes import pretrain

PROMPTS = ["a large red circle", "two green squares", "a blue triangle inside a red circle"]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        for size in ((32, 32, 3), (40, 24, 3), (64, 64, 3))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIPModel and its processor, as from_pretrained finds them."""
    torch.manual_seed(0)
    tokenizer = pretrain.word_tokenizer()
    small = dict(intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = small | dict(vocab_size=len(tokenizer), hidden_size=16, max_position_embeddings=8)
    text |= dict(pad_token_id=0, eos_token_id=1)
    vision = small | dict(image_size=16, patch_size=8, hidden_size=24)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    torch.nn.init.constant_(model.logit_scale, 4.0)
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    side = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return str(path)


def cosines(folder, images):
    """By hand: one image and one prompt at a time, through the model's own forward pass."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    scale, result = model.logit_scale.exp().item(), []
    for prompt, image in zip(PROMPTS, images, strict=True):
        inputs = processor(text=[prompt], images=[image], return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        a, b = out.image_embeds[0], out.text_embeds[0]
        result.append((a @ b / a.norm() / b.norm()).item())
        assert out.logits_per_image.item() == pytest.approx(scale * result[-1], abs=1e-4)
    return result


@pytest.mark.parametrize(
    "name, scale", [("clip", np.exp(4.0)), ("pickscore", np.exp(4.0)), ("hpsv2", 1.0)]
)
def test_a_score_is_scale_times_cosine(name, scale, folder, images):
    scorer = scorers.load(name, folder)
    assert scorer.name == name
    expected = [scale * cosine for cosine in cosines(folder, images)]
    assert scorer.score(PROMPTS, images) == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 1e-2  # the model tells the three apart


def test_a_score_does_not_depend_on_its_batch(folder, images):
    whole = scorers.CLIPScorer(folder).score(PROMPTS, images)
    parts = scorers.CLIPScorer(folder, batch_size=2).score(PROMPTS, images)
    alone = [scorers.CLIPScorer(folder).score([p], [i])[0] for p, i in zip(PROMPTS, images)]
    turned = scorers.CLIPScorer(folder).score(PROMPTS[::-1], images[::-1])[::-1]
    for other in (parts, alone, turned):
        assert other == pytest.approx(whole, abs=1e-4)
    assert scorers.CLIPScorer(folder).score([], []) == []


def test_embeddings_have_length_one_and_no_gradient_whatever_the_type(folder, images):
    scorer = scorers.CLIPScorer(folder, dtype=torch.bfloat16, scale=1.0)
    for embeds in (scorer.embed_images(images), scorer.embed_texts(PROMPTS)):
        assert embeds.shape == (3, 12) and not embeds.requires_grad
        assert torch.allclose(embeds.norm(dim=-1), torch.ones(3))
    assert scorer.model.dtype == torch.bfloat16 and not scorer.model.training
    assert scorer.score(PROMPTS, images) == pytest.approx(cosines(folder, images), abs=0.05)


def test_gray_and_transparent_images_and_a_prompt_that_is_too_long(folder, images):
    scorer = scorers.CLIPScorer(folder)
    gray, first = images[0].convert("L"), PROMPTS[:1]
    same = scorer.score(first, [gray.convert("RGB")])
    assert scorer.score(first, [gray]) == pytest.approx(same)
    assert np.isfinite(scorer.score(["a red circle " * 50], [images[0].convert("RGBA")])).all()


def test_the_processor_may_be_another_repositorys(folder, images, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)  # no processor here
    with pytest.raises(ValueError, match="cannot load a CLIP processor"):
        scorers.CLIPScorer(str(tmp_path))
    split = scorers.CLIPScorer(str(tmp_path), processor=folder)
    assert split.score(PROMPTS, images) == scorers.CLIPScorer(folder).score(PROMPTS, images)


@pytest.fixture(scope="module")
def aesthetic(folder, tmp_path_factory):
    """A tower and a head layers.0, .2, .4 in one file, as the published conversion has them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("aesthetic")
    config = CLIPModel.from_pretrained(folder).config.vision_config
    config.projection_dim = 12
    tower = CLIPVisionModelWithProjection(config)
    whole = load_file(Path(folder) / "model.safetensors")
    tower.load_state_dict({key: whole[key] for key in tower.state_dict()})
    tower.save_pretrained(path)
    CLIPProcessor.from_pretrained(folder).save_pretrained(path)
    sizes = {0: (12, 8), 2: (8, 4), 4: (4, 1)}
    head = {
        f"layers.{k}.{part}": torch.randn(*shape)
        for k, (n, m) in sizes.items()
        for part, shape in (("weight", (m, n)), ("bias", (m,)))
    }
    weights = load_file(path / "model.safetensors") | head
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return str(path), head


def test_the_aesthetic_head_on_a_normalized_embedding(aesthetic, folder, images):
    path, head = aesthetic
    scorer = scorers.load("aesthetic", path)
    value = scorers.CLIPScorer(folder).embed_images(images)
    for k in (0, 2, 4):
        value = value @ head[f"layers.{k}.weight"].T + head[f"layers.{k}.bias"]
    scores = scorer.score(PROMPTS, images)
    assert scores == pytest.approx(value.squeeze(-1).tolist(), abs=1e-4)
    assert scorer.score(["other"] * 3, images) == scores  # the prompt is ignored
    assert value.std() > 1e-3


def test_a_model_without_some_of_its_weights_is_refused(folder, aesthetic, tmp_path):
    """transformers would fill them with random numbers, and the scores would be noise."""
    for kept, message in (("vision_model", "lacks"), ("text_model", "lacks")):
        CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / kept)
        weights = load_file(tmp_path / kept / "model.safetensors")
        weights = {key: value for key, value in weights.items() if key.startswith(kept)}
        save_file(weights, tmp_path / kept / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"cannot load a CLIP model from .* {message}"):
            scorers.CLIPScorer(str(tmp_path / kept), processor=folder)
    path, head = aesthetic
    CLIPVisionModelWithProjection.from_pretrained(path).save_pretrained(tmp_path / "head")
    save_file(head, tmp_path / "head" / "model.safetensors", {"format": "pt"})  # and no tower
    with pytest.raises(ValueError, match="cannot load a CLIP model from .* lacks"):
        scorers.load("aesthetic", str(tmp_path / "head"))


def test_redness_is_what_makes_a_picture_red_whatever_the_prompt():
    scorer = scorers.load("redness")
    colors = ["red", "#ff8080", "white", "gray", "black", "#80ff80", "cyan"]
    pictures = [Image.new("RGB", (8, 8), color) for color in colors]
    scores = scorer.score(["a green circle"] * len(colors), pictures)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 255 and scores[2:5] == [0, 0, 0] and scores[-1] == -255
    half = Image.new("RGB", (8, 8), "red")
    half.paste("white", (0, 0, 4, 8))
    assert scorer.score(["anything"], [half]) == [127.5]
    with pytest.raises(ValueError, match="has no weights"):
        scorers.load("redness", "somewhere")


def test_errors_are_one_sentence(folder, images, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    for call, sentence in [
        (lambda: scorers.load("elo"), "unknown scorer 'elo': choose from clip, pickscore, hpsv2"),
        (lambda: scorers.load("clip", str(tmp_path / "none")), "cannot load a CLIP model from"),
        (lambda: scorers.load("clip", str(tmp_path)), "safetensors"),  # a pickle is not opened
        (lambda: scorers.load("aesthetic", folder), "no aesthetic head"),
        (lambda: scorers.load("aesthetic", str(tmp_path)), "cannot load a head from"),
        (lambda: scorers.CLIPScorer(folder).score(PROMPTS, images[:2]), "got 3 prompts, 2 images"),
    ]:
        with pytest.raises(ValueError, match=sentence) as error:
            call()
        assert "\n" not in str(error.value)


RATINGS = "Alignment Score (1-5): 4.25\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 4"


class Rater:
    """A judge that gives the answers it was made with, and keeps what it was asked."""

    name = "rater"

    def __init__(self, *answers: Answer):
        self.answers, self.asked = list(answers), []

    def ask(self, queries):
        self.asked += queries
        return self.answers


def test_a_vision_language_model_rates_each_image_alone(images, caplog):
    rater = Rater(*[Answer(RATINGS)] * 3)
    scorer = scorers.MLLMScorer(rater)
    assert scorer.name == "rater"
    prompts = ["a {x}", "{prompt}", "c"]  # a caption's braces are left alone
    assert scorer.score(prompts, images) == pytest.approx([11.75 / 3] * 3)
    assert [query.images for query in rater.asked] == [(image,) for image in images]
    for prompt, query in zip(prompts, rater.asked):
        assert f"\nCaption: {prompt}\n" in query.text
    assert not caplog.records
    with pytest.raises(ValueError, match="lacks {prompt}"):
        scorers.MLLMScorer(rater, template="x")
    form = "{prompt}\n" + RATINGS  # who repeats the question has not answered it
    assert scorers.MLLMScorer(Rater(Answer("a\n" + RATINGS)), form).score("a", images[:1]) == [None]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Answer(error="HTTP 500"), "HTTP 500"),
        (Answer("I like it"), "no ratings in an answer that ends with 'I like it'"),
        (Answer(RATINGS, unfinished="cut off"), "cut off: no ratings in an answer that ends with"),
    ],
)
def test_an_image_without_ratings_has_no_score_and_the_last_reason_is_logged(
    images, caplog, last, reason
):
    scorer = scorers.MLLMScorer(Rater(Answer(RATINGS), Answer("none"), last))
    assert scorer.score(PROMPTS, images) == [pytest.approx(11.75 / 3), None, None]
    assert f"rater: 2 scores lost, last error: {reason}" in caplog.text
