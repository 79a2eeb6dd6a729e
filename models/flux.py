"""The base model: everything that is specific to a FLUX pipeline, behind a few functions.

load, encode, initial_noise, schedule_shift, velocity_fn, decode, add_lora, trainable, base_weights,
save. A second base model is a second file with the same functions (sd3.py); base.py picks one.

Latents are packed as FLUX does it: the VAE's (C/4, H, W) latents in 2x2 patches, (N, C) tokens. All
shapes and scales come from the loaded configuration; nothing here is a FLUX.1-dev constant.

    pipe = flux.load("assets/tiny-flux")                  # or "black-forest-labs/FLUX.1-dev"
    text = flux.encode(pipe, ["a red circle inside a blue square"])
    noise = flux.initial_noise(pipe, 32, 32, seeds=[0])
    clean = sampler.ode_sample(flux.velocity_fn(pipe, text, 32, 32), noise, sigmas)
    flux.decode(pipe, clean, 32, 32)[0].save("circle.png")
"""

import contextlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

# Before the import: it would warn that image processors of other pipelines miss torchvision.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import diffusers
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from models.base import check_finite, check_weights, told_in_one_sentence

PIPELINE = FluxPipeline


class Text(NamedTuple):
    """What the transformer sees of P prompts."""

    embeds: torch.Tensor  # (P, T, D) from T5
    pooled: torch.Tensor  # (P, D') from CLIP

    def rows(self, index) -> "Text":
        """The prompts of the given rows; repeat a row to give each image of a group its prompt."""
        return Text(self.embeds[index], self.pooled[index])


def load(model: str, device="cpu", dtype=torch.float32) -> FluxPipeline:
    """A FluxPipeline from a folder or hub name, frozen and in eval mode.

    Raises ValueError if `model` is neither a folder with a model_index.json nor a hub name.
    """
    folder = Path(model)
    looks_local = model.startswith((".", "/", "~", "assets", "runs")) or model.count("/") != 1
    if (folder.exists() or looks_local) and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"no FLUX pipeline in '{model}': expected a folder with model_index.json, "
            "or a hub name such as black-forest-labs/FLUX.1-dev"
        )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with told_in_one_sentence(model):
        pipe = FluxPipeline.from_pretrained(model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False).eval()
    check_weights(pipe, model)
    return pipe.to(device)


@torch.no_grad()
def encode(pipe: FluxPipeline, prompts: list[str]) -> Text:
    """Text embeddings of P prompts, up to 512 T5 tokens (fewer where the tokenizer says so)."""
    length = min(512, pipe.tokenizer_2.model_max_length)
    embeds, pooled, _ = pipe.encode_prompt(
        prompts, None, device=pipe.text_encoder.device, max_sequence_length=length
    )
    return Text(embeds, pooled)


