"""Pre-training's data, schedule and resumption; and all its stages once, too small to learn."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from models import base
from shapes import pretrain
from shapes.grammar import parse_prompt
from shapes.prompts import all_prompts, sample_prompts
from shapes.read import COLOR_TOLERANCE, color_distances, read
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


def test_any_pictures_have_any_color_and_as_many_nested_as_asked():
    pictures = pretrain.any_pictures(300, np.random.default_rng(0), nested=1.0)
    middles = pictures[:, 16, 16].astype(float)
    distance = color_distances(middles).min(-1)
    assert np.median(distance) > COLOR_TOLERANCE  # the palette is a small part of all colors
    assert (pictures[:, 16, 16] != pictures[:, 0, 0]).any(1).mean() > 0.99


def test_the_learning_rate_rises_falls_and_ends_at_a_hundredth():
    rates = [pretrain.learning_rate(step, 200, 1.0) for step in range(200)]
    peak = int(np.argmax(rates))
    assert 5 <= peak <= 20 and rates[peak] > 0.98 and rates[0] < 0.2
    assert rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] == 0.01


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
