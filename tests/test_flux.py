"""The base model: our sampler against diffusers' own pipeline, adapters, saving, and errors."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline, FluxPipeline
from transformers import CLIPModel

import sampler
from models import base, flux, sd3

PROMPTS = ["a red circle inside a blue square", "three green triangles"]


def our_images(pipe, prompts, seeds, steps=6):
    noise = flux.initial_noise(pipe, 32, 32, seeds)
    velocity = flux.velocity_fn(pipe, flux.encode(pipe, prompts), 32, 32)
    clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(steps))
    return flux.decode(pipe, clean, 32, 32)


def pixels(images):
    return np.stack([np.asarray(image, np.int16) for image in images])


def test_ode_sample_is_what_diffusers_own_pipeline_draws(tiny_flux):
    sigmas = sampler.sigma_schedule(6)[:-1].tolist()
    theirs = [
        tiny_flux(
            prompt,
            height=32,
            width=32,
            num_inference_steps=6,
            sigmas=sigmas,
            max_sequence_length=tiny_flux.tokenizer_2.model_max_length,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for prompt, seed in zip(PROMPTS, (5, 6))
    ]
    assert np.abs(pixels(our_images(tiny_flux, PROMPTS, [5, 6])) - pixels(theirs)).max() <= 1
    assert np.abs(pixels(our_images(tiny_flux, PROMPTS, [6, 5])) - pixels(theirs)).max() > 20


@pytest.mark.parametrize("arguments", [{}, {"num_images_per_prompt": 2, "guidance_scale": 1.0}])
def test_what_ships_loads_plainly_and_draws(arguments):
    """As its page on a hub would say it, without a word about precision or the prompt's length."""
    pipe = FluxPipeline.from_pretrained(ROOT / "assets" / "tiny-flux")
    images = pipe("a red circle", num_inference_steps=2, height=32, width=32, **arguments).images
    assert pixels(images).std() > 5 and {p.dtype for p in parts_of(pipe)} == {torch.float32}
    clip = CLIPModel.from_pretrained(ROOT / "assets" / "tiny-clip")
    assert {p.dtype for p in clip.parameters()} == {torch.float32}


def parts_of(pipe):
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    return [p for part in parts for p in part.parameters()]


def test_noise_depends_on_the_seed_alone(tiny_flux):
    both = flux.initial_noise(tiny_flux, 32, 64, [1, 2])
    assert both.shape == (2, 32, 32) and both.dtype == torch.float32
    assert torch.equal(both[1:], flux.initial_noise(tiny_flux, 32, 64, [2]))
    assert abs(both.mean()) < 0.15 and abs(both.std() - 1) < 0.1
    images = flux.decode(tiny_flux, both, 32, 64, batch_size=1)
    assert [image.size for image in images] == [(64, 32)] * 2


def test_text_rows_repeat_a_prompt_for_its_group(tiny_flux):
    text = flux.encode(tiny_flux, PROMPTS)
    rows = text.rows(torch.tensor([0, 0, 1]))
    assert torch.equal(rows.embeds[1], text.embeds[0])
    assert torch.equal(rows.pooled[2], text.pooled[1])


def test_image_size_must_divide(tiny_flux):
    with pytest.raises(ValueError, match="36x32 is not a multiple of 8"):
        flux.initial_noise(tiny_flux, 36, 32, [0])


