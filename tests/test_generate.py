"""Images: whichever process, restart or pipeline made them, and never those of another model."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from fakes import FakeMLLM
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bench
import sampler
from models import base
from shapes import pretrain
from unigenbench.asking import judge_images
from unigenbench.generate import FIRST_SEED, configuration, generate
from unigenbench.images import prompt_of
from unigenbench.lora import check_weights, load_lora
from unigenbench.testpoints import Prompt, write_prompts

PROMPTS = [
    Prompt(i, text, [("Attribute - Color", text)], "Art", "Other", "en")
    for i, text in enumerate(("a small red circle", "a large blue square", "two circles"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tiny FLUX: what it draws is noise, but always the same noise."""
    folder = tmp_path_factory.mktemp("model")
    pretrain.build(seed=0).save_pretrained(folder)
    return str(folder)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("*.png")}


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in Path(folder).iterdir()}


def read_settings(folder):
    return json.loads((folder / "settings.json").read_text())


def test_images_do_not_depend_on_the_number_of_processes_or_on_restarts(
    tmp_path, model, monkeypatch
):
    one, two = tmp_path / "one", tmp_path / "two"
    generate(PROMPTS, one, model, steps=3)
    made = digests(one)
    assert set(made) == {f"{p}_{i}.png" for p in range(3) for i in range(4)}
    assert len(set(made.values())) == 12  # other prompt or other seed, other image
    write_prompts(PROMPTS, tmp_path / "p.csv")
    flags = ["--model", model, "--steps", "3", "--prompts", str(tmp_path / "p.csv")]
    monkeypatch.setattr("sys.argv", ["bench.py", "generate", *flags, "--out", str(two)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("1", 4), ("0", 12)):  # as torchrun tells its processes who they are
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 0 and len(digests(two)) == count
    assert digests(two) == made
    (one / "1_2.png").write_bytes(b"torn")
    (one / "2_0.png").unlink()
    before = times(one)
    generate(PROMPTS, one, model, steps=3)
    assert digests(one) == made
    changed = {name for name, time in times(one).items() if time != before.get(name)}
    assert changed == {"1_2.png", "2_0.png"}


def test_images_of_other_settings_are_not_mixed(tmp_path, model):
    generate(PROMPTS[:1], tmp_path / "a", model, steps=2)
    settings = dict(steps=2, size=32, guidance=3.5, seeds=[3407, 3408, 3409, 3410])
    assert settings.items() <= read_settings(tmp_path / "a").items()
    generate(PROMPTS[:1], tmp_path / "larger", model, steps=1, size=40)
    assert Image.open(tmp_path / "larger" / "0_3.png").size == (40, 40)
    with pytest.raises(ValueError, match="other settings .steps: 2 -> 3"):
        generate(PROMPTS[:1], tmp_path / "a", model, steps=3)
    (tmp_path / "a" / "settings.json").unlink()
    with pytest.raises(ValueError, match="no settings.json"):
        generate(PROMPTS[:1], tmp_path / "a", model, steps=2)


def test_one_image_of_a_prompt_of_ones_own_and_offloaded_ones(tmp_path, model, monkeypatch):
    """Offloaded, here to the CPU, it is what diffusers' own pipeline draws."""
    monkeypatch.chdir(tmp_path)
    text, line = PROMPTS[1].text, f"generate --model {model} --steps 2 --out"
    generate(PROMPTS[:2], tmp_path / "one", model, steps=2, images=1)
    assert set(digests("one")) == {"0_0.png", "1_0.png"}
    assert read_settings(tmp_path / "one")["seeds"] == [FIRST_SEED]
    with pytest.raises(
        ValueError, match=r"other settings \(seeds: \[3407\] -> \[3407, 3408, .*--out"
    ):
        generate(PROMPTS[:2], tmp_path / "one", model, steps=2)
    assert bench.run([*f"{line} a.png --prompt".split(), text]) == 0
    assert Path("a.png").read_bytes() == Path("one/1_0.png").read_bytes()
    offload, devices = DiffusionPipeline.enable_model_cpu_offload, []
    spy = lambda pipe, device: devices.append(device) or offload(pipe, device=device)
    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", spy)
    bench.run([*f"{line} b.png --offload --prompt".split(), text])
    how = dict(num_inference_steps=2, guidance_scale=3.5, height=32, width=32)
    how |= dict(generator=torch.Generator().manual_seed(FIRST_SEED))
    theirs = np.asarray(DiffusionPipeline.from_pretrained(model)(text, **how).images[0], int)
    ours = np.asarray(Image.open("b.png"), int)
    assert devices and abs(ours - theirs).max() <= 1
    for flags, said in [
        ("a.png --prompt x", "'a.png' is there already: --prompt draws one image, into a new file"),
        ("folder --prompt x", "'folder' is no PNG file's name"),
        ("a.png --prompt x --prompts own", "one of the two"),
        ("a.png", "one of the two"),
        ("a.png --prompt x --limit 2", "leave them out"),
        ("a.png --prompt x --images_per_prompt 1", "leave them out"),
    ]:
        with pytest.raises(ValueError, match=said):
            bench.run(f"{line} {flags}".split())


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
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"

    def drawn(name):
        generate(PROMPTS[:1], images, str(name), steps=2)

    drawn(model)
    made = times(images)
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "copy")
    for name in (tmp_path / "link", "copy", "./copy/"):
        drawn(name)
    assert times(images) == made
    trained = base.load("copy")  # further: the same folder and name, and other images
    with torch.no_grad():
        for weight in trained.transformer.parameters():
            weight.view(-1)[1:].mul_(1.001)
    trained.save(tmp_path / "final")
    with pytest.raises(ValueError, match="of other settings .weights: .* remove it or choose"):
        drawn("final")
    scheduler = tmp_path / "copy" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"max_shift": 1.0}))
    with pytest.raises(ValueError, match="other settings .configs: "):
        drawn("copy")
    settings = read_settings(images)
    for key in ("configs", "lora_scale"):  # as an earlier version wrote it
        del settings[key]
    (images / "settings.json").write_text(json.dumps(settings))
    drawn(model)


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    """The model, and final/ of a LoRA run, as train.py saves it: rank 2, alpha 6."""
    trained, folder = base.load(model), tmp_path_factory.mktemp("lora")
    trained.add_lora(rank=2, alpha=6)
    torch.manual_seed(0)
    for weight in trained.trainable():
        torch.nn.init.normal_(weight, std=0.3)
    trained.save(folder)
    return trained, folder


