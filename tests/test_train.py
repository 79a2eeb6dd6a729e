"""The loop for real, small: one process, two, killed and resumed, and every wrong setting."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from diffusers import FluxPipeline
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import sampler
import train
from judges.mllm import Answer, StreamingMLLM
from support import processes
from support.config import Config
from support.files import hold
from support.processes import Processes
from support.run import StoppedError, start_run

SMALL = dict(
    model=str(ROOT / "assets" / "tiny-flux"),
    prompts_per_step=2,
    group_size=4,
    heldout=8,
    eval_every=2,
    checkpoint_every=1,
)


ALONE = Processes(0, 1, torch.device("cpu"))


def flags(**settings):
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


def command(out, **settings):
    return [sys.executable, str(ROOT / "train.py"), *flags(**(SMALL | settings), out=out)]


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
    cfg = Config(**(SMALL | {"steps": 2, "out": str(out)} | settings))
    run = start_run(cfg, Processes(0, 1, torch.device("cpu")))
    train.train(cfg, run.procs, run)
    run.finish()
    return log_of(out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The command from another folder, with its defaults for model and run directory."""
    folder = tmp_path_factory.mktemp("elsewhere")
    settings = flags(**{k: v for k, v in SMALL.items() if k != "model"}, steps=4)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "shapes", done.stdout


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
    }
    assert all(wanted <= set(row) for row in rows[1:])
    held = {"heldout_accuracy", "heldout_perfect", "heldout_fidelity", "win_rate_vs_base"}
    assert [held <= set(row) for row in rows] == [True, False, True, False, True]
    assert all(row["reward_mean"] == pytest.approx(0.5) for row in rows[1:])
    # 0 but for rounding: another batch shape
    assert rows[1]["kl_to_base"] < 1e-9 < rows[4]["kl_to_base"]
    assert rows[1]["ratio_min"] == rows[1]["ratio_max"] == 1.0


def test_final_is_what_plain_diffusers_loads(undisturbed):
    out, _ = undisturbed
    pipe = FluxPipeline.from_pretrained(out / "final")
    (picture,) = pipe("a red circle", height=32, width=32, num_inference_steps=2).images
    assert picture.size == (32, 32) and picture.convert("L").getextrema() != (0, 0)


def test_killed_and_resumed_is_bit_identical(undisturbed, tmp_path):
    whole, _ = undisturbed
    out = tmp_path / "killed"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(out, steps=4), env=env, **quiet)
    deadline = time.time() + 120
    while time.time() < deadline and not list(out.glob("checkpoint/*/.metadata")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(log_of(out)) < 5  # it was still at work
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')  # as a kill within a write leaves it
    done = subprocess.run([*command(out, steps=4), "--resume"], env=env, **quiet)
    assert done.returncode == 0, done.stderr
    assert log_of(out) == log_of(whole)
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_run_stopped_before_its_first_checkpoint_resumes_from_the_start(tmp_path):
    settings = SMALL | dict(steps=1, heldout=2, checkpoint_every=10)
    cfg = Config(**settings, out=str(tmp_path / "run"))
    start_run(cfg, Processes(0, 1, torch.device("cpu")))  # and no step is made
    assert len(log_of(tmp_path / "run")) == 1  # the base
    assert in_process(tmp_path / "run", **settings, resume=True) == in_process(
        tmp_path / "other", **settings
    )


def test_two_processes_average_to_the_gradient_of_one(tmp_path):
    small = dict(steps=1, prompts_per_step=4, heldout=2)
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    started = [
        subprocess.Popen(
            command(tmp_path / "two", **small),
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank)} | ranks,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    in_process(tmp_path / "one", **small)
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    moments = [moment_of(tmp_path / name) for name in ("one", "two")]
    assert moments[0].norm() > 0
    assert (moments[0] - moments[1]).norm() <= 1e-4 * moments[0].norm()
    assert len(log_of(tmp_path / "two")) == 2  # one log, not one a rank
    rows = [log_of(tmp_path / name)[1] for name in ("one", "two")]
    assert rows[0]["reward_std"] == pytest.approx(rows[1]["reward_std"])
    assert rows[0]["comparisons"] == rows[1]["comparisons"]


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path):
    norms = [
        in_process(tmp_path / str(size), steps=1, heldout=1, micro_batch=size)[1]["grad_norm"]
        for size in (0, 2)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": "pointwise", "same_noise": True},
        {"lora_rank": 4, "lora_alpha": 8, "window": 2, "window_range": "1:4"},
        {"sde_kind": "dance"},
    ],
    ids=str,
)
def test_the_variants_train(settings, tmp_path):
    rows = in_process(tmp_path / "run", heldout=2, **settings)
    assert rows[1]["ratio_max"] == 1.0 and rows[2]["grad_norm"] > 0 and rows[2]["kl_to_base"] > 0
    if "reward" in settings:
        assert 1 <= rows[1]["reward_mean"] <= 5
    if "lora_rank" in settings:
        assert list((tmp_path / "run" / "final").glob("*.safetensors"))