@pytest.mark.parametrize("model", ["no/such/folder", "./missing", "runs/none"])
def test_a_missing_model_is_named(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no FLUX pipeline in"):
        flux.load(model)


@pytest.mark.parametrize("alpha", [0, 1, 8])  # as the rank; smaller; larger
def test_lora_starts_as_the_base_switches_off_and_saves(alpha, tiny_flux, tmp_path):
    folder = tmp_path / "base"
    tiny_flux.save_pretrained(folder)
    pipe = flux.load(str(folder))
    before = pixels(our_images(pipe, PROMPTS, [1, 2]))
    with pytest.raises(ValueError, match="no base to compare with"), flux.base_weights(pipe, None):
        pass
    flux.add_lora(pipe, rank=4, alpha=alpha)
    assert np.array_equal(before, pixels(our_images(pipe, PROMPTS, [1, 2])))  # B starts at zero
    assert 0 < sum(p.numel() for p in flux.trainable(pipe)) < 200_000
    with torch.no_grad():
        for parameter in flux.trainable(pipe):
            generator = torch.Generator().manual_seed(0)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    after = pixels(our_images(pipe, PROMPTS, [1, 2]))
    assert not np.array_equal(before, after)
    with flux.base_weights(pipe, None):
        assert np.array_equal(before, pixels(our_images(pipe, PROMPTS, [1, 2])))
    assert np.array_equal(after, pixels(our_images(pipe, PROMPTS, [1, 2])))  # and back on

    flux.save(pipe, tmp_path / "lora")
    plain = FluxPipeline.from_pretrained(folder)
    plain.load_lora_weights(tmp_path / "lora")
    assert np.abs(after - pixels(our_images(plain, PROMPTS, [1, 2]))).max() <= 1


def test_a_rank_above_the_layers_width_is_refused():
    pipe = flux.load(str(ROOT / "assets" / "tiny-flux"))
    with pytest.raises(ValueError, match="--lora_rank 129 is above the width of the layers, 128"):
        flux.add_lora(pipe, rank=129)
    flux.add_lora(pipe, rank=128)


def test_full_weights_save_as_a_pipeline(tiny_flux, tmp_path):
    flux.save(tiny_flux, tmp_path / "full")
    again = flux.load(str(tmp_path / "full"))
    assert np.array_equal(
        pixels(our_images(tiny_flux, PROMPTS, [1, 2])), pixels(our_images(again, PROMPTS, [1, 2]))
    )


def test_guidance_reaches_a_distilled_transformer(tiny_flux):
    from diffusers import FluxTransformer2DModel

    config = dict(tiny_flux.transformer.config) | {
        "guidance_embeds": True,
        "num_layers": 1,
        "num_single_layers": 1,
    }
    torch.manual_seed(0)
    distilled = FluxTransformer2DModel.from_config(config)
    pipe = FluxPipeline(
        tiny_flux.scheduler,
        tiny_flux.vae,
        tiny_flux.text_encoder,
        tiny_flux.tokenizer,
        tiny_flux.text_encoder_2,
        tiny_flux.tokenizer_2,
        distilled,
    )
    noise, text = flux.initial_noise(pipe, 32, 32, [0]), flux.encode(pipe, PROMPTS[:1])
    outputs = [
        flux.velocity_fn(pipe, text, 32, 32, guidance)(noise, torch.ones(1))
        for guidance in (1.0, 3.5)
    ]
    assert not torch.equal(*outputs)


def test_the_model_of_the_loop_is_the_files_functions(tiny_flux):
    model = base.load(str(ROOT / "assets" / "tiny-flux"), size=32)
    text = model.encode(PROMPTS, group_size=2)
    assert model.kind is flux and len(text.embeds) == 2 * len(PROMPTS)
    assert torch.equal(text.embeds[0], text.embeds[1])  # the rows of one group stand together
    assert not torch.equal(text.embeds[1], text.embeds[2])
    noise = model.noise([3, 4])
    assert torch.equal(noise, flux.initial_noise(tiny_flux, 32, 32, [3, 4]))
    assert [image.size for image in model.decode(noise)] == [(32, 32)] * 2


@pytest.mark.parametrize(
    ("part", "odd"),
    [
        ("transformer", math.nan),
        ("vae", math.inf),
        ("text_encoder", -math.inf),
        ("text_encoder_2", math.nan),
    ],
)
def test_a_model_with_one_weight_that_is_not_finite_is_refused(part, odd, tmp_path):
    pipe = FluxPipeline.from_pretrained(ROOT / "assets" / "tiny-flux")
    list(getattr(pipe, part).parameters())[-1].data.flatten()[-1] = odd
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"NaN or infinity in .* of its {part};"):
        base.load(str(tmp_path), size=32)


def test_pictures_that_are_not_finite_are_never_drawn(tiny_flux):
    latents = flux.initial_noise(tiny_flux, 32, 32, [0, 1])
    latents[1, 3, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="the decoded pictures"):
        flux.decode(tiny_flux, latents, 32, 32)


@pytest.mark.parametrize("name", ["no/such/folder", "runs/none"])
def test_no_pipeline_is_named(name):
    with pytest.raises(ValueError, match=f"no pipeline in '{name}'"):
        base.load(name, size=32)


class GatedRepoError(OSError):
    """As the hub raises it, by its name."""


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (GatedRepoError("401"), "it is gated: accept its licence"),
        (ConnectionRefusedError(111, "Connection refused"), "the hub cannot be reached"),
        (ValueError("first line\nsecond line"), "first line"),
        (RuntimeError("shapes differ\nin 58 lines"), "shapes differ"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_hub_model_that_cannot_be_had_gets_one_sentence(cause, reason, monkeypatch):
    def fails(*_, **__):
        if isinstance(cause, OSError):  # as diffusers does
            raise OSError("cannot be loaded:\nmany lines") from cause
        raise cause

    for step in ("load_config", "from_pretrained"):
        monkeypatch.setattr(DiffusionPipeline, step, fails)
    for load in (flux.load, sd3.load, lambda name: base.load(name, size=32)):
        with pytest.raises(ValueError, match=f"cannot load 'someone/model': {reason}") as told:
            load("someone/model")
        assert "\n" not in str(told.value)


def test_a_pipeline_of_another_class_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(ValueError, match="is a PixArtSigmaPipeline: the loop knows FluxPipeline"):
        base.load(str(tmp_path), size=32)
