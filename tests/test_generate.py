"""Images: whichever process, restart or pipeline made them, and never those of another model."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeMLLM
from PIL import Image

import bench
import sampler
from unigenbench.asking import judge_images
from unigenbench.generate import FIRST_SEED, generate
from unigenbench.images import prompt_of
from unigenbench.testpoints import Prompt, write_prompts

ROOT = Path(__file__).parent.parent
PROMPTS = [
    Prompt(i, text, [("Attribute - Color", text)], "Art", "Other", "en")
    for i, text in enumerate(("a small red circle", "a large blue square", "two circles"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tiny FLUX: what it draws is noise, but always the same noise."""
    from shapes import pretrain

    folder = tmp_path_factory.mktemp("model")
    pretrain.build(seed=0).save_pretrained(folder)
    return str(folder)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("*.png")}


def test_images_do_not_depend_on_the_number_of_processes_or_on_restarts(
    tmp_path, model, monkeypatch
):
    out = str(tmp_path / "two")
    generate(PROMPTS, tmp_path / "one", model, steps=3)
    one = digests(tmp_path / "one")
    assert set(one) == {f"{p}_{i}.png" for p in range(3) for i in range(4)}
    assert len(set(one.values())) == 12  # other prompt or other seed, other image
    generate(PROMPTS, tmp_path / "half", model, steps=3, rank=1, ranks=2)
    assert set(digests(tmp_path / "half")) == {f"1_{i}.png" for i in range(4)}
    write_prompts(PROMPTS, tmp_path / "p.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # as torchrun tells its processes who they are
        monkeypatch.setenv("RANK", rank)
        flags = ["--model", model, "--steps", "3", "--prompts", str(tmp_path / "p.csv")]
        monkeypatch.setattr("sys.argv", ["bench.py", "generate", *flags, "--out", out])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 0
    assert digests(tmp_path / "two") == one
    (tmp_path / "one" / "1_2.png").write_bytes(b"torn")
    (tmp_path / "one" / "2_0.png").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "one").glob("*.png")}
    generate(PROMPTS, tmp_path / "one", model, steps=3)
    assert digests(tmp_path / "one") == one
    made = [
        p for p in (tmp_path / "one").glob("*.png") if p.stat().st_mtime_ns != times.get(p.name)
    ]
    assert {p.name for p in made} == {"1_2.png", "2_0.png"}


def test_images_of_other_settings_are_not_mixed(tmp_path, model):
    generate(PROMPTS[:1], tmp_path / "a", model, steps=2)
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["steps"] == 2 and settings["size"] == 32 and settings["guidance"] == 3.5
    assert settings["seeds"] == [3407, 3408, 3409, 3410]
    generate(PROMPTS[:1], tmp_path / "larger", model, steps=1, size=40)
    assert Image.open(tmp_path / "larger" / "0_3.png").size == (40, 40)
    with pytest.raises(ValueError, match="other settings .steps: 2 -> 3"):
        generate(PROMPTS[:1], tmp_path / "a", model, steps=3)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "0_0.png")
    with pytest.raises(ValueError, match="no settings.json"):
        generate(PROMPTS[:1], tmp_path / "b", model, steps=2)


def test_an_image_of_another_prompt_is_not_done_nor_judged(tmp_path, model, caplog):
    """Its name is but an index. Images without a word of their prompt are taken as they are."""
    generate(PROMPTS, tmp_path / "a", model, steps=2)
    before, plain = digests(tmp_path / "a"), tmp_path / "a" / "2_0.png"
    Image.open(plain).copy().save(plain)
    changed = [p._replace(text=f"{p.text} on the moon") if p.index else p for p in PROMPTS]

    def judged(prompts):
        judge = FakeMLLM(lambda query: "<score>[1]</score>")
        return judge_images(judge, prompts, tmp_path / "a", tmp_path / "j")

    states = [r.state for r in judged(changed)]
    assert states == ["judged"] * 4 + ["failed"] * 4 + ["judged"] + ["failed"] * 3
    assert "1_0.png: drawn of another prompt, 'a large blue square'" in caplog.text
    generate(changed, tmp_path / "a", model, steps=2)
    now = digests(tmp_path / "a")
    assert {name for name in now if now[name] == before[name]} == {f"0_{i}.png" for i in range(4)}
    assert {r.state for r in judged(changed)} == {"judged"}
    assert prompt_of(plain.read_bytes()) is None  # not drawn again


