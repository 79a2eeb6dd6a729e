"""Tiny random image-text-to-text models of two real classes, saved as published ones are.

save("Llava", folder)               # config, weights, tokenizer, image processor, chat template
"""

import json
from importlib import import_module
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.5, max_position_embeddings=4096,
)  # fmt: skip
SQUARE = {"height": 28, "width": 28}

# class of the model -> the chat template's tokens for an image, and whether it begins with <bos> or
# leaves that to the tokenizer; the arguments of the processor and of the image processor; those of
# the config, in which a token stands for its id
KINDS = {
    "Llava": dict(
        image="<image>",
        bos="{{ bos_token }}",
        processor=dict(
            patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
        ),
        images=("llava", "LlavaImageProcessorPil", dict(size=SQUARE, crop_size=SQUARE)),
        text=TEXT | dict(model_type="llama", head_dim=8),
        vision=dict(
            model_type="clip_vision_model", hidden_size=32, intermediate_size=64, patch_size=14,
            num_hidden_layers=2, num_attention_heads=2, image_size=28, initializer_range=0.5,
        ),
        tokens=dict(image_token_index="<image>", image_token_id="<image>"),
    ),
    "Qwen2_5_VL": dict(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        bos="",
        processor={},
        images=("qwen2_vl", "Qwen2VLImageProcessorPil", dict(min_pixels=28**2, max_pixels=56**2)),
        text=TEXT
        | {"rope_parameters": dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4)},
        vision=dict(
            depth=2, hidden_size=32, out_hidden_size=32, num_heads=2, intermediate_size=64,
            fullatt_block_indexes=[1], initializer_range=0.5,
        ),
        tokens=dict(
            image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
        ),
    ),
}  # fmt: skip


def template(name: str) -> str:
    """A chat template of the usual form."""
    return (
        KINDS[name]["bos"] + "{% for m in messages %}[{{ m['role'] }}]"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + KINDS[name]["image"]
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )  # fmt: skip


def tokenizer_of(name: str) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = dict.fromkeys(KINDS[name]["tokens"].values())
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>", *tokens])
    bos = [("<bos>", backend.token_to_id("<bos>"))]
    backend.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", bos)
    special = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template(name)
    return tokenizer


def save(name: str, folder) -> None:
    """A model of that class, the same one each time, with all that a judge needs, in a folder."""
    kind, folder, tokenizer = KINDS[name], Path(folder), tokenizer_of(name)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in kind["tokens"].items()}
    ends = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    text = kind["text"] | ends | dict(vocab_size=len(tokenizer))
    config = getattr(transformers, f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(
        config(text_config=text, vision_config=kind["vision"], **ids)
    )
    for weight in model.parameters():  # what begins at 0 would hide the images
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.5)
    ends.pop("bos_token_id")
    model.generation_config = transformers.GenerationConfig(  # of the kind that is published
        do_sample=True, temperature=5.0, top_p=0.9, top_k=50, repetition_penalty=5.0, **ends
    )
    module, images, settings = kind["images"]
    module = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    for part in (model, tokenizer, getattr(module, images)(**settings)):
        part.save_pretrained(folder)
    processor = {"processor_class": f"{name}Processor", **kind["processor"]}
    (folder / "processor_config.json").write_text(json.dumps(processor))