def test_a_mixture_trains_and_counts_both(tmp_path):
    mixture = f"pairwise:0.4,clip={ROOT / 'assets' / 'tiny-clip'}:0.6"
    row = in_process(tmp_path / "run", reward=mixture, steps=1)[1]
    assert row["pairwise_mean"] == pytest.approx(0.5) and row["clip_std"] > 0
    assert row["comparisons"] == 2 * 4 * 3 + 2 * 4  # pairs in both orders, and each image once
    assert row["grad_norm"] > 0 and "reward_mean" not in row


def test_one_bad_gradient_in_a_healthy_run_costs_no_checkpoint(tmp_path):
    out = tmp_path / "run"
    cfg = Config(**(SMALL | {"steps": 5, "eval_every": 9, "out": str(out)}))
    run = start_run(cfg, ALONE)
    weight, log = run.model.trainable()[0], run.log

    def poison_the_fourth(step, *rest):
        log(step, *rest)
        if step == 3:
            weight.register_hook(lambda grad: grad * math.nan)

    run.log = poison_the_fourth
    with pytest.raises(FloatingPointError) as told, run.ends_well():
        train.train(cfg, ALONE, run)
    for part in ("step 4,", "the gradient's norm is nan", "--lr 0.0001", "after step 2, 3"):
        assert part in str(told.value)
    assert [row["step"] for row in log_of(out)] == [0, 1, 2, 3]
    assert processes.checkpoint_steps(out / "checkpoint") == [2, 3]
    run.held.close()
    again = start_run(replace(cfg, resume=True), ALONE)
    assert all(torch.isfinite(p).all() for p in again.model.trainable())


def test_weights_that_ran_away_are_not_saved(tmp_path):
    cfg = Config(**(SMALL | {"steps": 3, "eval_every": 9, "out": str(tmp_path / "run")}))
    run = start_run(cfg, ALONE)
    made = run.optimizer.step

    def overflow():
        made()
        run.model.trainable()[0].data.flatten()[0] = math.inf

    run.optimizer.step = overflow
    with (
        pytest.raises(FloatingPointError, match="trained weights.* no checkpoint"),
        run.ends_well(),
    ):
        train.train(cfg, ALONE, run)
    assert [row["step"] for row in log_of(tmp_path / "run")] == [0]


# ----------------------------------------------------------------------------- odds and ends


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


class Says(StreamingMLLM):
    """A judge of one text for all; of some prompts, another one."""

    name = "says"

    def __init__(self, text, refused=(), refusal="I cannot say."):
        self.text, self.refused, self.refusal = text, refused, refusal

    def as_answered(self, queries):
        for k, query in enumerate(queries):
            no = any(prompt in query.text for prompt in self.refused)
            yield k, Answer(self.refusal if no else self.text)


def judged_by(judge, out, monkeypatch, **settings):
    monkeypatch.setattr("support.build.judge_of", lambda *_: judge)
    return in_process(out, **(dict(steps=1, heldout=3) | settings))


def test_a_judge_that_cannot_be_read_ends_with_no_claim_and_a_status(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="whether this run learned is not known"):
        judged_by(Says("Nice."), tmp_path / "run", monkeypatch, max_failed=1.0)
    said = capsys.readouterr().out
    assert "win rate against the base not measured" in said and "interval 0.5" not in said
    assert (
        "| win_rate_vs_base | 0.500 | not measured |"
        in (tmp_path / "run" / "final" / "README.md").read_text()
    )


def test_a_judge_that_says_one_thing_is_doubted_after_the_first_step(tmp_path, monkeypatch, caplog):
    judge = Says("<answer>Image 1 is better</answer>")
    judged_by(judge, tmp_path / "run", monkeypatch, steps=2)
    assert caplog.text.count("contradicts itself in 100% of pairs") == 1
    assert "in no group do rewards differ" in caplog.text


def test_a_prompt_that_is_always_refused_ends_no_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "p.txt").write_text("a red circle\na blue square\na red square\n")
    judge = Says("<answer>Image 1 is better</answer>", refused=["blue"])
    settings = dict(prompts=str(tmp_path / "p.txt"), heldout=1, steps=2)
    rows = judged_by(judge, tmp_path / "run", monkeypatch, **settings)
    assert [row["groups_lost"] for row in rows[1:]] == [1, 1]
    assert "of 1 group(s) no judgement could be read" in caplog.text


