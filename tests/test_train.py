"""The loop for real, small: one process, two, killed and resumed, and every wrong setting."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import train
from support import processes
from support.rundir import make_logger

SMALL = dict(
    model=str(ROOT / "assets" / "tiny-flux"),
    prompts_per_step=2,
    group_size=4,
    heldout=8,
    eval_every=2,
    checkpoint_every=1,
)


def flags(**settings):
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


def command(out, *launcher, **settings):
    python = [sys.executable, *launcher] if launcher else [sys.executable]
    return [*python, str(ROOT / "train.py"), *flags(**(SMALL | settings), out=out)]


def run(*args, **kwargs):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*args, **kwargs), env=env, capture_output=True, text=True, timeout=150
    )


def log_of(out):
    """metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def moment_of(out):
    """AdamW's first moment in the last checkpoint: after one step 0.1 times the clipped, averaged
    gradient."""
    file = out / "moments.pt"
    dcp_to_torch_save(processes.newest_checkpoint(out / "checkpoint"), file)
    state = torch.load(file, weights_only=True)["optimizer"]["state"]
    return torch.cat([state[name]["exp_avg"].flatten() for name in sorted(state)])


def in_process(out, **settings):
    cfg = train.Config(**(SMALL | {"steps": 2, "out": str(out)} | settings))
    train.train(cfg, train.Processes(0, 1, torch.device("cpu")))
    return log_of(out)


