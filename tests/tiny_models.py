"""Small models of random weights, made from the configurations of the one that ships."""

import json

import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

TINY = ROOT / "assets" / "tiny-flux"
MAX_TOKENS = 12  # of its tokenizers
SHIFT = 3.0  # of the scheduler, as SD 3.5 has it


def config(part: str) -> dict:
    return json.loads((TINY / part / "config.json").read_text())


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(TINY / "tokenizer")


def projected_clip(width: int) -> CLIPTextModelWithProjection:
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim"), width)
    return CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder") | sizes))


def sd3_pipeline(t5: bool) -> StableDiffusion3Pipeline:
    """The last weights are scaled so that images have contrast and show the guidance."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = config("vae") | dict(latent_channels=4, block_out_channels=(8, 8, 8))
    vae = AutoencoderKL.from_config(vae | dict(scaling_factor=1.5, shift_factor=0.06))
    with torch.no_grad():
        transformer.proj_out.weight *= 3
        vae.decoder.conv_out.weight *= 4
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae,
        *(projected_clip(16), tokenizer(), projected_clip(24), tokenizer()),
        T5EncoderModel(T5Config(**config("text_encoder_2"))) if t5 else None,
        tokenizer() if t5 else None,
    )
