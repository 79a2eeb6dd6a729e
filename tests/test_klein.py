"""FLUX.2-klein: latents of diffusers' own pipeline, guidance in two passes, LoRA, a run."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import Flux2KleinPipeline
from real_runs import ALONE, log_of, stepped, whole_run
from safetensors.torch import load_file
from test_flux import PROMPTS
from tiny_models import KLEIN_TOKENS, klein_pipeline

import sampler
from models import base
from models.klein import Klein
from training.config import Config
from training.start import load_model

STEPS = 4


@pytest.fixture
def load(klein_folder):
    return lambda guidance=4.0, size=32: base.load(klein_folder, size, guidance)


def latents(model, steps=STEPS):
    """What the VAE would decode of two images."""
    sigmas = sampler.sigma_schedule(steps, model.schedule_shift(steps))
    with torch.no_grad():
        velocity = model.velocity(model.encode(PROMPTS))
        return model.for_vae(sampler.ode_sample(velocity, model.noise([5, 6]), sigmas))


def latents_of_diffusers(pipe, model, steps=STEPS, **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    settings |= dict(max_sequence_length=KLEIN_TOKENS, num_inference_steps=steps)
    how = dict(height=model.size, width=model.size, output_type="latent")
    return pipe(prompt=PROMPTS, generator=generators, **how, **settings).images


@pytest.mark.parametrize("size, steps", [(32, 4), (64, 7)])  # the shift depends on both
def test_latents_are_those_of_diffusers_own_pipeline(load, size, steps):
    ours = {}
    for guidance in (1.0, 4.0):
        model = load(guidance, size)
        ours[guidance] = latents(model, steps)
        theirs = latents_of_diffusers(model.pipe, model, steps, guidance_scale=guidance)
        assert (ours[guidance] - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    assert (ours[1.0] - ours[4.0]).abs().max() > 0.01  # or guidance would not be seen


def test_the_comparison_sees_template_statistics_layers_and_shift(load):
    model = load()
    theirs = latents_of_diffusers(model.pipe, model, guidance_scale=4.0)

    def differs() -> bool:
        return bool((latents(model) - theirs).abs().max() > 1e-3 * theirs.abs().max())

    pipe, template = model.pipe, model.pipe.tokenizer.chat_template
    assert not differs()
    pipe.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert differs()
    pipe.tokenizer.chat_template = template
    for statistics, other in ((pipe.vae.bn.running_mean, 0.0), (pipe.vae.bn.running_var, 1.0)):
        kept = statistics.clone()
        statistics.fill_(other)
        assert differs()
        statistics.copy_(kept)
    model.schedule_shift = lambda steps: 1.0
    assert differs()


def test_the_shift_is_that_of_the_real_size():
    """1024 tokens at 512 px: 16 pixels each."""
    pipe = klein_pipeline()
    model = Klein(pipe, size=32 * pipe.vae_scale_factor * 2)
    assert model.tokens == 1024
    assert model.schedule_shift(25) == pytest.approx(6.56, abs=0.01)
    assert model.schedule_shift(50) < model.schedule_shift(10)
    pipe.scheduler.register_to_config(use_dynamic_shifting=False, shift=3.0)
    assert model.schedule_shift(25) == 3.0


def test_one_batch_of_two_equals_two_passes_and_a_distilled_one_has_none(load):
    model, sizes = load(), []
    noise, sigma, text = model.noise([0, 1]), torch.tensor([0.9, 0.4]), model.encode(PROMPTS)

    def counting(hidden_states, network=model.transformer, **inputs):
        sizes.append(len(hidden_states))
        return network(hidden_states, **inputs)

    guided = model.velocity(text, counting)(noise, sigma)
    model.guidance = 1.0
    positive, negative = (
        model.velocity(model.encode(prompts), counting)(noise, sigma)
        for prompts in (PROMPTS, ["", ""])
    )
    assert torch.allclose(guided, negative + 4 * (positive - negative), atol=1e-5)
    model.guidance = 4.0
    model.pipe.register_to_config(is_distilled=True)
    assert torch.equal(model.velocity(text, counting)(noise, sigma), positive)
    assert sizes == [4, 2, 2, 2] and model.distilled


def test_a_step_distilled_base_is_warned_of_by_configuration_or_by_name(
    klein_folder, tmp_path, caplog
):
    def warned(folder) -> bool:
        caplog.clear()
        load_model(Config(model=str(folder), lora_rank=4), ALONE)
        return "step-distilled" in caplog.text

    tiny = ROOT / "assets" / "tiny-flux"
    assert not warned(klein_folder) and not warned(tiny)
    for name in ("FLUX.1-schnell", "SD3.5-Large-Turbo", "FLUX.1-dev-8steps"):
        (tmp_path / name).symlink_to(tiny)
        assert warned(tmp_path / name)
    for name, expected in (("plain", True), ("klein-turbo", False)):  # it says so itself
        klein_pipeline(is_distilled=expected).save_pretrained(tmp_path / name)
        assert warned(tmp_path / name) == expected


def test_a_lora_binds_to_double_and_fused_single_blocks(load, tmp_path):
    model = load()
    model.add_lora(rank=4)
    named = model.transformer.named_parameters()
    adapted = {name.split(".lora_")[0] for name, p in named if p.requires_grad}
    double = "attn.to_q attn.to_out.0 attn.add_k_proj attn.to_add_out ff.linear_in"
    double += " ff_context.linear_out"
    expected = {f"transformer_blocks.1.{part}" for part in double.split()}
    expected |= {
        f"single_transformer_blocks.1.attn.{part}" for part in ("to_qkv_mlp_proj", "to_out")
    }
    assert expected <= adapted and len(adapted) == 2 * 12 + 2 * 2
    for name, parameter in model.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    trained = latents(model)
    model.save(tmp_path)
    plain = klein_pipeline()
    before = latents_of_diffusers(plain, model, guidance_scale=4.0)
    plain.load_lora_weights(tmp_path)
    after = latents_of_diffusers(plain, model, guidance_scale=4.0)
    assert (after - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("lora", [0, 4])
def test_a_folder_of_klein_trains_resumes_and_draws_in_plain_diffusers(
    klein_folder, tmp_path, lora
):
    settings = dict(steps=2, prompts_per_step=1, group_size=4, num_steps=3, heldout=2, lr=1e-2)
    settings |= dict(guidance=4.0, model=klein_folder, lora_rank=lora, shift=0.0, eval_every=2)
    settings |= dict(reward=f"clip={ROOT / 'assets' / 'tiny-clip'}", noise_level=0.8, ema=0.0)
    run = whole_run(Config(**settings, out=str(tmp_path / "whole")))
    assert isinstance(run.model, Klein)
    rows = log_of(tmp_path / "whole")
    assert rows[1]["ratio_min"] == rows[1]["ratio_max"] == 1.0
    assert rows[1]["grad_norm"] > 0 and rows[1]["frac_floor"] == 0

    part = settings | dict(out=str(tmp_path / "part"))
    stepped(Config(**part)).held.close()
    whole_run(Config(**part, resume=True))
    for file in (tmp_path / "whole" / "final").rglob("*.safetensors"):
        again = tmp_path / "part" / file.relative_to(tmp_path / "whole")
        ours, theirs = load_file(file), load_file(again)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    pipe = Flux2KleinPipeline.from_pretrained(klein_folder if lora else tmp_path / "whole/final")
    if lora:
        pipe.load_lora_weights(tmp_path / "whole" / "final")
    theirs = latents_of_diffusers(pipe, run.model, guidance_scale=4.0)
    ours = latents(run.model)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    untrained = latents(base.load(klein_folder, 32, 4.0))
    assert (ours - untrained).abs().max() > 1e-3
    assert np.isfinite(ours.numpy()).all() and math.isfinite(rows[2]["kl_to_base"])
