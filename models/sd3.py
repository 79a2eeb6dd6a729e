"""A second base model: everything that is specific to a Stable Diffusion 3 or 3.5 pipeline.

The same functions as flux.py, with the same arguments and results, so that sampler, grpo, rewards,
train, heldout and bench run either. What differs from FLUX, and is hidden here:

    guidance    classifier-free, not an input of the network: each velocity mixes the prompt's and
                the empty prompt's, both in one batch of 2B. Rollout and replay call the same
                function: the policy is the guided one, with gradient through both passes.
    text        two CLIP encoders and T5, which a pipeline may lack (it is 4.7 B of the parameters)
    latents     the network takes (B, C, H, W); a token here is one of its patches, so that N is the
                number of tokens that it attends over, as in FLUX
    timestep    1000 sigma (FLUX's network multiplies by itself)

    pipe = sd3.load("stabilityai/stable-diffusion-3.5-medium")
    text = sd3.encode(pipe, ["a red circle inside a blue square"])
    noise = sd3.initial_noise(pipe, 1024, 1024, seeds=[0])
    velocity = sd3.velocity_fn(pipe, text, 1024, 1024, guidance=4.5)
    sd3.decode(pipe, sampler.ode_sample(velocity, noise, sigmas), 1024, 1024)[0].save("circle.png")
"""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers.utils import logging as transformers_logging

from models.base import check_finite, check_weights, told_in_one_sentence

# These know a pipeline only by its transformer; flux also quietens the libraries' import.
from models.flux import add_adapter, base_weights, save, schedule_shift, trainable  # noqa: F401

PIPELINE = StableDiffusion3Pipeline
T5_TOKENS = 256  # what StableDiffusion3Pipeline reads of a prompt unless told otherwise


class Text(NamedTuple):
    """What the transformer sees of P prompts. Every field has one row a prompt."""

    embeds: torch.Tensor  # (P, T, D) from CLIP-L and CLIP-G side by side, then T5
    pooled: torch.Tensor  # (P, D') from CLIP-L and CLIP-G
    negative_embeds: torch.Tensor  # (P, T, D) of the empty prompt
    negative_pooled: torch.Tensor  # (P, D')

    def rows(self, index) -> "Text":
        """The prompts of the given rows; repeat a row to give each image of a group its prompt."""
        return Text(*(field[index] for field in self))


def load(model: str, device="cpu", dtype=torch.float32) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline from a folder or hub name, frozen and in eval mode.

    A folder saved with text_encoder_3=None, tokenizer_3=None loads without T5.
    Raises ValueError if `model` is neither a hub name nor a folder, or holds another pipeline.
    """
    folder, found = Path(model), "none"
    looks_local = model.startswith((".", "/", "~", "assets", "runs")) or model.count("/") != 1
    if (folder / "model_index.json").is_file() or not (folder.exists() or looks_local):
        with told_in_one_sentence(model):
            index = StableDiffusion3Pipeline.load_config(model)
        found = index.get("_class_name")
    if found != StableDiffusion3Pipeline.__name__:
        raise ValueError(
            f"no Stable Diffusion 3 pipeline in '{model}' (found: {found}): expected "
            "a folder with its model_index.json, or a hub name such as "
            "stabilityai/stable-diffusion-3.5-medium"
        )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # diffusers wants to be told that a part is missing, even where the index says so.
    missing = {name: None for name, kind in index.items() if kind == [None, None]}
    with told_in_one_sentence(model):
        pipe = StableDiffusion3Pipeline.from_pretrained(model, dtype=dtype, **missing)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    check_weights(pipe, model)
    return pipe.to(device)


@torch.no_grad()
def encode(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Text:
    """Text embeddings of P prompts, each with the empty prompt's beside it.

    T5 reads up to 256 tokens (fewer where its tokenizer says so); without T5 they are zeros, as the
    pipeline itself has it.
    """
    length = min(T5_TOKENS, pipe.tokenizer_3.model_max_length) if pipe.tokenizer_3 else T5_TOKENS
    embeds, _, pooled, _ = pipe.encode_prompt(
        [*prompts, ""], None, None, max_sequence_length=length, do_classifier_free_guidance=False
    )
    count = len(prompts)
    return Text(
        embeds[:-1], pooled[:-1], embeds[-1:].repeat(count, 1, 1), pooled[-1:].repeat(count, 1)
    )


def latent_shape(pipe: StableDiffusion3Pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Latents (channels, rows, columns) of an image of height x width pixels, before patches.

    Raises ValueError if the size does not divide into patches, or has more of them than the network
    has positions for.
    """
    config = pipe.transformer.config
    patch = config.patch_size * pipe.vae_scale_factor
    if height % patch or width % patch:
        raise ValueError(f"image size {height}x{width} is not a multiple of {patch} pixels")
    largest = config.pos_embed_max_size * patch
    if max(height, width) > largest:
        raise ValueError(
            f"image size {height}x{width} is above {largest} pixels, the last "
            "position that this network knows"
        )
    return config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def pack(latents: torch.Tensor, patch: int = 2) -> torch.Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/patch * W/patch, C * patch²).

    Contiguous: else sums would round differently on stored tokens than on fresh ones, and replay's
    ratio would not be exactly 1.
    """
    return pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: torch.Tensor, rows: int, columns: int, patch: int = 2) -> torch.Tensor:
    """Tokens (B, N, C * patch²) -> latents (B, C, rows, columns): undoes pack."""
    grid = tokens.transpose(1, 2).unflatten(2, (rows // patch, columns // patch))
    return pixel_shuffle(grid, patch)


def initial_noise(
    pipe: StableDiffusion3Pipeline, height: int, width: int, seeds: list[int]
) -> torch.Tensor:
    """Gaussian noise (B, N, C) float32, one seed an image: the same noise whatever the batch.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    shape = latent_shape(pipe, height, width)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return pack(torch.stack(noise), pipe.transformer.config.patch_size).to(pipe.device)


