"""The run directory: loggers at work, the code on the model card, what a resumption may change."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT

from models import flux
from support.rundir import make_logger, prepare_run, write_card

TINY = str(ROOT / "assets" / "tiny-flux")
ROW = {"step": 3, "reward_mean": 0.5, "failed": 0, "delta_log_prob": [0.0, 1e-7]}


def test_tensorboard_gets_every_number_at_its_step(tmp_path, monkeypatch):
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, key, value, step):
            seen.append((key, value, step))

        def flush(self):
            seen.append("flushed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    make_logger("tensorboard", tmp_path, {})(ROW)
    assert seen == [
        str(tmp_path / "tensorboard"),
        ("reward_mean", 0.5, 3),
        ("failed", 0, 3),
        "flushed",
    ]


def test_wandb_gets_the_settings_and_every_number_at_its_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        types.SimpleNamespace(
            init=lambda **settings: seen.append((settings["config"], settings["name"])),
            log=lambda numbers, step: seen.append((numbers, step)),
        ),
    )
    make_logger("wandb", tmp_path, {"lr": 1e-4})(ROW)
    assert seen == [({"lr": 1e-4}, tmp_path.name), ({"reward_mean": 0.5, "failed": 0}, 3)]


def test_no_logger_says_nothing(tmp_path):
    assert make_logger("", tmp_path, {})(ROW) is None


@pytest.mark.parametrize("lora", [False, True])
def test_the_code_on_the_card_draws_what_the_run_would(lora, tmp_path, tiny_flux):
    """Run as it stands, with the placeholder filled in, in float32 on the CPU."""
    run = dict(dtype="float32", size=32, num_steps=2, guidance=3.5)
    (tmp_path / "config.json").write_text(json.dumps({"config": run}))
    final, pipe = tmp_path / "final", flux.load(TINY)
    if lora:
        flux.add_lora(pipe, 2)
    flux.save(pipe, final)
    scores = {"win_rate_vs_base": 0.5}
    settings = {"recipe": "shapes", "rewards": "clip", "guard": False, "base_url": "http://x"}
    write_card(
        final,
        "FluxPipeline",
        TINY,
        lora,
        settings,
        "it went well",
        {"base": scores, "trained": scores},
    )
    card = (final / "README.md").read_text()
    for part in (
        "it went well",
        "--recipe shapes",
        "--rewards clip",
        "--no-guard\n",
        "| win_rate_vs_base | 0.500 | 0.500 |",
        "library_name: diffusers",
        f"base_model: {TINY}",
    ):
        assert part in card
    assert "http://x" not in card and ("load_lora_weights" in card) == lora
    code = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(final))
    drawn = {}
    exec("import torch; torch.manual_seed(0)\n" + code, drawn)
    torch.manual_seed(0)
    same = tiny_flux(
        "a prompt",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.5,
        max_sequence_length=12,
    ).images[0]
    assert np.array_equal(np.asarray(drawn["image"]), np.asarray(same))


def test_a_run_resumes_on_other_hardware_but_not_as_another_run(tmp_path):
    settings = dict(out=str(tmp_path), resume=False, lr=1e-4, shard=True, micro_batch=4)
    prepare_run(settings)
    done = tmp_path / "checkpoint" / "step_000001"
    done.mkdir()
    (done / ".metadata").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    prepare_run(settings | dict(resume=True, shard=False, micro_batch=1))
    with pytest.raises(SystemExit, match=r"lr \(0.0001 -> 0.1\)"):
        prepare_run(settings | dict(resume=True, lr=0.1))
