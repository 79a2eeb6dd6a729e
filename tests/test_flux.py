"""What all base models share, on both that are known, and FLUX against diffusers' own pipeline."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPModel

import sampler
from models import base
from models.flux import Flux

TINY = str(ROOT / "assets" / "tiny-flux")
PROMPTS = ["a red circle inside a blue square", "three green triangles"]


def pixels(images):
    return np.stack([np.asarray(image, np.int16) for image in images])


@torch.no_grad()
def drawn(model, seeds=(5, 6), steps=6, shift=1.0):
    velocity, sigmas = model.velocity(model.encode(PROMPTS)), sampler.sigma_schedule(steps, shift)
    return pixels(model.decode(sampler.ode_sample(velocity, model.noise(seeds), sigmas)))


def drawn_by_diffusers(model, seeds=(5, 6), steps=6, **settings):
    """By the pipeline's own call; its scheduler bends the sigmas itself."""
    sigmas = sampler.sigma_schedule(steps)[:-1].tolist()
    settings |= dict(height=32, width=32, num_inference_steps=steps, sigmas=sigmas)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pairs = zip(PROMPTS, generators)
    return pixels(model.pipe(p, generator=g, **settings).images[0] for p, g in pairs)


@pytest.fixture(params=["flux", "sd3", "klein"])
def model(request, sd3_folders, klein_folder):
    """One of each family, for a test that may change it; guided where its family can be."""
    folders = {"flux": TINY, "sd3": sd3_folders[True], "klein": klein_folder}
    return base.load(folders[request.param], 32, 4.0)


def test_ode_sample_is_what_diffusers_own_pipeline_draws(tiny_flux):
    theirs = drawn_by_diffusers(tiny_flux, max_sequence_length=12)
    assert np.abs(drawn(tiny_flux) - theirs).max() <= 1
    assert np.abs(drawn(tiny_flux, (6, 5)) - theirs).max() > 20


def test_what_ships_loads_plainly_and_draws():
    pipe = FluxPipeline.from_pretrained(TINY)
    settings = dict(num_images_per_prompt=2, guidance_scale=1.0)
    images = pipe("a red circle", num_inference_steps=2, height=32, width=32, **settings).images
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    parts.append(CLIPModel.from_pretrained(ROOT / "assets" / "tiny-clip"))
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert len(parts) == 5 and pixels(images).std() > 5


def test_noise_depends_on_the_seed_alone_and_images_on_their_latents(model, monkeypatch):
    both = model.noise([1, 2])
    assert both.shape[:2] == (2, 16) == (2, model.tokens) and both.dtype == torch.float32
    assert both.is_contiguous() and torch.equal(both[1:], model.noise([2]))
    assert abs(both.mean()) < 0.15 and abs(both.std() - 1) < 0.1
    assert torch.equal(model.pack(model.unpack(both)), both)
    images = pixels(model.decode(both))
    monkeypatch.setattr(base, "DECODED_AT_ONCE", 1)
    assert images.shape == (2, 32, 32, 3) and images[0].std() > 5
    assert np.abs(pixels(model.decode(both)) - images).max() <= 1
    both[1, 3, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="the decoded images"):
        model.decode(both)


def test_a_group_has_its_prompts_text(model):
    once, twice = model.encode(PROMPTS), model.encode(PROMPTS, group_size=2)
    assert all(torch.equal(group, field[[0, 0, 1, 1]]) for field, group in zip(once, twice))
    assert not torch.equal(once.embeds[0], once.embeds[1])


def test_each_pass_asks_first_whether_the_run_may_end(model):
    def stop():
        raise KeyboardInterrupt

    velocity = model.velocity(model.encode(PROMPTS[:1]), lambda **_: pytest.fail("a pass"))
    model.before_pass = stop
    with pytest.raises(KeyboardInterrupt):
        velocity(model.noise([0]), torch.ones(1))


