"""Published scorers on tiny models of their real classes, saved and loaded as the published are."""

import numpy as np
import pytest
import torch
from fakes import in_turn
from PIL import Image
from tiny_clip import copy, save_aesthetic, save_clip
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection

from judges import scorers
from judges.mllm import Answer

PROMPTS = ["a large red circle", "two green squares", "a blue triangle inside a red circle"]
NOISE = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(NOISE.integers(0, 256, (*size, 3), dtype=np.uint8))
    for size in ((32, 32), (40, 24), (64, 64))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def cosines(folder):
    """By hand: one image and one prompt at a time, through the model's own forward pass."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    scale, result = model.logit_scale.exp().item(), []
    for prompt, image in zip(PROMPTS, IMAGES, strict=True):
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
def test_a_score_is_scale_times_cosine(name, scale, folder):
    scorer = scorers.load(name, folder)
    assert scorer.name == name
    expected = [scale * cosine for cosine in cosines(folder)]
    assert scorer.score(PROMPTS, IMAGES) == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 1e-2  # the model tells the three apart


def test_a_score_does_not_depend_on_its_batch_nor_much_on_the_type(folder):
    scorer, parts = scorers.CLIPScorer(folder), scorers.CLIPScorer(folder, batch_size=2)
    whole = pytest.approx(scorer.score(PROMPTS, IMAGES), abs=1e-4)
    assert parts.score(PROMPTS, IMAGES) == whole
    assert [scorer.score([p], [i])[0] for p, i in zip(PROMPTS, IMAGES)] == whole
    assert scorer.score(PROMPTS[::-1], IMAGES[::-1])[::-1] == whole
    assert scorer.score([], []) == []
    assert np.isfinite(scorer.score(["a red circle " * 50], IMAGES[:1])).all()  # too long
    half = scorers.CLIPScorer(folder, dtype=torch.bfloat16, scale=1.0)
    assert half.score(PROMPTS, IMAGES) == pytest.approx(cosines(folder), abs=0.05)


def test_the_processor_may_be_another_repositorys(folder, tmp_path):
    alone = copy(folder, tmp_path)  # no processor here
    with pytest.raises(ValueError, match="cannot load a CLIP processor"):
        scorers.CLIPScorer(alone)
    split = scorers.CLIPScorer(alone, processor=folder)
    assert split.score(PROMPTS, IMAGES) == scorers.CLIPScorer(folder).score(PROMPTS, IMAGES)


@pytest.fixture(scope="module")
def aesthetic(folder, tmp_path_factory):
    return save_aesthetic(folder, tmp_path_factory.mktemp("aesthetic"))


def test_the_aesthetic_head_on_a_normalized_embedding(aesthetic, folder):
    path, head = aesthetic
    scorer = scorers.load("aesthetic", path)
    value = scorers.CLIPScorer(folder).embed_images(IMAGES)
    for k in (0, 2, 4):
        value = value @ head[f"layers.{k}.weight"].T + head[f"layers.{k}.bias"]
    scores = scorer.score(PROMPTS, IMAGES)
    assert scores == pytest.approx(value.squeeze(-1).tolist(), abs=1e-4)
    assert scorer.score(["other"] * 3, IMAGES) == scores  # the prompt is ignored
    assert value.std() > 1e-3


def test_a_model_without_some_of_its_weights_is_refused(folder, aesthetic, tmp_path):
    """transformers would fill them with random numbers, and the scores would be noise."""
    lacks = "cannot load a CLIP model from .* lacks"
    for kept in ("vision_model", "text_model"):
        some = lambda weights, kept=kept: {k: w for k, w in weights.items() if k.startswith(kept)}
        with pytest.raises(ValueError, match=lacks):
            scorers.CLIPScorer(copy(folder, tmp_path / kept, some), processor=folder)
    path, head = aesthetic  # without its tower
    alone = copy(path, tmp_path / "head", lambda _: head, CLIPVisionModelWithProjection)
    with pytest.raises(ValueError, match=lacks):
        scorers.load("aesthetic", alone)


def test_redness_is_what_makes_an_image_red_whatever_the_prompt():
    scorer = scorers.load("redness")
    colors = ["red", "#ff8080", "white", "gray", "black", "#80ff80", "cyan"]
    images = [Image.new("RGB", (8, 8), color) for color in colors]
    scores = scorer.score(["a green circle"] * len(colors), images)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 255 and scores[2:5] == [0, 0, 0] and scores[-1] == -255
    images[0].paste("white", (0, 0, 4, 8))
    assert scorer.score(["anything"], images[:1]) == [127.5]


def test_errors_are_one_sentence(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    for call, sentence in [
        (lambda: scorers.load("elo"), "unknown scorer 'elo': choose from clip, pickscore, hpsv2"),
        (lambda: scorers.load("redness", "somewhere"), "has no weights"),
        (lambda: scorers.load("clip", str(tmp_path / "none")), "cannot load a CLIP model from"),
        (lambda: scorers.load("clip", str(tmp_path)), "safetensors"),  # a pickle is not opened
        (lambda: scorers.load("aesthetic", folder), "no aesthetic head"),
        (lambda: scorers.load("aesthetic", str(tmp_path)), "cannot load a head from"),
        (lambda: scorers.CLIPScorer(folder).score(PROMPTS, IMAGES[:2]), "got 3 prompts, 2 images"),
        (lambda: scorers.MLLMScorer(in_turn(), template="x"), "lacks {prompt}"),
    ]:
        with pytest.raises(ValueError, match=sentence) as error:
            call()
        assert "\n" not in str(error.value)


RATINGS = "Alignment Score (1-5): 4.25\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 4"


def test_a_vision_language_model_rates_each_image_alone(caplog):
    scorer = scorers.MLLMScorer(in_turn(*[RATINGS] * 3, name="rater"))
    assert scorer.name == "rater"
    prompts = ["a {x}", "{prompt}", "c"]  # a caption's braces are left alone
    assert scorer.score(prompts, IMAGES) == pytest.approx([11.75 / 3] * 3)
    assert [query.images for query in scorer.mllm.asked] == [(image,) for image in IMAGES]
    for prompt, query in zip(prompts, scorer.mllm.asked):
        assert f"\nCaption: {prompt}\n" in query.text
    assert not caplog.records
    form = "{prompt}\n" + RATINGS  # who repeats the question has not answered it
    assert scorers.MLLMScorer(in_turn("a\n" + RATINGS), form).score("a", IMAGES[:1]) == [None]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Answer(error="HTTP 500"), "HTTP 500"),
        (Answer("I like it"), "no ratings in an answer that ends with 'I like it'"),
        (Answer(RATINGS, unfinished="cut off"), "cut off: no ratings in an answer that ends with"),
    ],
)
def test_an_image_without_ratings_has_no_score_and_the_last_reason_is_logged(caplog, last, reason):
    scorer = scorers.MLLMScorer(in_turn(RATINGS, "none", last, name="rater"))
    assert scorer.score(PROMPTS, IMAGES) == [pytest.approx(11.75 / 3), None, None]
    assert f"rater: 2 scores lost, last error: {reason}" in caplog.text