@pytest.fixture
def made(tmp_path):
    """A run of which one step is made and kept, with its settings."""
    cfg = Config(**(SMALL | {"steps": 9, "eval_every": 9, "out": str(tmp_path / "run")}))
    run = start_run(cfg, ALONE)
    steps = run.steps()
    train.step(cfg, ALONE, run, sampler.sigma_schedule(cfg.num_steps), next(steps))
    return cfg, run, steps


def test_a_first_signal_ends_after_the_step_and_a_second_at_once(made):
    _, run, steps = made

    def signalled(how_often):
        with run.ends_well():
            for _ in range(how_often):
                run.stop(signal.SIGINT)
            next(steps)

    with pytest.raises(StoppedError, match="by SIGINT: the state after step 1 is saved"):
        signalled(1)
    with pytest.raises(StoppedError, match="at once: .* keeps the state after step 1;"):
        signalled(2)
    with pytest.raises(KeyboardInterrupt):  # before and after the loop there is nothing to finish
        processes.Stop()(signal.SIGTERM)


def test_a_signal_within_a_checkpoints_write_waits_for_its_end(made, monkeypatch):
    _, run, steps = made
    save = processes.dcp.save

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr(processes.dcp, "save", interrupted)

    def two_steps():
        with processes.signals() as run.stop, run.ends_well():
            run.checkpoint(2)
            next(steps)

    with pytest.raises(StoppedError, match="by SIGTERM"):
        two_steps()
    assert processes.checkpoint_steps(run.out / "checkpoint") == [1, 2]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "failure",
    [
        FULL,
        RuntimeError("PytorchStreamWriter failed"),
        CheckpointException("save", {0: (FULL, [])}),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(failure, made, monkeypatch):
    _, run, _ = made

    def full(*_, checkpoint_id, **__):
        os.makedirs(checkpoint_id)
        raise failure

    monkeypatch.setattr(processes.dcp, "save", full)
    with pytest.raises(OSError, match="GB are free there") as told, run.ends_well():
        run.checkpoint(2)
    assert "step_000002" in str(told.value) and "keeps the state after step 1;" in str(told.value)
    assert "\n" not in str(told.value)


def main_says(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.main()
    return str(stop.value)


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"steps": 0}, "at least 1 and"),
        ({"group_size": 1}, "at least 2 and"),
        ({"size": 0}, "at least 8 and"),
        ({"noise_level": 0.0}, "no policy to learn"),
        ({"lr": "nan"}, "--lr nan: must be"),
        ({"reward": "elo"}, "unknown reward 'elo'"),
        ({"judge": "oracle"}, "choose from shapes, openai, local"),
        ({"recipe": "sdxl"}, "unknown --recipe"),
        ({"judge": "local"}, "--judge_model"),
        ({"judge_prompt": "no.txt"}, "no such file"),
        (
            {"judge": "openai", "base_url": "http://me:secret@host/v1"},
            "put them into OPENAI_BASE_URL",
        ),
        ({"soft": ""}, "--soft needs --judge local"),
        ({"judge": "openai", "base_url": "http://h/v1", "patience": 5.0}, "shorter than"),
        ({"reward": "pointwise", "judge_prompt": __file__}, "for a pairwise reward"),
        ({"recipe": "flux-lora"}, "needs --prompts FILE"),
        ({"prompts": "p.txt", "heldout": 0}, "--heldout N"),
        ({"prompts": "no.txt"}, "No such file"),
        ({"dtype": "bfloat16"}, "float32 master weights"),
        ({"dtype": "float16"}, "choose from float32, bfloat16"),
        ({"updates": 3}, "must divide the micro-batches"),
        ({"ema": 1.0}, "below 1"),
        ({"micro_batch": -1}, "at least 0"),
        ({"device": "gpu"}, "--device 'gpu' is none: cpu, cuda"),
        ({"device": "meta"}, "--device 'meta' is none"),
        ({"device": "cuda:99"}, "has none"),
        ({"logger": "paper"}, "choose from , tensorboard, wandb"),
        ({"model": "no/such/model"}, "no pipeline in"),
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
    with hold(tmp_path / ".lock"):  # as a run at work there does
        for more in ([], ["--resume"]):
            says = main_says(monkeypatch, "--out", str(tmp_path), *more)
            assert "another process trains in" in says
    out, _ = undisturbed
    again = flags(**SMALL, out=out, steps=4)
    assert "already holds a run" in main_says(monkeypatch, *again)
    assert "lr (0.0001 -> 0.1)" in main_says(monkeypatch, *again, "--resume", "--lr", "0.1")
