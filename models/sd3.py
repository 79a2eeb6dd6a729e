"""Stable Diffusion 3 and 3.5: what differs from FLUX.

guidance    classifier-free, not an input of the network: each velocity mixes the prompt's and
            the empty prompt's, both in one batch of 2B. Rollout and replay call the same
            function: the policy is the guided one, with gradient through both passes.
text        two CLIP encoders and T5, which a pipeline may lack (it is 4.7 B of the parameters)
latents     the network takes (B, C, H, W); a token here is one of its patches, so that N is the
            number of tokens that it attends over, as in FLUX
timestep    1000 sigma (FLUX's network multiplies by itself)

model = models.base.load("stabilityai/stable-diffusion-3.5-medium", guidance=4.5)
Flow-GRPO's released recipe: LoRA of rank 32, alpha 64, attention alone and without the second
attention (attn2) of SD 3.5 medium's first blocks.
"""

from typing import NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline

from models.base import Model, rows_of

T5_TOKENS = 256  # what StableDiffusion3Pipeline reads of a prompt by default


class Text(NamedTuple):
    """What the transformer sees of P prompts. Every field has one row per prompt."""

    embeds: torch.Tensor  # (P, T, D) from CLIP-L and CLIP-G side by side, then T5
    pooled: torch.Tensor  # (P, D') from CLIP-L and CLIP-G
    negative_embeds: torch.Tensor  # (P, T, D) of the empty prompt
    negative_pooled: torch.Tensor  # (P, D')
    rows = rows_of


class SD3(Model):
    """A StableDiffusion3Pipeline, with T5 or saved without it."""

    pipeline, Text = StableDiffusion3Pipeline, Text

    @property
    def patch(self) -> int:
        return self.transformer.config.patch_size

    @property
    def copies(self) -> int:
        return 2 if self.guidance > 1 else 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Also raises ValueError for more patches than the network has positions for."""
        shape = super().latent_shape
        config = self.transformer.config
        largest = config.pos_embed_max_size * self.patch * self.pipe.vae_scale_factor
        if self.size > largest:
            raise ValueError(
                f"image size {self.size}x{self.size} is above {largest} pixels, the last position "
                "that this network knows"
            )
        return shape

    def encode_prompts(self, prompts: list[str]) -> Text:
        """Each prompt with the empty one's beside it. T5 reads up to 256 tokens (fewer where its
        tokenizer says so); without T5 they are zeros, as the pipeline itself has it."""
        t5 = self.pipe.tokenizer_3
        length = min(T5_TOKENS, t5.model_max_length) if t5 else T5_TOKENS
        no_guidance = dict(do_classifier_free_guidance=False)  # the empty prompt is the last one
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            [*prompts, ""], None, None, max_sequence_length=length, **no_guidance
        )
        prompt, empty = slice(len(prompts)), [-1] * len(prompts)
        return Text(embeds[prompt], pooled[prompt], embeds[empty], pooled[empty])

    def predict(self, network, text: Text, latents, sigma) -> torch.Tensor:
        """guidance: of negative + guidance * (positive - negative); 1 or less is none, as in
        diffusers, and costs one pass of B samples instead of one of 2B."""
        embeds, pooled, copies = text.embeds, text.pooled, self.copies
        if copies == 2:
            embeds = torch.cat([text.negative_embeds, embeds])
            pooled = torch.cat([text.negative_pooled, pooled])
        unpacked = self.unpack(latents.to(embeds.dtype))
        output = network(
            hidden_states=unpacked.repeat(copies, 1, 1, 1),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=1000 * sigma.to(embeds.device).repeat(copies),
            return_dict=False,
        )[0]
        output = self.pack(output.float())
        return output if copies == 1 else self.guide(output)
