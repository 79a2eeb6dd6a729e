"""FLUX: what differs from other base models. Nothing here is a constant of FLUX.1-dev.

model = models.base.load("black-forest-labs/FLUX.1-dev")
Released scripts: LoRA of rank 64, alpha 128, learning rate 1e-5; 16 and 16 are only the
defaults of their parser.
"""

from typing import NamedTuple

import torch
from diffusers import FluxPipeline

from models.base import Model, rows_of

T5_TOKENS = 512  # what is read of a prompt, as FluxPipeline does


class Text(NamedTuple):
    """What the transformer sees of P prompts."""

    embeds: torch.Tensor  # (P, T, D) from T5
    pooled: torch.Tensor  # (P, D') from CLIP
    rows = rows_of


class Flux(Model):
    """A FluxPipeline. A LoRA is added to its double blocks alone, as by the released scripts."""

    pipeline, Text = FluxPipeline, Text

    def encode_prompts(self, prompts: list[str]) -> Text:
        """T5 reads up to 512 tokens (fewer where its tokenizer says so)."""
        length = min(T5_TOKENS, self.pipe.tokenizer_2.model_max_length)
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompts, None, device=self.pipe.text_encoder.device, max_sequence_length=length
        )
        return Text(embeds, pooled)

    def predict(self, network, text: Text, latents, sigma) -> torch.Tensor:
        """Guidance is an input of the network (FLUX.1-dev is distilled; there is no classifier-free
        pass) and is dropped where the configuration has no such input."""
        _, rows, columns = self.latent_shape
        dtype, device = text.embeds.dtype, text.embeds.device
        scale = None
        if self.transformer.config.guidance_embeds:
            scale = torch.full((len(latents),), self.guidance, device=device)
        positions = FluxPipeline._prepare_latent_image_ids
        return network(
            hidden_states=latents.to(dtype),
            timestep=sigma.to(device),
            guidance=scale,
            encoder_hidden_states=text.embeds,
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.embeds.shape[1], 3, device=device, dtype=dtype),
            img_ids=positions(1, rows // 2, columns // 2, device, dtype),
            return_dict=False,
        )[0].float()