def peft_folder(pipe, folder):
    """As PEFT saves the adapter of a transformer, or of a copy that it wraps."""
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
    trained, folder = lora
    shutil.copy(folder / "pytorch_lora_weights.safetensors", tmp_path / "one.safetensors")
    velocity = trained.velocity(trained.encode([PROMPTS[0].text], 4))
    noise = trained.noise(range(FIRST_SEED, FIRST_SEED + 4))
    with torch.no_grad():
        clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(2, 1.0))
    expected = np.stack([np.asarray(i, int) for i in trained.decode(clean)])
    peft, named = (peft_folder(trained.pipe, tmp_path / name) for name in ("peft", "named"))
    state = load_file(named / PEFT_FILE)  # of which diffusers would take the layers alone
    save_file(
        {k.replace("_A.", "_A.x.").replace("_B.", "_B.x."): v for k, v in state.items()},
        named / PEFT_FILE,
    )
    for given in (folder, tmp_path / "one.safetensors", peft, peft / PEFT_FILE, named):
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
        (lambda s: {k: v[:, :-1] if "_A" in k else v for k, v in s.items()}, r"is \d+ wide, .*\d"),
        (lambda s: without(s, "0.attn.to_q.lora_B.weight"), "it holds .*lora_A.* but not .*lora_B"),
        (lambda s: {k.replace("to_q", "to_x"): v for k, v in s.items()}, "are not for the FluxPip"),
        (lambda s: {k.replace(".attn.", "."): v for k, v in s.items() if ".attn." in k}, "nothing"),
        (lambda s: without(without(s, "to_q.lora_A.weight"), "to_q.lora_B.weight"), "it lacks"),
        (lambda s: {k: v * float("nan") for k, v in s.items()}, "48 of 48 weights, .*not finite"),
        (lambda s: {}, "nothing in .* is for the FluxPipeline"),
        (None, "cannot load"),
    ],
)
def test_a_lora_that_does_not_fit_is_one_sentence(tmp_path, model, lora, form, change, said):
    """diffusers warns and draws with the rest of it, or with the base alone."""
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


