"""Images: whichever process, restart or pipeline made them, and never those of another model."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bench
import sampler
from unigenbench.generate import FIRST_SEED, generate
from unigenbench.testpoints import Prompt, write_prompts

ROOT = Path(__file__).parent.parent
PROMPTS = [
    Prompt(i, text, [("Attribute - Color", text)], "Art", "Other", "en")
    for i, text in enumerate(("a small red circle", "a large blue square", "two circles"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tiny FLUX: what it draws is noise, but always the same noise."""
    from shapes import pretrain

    folder = tmp_path_factory.mktemp("model")
    pretrain.build(seed=0).save_pretrained(folder)
    return str(folder)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("*.png")}


def test_images_do_not_depend_on_the_number_of_processes_or_on_restarts(
    tmp_path, model, monkeypatch
):
    out = str(tmp_path / "two")
    generate(PROMPTS, tmp_path / "one", model, steps=3)
    one = digests(tmp_path / "one")
    assert set(one) == {f"{p}_{i}.png" for p in range(3) for i in range(4)}
    assert len(set(one.values())) == 12  # other prompt or other seed, other image
    generate(PROMPTS, tmp_path / "half", model, steps=3, rank=1, ranks=2)
    assert set(digests(tmp_path / "half")) == {f"1_{i}.png" for i in range(4)}
    write_prompts(PROMPTS, tmp_path / "p.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # as torchrun tells its processes who they are
        monkeypatch.setenv("RANK", rank)
        flags = ["--model", model, "--steps", "3", "--prompts", str(tmp_path / "p.csv")]
        monkeypatch.setattr("sys.argv", ["bench.py", "generate", *flags, "--out", out])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 0
    assert digests(tmp_path / "two") == one
    (tmp_path / "one" / "1_2.png").write_bytes(b"torn")
    (tmp_path / "one" / "2_0.png").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "one").glob("*.png")}
    generate(PROMPTS, tmp_path / "one", model, steps=3)
    assert digests(tmp_path / "one") == one
    made = {
        p.name
        for p in (tmp_path / "one").glob("*.png")
        if p.stat().st_mtime_ns != times.get(p.name)
    }
    assert made == {"1_2.png", "2_0.png"}


def test_images_of_other_settings_are_not_mixed(tmp_path, model):
    generate(PROMPTS[:1], tmp_path / "a", model, steps=2)
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["steps"] == 2 and settings["size"] == 32 and settings["guidance"] == 3.5
    assert settings["seeds"] == [3407, 3408, 3409, 3410]
    generate(PROMPTS[:1], tmp_path / "larger", model, steps=1, size=40)
    assert Image.open(tmp_path / "larger" / "0_3.png").size == (40, 40)
    with pytest.raises(ValueError, match="other settings .steps: 2 -> 3"):
        generate(PROMPTS[:1], tmp_path / "a", model, steps=3)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "0_0.png")
    with pytest.raises(ValueError, match="no settings.json"):
        generate(PROMPTS[:1], tmp_path / "b", model, steps=2)


def test_a_lora_on_a_base(tmp_path, model):
    """final/ of a LoRA run, as train.py saves it; its own base is needed, and said to be needed."""
    import torch

    from models import flux

    pipe = flux.load(model)
    flux.add_lora(pipe, rank=2)
    torch.manual_seed(0)
    for weight in flux.trainable(pipe):
        torch.nn.init.normal_(weight, std=0.3)
    flux.save(pipe, tmp_path / "final")
    generate(PROMPTS[:1], tmp_path / "base", model, steps=2)
    generate(PROMPTS[:1], tmp_path / "lora", model, lora=str(tmp_path / "final"), steps=2)
    base, lora = digests(tmp_path / "base"), digests(tmp_path / "lora")
    assert set(base) == set(lora) and not set(base.values()) & set(lora.values())
    velocity = flux.velocity_fn(pipe, flux.encode(pipe, [PROMPTS[0].text]).rows([0] * 4), 32, 32)
    noise = flux.initial_noise(pipe, 32, 32, list(range(FIRST_SEED, FIRST_SEED + 4)))
    with torch.no_grad():
        clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(2, 1.0))
    expected = np.stack([np.asarray(i, int) for i in flux.decode(pipe, clean, 32, 32)])
    shown = np.stack(
        [np.asarray(Image.open(tmp_path / "lora" / f"0_{i}.png"), int) for i in range(4)]
    )
    assert abs(shown - expected).max() <= 1
    with pytest.raises(ValueError, match="may be a LoRA: give it as --lora, and its base as --mod"):
        generate(PROMPTS[:1], tmp_path / "x", str(tmp_path / "final"), steps=2)


def test_a_lora_of_another_model_is_refused(tmp_path, model):
    """diffusers warns and draws with the base alone."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "lora").mkdir()
    save_file(
        {f"unet.mid_block.to_q.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"},
        tmp_path / "lora" / "pytorch_lora_weights.safetensors",
    )
    with pytest.raises(ValueError, match="nothing in .*lora' is for the FluxPipeline in"):
        generate(PROMPTS[:1], tmp_path / "x", model, lora=str(tmp_path / "lora"), steps=2)


def test_a_model_trained_further_is_another_model(tmp_path, model):
    """Same folder, same name: its old images must not pass for the new ones."""
    import torch

    from models import flux

    folder = tmp_path / "final"
    pipe = flux.load(model)
    flux.save(pipe, folder)
    generate(PROMPTS[:1], tmp_path / "images", str(folder), steps=2)
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.view(-1)[1:].mul_(1.001)
    flux.save(pipe, folder)
    with pytest.raises(ValueError, match="of other settings .weights: .* remove it or choose"):
        generate(PROMPTS[:1], tmp_path / "images", str(folder), steps=2)


def other_pipeline():
    """A Stable Diffusion of random weights: diffusers knows it, we don't."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from shapes.pretrain import MAX_TOKENS, word_tokenizer

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_any_text_to_image_pipeline_of_diffusers(tmp_path):
    import torch

    other_pipeline().save_pretrained(tmp_path / "sd")
    pipe = other_pipeline()
    for folder in ("a", "b"):
        generate(PROMPTS[:2], tmp_path / folder, str(tmp_path / "sd"), steps=2, guidance=4.0)
    images = digests(tmp_path / "a")
    assert images == digests(tmp_path / "b") and len(set(images.values())) == 8
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["pipeline"] == "StableDiffusionPipeline" and settings["shift"] is None
    theirs = pipe(
        PROMPTS[1].text,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(FIRST_SEED + 3),
    ).images[0]
    ours = Image.open(tmp_path / "a" / "1_3.png")
    assert abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_what_is_no_text_to_image_pipeline_is_named(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with pytest.raises(ValueError, match="no pipeline in 'runs/no/final': expected a folder with"):
        generate(PROMPTS, tmp_path / "x", "runs/no/final")
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="DDPMPipeline in .* takes no guidance_scale, .* prompt"):
        generate(PROMPTS, tmp_path / "x", str(tmp_path / "ddpm"))


def test_schedule_shift_is_the_pipelines_own(model):
    """Our sigmas equal those that diffusers' scheduler sets for FLUX.1-dev at 1024 x 1024."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from models import flux

    class Pipe:
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            shift=3.0,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        )

    shift = flux.schedule_shift(Pipe, 4096)
    Pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=1.15)
    assert sampler.sigma_schedule(30, shift).numpy() == pytest.approx(
        Pipe.scheduler.sigmas.numpy(), abs=1e-6
    )
    Pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert flux.schedule_shift(Pipe, 4096) == 3.0