@pytest.fixture(autouse=True)
def small_grids(monkeypatch):
    """Fewer pictures to look at in the runs within this process; the subprocesses draw them all."""
    monkeypatch.setattr(train.Heldout, "GRID_ROWS", 2)
    monkeypatch.setattr(train.Heldout, "GRID_COLUMNS", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run(out, steps=4)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_leaves_what_the_readme_promises(undisturbed):
    out, printed = undisturbed
    for name in (
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "before_after.png",
        "checkpoint/step_000004/.metadata",
        "samples/step_00002.png",
        "samples/step_00004.png",
        "final/model_index.json",
    ):
        assert (out / name).stat().st_size > 0, name
    assert "held-out accuracy" in printed
    rows = log_of(out)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    wanted = {
        "reward_mean",
        "reward_std",
        "frac_floor",
        "tie_rate",
        "order_agreement",
        "unparsable",
        "failed",
        "ratio_mean",
        "ratio_min",
        "ratio_max",
        "clip_frac",
        "kl_to_base",
        "grad_norm",
        "delta_log_prob",
    }
    assert all(wanted <= set(row) for row in rows[1:])
    held = {"heldout_accuracy", "heldout_perfect", "heldout_fidelity", "win_rate_vs_base"}
    assert [held <= set(row) for row in rows] == [True, False, True, False, True]
    assert all(row["reward_mean"] == pytest.approx(0.5) for row in rows[1:])
    # 0 but for rounding: another batch shape
    assert rows[1]["kl_to_base"] < 1e-9 < rows[4]["kl_to_base"]
    assert rows[1]["ratio_min"] == rows[1]["ratio_max"] == 1.0


def test_final_is_what_plain_diffusers_loads(undisturbed, tmp_path):
    out, _ = undisturbed
    script = (
        "import sys, torch; from diffusers import FluxPipeline\n"
        "pipe = FluxPipeline.from_pretrained(sys.argv[1])\n"
        "pipe('a red circle', height=32, width=32, num_inference_steps=2, "
        "max_sequence_length=12).images[0].save('picture.png')\n"
        "assert not {'flux', 'train'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(out / "final")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_killed_and_resumed_is_bit_identical(undisturbed, tmp_path):
    whole, _ = undisturbed
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(out, steps=4),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while time.time() < deadline and not list(out.glob("checkpoint/*/.metadata")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(log_of(out)) < 5  # it was still at work
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')  # as a kill within a write leaves it
    done = subprocess.run(
        [*command(out, steps=4), "--resume"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert log_of(out) == log_of(whole)
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_run_stopped_before_its_first_checkpoint_resumes_from_the_start(tmp_path, monkeypatch):
    settings = dict(steps=1, heldout=2, checkpoint_every=10)
    with monkeypatch.context() as stopped:
        stopped.setattr(train, "train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            in_process(tmp_path / "run", **settings)
    assert len(log_of(tmp_path / "run")) == 1  # the base
    assert in_process(tmp_path / "run", **settings, resume=True) == in_process(
        tmp_path / "other", **settings
    )


def test_two_processes_average_to_the_gradient_of_one(tmp_path):
    in_process(tmp_path / "one", steps=1, prompts_per_step=4)
    two = run(
        tmp_path / "two",
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=29533",
        steps=1,
        prompts_per_step=4,
    )
    assert two.returncode == 0, two.stderr
    moments = []
    for name in ("one", "two"):
        moments.append(moment_of(tmp_path / name))
    assert moments[0].norm() > 0
    assert (moments[0] - moments[1]).norm() <= 1e-4 * moments[0].norm()
    assert len(log_of(tmp_path / "two")) == 2  # one log, not one a rank
    rows = [log_of(tmp_path / name)[1] for name in ("one", "two")]
    assert rows[0]["reward_std"] == pytest.approx(rows[1]["reward_std"])
    assert rows[0]["comparisons"] == rows[1]["comparisons"]


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path):
    norms = [
        in_process(tmp_path / str(size), steps=1, micro_batch=size)[1]["grad_norm"]
        for size in (0, 2)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": "pointwise"},
        {"lora_rank": 4},
        {"kl_coef": 0.1},
        {"guard": False},
        {"sde_kind": "dance"},
        {"same_noise": True},
    ],
    ids=str,
)
def test_the_variants_train(settings, tmp_path):
    rows = in_process(tmp_path / "run", **settings)
    assert rows[1]["ratio_max"] == 1.0 and rows[2]["grad_norm"] > 0 and rows[2]["kl_to_base"] > 0
    if "reward" in settings:
        assert 1 <= rows[1]["reward_mean"] <= 5
    if "lora_rank" in settings:
        assert list((tmp_path / "run" / "final").glob("*.safetensors"))


def test_prompts_from_a_file_in_bfloat16_with_all_that_saves_memory(tmp_path):
    (tmp_path / "prompts.txt").write_text(
        "\n".join(
            f"a large {color} {shape}"
            for color in ("red", "blue")
            for shape in ("circle", "square", "triangle")
        )
    )
    rows = in_process(
        tmp_path / "run",
        prompts=str(tmp_path / "prompts.txt"),
        heldout=2,
        steps=1,
        ema=0.9,
        dtype="bfloat16",
        lora_rank=2,
        gradient_checkpointing=True,
        vae_slicing=True,
        lr=1e-2,
        micro_batch=4,
        updates=2,
        text_cache=str(tmp_path / "texts"),
    )
    assert set(rows[0]) == {"step", "win_rate_vs_base"} and rows[1]["grad_norm"] > 0
    assert abs(rows[1]["ratio_max"] - 1) > 0  # the second update sees what the first one changed
    assert len(list((tmp_path / "texts").glob("*.safetensors"))) == 4  # 2 a step and 2 held out
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    for part in (
        "load_lora_weights",
        "on 2 held-out prompts",
        "--lora_rank 2",
        "| win_rate_vs_base | 0.500 |",
    ):
        assert part in card, card


def test_the_noise_floor_of_the_ratio_is_warned_of(tmp_path, monkeypatch, caplog):
    pipe = train.flux.load(SMALL["model"])
    # float32 weights: the wider bound
    cfg = train.Config(**SMALL, dtype="bfloat16", clip_range=1e-7)
    rollout = train.roll_out(pipe, cfg, ["a large red circle"], [[2, 4, 6, 8]])
    assert train.check_on_policy(pipe, cfg, rollout) == [0.0] * 5
    # other tests may have switched this logger's INFO lines on
    assert "noise floor" not in caplog.text
    with torch.no_grad():
        pipe.transformer.proj_out.bias += 1e-4
    assert 1e-8 < max(train.check_on_policy(pipe, cfg, rollout)) < 1e-4
    assert "noise floor" in caplog.text


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(kind, tmp_path, monkeypatch):
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=f"pip install {kind}"):
        make_logger(kind, tmp_path, {})


def test_a_replay_that_differs_stops_the_run(tmp_path, monkeypatch):
    pipe = train.flux.load(SMALL["model"])
    cfg = train.Config(**SMALL)
    rollout = train.roll_out(pipe, cfg, ["a large red circle"], [[2, 4, 6, 8]])
    train.check_on_policy(pipe, cfg, rollout)
    with torch.no_grad():
        pipe.transformer.proj_out.bias += 1e-3
    with pytest.raises(SystemExit, match="does not reproduce rollout"):
        train.check_on_policy(pipe, cfg, rollout)


def main_says(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.main()
    return str(stop.value)


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"steps": 0}, "at least 1 step"),
        ({"group_size": 1}, "at least 2 images"),
        ({"num_steps": 1}, "at least 2"),
        ({"noise_level": 0.0}, "no policy to learn"),
        ({"prompts_per_step": 0}, "multiple of"),
        ({"reward": "elo"}, "choose from pairwise, pointwise"),
        ({"judge": "oracle"}, "choose from shapes, openai, local"),
        ({"recipe": "sdxl"}, "unknown --recipe"),
        ({"judge": "local"}, "--judge_model"),
        ({"judge_prompt": "no.txt"}, "no such file"),
        (
            {"judge": "openai", "base_url": "http://me:secret@host/v1"},
            "put them into OPENAI_BASE_URL",
        ),
        ({"soft": ""}, "--soft needs --judge local"),
        ({"patience": 5.0}, "shorter than --call_timeout"),
        ({"reward": "pointwise", "judge_prompt": __file__}, "question of a pairwise reward"),
        ({"recipe": "flux-lora"}, "needs --prompts FILE"),
        ({"prompts": "p.txt", "heldout": 0}, "--heldout N"),
        ({"prompts": "no.txt"}, "No such file"),
        ({"dtype": "bfloat16"}, "float32 master weights"),
        ({"dtype": "float16"}, "choose from float32, bfloat16"),
        ({"updates": 3}, "must divide the micro-batches"),
        ({"ema": 1.0}, "a decay from 0"),
        ({"micro_batch": -1}, "or 0 for all"),
        ({"logger": "paper"}, "choose from , tensorboard, wandb"),
        ({"model": "no/such/model"}, "no FLUX pipeline in"),
        ({"size": 36}, "not a multiple of 8"),
    ],
)
def test_wrong_settings_get_one_sentence(setting, sentence, tmp_path, monkeypatch):
    # "": a switch
    given = [text for text in flags(**({"out": tmp_path / "run"} | SMALL | setting)) if text]
    says = main_says(monkeypatch, *given)
    assert sentence in says and "\n" not in says and "secret" not in says


def test_shards_and_lora_exclude_each_other(tmp_path, monkeypatch):
    says = main_says(monkeypatch, *flags(**SMALL, out=tmp_path, lora_rank=2), "--shard")
    assert "without --shard" in says


def test_an_unwritable_folder_a_missing_checkpoint_and_other_settings(
    undisturbed, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    assert "cannot write to --out" in main_says(
        monkeypatch, "--out", str(tmp_path / "file" / "run")
    )
    assert "nothing to resume" in main_says(monkeypatch, "--out", str(tmp_path / "new"), "--resume")
    out, _ = undisturbed
    again = flags(**SMALL, out=out, steps=4)
    assert "already holds a run" in main_says(monkeypatch, *again)
    assert "lr (0.0001 -> 0.1)" in main_says(monkeypatch, *again, "--resume", "--lr", "0.1")