def velocity_fn(
    pipe: StableDiffusion3Pipeline,
    text: Text,
    height: int,
    width: int,
    guidance: float = 3.5,
    transformer: torch.nn.Module | None = None,
):
    """The guided policy as a function: latents (B, N, C), sigma (B,) -> velocity (B, N, C) float32.

    text: one row a sample, B rows. guidance: of negative + guidance * (positive - negative);
    1 or less is no guidance, as in diffusers, and costs one pass of B samples instead of one of 2B.
    transformer: what to call instead of pipe.transformer, e.g. the base or a DDP wrapper.
    """
    network = transformer or pipe.transformer
    _, rows, columns = latent_shape(pipe, height, width)
    patch = pipe.transformer.config.patch_size
    embeds, pooled, copies = text.embeds, text.pooled, 1
    if guidance > 1:
        embeds = torch.cat([text.negative_embeds, embeds])
        pooled = torch.cat([text.negative_pooled, pooled])
        copies = 2

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        pictures = unpack(latents.to(embeds.dtype), rows, columns, patch)
        output = network(
            hidden_states=pictures.repeat(copies, 1, 1, 1),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=1000 * sigma.to(embeds.device).repeat(copies),
            return_dict=False,
        )[0]
        output = pack(output.float(), patch)
        if copies == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + guidance * (positive - negative)

    return velocity


@torch.no_grad()
def decode(
    pipe: StableDiffusion3Pipeline,
    latents: torch.Tensor,
    height: int,
    width: int,
    batch_size: int = 64,
) -> list[Image.Image]:
    """Packed clean latents (B, N, C) -> B RGB images, batch_size at once through the VAE.

    Raises FloatingPointError for pictures that are not finite, which would be black.
    """
    _, rows, columns = latent_shape(pipe, height, width)
    config = pipe.vae.config
    images = []
    for chunk in latents.split(batch_size):
        pictures = unpack(chunk, rows, columns, pipe.transformer.config.patch_size)
        pictures = pictures / config.scaling_factor + config.shift_factor
        pixels = pipe.vae.decode(pictures.to(pipe.vae.dtype), return_dict=False)[0]
        check_finite([("the decoded pictures", pixels)])
        images += pipe.image_processor.postprocess(pixels.float(), output_type="pil")
    return images


def add_lora(pipe: StableDiffusion3Pipeline, rank: int, alpha: int = 0) -> None:
    """Adds a trainable LoRA to attention and feed-forward of all blocks, through peft.

    Flow-GRPO's released SD 3.5 recipe: rank 32, alpha 64, attention alone and without the second
    attention (attn2) of SD 3.5 medium's first blocks. The adapter is kept in float32.
    """
    targets = (
        ".to_q",
        ".to_k",
        ".to_v",
        ".to_out.0",
        ".add_q_proj",
        ".add_k_proj",
        ".add_v_proj",
        ".to_add_out",
        ".net.0.proj",
        ".net.2",
    )
    names = [
        name
        for name, _ in pipe.transformer.named_modules()
        if name.startswith("transformer_blocks.") and name.endswith(targets)
    ]
    add_adapter(pipe, names, rank, alpha)