def test_lora_starts_as_the_base_switches_off_and_saves(model, tmp_path):
    model.pipe.save_pretrained(tmp_path / "base")
    before = drawn(model)
    with pytest.raises(ValueError, match="no base to compare with"), model.base():
        pass
    with pytest.raises(ValueError, match=r"--lora_rank 129 is above the width of the layers, \d+"):
        model.add_lora(129)
    model.add_lora(4, 8)
    assert model.transformer.peft_config["default"].lora_alpha == 8
    assert np.array_equal(before, drawn(model))  # B starts at zero
    assert 0 < sum(p.numel() for p in model.trainable()) < 200_000
    generator = torch.Generator().manual_seed(0)
    for parameter in model.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    after = drawn(model)
    assert not np.array_equal(before, after)
    with model.base() as network:
        assert np.array_equal(before, drawn(model)) and network is model.transformer
    assert np.array_equal(after, drawn(model))  # and back on

    model.save(tmp_path / "lora")
    plain = base.load(str(tmp_path / "base"), 32, 4.0)
    plain.pipe.load_lora_weights(tmp_path / "lora")
    assert np.abs(after - drawn(plain)).max() <= 1


def test_a_lora_of_a_bfloat16_model_is_float32_and_goes_somewhere(model, monkeypatch):
    monkeypatch.setattr(type(model), "lora_layers", (".to_nothing",))
    with pytest.raises(ValueError, match="^--lora_rank 2: no layer .* ends in .to_nothing; "):
        model.add_lora(2)
    monkeypatch.undo()
    half = type(model)(model.pipe.to(torch.bfloat16), 32)
    half.add_lora(2)
    assert half.transformer.peft_config["default"].lora_alpha == 2  # the rank, unless it is given
    assert {p.dtype for p in half.trainable()} == {torch.float32}
    velocity = half.velocity(half.encode(PROMPTS[:1]))(half.noise([0]), torch.ones(1))
    assert velocity.dtype == torch.float32 and half.encode(PROMPTS).embeds.dtype == torch.bfloat16


def test_guidance_reaches_a_distilled_transformer(tiny_flux):
    config = dict(tiny_flux.transformer.config) | dict(guidance_embeds=True, num_single_layers=1)
    transformer = FluxTransformer2DModel.from_config(config)
    pipe = FluxPipeline(**(tiny_flux.pipe.components | {"transformer": transformer}))
    noise, text = tiny_flux.noise([0]), tiny_flux.encode(PROMPTS[:1])
    velocities = [Flux(pipe, 32, g).velocity(text)(noise, torch.ones(1)) for g in (1.0, 3.5)]
    assert not torch.equal(*velocities)


# ----------------------------------------------------------------------------- loading


def test_an_image_size_must_divide(model):
    model.size = 36
    with pytest.raises(ValueError, match="36x36 is not a multiple of 8"):
        model.noise([0])


@pytest.mark.parametrize(
    ("part", "odd"), [("transformer", math.nan), ("vae", math.inf), ("text_encoder", -math.inf)]
)
def test_a_model_with_one_weight_that_is_not_finite_is_refused(part, odd, tmp_path):
    pipe = FluxPipeline.from_pretrained(TINY)
    list(getattr(pipe, part).parameters())[-1].data.flatten()[-1] = odd
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"NaN or infinity in .* of its {part};"):
        base.load(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "runs/none", "plain"])
def test_no_pipeline_is_named(name):
    with pytest.raises(ValueError, match=f"no pipeline in '{name}'"):
        base.load(name)


class GatedRepoError(OSError):
    """As the hub raises it, by its name."""


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (GatedRepoError("401"), "it is gated: accept its licence"),
        (ConnectionRefusedError(111, "Connection refused"), "the hub cannot be reached"),
        (RuntimeError("shapes differ\nin 58 lines"), "shapes differ"),
    ],
)
@pytest.mark.parametrize("step", ["load_config", "from_pretrained"])
def test_a_hub_model_that_cannot_be_had_gets_one_sentence(step, cause, reason, monkeypatch):
    def fails(*_, **__):
        if isinstance(cause, OSError):  # as diffusers does
            raise OSError("cannot be loaded:\nmany lines") from cause
        raise cause

    index = {"_class_name": "FluxPipeline"}
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda _: index)
    monkeypatch.setattr(DiffusionPipeline, step, fails)
    with pytest.raises(ValueError, match=f"cannot load 'someone/model': {reason}") as told:
        base.load("someone/model")
    assert "\n" not in str(told.value)


def test_a_pipeline_of_another_class_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(ValueError, match="is a PixArtSigmaPipeline: the loop knows FluxPipeline"):
        base.load(str(tmp_path))
