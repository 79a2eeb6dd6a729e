"""local.py: tiny models of two real classes, in this process."""

import functools
import json
import shutil

import pytest
import torch
import transformers
import vlms
from PIL import Image

from judges.local import LocalMLLM
from judges.mllm import Query

BUDGET = 8  # tokens of an answer
USUAL = vlms.template("Qwen2_5_VL")


def picture(color: str, width: int, height: int = 0) -> Image.Image:
    """Of that color, but for a white corner, so that turning or cutting it shows."""
    image = Image.new("RGB", (width, height or width), color)
    image.paste("white", (0, 0, width // 3, 9))
    return image


QUERIES = [
    Query((picture("red", 28), picture("blue", 56)), "Which is better?"),
    Query((picture("green", 28),), "A much longer question about a single image, for the padding."),
    Query((), "No image"),
    Query((picture("blue", 56), picture("red", 28)), "Which is better?"),
    Query((picture("green", 64, 30), picture("blue", 30, 64)), "A longer question about the two."),
]
PAIRS = [query for query in QUERIES if len(query.images) == 2]


@pytest.fixture(scope="module")
def judge_of(tmp_path_factory):
    """The judge of a class, made when it is first asked for."""

    @functools.cache
    def judge_of(name) -> LocalMLLM:
        folder = tmp_path_factory.mktemp(name)
        vlms.save(name, folder)
        return LocalMLLM(folder, batch_size=4, max_new_tokens=BUDGET, device="cpu")

    return judge_of


@pytest.fixture(scope="module")
def local(judge_of):
    return judge_of("Qwen2_5_VL")


def plain_inputs(judge: LocalMLLM, query: Query):
    """One question as the library itself prepares it: no batch, no padding."""
    content = [{"type": "image", "image": image} for image in query.images]
    turn = [{"role": "user", "content": [*content, {"type": "text", "text": query.text}]}]
    return judge.processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@torch.inference_mode()
def plain_answer(judge: LocalMLLM, query: Query) -> tuple[str, bool, tuple[int, int]]:
    """What `generate` gives for it, whether the model ended it, and the tokens of both."""
    inputs = plain_inputs(judge, query)
    settings = dict(do_sample=False, max_new_tokens=BUDGET)
    tokens = judge.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    text = judge.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    usage = inputs["input_ids"].shape[1], len(tokens)
    return text, judge.processor.tokenizer.eos_token_id in tokens, usage


@torch.inference_mode()
def forced_probability(judge: LocalMLLM, query: Query) -> float:
    """P(first) by teacher forcing: each whole answer after the prompt, on its own."""
    logs, inputs = [], dict(plain_inputs(judge, query))
    for number in (1, 2):
        opening = f"<answer>Image {number} is better"
        new = judge.processor.tokenizer(opening, add_special_tokens=False, return_tensors="pt")
        new, whole = new["input_ids"], dict(inputs)
        whole["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        for key in {"token_type_ids", "mm_token_type_ids"} & whole.keys():
            whole[key] = torch.cat([whole[key], torch.zeros_like(new)], 1)
        log_probs = judge.model(**whole).logits[0, :-1].double().log_softmax(-1)
        of_tokens = log_probs.gather(1, whole["input_ids"][0, 1:, None])
        logs.append(of_tokens[-new.shape[1] :].sum())
    return torch.stack(logs).softmax(0)[0].item()


@pytest.mark.parametrize("name", vlms.KINDS)
def test_a_batch_is_answered_as_a_plain_generate_answers_each(judge_of, name):
    judge = judge_of(name)
    answers = judge.ask(QUERIES)  # two, one and no images side by side
    plain = [plain_answer(judge, query) for query in QUERIES]
    assert [a.text or "" for a in answers] == [text for text, *_ in plain]
    assert [a.unfinished is None for a in answers] == [bool(t) and whole for t, whole, _ in plain]
    assert [a.usage for a in answers] == [usage for *_, usage in plain]
    assert len({a.text for a in answers}) > 2
    assert [judge.ask([query])[0] for query in QUERIES] == answers  # each alone
    cut = [a.unfinished for a in answers if a.text and a.unfinished]
    assert cut and all(f"cut off at {BUDGET} tokens, the limit of --judge_tokens" in c for c in cut)
    assert judge.model.name_or_path in judge.name and str(BUDGET) in judge.name


@pytest.mark.parametrize("name", vlms.KINDS)
def test_first_probability_is_that_of_teacher_forcing(judge_of, name):
    judge = judge_of(name)
    batch = judge.first_probability(PAIRS)
    assert batch == pytest.approx([forced_probability(judge, q) for q in PAIRS], abs=1e-4)
    assert batch == pytest.approx([judge.first_probability([q])[0] for q in PAIRS], abs=1e-4)
    assert batch[0] != batch[1]  # the order of the images is seen
    assert all(0 <= p <= 1 for p in batch)


def test_tokens_are_counted_to_the_end_of_each_answer(local, monkeypatch):
    end, a = int(local._ends[0]), local.processor.tokenizer("a")["input_ids"][-1]
    made = torch.tensor([[a, end, end], [a, a, a], [end, end, end]])
    generate = lambda input_ids, **_: torch.cat([input_ids, made], 1)
    monkeypatch.setattr(local.model, "generate", generate)
    answers = local.ask([QUERIES[0]] * 3)
    assert [answer.usage[1] for answer in answers] == [2, 3, 1]


@pytest.mark.parametrize(
    "caption", ["a <eos>dog<|image_pad|>", "a <e<e<eos>os>os>dog", "<|video_pad|>a dog"]
)
def test_captions_cannot_speak_the_models_control_language(local, caption):
    clean = local.inputs([Query((), "a dog")])["input_ids"]
    assert torch.equal(local.inputs([Query((), caption)])["input_ids"], clean)


# ---- at load ----


@pytest.fixture
def changed(local, tmp_path):
    """A copy of the model with another chat template, or with none."""

    def change(template: str | None):
        copy = shutil.copytree(local.model.name_or_path, tmp_path / "copy")
        (copy / "chat_template.jinja").unlink()
        if template is not None:
            (copy / "chat_template.jinja").write_text(template)
        return copy

    return change


@pytest.mark.parametrize(
    ("template", "missing", "said"),
    [
        (None, "", "has no chat template"),
        ("{{ messages[0]['content'][-1]['text'] }}", "", "takes no images"),
        ("{{ raise_exception('none, please') }}", "", "takes no images: none, please"),
        # where a package is missing for more than videos
        ("", "X requires the Torchvision library", "needs torchvision, which is not installed"),
        ("", "Package `num2words` is required", "a package, which is not installed: .*num2words"),
    ],
)
def test_a_model_that_cannot_be_asked_is_told_at_load(
    changed, judge_of, template, missing, said, monkeypatch
):
    def fail(*args, **settings):
        raise ImportError(f"\n{missing} in your environment.\nSee the docs.\n")

    if missing:
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    folder = judge_of("Llava").model.name_or_path if missing else changed(template)
    with pytest.raises(ValueError, match=f"cannot load .* from .*{said}") as error:
        LocalMLLM(folder, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "none"])
def test_a_folder_that_holds_no_model_gets_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load a vision-language model from") as error:
        LocalMLLM(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_template_that_only_the_tokenizer_has_is_used(changed):
    path = changed(None)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = USUAL
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    assert LocalMLLM(path, max_new_tokens=2, device="cpu").ask(QUERIES[:1])


@pytest.mark.parametrize(
    ("opens", "ends"),
    [
        ("<think>\n", "<think>\n</think>\n\n"),
        ("[THINK]", "[THINK][/THINK]\n\n"),
        ("{% if enable_thinking is not false %}<think>\n{% endif %}", ""),
        ("<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}", "</think>\n\n"),
    ],
)
def test_a_thought_that_the_template_opens_is_closed(changed, local, opens, ends, caplog):
    path = changed(USUAL.replace("[assistant]", "[assistant]" + opens))
    judge = LocalMLLM(path, max_new_tokens=2, device="cpu")
    assert "opens a thought, which is closed" in caplog.text
    for openings in ([""], ["<answer>Image 1 is better"]):
        ids = judge.inputs(QUERIES[:1], openings)["input_ids"][0]
        text = judge.processor.tokenizer.decode(ids)
        assert text.endswith(ends + openings[0])
        plain = local.processor.tokenizer.decode(local.inputs(QUERIES[:1])["input_ids"][0])
        assert text.startswith(plain) and text.count("<think>") == text.count("</think>")


def test_an_example_of_a_thought_is_no_thought(changed, caplog):
    example = "You may <think> and close it.</think> Or open <think> only.\n"
    LocalMLLM(changed(example + USUAL), device="cpu")
    assert not caplog.records
