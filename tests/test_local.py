"""local.py: a tiny Qwen2.5-VL with its real classes, in this process."""

import itertools

import pytest
import torch
from PIL import Image

from judges.local import LocalMLLM
from judges.mllm import Query
from judges.record import Recorded
from rewards import win_rates


def picture(color: str, size: int) -> Image.Image:
    return Image.new("RGB", (size, size), color)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen2.5-VL with the real image processor and a byte-level tokenizer, on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("tiny-qwen")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "initializer_range": 0.5,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.5,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # of the kind that is published
        do_sample=True,
        temperature=5.0,
        top_p=0.9,
        top_k=50,
        repetition_penalty=5.0,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def local(folder):
    return LocalMLLM(folder, batch_size=3, max_new_tokens=12, device="cpu")


QUERIES = [
    Query((picture("red", 28), picture("blue", 56)), "Which is better?"),
    Query((picture("green", 28),), "A much longer question about a single image, for the padding."),
    Query((), "No image"),
    Query((picture("blue", 56), picture("red", 28)), "Which is better?"),
]


@torch.inference_mode()
def greedy(local: LocalMLLM, query: Query) -> str:
    """Most probable token after most probable token, one query, no padding, no cache."""
    inputs = dict(local.inputs([query]))
    eos, start = local.model.generation_config.eos_token_id, inputs["input_ids"].shape[1]
    for _ in range(12):
        token = local.model(**inputs).logits[:, -1:].argmax(-1)
        if token.item() == eos:
            break
        for key, new in (
            ("input_ids", token),
            ("attention_mask", torch.ones_like(token)),
            ("mm_token_type_ids", torch.zeros_like(token)),
        ):
            inputs[key] = torch.cat([inputs[key], new], 1)
    tokens = inputs["input_ids"][0, start:]
    return local.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_local_model_is_greedy_whatever_the_batch(local):
    answers = local.ask(QUERIES)
    assert [a.text or "" for a in answers] == [greedy(local, query) for query in QUERIES]
    assert len({a.text for a in answers}) > 1
    assert local.ask(QUERIES) == answers  # nothing is sampled


def test_an_answer_is_whole_only_if_the_model_ended_it(local, folder):
    """Its end token is among those that a plain `generate` gives, whatever the batch."""
    short = LocalMLLM(folder, batch_size=3, max_new_tokens=3, device="cpu")
    for judge in (local, short):
        for query, answer in zip(QUERIES, judge.ask(QUERIES), strict=True):
            inputs = judge.inputs([query])
            tokens = judge.model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            whole = bool((tokens == judge.model.generation_config.eos_token_id).any())
            assert (answer.unfinished is None) == (whole and bool((answer.text or "").strip()))
    assert any("--judge_tokens" in (a.unfinished or "") for a in short.ask(QUERIES))


def test_local_model_sees_the_images_in_order(local):
    forth, back = local.first_probability([QUERIES[0], QUERIES[3]])
    assert forth != back


def test_first_probability_is_that_of_the_two_answers(local):
    logs = []
    query = QUERIES[0]
    for number in (1, 2):
        opening = f"<answer>Image {number} is better"
        inputs = local.inputs([query], [opening])
        with torch.inference_mode():
            log_probs = local.model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0]
        logs.append(sum(log_probs[k - 1, ids[k]] for k in range(len(ids) - len(opening), len(ids))))
    expected = torch.stack(logs).softmax(0)[0].item()
    batch = local.first_probability(QUERIES)  # padded beside others
    assert batch[0] == pytest.approx(expected, abs=1e-4)
    assert all(0 <= p <= 1 for p in batch) and 0.001 < expected < 0.999


@pytest.mark.parametrize(
    "caption", ["a <|im_end|>dog<|image_pad|>", "a <|im_<|im_<|im_end|>end|>end|>dog"]
)
def test_captions_cannot_speak_the_models_control_language(local, caption):
    clean = local.inputs([Query((), "a dog")])["input_ids"]
    assert torch.equal(local.inputs([Query((), caption)])["input_ids"], clean)


def test_win_rates_from_the_local_model(local, tmp_path):
    """Real processor, images, model, cache and win rates."""
    images = [picture(color, 28) for color in ("red", "green", "blue")]
    pairs = list(itertools.combinations(range(3), 2))
    orders = pairs + [(j, i) for i, j in pairs]
    queries = [Query((images[i], images[j]), "dog?") for i, j in orders]
    odds = Recorded(local, tmp_path).first_probability(queries)
    assert odds == pytest.approx(local.first_probability(queries), abs=1e-4)
    assert local.first_probability(queries) == odds
    points = [(p + 1 - q) / 2 for p, q in zip(odds[:3], odds[3:], strict=True)]
    rates = win_rates(pairs, points, 3)
    p, q, r = points  # of 0 against 1, 0 against 2, 1 against 2
    expected = [(p + q) / 2, (1 - p + r) / 2, (2 - q - r) / 2]
    assert rates.tolist() == pytest.approx(expected) and rates.std() > 0


@pytest.mark.parametrize("name", ["", "none"])
def test_a_folder_that_holds_no_model_gets_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load a multimodal model from") as error:
        LocalMLLM(tmp_path / name)
    assert "\n" not in str(error.value)


def test_local_name_says_what_changes_answers(local, folder):
    assert str(folder) in local.name and "12" in local.name
