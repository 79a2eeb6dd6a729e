"""Small models of random weights, made from the configurations of the one that ships."""

import json

import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

TINY = ROOT / "assets" / "tiny-flux"
MAX_TOKENS = 12  # of its tokenizers
KLEIN_TOKENS = 20  # of klein's, with its chat template
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


def klein_pipeline(is_distilled: bool = False) -> Flux2KleinPipeline:
    """With what a wrong reading would miss: a chat template, a batch norm of other statistics than
    0 and 1, a dynamic shift, and as many layers of Qwen3 as three of them are taken from."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 4
        vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
        vae.bn.running_var.copy_(torch.linspace(0.5, 3, 16))
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=28, vocab_size=64)
    words = tokenizer()
    words.chat_template = "{% for m in messages %}three {{ m['content'] }} inside a{% endfor %}"
    words.model_max_length = KLEIN_TOKENS
    return Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae,
        Qwen3ForCausalLM(Qwen3Config(**heads, **sizes)),
        words,
        transformer,
        is_distilled,
    )
