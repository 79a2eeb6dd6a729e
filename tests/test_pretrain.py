"""Pre-training's data, new models and resumption; and all its stages once, too small to learn."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from models import base
from shapes import pretrain
from shapes.grammar import parse_prompt
from shapes.prompts import all_prompts, sample_prompts
from shapes.read import read
from shapes.render import LIGHT
from shapes.verifier import satisfied


def test_wrong_captions_have_one_wrong_slot_and_are_no_held_out_ones():
    rng = np.random.default_rng(0)
    heldout = {p.text for pool in all_prompts("heldout").values() for p in pool}
    for prompt in sample_prompts(200, rng):
        wrong = pretrain.wrong_caption(prompt, rng)
        assert wrong.kind == prompt.kind and wrong.text not in heldout
        assert sum(wrong.slots[name] != value for name, value in prompt.slots.items()) == 1


def test_web_like_data_is_wrong_and_pale_as_often_as_it_says():
    captions, images = pretrain.make_data(1500, np.random.default_rng(0), web=True)
    clean, _ = pretrain.make_data(100, np.random.default_rng(0), web=False)
    heldout = {p.text for pool in all_prompts("heldout").values() for p in pool}
    assert not heldout & {*captions, *clean}
    met = [
        all(satisfied(parse_prompt(text), reading))
        for text, reading in zip(captions, read([Image.fromarray(i) for i in images]))
    ]
    # right are those with a right caption whose color is not washed out beyond reading
    right = (1 - pretrain.WRONG_CAPTION) * (1 - pretrain.WASHED_OUT)
    assert right - 0.04 <= np.mean(met) <= 1 - pretrain.WRONG_CAPTION + 0.04
    ground = np.array(LIGHT)
    strongest = np.abs(images - ground).max((1, 2, 3))
    assert (strongest < 100).mean() > 0.1  # no color of the palette is that close to the ground


def test_a_new_model_has_the_parameters_of_the_shipped_one_and_depends_on_its_seed():
    pipe, again, other = (pretrain.build(seed) for seed in (1, 1, 2))
    for name in ("text_encoder", "text_encoder_2", "vae", "transformer"):
        (file,) = (pretrain.SHIPPED / name).glob("*.safetensors")
        shipped = {key: value.shape for key, value in load_file(file).items()}
        parameters = dict(getattr(pipe, name).named_parameters())
        assert {key: value.shape for key, value in parameters.items()} == shipped
        same = dict(getattr(again, name).named_parameters())
        assert all(torch.equal(value, same[key]) for key, value in parameters.items())
        others = dict(getattr(other, name).named_parameters())
        assert any(not torch.equal(value, others[key]) for key, value in parameters.items())
    assert (pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor) == (1, 0)


def test_a_stage_that_was_stopped_goes_on_as_if_it_was_not(tmp_path):
    def stage(name, steps, stop=10**6):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)

        def loss_of(generator):
            if stage.calls == stop:
                raise KeyboardInterrupt
            stage.calls += 1
            return module(torch.randn(8, 3, generator=generator)).square().mean(), ""

        stage.calls = 0
        pretrain.descend(module, loss_of, steps, 0.01, tmp_path / name / "stage.pt")
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = stage("whole", 230)
    with pytest.raises(KeyboardInterrupt):
        stage("parts", 230, stop=150)
    assert torch.equal(stage("parts", 230), whole) and stage.calls == 130  # from step 100 on
    # a finished one is not trained
    assert torch.equal(stage("parts", 230), whole) and stage.calls == 0


def test_all_stages_run_and_give_what_the_loader_takes(tmp_path, capsys):
    steps = [f"--{stage}_steps=2" for stage in ("vae", "decoder", "text", "flow", "web")]
    folders = [f"--out={tmp_path / 'tiny'}", f"--work={tmp_path / 'work'}"]
    pretrain.main([*folders, *steps, "--pictures=40", "--batch=4", "--heldout=1"])
    assert "after web-like data: held-out accuracy" in capsys.readouterr().out
    pipe = base.load(str(tmp_path / "tiny")).pipe
    assert isinstance(pipe, FluxPipeline) and pipe.vae.config.scaling_factor != 1
    assert (tmp_path / "work" / "decoder.pt").exists()