def test_a_lora_that_diffusers_would_pass_over_or_guess_at_is_refused(tmp_path, lora):
    """Keys with the adapter's name, of which diffusers takes the layers alone; and two files."""
    trained, folder = lora
    layer = "transformer.transformer_blocks.0.attn.to_q.lora_{}.x.weight"
    named = {layer.format(half): torch.ones(2, 2) for half in "AB"}
    with pytest.raises(ValueError, match="nothing in 'named' is for it"):
        check_weights("named", named, trained.pipe, "it")
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(folder / "pytorch_lora_weights.safetensors", tmp_path / name)
    with pytest.raises(ValueError, match="2 files of safetensors there, none of them named"):
        load_lora(trained.pipe, str(tmp_path), "it")


def test_what_a_pipeline_reads_a_prompt_with_is_part_of_its_settings():
    def set_up(**vocabulary):
        tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)
        return configuration(SimpleNamespace(config={}, components={"tokenizer": tokenizer}))

    assert set_up(red=1, blue=2) == set_up(blue=2, red=1) != set_up(red=2, blue=1)


def test_a_lora_that_diffusers_puts_on_no_layer_of_a_unet_is_refused(lora):
    """Whose weights it names in more ways than we know, and so are not looked at one by one."""
    pipe = MagicMock(transformer=None)
    pipe.lora_state_dict.return_value = {"lora_unet_conv_in.lora_down.weight": torch.zeros(1)}
    pipe.get_list_adapters.return_value = {"unet": []}
    with pytest.raises(ValueError, match="nothing in .* is for the SDXL"):
        load_lora(pipe, str(lora[1]), "the SDXL")
    pipe.get_list_adapters.return_value = {"unet": ["default"]}
    load_lora(pipe, str(lora[1]), "the SDXL")


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


def test_any_text_to_image_pipeline_of_diffusers(tmp_path, sd3_folders):
    """One that diffusers knows and we do not."""
    shutil.copytree(sd3_folders[True], tmp_path / "pag")
    index = tmp_path / "pag" / "model_index.json"
    index.write_text(index.read_text().replace("Diffusion3Pipeline", "Diffusion3PAGPipeline"))
    for folder in ("a", "b"):
        generate(PROMPTS[:2], tmp_path / folder, str(tmp_path / "pag"), steps=2, guidance=4.0)
    images = digests(tmp_path / "a")
    assert images == digests(tmp_path / "b") and len(set(images.values())) == 8
    settings = read_settings(tmp_path / "a")
    assert (settings["pipeline"], settings["shift"]) == ("StableDiffusion3PAGPipeline", None)
    noise = torch.Generator().manual_seed(FIRST_SEED + 3)
    how = dict(num_inference_steps=2, guidance_scale=4.0, generator=noise)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pag")
    theirs = np.asarray(pipe(PROMPTS[1].text, **how).images[0], int)
    ours = np.asarray(Image.open(tmp_path / "a" / "1_3.png"), int)
    assert abs(ours - theirs).max() <= 1


def test_what_is_no_text_to_image_pipeline_is_named(tmp_path):
    with pytest.raises(ValueError, match="no pipeline in 'runs/no/final': expected a folder with"):
        generate(PROMPTS, tmp_path / "x", "runs/no/final")
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="DDPMPipeline in .* takes no guidance_scale, .* prompt"):
        generate(PROMPTS, tmp_path / "x", str(tmp_path / "ddpm"))


def test_schedule_shift_is_the_pipelines_own(model):
    """Our sigmas equal those that diffusers' scheduler sets for FLUX.1-dev at 1024 x 1024."""
    own = base.load(model, size=512)  # as many tokens
    lengths = dict(base_image_seq_len=256, max_image_seq_len=4096)
    shifts = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)
    own.pipe.scheduler = scheduler = FlowMatchEulerDiscreteScheduler(**shifts, **lengths)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=1.15)
    sigmas = sampler.sigma_schedule(30, own.schedule_shift(30)).numpy()
    assert own.tokens == 4096 and sigmas == pytest.approx(scheduler.sigmas.numpy(), abs=1e-6)
    own.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert own.schedule_shift(30) == 3.0
