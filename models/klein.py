"""FLUX.2-klein: what differs from FLUX.

guidance    classifier-free, as in sd3.py: rollout, replay and evaluation mix the prompt's and the
            empty prompt's velocity, both in one batch of 2B. A step-distilled model has none.
text        hidden states of three layers of Qwen3, side by side, after its chat template
latents     tokens of 2x2 latents as in FLUX, but normalized: the VAE keeps the mean and variance
            of each of their channels in a batch norm, in place of a scaling and a shift factor
positions   four columns: image, row, column, word
shift       computed from the number of tokens and of steps: 6.6 at 512 px in 25 steps

model = models.base.load("black-forest-labs/FLUX.2-klein-base-4B", size=512, guidance=4.0)
The released Pref-GRPO script for klein: LoRA of rank 64, alpha 128, learning rate 5e-5, 25 steps.
"""

import math
from typing import NamedTuple

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch.nn.functional import pixel_shuffle

from models.base import Model, rows_of

TOKENS = 512  # what Flux2KleinPipeline reads of a prompt


class Text(NamedTuple):
    """What the transformer sees of P prompts. Every field has one row per prompt."""

    embeds: torch.Tensor  # (P, T, D)
    negative_embeds: torch.Tensor  # (P, T, D) of the empty prompt
    rows = rows_of


class Klein(Model):
    """A Flux2KleinPipeline. A LoRA is added to its double and its single blocks."""

    pipeline, Text = Flux2KleinPipeline, Text
    lora_blocks = ("transformer_blocks.", "single_transformer_blocks.")
    lora_layers = (
        *(".to_q", ".to_k", ".to_v", ".to_out.0"),
        *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
        *(".linear_in", ".linear_out"),
        *(".to_qkv_mlp_proj", ".attn.to_out"),  # attention and feed-forward of a single block
    )

    @property
    def copies(self) -> int:
        return 2 if self.guidance > 1 and not self.distilled else 1

    def schedule_shift(self, num_steps: int) -> float:
        if not self.pipe.scheduler.config.use_dynamic_shifting:
            return super().schedule_shift(num_steps)
        return math.exp(compute_empirical_mu(self.tokens, num_steps))

    def encode_prompts(self, prompts: list[str]) -> Text:
        """Each prompt with the empty one's beside it. Qwen3 reads up to 512 tokens (fewer where its
        tokenizer says so)."""
        length = min(TOKENS, self.pipe.tokenizer.model_max_length)
        device = self.pipe.text_encoder.device
        embeds, _ = self.pipe.encode_prompt([*prompts, ""], device, max_sequence_length=length)
        return Text(embeds[:-1], embeds[-1:].repeat(len(prompts), 1, 1))

    def noise_of(self, generator: torch.Generator) -> torch.Tensor:
        """The pipeline draws it in patches."""
        channels, rows, columns = self.latent_shape
        shape = self.patch**2 * channels, rows // self.patch, columns // self.patch
        return pixel_shuffle(torch.randn(shape, generator=generator), self.patch)

    def predict(self, network, text: Text, latents, sigma) -> torch.Tensor:
        _, rows, columns = self.latent_shape
        embeds = text.embeds
        if self.copies == 2:
            embeds = torch.cat([text.negative_embeds, embeds])
            latents, sigma = latents.repeat(2, 1, 1), sigma.repeat(2)
        grid = torch.empty(1, 1, rows // 2, columns // 2)
        velocity = network(
            hidden_states=latents.to(embeds.dtype),
            timestep=sigma.to(embeds.device),
            encoder_hidden_states=embeds,
            txt_ids=self.pipe._prepare_text_ids(embeds[:1]).to(embeds.device),
            img_ids=self.pipe._prepare_latent_ids(grid).to(embeds.device),
            return_dict=False,
        )[0].float()
        return self.guide(velocity) if self.copies == 2 else velocity

    def for_vae(self, tokens: torch.Tensor) -> torch.Tensor:
        norm, eps = self.pipe.vae.bn, self.pipe.vae.config.batch_norm_eps
        std = torch.sqrt(norm.running_var + eps)
        return self.unpack(tokens * std.to(tokens) + norm.running_mean.to(tokens)).contiguous()