def test_the_same_model_elsewhere_is_the_same_and_another_one_in_its_place_is_not(
    tmp_path, model, monkeypatch
):
    def drawn(name, **settings):
        generate(PROMPTS[:1], tmp_path / "images", str(name), steps=2, **settings)

    drawn(model)
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "link", "copy", "./copy/"):
        drawn(name)
    settings = json.loads((tmp_path / "images" / "settings.json").read_text())
    for key in ("configs", "lora_scale"):  # as an earlier version wrote it
        del settings[key]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()} == made
    scheduler = tmp_path / "copy" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"max_shift": 1.0}))
    with pytest.raises(ValueError, match="other settings .configs: "):
        drawn("copy")
    (tmp_path / "images" / "settings.json").write_text(json.dumps(settings))
    drawn(model)


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    """The model, and final/ of a LoRA run, as train.py saves it: rank 2, alpha 6."""
    import torch

    from models import base

    trained, folder = base.load(model), tmp_path_factory.mktemp("lora")
    trained.add_lora(rank=2, alpha=6)
    torch.manual_seed(0)
    for weight in trained.trainable():
        torch.nn.init.normal_(weight, std=0.3)
    trained.save(folder)
    return trained, folder


def peft_folder(pipe, folder):
    """As PEFT saves the adapter of a transformer, or of a copy that it wraps."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    state = get_peft_model_state_dict(pipe.transformer)
    save_file({f"base_model.model.{k}": v for k, v in state.items()}, folder / PEFT_FILE)
    config = pipe.transformer.peft_config["default"].to_dict() | {"of_a_later_version": 1}
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, default=str))
    return folder


PEFT_FILE = "adapter_model.safetensors"


def test_a_lora_in_every_form_draws_what_was_trained(tmp_path, model, lora):
    """Its own base is needed, and said to be needed."""
    import torch

    trained, folder = lora
    shutil.copy(folder / "pytorch_lora_weights.safetensors", tmp_path / "one.safetensors")
    velocity = trained.velocity(trained.encode([PROMPTS[0].text], 4))
    noise = trained.noise(range(FIRST_SEED, FIRST_SEED + 4))
    with torch.no_grad():
        clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(2, 1.0))
    expected = np.stack([np.asarray(i, int) for i in trained.decode(clean)])
    peft = peft_folder(trained.pipe, tmp_path / "peft")
    for given in (folder, tmp_path / "one.safetensors", peft, peft / PEFT_FILE):
        generate(PROMPTS[:1], tmp_path / "images", model, lora=str(given), steps=2)  # all the same
        shown = [Image.open(tmp_path / "images" / f"0_{i}.png") for i in range(4)]
        assert abs(np.stack([np.asarray(i, int) for i in shown]) - expected).max() <= 1
    config = json.loads((peft / "adapter_config.json").read_text())
    (peft / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(ValueError, match=r"lora_scale: \[3.0\] -> \[0.5\]"):
        generate(PROMPTS[:1], tmp_path / "images", model, lora=str(peft), steps=2)
    with pytest.raises(ValueError, match="may be a LoRA: give it as --lora, and its base as --mod"):
        generate(PROMPTS[:1], tmp_path / "x", str(folder), steps=2)


def without(state, end):
    return {k: v for k, v in state.items() if not k.endswith(end)}


@pytest.mark.parametrize("form", ["pytorch_lora_weights.safetensors", PEFT_FILE])
@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda s: {k: v[:, :-1] if "_A" in k else v for k, v in s.items()},
            r"is \d+ wide, .* \d+",
        ),
        (lambda s: without(s, "0.attn.to_q.lora_B.weight"), "it holds .*lora_A.* but not .*lora_B"),
        (lambda s: {k.replace("to_q", "to_x"): v for k, v in s.items()}, "are not for the FluxPip"),
        (lambda s: {k.replace(".attn.", "."): v for k, v in s.items() if ".attn." in k}, "nothing"),
        (lambda s: without(without(s, "to_q.lora_A.weight"), "to_q.lora_B.weight"), "it lacks"),
        (lambda s: {}, "nothing in .* is for the FluxPipeline"),
        (None, "cannot load"),
    ],
)
def test_a_lora_that_does_not_fit_is_one_sentence(tmp_path, model, lora, form, change, said):
    """diffusers warns and draws with the rest of it, or with the base alone."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lora"
    if form == PEFT_FILE:
        peft_folder(lora[0], folder)
    else:
        shutil.copytree(lora[1], folder)
    if change:
        with safe_open(folder / form, "pt") as file:
            header = file.metadata()
        state = change(load_file(folder / form))
        save_file({k: v.contiguous() for k, v in state.items()}, folder / form, header)
    else:
        (folder / form).write_bytes((folder / form).read_bytes()[:99])
    with pytest.raises(ValueError, match=said) as told:
        generate(PROMPTS[:1], tmp_path / "x", model, lora=str(folder), steps=2)
    assert "\n" not in str(told.value) and str(folder) in str(told.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name, said",
    [
        ("nobody/lora", "cannot load 'nobody/lora': .* not in the cache"),
        ("./nowhere", "no such file or folder"),
        (".", "0 files of safetensors there, none of them named adapter_model.safetensors or"),
    ],
)
def test_a_lora_that_is_nowhere_is_one_sentence(tmp_path, model, name, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=said):
        generate(PROMPTS[:1], tmp_path / "x", model, lora=name, steps=2)


