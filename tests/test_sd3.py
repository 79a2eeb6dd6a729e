"""The second base model on tiny real classes: against diffusers' own pipeline, CFG, LoRA, a run."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import bench
import sampler
import train
from models import sd3
from shapes.pretrain import MAX_TOKENS, word_tokenizer
from training.config import Config
from training.distributed import Processes
from training.session import start_run
from unigenbench.testpoints import Prompt

PROMPTS = ["a red circle inside a blue square", "three green triangles"]
SHIFT = 3.0  # of the scheduler, as SD 3.5 has it
STEPS = 4


def clip(width: int, words: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    )


def build(t5: bool) -> StableDiffusion3Pipeline:
    """Random weights, the last ones scaled so that pictures have contrast and show the guidance."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        transformer.proj_out.weight *= 3
        vae.decoder.conv_out.weight *= 4
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=48,
            d_kv=16,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae,
        clip(16, len(tokenizer)),
        tokenizer,
        clip(24, len(tokenizer)),
        word_tokenizer(),
        encoder if t5 else None,
        word_tokenizer() if t5 else None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved pipelines, with T5 (True) and without (False)."""
    both = {t5: str(tmp_path_factory.mktemp("sd3") / f"t5-{t5}") for t5 in (True, False)}
    for t5, folder in both.items():
        build(t5).save_pretrained(folder)
    return both


@pytest.fixture(scope="module")
def pipe(folders):
    """For tests that change nothing in it."""
    return sd3.load(folders[True])


@pytest.fixture
def own_pipe(folders):
    """For tests that do."""
    return sd3.load(folders[True])


def our_images(pipe, guidance, seeds=(5, 6)):
    noise = sd3.initial_noise(pipe, 32, 32, list(seeds))
    velocity = sd3.velocity_fn(pipe, sd3.encode(pipe, PROMPTS), 32, 32, guidance)
    clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(STEPS, SHIFT))
    return sd3.decode(pipe, clean, 32, 32)


def pixels(images):
    return np.stack([np.asarray(image, np.int16) for image in images])


def noisy(pipe, scale=0.3):
    """Moves what is trainable, so that an adapter no longer gives the base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sd3.trainable(pipe):
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without T5"])
def test_ode_sample_is_what_diffusers_own_pipeline_draws(folders, t5):
    pipe = sd3.load(folders[t5])
    assert (pipe.text_encoder_3 is None) == (not t5)
    sigmas = sampler.sigma_schedule(STEPS)[:-1].tolist()  # the scheduler bends them itself
    ours = {}
    for guidance in (1.0, 4.0):
        theirs = [
            pipe(
                prompt,
                height=32,
                width=32,
                num_inference_steps=STEPS,
                sigmas=sigmas,
                guidance_scale=guidance,
                max_sequence_length=MAX_TOKENS if t5 else 256,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            for prompt, seed in zip(PROMPTS, (5, 6))
        ]
        ours[guidance] = pixels(our_images(pipe, guidance))
        assert np.abs(ours[guidance] - pixels(theirs)).max() <= 1
    assert np.abs(ours[1.0] - ours[4.0]).max() > 10  # or the comparison would not see guidance
    assert np.abs(ours[4.0] - pixels(our_images(pipe, 4.0, (6, 5)))).max() > 20


def test_packing_is_undone_and_counts_the_tokens_of_the_network(pipe):
    latents = torch.randn(3, 4, 8, 6)
    assert torch.equal(sd3.unpack(sd3.pack(latents), 8, 6), latents)
    both = sd3.initial_noise(pipe, 32, 16, [1, 2])
    assert both.shape == (2, 8, 16) and both.dtype == torch.float32 and both.is_contiguous()
    assert torch.equal(both[1:], sd3.initial_noise(pipe, 32, 16, [2]))


def test_text_rows_carry_the_empty_prompt_along(pipe):
    text = sd3.encode(pipe, PROMPTS)
    rows = text.rows(torch.tensor([0, 0, 1]))
    assert all(len(field) == 3 for field in rows)
    assert torch.equal(rows.embeds[1], text.embeds[0])
    assert torch.equal(rows.pooled[2], text.pooled[1])
    empty = sd3.encode(pipe, [""])
    assert torch.allclose(rows.negative_embeds[1], empty.embeds[0], atol=1e-5)
    assert torch.allclose(rows.negative_pooled[1], empty.pooled[0], atol=1e-5)
    assert not torch.allclose(rows.embeds[1], empty.embeds[0], atol=1e-2)


def test_guidance_one_costs_one_pass_and_two_passes_share_a_batch(pipe):
    sizes = []

    def counting(hidden_states, **inputs):
        sizes.append(len(hidden_states))
        return pipe.transformer(hidden_states, **inputs)

    text, noise = sd3.encode(pipe, PROMPTS), sd3.initial_noise(pipe, 32, 32, [0, 1])
    for guidance in (1.0, 4.0):
        sd3.velocity_fn(pipe, text, 32, 32, guidance, counting)(noise, torch.ones(2))
    assert sizes == [2, 4]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_replay_at_unchanged_weights_gives_ratio_one(own_pipe, guidance):
    pipe = own_pipe
    pipe.transformer.requires_grad_(True)
    velocity = sd3.velocity_fn(pipe, sd3.encode(pipe, PROMPTS), 32, 32, guidance)
    noise = sd3.initial_noise(pipe, 32, 32, [0, 1])
    trajectory = sampler.rollout(
        velocity,
        noise,
        sampler.sigma_schedule(STEPS, SHIFT),
        0.7,
        generator=torch.Generator().manual_seed(0),
    )
    for k in trajectory.sde_steps:
        step = sampler.replay(velocity, trajectory, k)
        assert step.log_prob.requires_grad and torch.equal(step.log_prob, trajectory.log_probs[k])
    # and a policy with another guidance is another policy
    other = sd3.velocity_fn(pipe, sd3.encode(pipe, PROMPTS), 32, 32, guidance + 1)
    assert not torch.equal(sampler.replay(other, trajectory, 1).log_prob, trajectory.log_probs[1])


def test_the_gradient_flows_through_both_passes(own_pipe):
    """(1 - g) negative + g positive, of gradients too; and every weight has one, as DDP needs."""
    pipe = own_pipe
    pipe.transformer.requires_grad_(True)
    text, empty = sd3.encode(pipe, PROMPTS), sd3.encode(pipe, ["", ""])
    noise, weight = sd3.initial_noise(pipe, 32, 32, [0, 1]), torch.randn(2, 16, 16)

    def gradient(text, guidance):
        pipe.transformer.zero_grad()
        velocity = sd3.velocity_fn(pipe, text, 32, 32, guidance)(noise, torch.full((2,), 0.7))
        (weight * velocity).sum().backward()
        return torch.cat([p.grad.flatten() for p in pipe.transformer.parameters()])

    positive, negative, guided = gradient(text, 1.0), gradient(empty, 1.0), gradient(text, 4.0)
    expected = 4 * positive - 3 * negative
    assert (guided - expected).norm() <= 1e-4 * expected.norm()
    assert (guided - 4 * positive).norm() > 0.1 * expected.norm()


def test_lora_starts_as_the_base_switches_off_and_loads_elsewhere(own_pipe, folders, tmp_path):
    pipe = own_pipe
    text, noise = sd3.encode(pipe, PROMPTS), sd3.initial_noise(pipe, 32, 32, [0, 1])

    def velocity(pipe):
        with torch.no_grad():
            return sd3.velocity_fn(pipe, text, 32, 32, 4.0)(noise, torch.full((2,), 0.7))

    before = velocity(pipe)
    with pytest.raises(ValueError, match="no base to compare with"), sd3.base_weights(pipe, None):
        pass
    sd3.add_lora(pipe, rank=4)
    assert torch.equal(velocity(pipe), before)  # B starts at zero
    adapted = {
        name.split(".lora_")[0]
        for name, p in pipe.transformer.named_parameters()
        if p.requires_grad
    }
    assert {
        f"transformer_blocks.0.{part}"
        for part in (
            "attn.to_q",
            "attn.add_v_proj",
            "attn2.to_out.0",
            "ff.net.2",
            "ff_context.net.0.proj",
        )
    } <= adapted
    noisy(pipe)
    after = velocity(pipe)
    assert (after - before).abs().max() > 1e-2
    with sd3.base_weights(pipe, None):
        assert torch.equal(velocity(pipe), before)
    assert torch.equal(velocity(pipe), after)  # and back on

    sd3.save(pipe, tmp_path / "lora")
    plain = StableDiffusion3Pipeline.from_pretrained(folders[True])
    plain.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(velocity(plain), after, atol=1e-4)


def test_bfloat16_computes_in_it_and_answers_in_float32(folders, pipe):
    half = sd3.load(folders[True], dtype=torch.bfloat16)
    noise = sd3.initial_noise(pipe, 32, 32, [0, 1])
    outputs = [
        sd3.velocity_fn(p, sd3.encode(p, PROMPTS), 32, 32, 4.0)(noise, torch.full((2,), 0.7))
        for p in (pipe, half)
    ]
    assert outputs[1].dtype == torch.float32
    assert 0 < (outputs[0] - outputs[1]).norm() < 0.1 * outputs[0].norm()


def test_a_folder_of_sd3_trains_like_any_other(folders, tmp_path):
    """The pipeline's own class chooses sd3.py; CLIP tells random pictures apart."""
    settings = dict(
        model=folders[True],
        out=str(tmp_path / "run"),
        steps=1,
        prompts_per_step=1,
        group_size=4,
        num_steps=3,
        shift=SHIFT,
        guidance=4.0,
        heldout=2,
        weight_decay=0.0,
        reward=f"clip={ROOT / 'assets' / 'tiny-clip'}",
    )
    cfg = Config(**settings)
    procs = Processes(0, 1, torch.device("cpu"))
    run = start_run(cfg, procs)
    train.train(cfg, procs, run)
    run.finish()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["ratio_min"] == row["ratio_max"] == 1.0
    assert row["grad_norm"] > 0 and row["frac_floor"] == 0
    base, final = (
        sd3.load(folder).transformer.state_dict()
        for folder in (folders[True], str(tmp_path / "run" / "final"))
    )
    assert any(not torch.equal(base[name], final[name]) for name in base)


def test_bench_generates_what_diffusers_own_pipeline_draws(folders, pipe, tmp_path):
    prompt = Prompt(7, PROMPTS[0], [], "", "", "en")
    bench.generate([prompt], tmp_path, folders[True], steps=STEPS, guidance=4.0)
    theirs = [
        pipe(
            PROMPTS[0],
            height=32,
            width=32,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            sigmas=sampler.sigma_schedule(STEPS)[:-1].tolist(),
            max_sequence_length=MAX_TOKENS,
            generator=torch.Generator().manual_seed(bench.FIRST_SEED + i),
        ).images[0]
        for i in range(2)
    ]
    ours = [Image.open(tmp_path / bench.image_name(7, i)) for i in range(2)]
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


@pytest.mark.parametrize(
    "model, found",
    [
        ("no/such/folder", "none"),
        ("./missing", "none"),
        ("runs/none", "none"),
        (str(ROOT / "assets" / "tiny-flux"), "FluxPipeline"),
    ],
)
def test_what_is_no_sd3_pipeline_is_named(model, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"no Stable Diffusion 3 pipeline in .*found: {found}"):
        sd3.load(model)


@pytest.mark.parametrize(
    "height, sentence", [(36, "36x32 is not a multiple of 8"), (72, "72x32 is above 64 pixels")]
)
def test_image_sizes_that_do_not_fit(pipe, height, sentence):
    with pytest.raises(ValueError, match=sentence):
        sd3.initial_noise(pipe, height, 32, [0])
