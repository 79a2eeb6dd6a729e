"""Tiny random image-text-to-text models of real classes, saved as published ones are.

save("llava", folder)               # config, weights, tokenizer, image processor, chat template
"""

import json
from importlib import import_module
from pathlib import Path

import torch

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 4096,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.5,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2}
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
SQUARE = {"height": 28, "width": 28}

# class of the model -> type and place of its image processor, which tokens stand for an image in a
# prompt, whether a prompt begins with <bos>, names of tokens that the processor looks for, its
# arguments, the image processor's, and the config's, in which a token stands for its id
KINDS = {
    "Llava": dict(
        image="<image>",
        bos=True,
        processor={"patch_size": 14, "vision_feature_select_strategy": "default"}
        | {"num_additional_image_tokens": 1},
        images=("llava", "LlavaImageProcessorPil", {"size": SQUARE, "crop_size": SQUARE}),
        text={"model_type": "llama"},
        vision={"model_type": "clip_vision_model", **TOWER},
        config={"image_token_index": "<image>", "image_token_id": "<image>"},
    ),
    "Gemma3": dict(
        image="<boi>",
        bos=True,
        written_bos=True,  # by its chat template: the tokenizer must not add another
        names={"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
        processor={"image_seq_length": 4},
        images=(
            "gemma3",
            "Gemma3ImageProcessorPil",
            {"size": {"height": 56, "width": 56}, "image_seq_length": 4},
        ),
        text={"sliding_window": 64, "query_pre_attn_scalar": 8, "initializer_range": 0.2},
        vision={**TOWER, "image_size": 56},
        config={"mm_tokens_per_image": 4, "image_token_index": "<soft>"}
        | {"tie_word_embeddings": False}  # else it repeats the last token of the prompt
        | {"boi_token_index": "<boi>", "eoi_token_index": "<eoi>"},
    ),
    "Idefics3": dict(
        image="<image>",
        bos=True,
        processor={"image_seq_len": 4},
        images=(
            "idefics3",
            "Idefics3ImageProcessorPil",
            {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        ),
        text={"model_type": "llama"},
        vision={**TOWER, "image_size": 56},
        config={"scale_factor": 2, "image_token_id": "<image>", "pad_token_id": "<pad>"},
        tokens=["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"],
    ),
    "Qwen2_5_VL": dict(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        processor={},
        images=(
            "qwen2_vl",
            "Qwen2VLImageProcessorPil",
            {"min_pixels": 28 * 28, "max_pixels": 56 * 56},
        ),
        text={"rope_parameters": ROPE, "head_dim": None},
        vision=QWEN_TOWER
        | {"intermediate_size": 64, "fullatt_block_indexes": [1], "initializer_range": 0.5},
        config=QWEN_IDS,
    ),
}


def template(image: str, bos: bool = False) -> str:
    """A chat template of the usual form."""
    return (
        "{{ bos_token }}" * bos + "{% for m in messages %}[{{ m['role'] }}]"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )


def tokenizer_of(kind: dict):
    """One token a byte, and the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = kind.get("names", {})
    special = [*names.values(), *kind.get("tokens", [])]
    if not names:
        special += [t for t in kind["config"].values() if isinstance(t, str)]
    special = ["<pad>", "<eos>", "<bos>", *dict.fromkeys(special)]
    backend.add_special_tokens(list(dict.fromkeys(special)))
    if kind.get("bos"):
        bos = backend.token_to_id("<bos>")
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos)]
        )
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    if names:
        tokens["extra_special_tokens"] = names
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = template(kind["image"], kind.get("written_bos", False))
    return tokenizer


def save(name: str, folder) -> None:
    """A model of that class, the same one each time, with all that a judge needs, in a folder."""
    import transformers

    kind, folder = KINDS[name], Path(folder)
    tokenizer = tokenizer_of(kind)
    ids = lambda values: {
        k: tokenizer.convert_tokens_to_ids(v) if isinstance(v, str) else v
        for k, v in values.items()
    }
    ends = ids({"bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>"})
    text = {**TEXT, **kind["text"], **ends, "vocab_size": len(tokenizer)}
    text = {key: value for key, value in text.items() if value is not None}
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=kind["vision"], **ids(kind["config"])
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    for weight in model.parameters():  # what begins at 0 would hide the images
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.5)
    model.generation_config = transformers.GenerationConfig(  # of the kind that is published
        do_sample=True,
        temperature=5.0,
        top_p=0.9,
        top_k=50,
        repetition_penalty=5.0,
        eos_token_id=ends["eos_token_id"],
        pad_token_id=ends["pad_token_id"],
    )
    module, images, settings = kind["images"]
    module = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    for part in (model, tokenizer, getattr(module, images)(**settings)):
        part.save_pretrained(folder)
    processor = {"processor_class": f"{name}Processor", **kind["processor"]}
    (folder / "processor_config.json").write_text(json.dumps(processor))
