"""The second base model: against diffusers' own pipeline, guidance in two passes, a run."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from real_runs import log_of, whole_run
from test_flux import PROMPTS, drawn, drawn_by_diffusers, pixels
from tiny_models import MAX_TOKENS, SHIFT

from models import base
from models.sd3 import SD3
from training.config import Config
from unigenbench import generate
from unigenbench.images import image_name
from unigenbench.testpoints import Prompt

STEPS = 4


@pytest.fixture
def load(sd3_folders):
    return lambda guidance=1.0, t5=True: base.load(sd3_folders[t5], 32, guidance)


@pytest.mark.parametrize("t5", [True, False])
def test_ode_sample_is_what_diffusers_own_pipeline_draws(load, t5):
    ours = {}
    for guidance in (1.0, 4.0):
        model = load(guidance, t5)
        assert (model.pipe.text_encoder_3 is None) == (not t5)
        settings = dict(guidance_scale=guidance, max_sequence_length=MAX_TOKENS if t5 else 256)
        theirs = drawn_by_diffusers(model, steps=STEPS, **settings)
        ours[guidance] = drawn(model, steps=STEPS, shift=SHIFT)
        assert np.abs(ours[guidance] - theirs).max() <= 1
    assert np.abs(ours[1.0] - ours[4.0]).max() > 10  # or the comparison would not see guidance
    assert np.abs(ours[4.0] - drawn(model, (6, 5), STEPS, SHIFT)).max() > 20


def test_text_rows_carry_the_empty_prompt_along(load):
    model = load()
    rows, empty = model.encode(PROMPTS).rows(torch.tensor([0, 0, 1])), model.encode([""])
    assert all(len(field) == 3 for field in rows)
    torch.testing.assert_close(rows.negative_embeds[1], empty.embeds[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.negative_pooled[1], empty.pooled[0], atol=1e-5, rtol=0)
    assert not torch.allclose(rows.embeds[1], empty.embeds[0], atol=1e-2)


def test_guidance_one_costs_one_pass_and_two_passes_share_a_batch(load):
    sizes = []
    for guidance in (1.0, 4.0):
        model = load(guidance)

        def counting(hidden_states, network=model.transformer, **inputs):
            sizes.append(len(hidden_states))
            return network(hidden_states, **inputs)

        model.velocity(model.encode(PROMPTS), counting)(model.noise([0, 1]), torch.ones(2))
    assert sizes == [2, 4]


def test_the_gradient_flows_through_both_passes(load):
    """(1 - g) negative + g positive, of gradients too; and every weight has one, as DDP needs."""
    model = load(4.0)
    model.transformer.requires_grad_(True)
    noise, weight = model.noise([0, 1]), torch.randn(2, 16, 16)

    def gradient(prompts, guidance):
        model.transformer.zero_grad()
        model.guidance = guidance
        velocity = model.velocity(model.encode(prompts))(noise, torch.full((2,), 0.7))
        (weight * velocity).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.transformer.parameters()])

    positive, negative = gradient(PROMPTS, 1.0), gradient(["", ""], 1.0)
    guided, expected = gradient(PROMPTS, 4.0), 4 * positive - 3 * negative
    assert (guided - expected).norm() <= 1e-4 * expected.norm()
    assert (guided - 4 * positive).norm() > 0.1 * expected.norm()


def test_a_lora_goes_to_both_attentions_and_feed_forwards(load):
    model = load()
    model.add_lora(rank=4)
    named = model.transformer.named_parameters()
    adapted = {name.split(".lora_")[0] for name, p in named if p.requires_grad}
    parts = "attn.to_q attn.add_v_proj attn2.to_out.0 ff.net.2 ff_context.net.0.proj"
    assert {f"transformer_blocks.0.{part}" for part in parts.split()} <= adapted


def test_a_folder_of_sd3_trains_like_any_other(sd3_folders, tmp_path):
    settings = dict(steps=1, prompts_per_step=1, group_size=4, num_steps=3, heldout=2)
    settings |= dict(shift=SHIFT, guidance=4.0, weight_decay=0.0, model=sd3_folders[True])
    clip = f"clip={ROOT / 'assets' / 'tiny-clip'}"  # it tells random images apart
    run = whole_run(Config(**settings, reward=clip, out=str(tmp_path)))
    assert isinstance(run.model, SD3)
    row = log_of(tmp_path)[1]
    assert row["ratio_min"] == row["ratio_max"] == 1.0
    assert row["grad_norm"] > 0 and row["frac_floor"] == 0
    folders = sd3_folders[True], str(tmp_path / "final")
    before, after = (base.load(folder).transformer.state_dict() for folder in folders)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_bench_generates_what_diffusers_own_pipeline_draws(load, sd3_folders, tmp_path):
    prompt = Prompt(7, PROMPTS[0], [], "", "", "en")
    generate.generate([prompt], tmp_path, sd3_folders[True], steps=STEPS, guidance=4.0)
    settings = dict(guidance_scale=4.0, max_sequence_length=MAX_TOKENS)
    theirs = drawn_by_diffusers(load(4.0), (generate.FIRST_SEED, 0), STEPS, **settings)
    ours = pixels([Image.open(tmp_path / image_name(7, 0))])
    assert np.abs(ours - theirs[:1]).max() <= 1


def test_an_image_above_the_networks_positions_is_refused(load):
    model = load()
    model.size = 72
    with pytest.raises(ValueError, match="72x72 is above 64 pixels"):
        model.noise([0])