def test_a_model_trained_further_is_another_model(tmp_path, model):
    """Same folder, same name: its old images must not pass for the new ones."""
    import torch

    from models import base

    folder = tmp_path / "final"
    trained = base.load(model)
    trained.save(folder)
    generate(PROMPTS[:1], tmp_path / "images", str(folder), steps=2)
    with torch.no_grad():
        for weight in trained.transformer.parameters():
            weight.view(-1)[1:].mul_(1.001)
    trained.save(folder)
    with pytest.raises(ValueError, match="of other settings .weights: .* remove it or choose"):
        generate(PROMPTS[:1], tmp_path / "images", str(folder), steps=2)


def other_pipeline():
    """A Stable Diffusion of random weights: diffusers knows it, we don't."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from shapes.pretrain import MAX_TOKENS, word_tokenizer

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    width = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS)
    ends = dict(pad_token_id=0, bos_token_id=2, eos_token_id=1)
    text = CLIPTextModel(CLIPTextConfig(**width, **words, **ends))
    small = dict(block_out_channels=(8, 8), norm_num_groups=4)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        8,
        cross_attention_dim=16,
        attention_head_dim=4,
        layers_per_block=1,
        **small,
        down_block_types=down,
        up_block_types=up,
    )
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    vae = diffusers.AutoencoderKL(
        **small, down_block_types=down, up_block_types=up, latent_channels=4, sample_size=16
    )
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    others = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return diffusers.StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, **others)


def test_any_text_to_image_pipeline_of_diffusers(tmp_path):
    import torch

    other_pipeline().save_pretrained(tmp_path / "sd")
    pipe = other_pipeline()
    for folder in ("a", "b"):
        generate(PROMPTS[:2], tmp_path / folder, str(tmp_path / "sd"), steps=2, guidance=4.0)
    images = digests(tmp_path / "a")
    assert images == digests(tmp_path / "b") and len(set(images.values())) == 8
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["pipeline"] == "StableDiffusionPipeline" and settings["shift"] is None
    noise = torch.Generator().manual_seed(FIRST_SEED + 3)
    how = dict(num_inference_steps=2, guidance_scale=4.0, generator=noise)
    theirs = pipe(PROMPTS[1].text, **how).images[0]
    ours = Image.open(tmp_path / "a" / "1_3.png")
    assert abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_what_is_no_text_to_image_pipeline_is_named(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with pytest.raises(ValueError, match="no pipeline in 'runs/no/final': expected a folder with"):
        generate(PROMPTS, tmp_path / "x", "runs/no/final")
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="DDPMPipeline in .* takes no guidance_scale, .* prompt"):
        generate(PROMPTS, tmp_path / "x", str(tmp_path / "ddpm"))


def test_schedule_shift_is_the_pipelines_own(model):
    """Our sigmas equal those that diffusers' scheduler sets for FLUX.1-dev at 1024 x 1024."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from models import base

    own = base.load(model, size=512)  # as many tokens
    own.pipe.scheduler = scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        shift=3.0,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=1.15)
    assert own.tokens == 4096
    assert sampler.sigma_schedule(30, own.schedule_shift(30)).numpy() == pytest.approx(
        scheduler.sigmas.numpy(), abs=1e-6
    )
    own.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert own.schedule_shift(30) == 3.0