def latent_shape(pipe: FluxPipeline, height: int, width: int) -> tuple[int, int, int]:
    """Unpacked latents (channels, rows, columns) of an image of height x width pixels.

    Raises ValueError if the size does not divide into packed latents.
    """
    patch = 2 * pipe.vae_scale_factor
    if height % patch or width % patch:
        raise ValueError(f"image size {height}x{width} is not a multiple of {patch} pixels")
    rows, columns = height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
    return pipe.transformer.config.in_channels // 4, rows, columns


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/2 * W/2, 4 C), in diffusers' order."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def initial_noise(pipe: FluxPipeline, height: int, width: int, seeds: list[int]) -> torch.Tensor:
    """Gaussian noise (B, N, C) float32, one seed an image: the same noise whatever the batch.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    shape = latent_shape(pipe, height, width)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return pack(torch.stack(noise)).to(pipe.vae.device)  # text encoders may be elsewhere


def schedule_shift(pipe: FluxPipeline, tokens: int) -> float:
    """The shift that the pipeline's own scheduler would use for this many latent tokens."""
    config = pipe.scheduler.config
    if not config.use_dynamic_shifting:
        return config.shift
    return math.exp(
        calculate_shift(
            tokens,
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
    )


def velocity_fn(
    pipe: FluxPipeline,
    text: Text,
    height: int,
    width: int,
    guidance: float = 3.5,
    transformer: torch.nn.Module | None = None,
):
    """The policy's network: (latents (B, N, C), sigma (B,)) -> velocity (B, N, C) float32.

    text: one row a sample, B rows. Guidance is an input of the network (FLUX.1-dev is distilled;
    there is no classifier-free pass) and is dropped where the configuration has no such input.
    transformer: what to call instead of pipe.transformer, e.g. the base or a DDP wrapper.
    """
    network = transformer or pipe.transformer
    _, rows, columns = latent_shape(pipe, height, width)
    dtype, device = text.embeds.dtype, text.embeds.device
    image_ids = FluxPipeline._prepare_latent_image_ids(1, rows // 2, columns // 2, device, dtype)
    text_ids = torch.zeros(text.embeds.shape[1], 3, device=device, dtype=dtype)
    scale = None
    if pipe.transformer.config.guidance_embeds:
        scale = torch.full((len(text.embeds),), guidance, device=device, dtype=torch.float32)

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return network(
            hidden_states=latents.to(dtype),
            timestep=sigma.to(device),
            guidance=scale,
            encoder_hidden_states=text.embeds,
            pooled_projections=text.pooled,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0].float()

    return velocity


@torch.no_grad()
def decode(
    pipe: FluxPipeline, latents: torch.Tensor, height: int, width: int, batch_size: int = 64
) -> list[Image.Image]:
    """Packed clean latents (B, N, C) -> B RGB images, batch_size at once through the VAE.

    Raises FloatingPointError for pictures that are not finite, which would be black.
    """
    config = pipe.vae.config
    images = []
    for chunk in latents.split(batch_size):
        unpacked = FluxPipeline._unpack_latents(chunk, height, width, pipe.vae_scale_factor)
        unpacked = unpacked / config.scaling_factor + config.shift_factor
        pixels = pipe.vae.decode(unpacked.to(pipe.vae.dtype), return_dict=False)[0]
        check_finite([("the decoded pictures", pixels)])
        images += pipe.image_processor.postprocess(pixels.float(), output_type="pil")
    return images


@contextlib.contextmanager
def base_weights(pipe: FluxPipeline, frozen: torch.nn.Module | None):
    """Yields the transformer of the base model, the KL reference: a copy, or the LoRA switched off.

    Raises ValueError if there is neither a copy nor an adapter: the "base" would be the policy.
    """
    if frozen is not None:
        yield frozen
        return
    if not getattr(pipe.transformer, "peft_config", None):
        raise ValueError(
            "no frozen copy and no adapter to switch off: there is no base to compare with"
        )
    pipe.transformer.disable_adapters()
    try:
        yield pipe.transformer
    finally:
        pipe.transformer.enable_adapters()


def add_lora(pipe: FluxPipeline, rank: int, alpha: int = 0) -> None:
    """Adds a trainable LoRA to attention and feed-forward of the double blocks, through peft.

    alpha: its changes count alpha / rank; 0: as the rank. Released FLUX scripts: rank 64, alpha
    128, learning rate 1e-5; 16 and 16 are only the parser's defaults. It is kept in float32.
    """
    targets = [
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    ]
    names = [
        name
        for name, _ in pipe.transformer.named_modules()
        if name.startswith("transformer_blocks.") and name.endswith(tuple(targets))
    ]
    add_adapter(pipe, names, rank, alpha)


def add_adapter(pipe, names: list[str], rank: int, alpha: int) -> None:
    """A float32 LoRA on the named layers. Raises ValueError for a rank above what they can use."""
    from peft import LoraConfig

    layers = [pipe.transformer.get_submodule(name) for name in names]
    width = min(min(layer.in_features, layer.out_features) for layer in layers)
    if rank > width:
        raise ValueError(
            f"--lora_rank {rank} is above the width of the layers, {width}: a LoRA of that rank "
            "already holds every change of them"
        )
    pipe.transformer.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=alpha or rank, target_modules=names, init_lora_weights="gaussian"
        )
    )
    for parameter in trainable(pipe):
        parameter.data = parameter.data.float()


def trainable(pipe: FluxPipeline) -> list[torch.nn.Parameter]:
    return [p for p in pipe.transformer.parameters() if p.requires_grad]


def save(
    pipe: FluxPipeline, folder: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """What plain diffusers loads: a full pipeline folder, or a LoRA file for `load_lora_weights`.

    weights: the transformer's state dict, gathered, where the module itself holds but a shard;
    it is written in the precision of the rest of the pipeline.
    """
    if getattr(pipe.transformer, "peft_config", None):
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(pipe.transformer)
        # with its alpha, as diffusers' training scripts keep it: else it comes back as the rank
        pipe.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict(),
        )
        return
    if weights:
        with torch.device("meta"):
            # by name: fully_shard renames the class of the module itself
            kind = getattr(diffusers, pipe.config["transformer"][1])
            whole = kind.from_config(pipe.transformer.config)
        whole.load_state_dict({k: v.to(pipe.vae.dtype) for k, v in weights.items()}, assign=True)
        pipe = type(pipe)(**(pipe.components | {"transformer": whole}))
    pipe.save_pretrained(folder)
