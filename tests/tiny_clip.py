"""Scorers of random weights and of the real classes, saved as the published ones are."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModelWithProjection,
)

from shapes import pretrain


def save_clip(folder) -> str:
    """A tiny CLIPModel and its processor, as from_pretrained finds them."""
    torch.manual_seed(0)
    tokenizer = pretrain.word_tokenizer()
    small = dict(intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = small | dict(vocab_size=len(tokenizer), hidden_size=16, max_position_embeddings=8)
    text |= dict(pad_token_id=0, eos_token_id=1)
    vision = small | dict(image_size=16, patch_size=8, hidden_size=24, projection_dim=12)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    torch.nn.init.constant_(model.logit_scale, 4.0)
    model.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def copy(source, folder, weights=dict, kind=CLIPModel) -> str:
    """Another folder with this model, and what `weights` makes of its tensors."""
    kind.from_pretrained(source).save_pretrained(folder)
    file = Path(folder) / "model.safetensors"
    save_file(weights(load_file(file)), file, {"format": "pt"})
    return str(folder)


def save_aesthetic(clip, folder) -> tuple[str, dict]:
    """The tower of a CLIP model and a head layers.0, .2, .4 in one file, as the published
    conversion has them; and the head."""
    torch.manual_seed(1)
    head = {}
    for k, (n, m) in {0: (12, 8), 2: (8, 4), 4: (4, 1)}.items():
        head |= {f"layers.{k}.weight": torch.randn(m, n), f"layers.{k}.bias": torch.randn(m)}
    CLIPProcessor.from_pretrained(clip).save_pretrained(folder)
    return copy(clip, folder, lambda weights: weights | head, CLIPVisionModelWithProjection), head
