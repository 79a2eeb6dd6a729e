"""The loop for real, small: one process, two, killed and resumed, and every wrong setting."""

import errno
import io
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from conftest import ROOT
from diffusers import FluxPipeline
from fakes import FakeMLLM
from real_runs import ALONE, log_of, shallow, stepped, whole_run
from torch.distributed.checkpoint.api import CheckpointException

import train
from common.files import hold
from shapes.prompts import heldout_prompts
from training import checkpoint, distributed, start
from training.config import Config
from training.data import make_batch
from training.distributed import StoppedError
from training.session import ends_well, start_run

SMALL = dict(prompts_per_step=2, group_size=4, num_steps=3)
SMALL |= dict(heldout=8, eval_every=2, checkpoint_every=1)


def flags(**settings):
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


WHOLE = flags(**SMALL, steps=3)
WEIGHTS = "final/transformer/diffusion_pytorch_model.safetensors"


def small(out, **settings):
    """Settings of a run that is not measured on the way."""
    usual = SMALL | dict(steps=9, eval_every=9, heldout=1, out=str(out), model=shallow())
    return Config(**(usual | settings))


def train_in(folder, *arguments):
    """`python train.py` from a folder, but in this process, which has loaded the libraries: where
    the run is by default, and what was printed."""
    with pytest.MonkeyPatch.context() as here, redirect_stdout(io.StringIO()) as printed:
        here.chdir(folder)
        here.setattr(sys, "argv", ["train.py", *arguments])
        train.main()
    return folder / "runs" / "shapes", printed.getvalue()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The command from another folder, with its defaults for model and run directory."""
    return train_in(tmp_path_factory.mktemp("elsewhere"), *WHOLE)


LEFT = {
    "": {"config.json", "metrics.jsonl", "curves.png", "before_after.png", "gallery.html"},
    "samples": {"step_00002.png", "step_00003.png"},
    "final": {"model_index.json", "README.md"},
    "checkpoint/step_000003": {".metadata"},
}
STEP = "reward_mean reward_std frac_floor tie_rate order_agreement unparsable failed ratio_mean "
STEP += "ratio_min ratio_max clip_frac kl_to_base grad_norm"
HELD = "heldout_accuracy heldout_all_correct heldout_render_error win_rate_vs_base"


def test_a_run_leaves_what_the_readme_promises_and_plain_diffusers_loads(undisturbed):
    out, printed = undisturbed
    for folder, names in LEFT.items():
        assert names <= {file.name for file in (out / folder).iterdir() if file.stat().st_size}
    assert "held-out accuracy" in printed and "on 8 held-out prompts" in printed
    rows = log_of(out)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(set(row) >= {*STEP.split()} for row in rows[1:])
    measured = [row["step"] for row in rows if set(row) >= {*HELD.split()}]
    assert measured == [0, 2, 3]  # the last too
    assert all(row["reward_mean"] == pytest.approx(0.5) for row in rows[1:])
    # 0 but for rounding: another batch shape
    assert rows[1]["kl_to_base"] < 1e-9 < rows[3]["kl_to_base"]
    assert rows[1]["ratio_min"] == rows[1]["ratio_max"] == 1.0

    pipe = FluxPipeline.from_pretrained(out / "final")
    (picture,) = pipe("a red circle", height=32, width=32, num_inference_steps=2).images
    assert picture.size == (32, 32) and picture.convert("L").getextrema() != (0, 0)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(undisturbed, tmp_path):
    out, (whole, _) = tmp_path / "runs" / "shapes", undisturbed
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *WHOLE], cwd=tmp_path, stderr=subprocess.PIPE
    )
    deadline = time.time() + 120
    while time.time() < deadline and not list(out.glob("checkpoint/*/.metadata")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert len(log_of(out)) < 4  # it was still at work
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')  # as a kill within a write leaves it
    train_in(tmp_path, *WHOLE, "--resume")
    assert log_of(out) == log_of(whole)
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_the_best_held_out_step_is_exported_with_its_own_numbers(tmp_path, monkeypatch):
    """As final/ of a run that ends there, though this one has gone on."""
    first, cfg = small(tmp_path / "one", steps=1), small(tmp_path / "two", steps=2, eval_every=1)
    whole_run(replace(first, eval_every=1))
    whole_run(cfg).held.close()
    log, out = tmp_path / "two" / "metrics.jsonl", tmp_path / "two"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[1]["heldout_accuracy"] = 0.987
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--{f.name}={getattr(cfg, f.name)}" for f in fields(cfg) if f.type in (int, float)]
    flags += [f"--model={cfg.model}", f"--out={out}", "--resume", "--export", "best"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train.main()
    weights = Path("transformer/diffusion_pytorch_model.safetensors")
    one, best, final = (
        (folder / weights).read_bytes()
        for folder in (tmp_path / "one" / "final", out / "best", out / "final")
    )
    assert one == best != final
    card = (out / "best" / "README.md").read_text()
    assert "After step 1 of 2, the best" in card and "0.987" in card
    assert "After step 2, the last:" in (out / "final" / "README.md").read_text()
    shutil.rmtree(out / "checkpoint" / "step_000001")
    with pytest.raises(SystemExit, match="keeps no held-out step to export"):
        train.main()


VARIANTS = [
    {"reward": "pointwise", "same_noise": True, "sde_kind": "dance", "checkpoint_every": 2},
    {"lora_rank": 4, "lora_alpha": 8, "num_steps": 6, "window": 2, "window_range": "1:4"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_variants_train(settings, tmp_path):
    rows = stepped(small(tmp_path, **settings), 2).metrics
    saved = checkpoint.checkpoint_steps(tmp_path / "checkpoint")
    assert saved == ([2] if "checkpoint_every" in settings else [1, 2])
    assert rows[1]["ratio_max"] == 1.0 and rows[2]["grad_norm"] > 0 and rows[2]["kl_to_base"] > 0
    if "reward" in settings:
        assert 1 <= rows[1]["reward_mean"] <= 5


def test_one_bad_gradient_in_a_healthy_run_costs_no_checkpoint(tmp_path, caplog):
    cfg = small(tmp_path)
    run = start_run(cfg, ALONE)
    weight = run.model.trainable()[0]

    def poison_the_third(done):
        if done.step == 2:
            weight.register_hook(lambda grad: grad * math.nan)

    run.observers.append(poison_the_third)
    with pytest.raises(FloatingPointError) as told, ends_well(run):
        train.train(cfg, run)
    for part in ("step 3,", "the gradient's norm is nan", "--lr 0.0001", "after step 1, 2"):
        assert part in str(told.value)
    assert [row["step"] for row in log_of(tmp_path)] == [0, 1, 2]
    assert checkpoint.checkpoint_steps(tmp_path / "checkpoint") == [1, 2]
    run.held.close()
    with caplog.at_level(logging.INFO, "train"):
        again = stepped(replace(cfg, resume=True))
    assert "on-policy check" in caplog.text  # in each process: this one may be another machine
    assert all(torch.isfinite(p).all() for p in again.model.trainable())


def test_weights_that_ran_away_are_not_saved(tmp_path, monkeypatch):
    run = start_run(small(tmp_path), ALONE)
    weight = run.model.trainable()[0].data.view(-1)
    monkeypatch.setattr(train, "update", lambda *_: (weight.fill_(math.inf), []))
    cause = "trained weights: likely the base model overflows in --dtype float32; .* no checkpoint"
    with pytest.raises(FloatingPointError, match=cause), ends_well(run):
        train.train(run.cfg, run)
    assert [row["step"] for row in log_of(tmp_path)] == [0]


def test_a_judge_that_cannot_be_read_ends_with_no_claim_and_a_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.start.judge_of", lambda *_: FakeMLLM(lambda query: "Nice."))
    with pytest.raises(SystemExit, match="whether this run learned is not known"):
        whole_run(small(tmp_path, steps=1, max_failed=1.0))
    said = capsys.readouterr().out
    assert "win rate against the base not measured" in said and "interval 0.5" not in said
    card = (tmp_path / "final" / "README.md").read_text()
    assert "| win_rate_vs_base | 0.500 | not measured |" in card


def test_the_text_of_every_step_and_evaluation_is_cached(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("\n".join(p.text for p in heldout_prompts()[:20]))
    cfg = small(tmp_path / "run", steps=3, prompts=str(tmp_path / "p.txt"), text_cache="texts")
    cached, drawn = [], []
    monkeypatch.setattr(start, "cache_text", lambda *given: cached.extend(given[-1]))
    run = start_run(cfg, ALONE)
    run.held.close()
    drawn = sum((make_batch(cfg, run.prompts, step).prompts for step in (1, 2, 3)), [])
    assert {*drawn, *run.heldout.texts} == {*cached} and len({*drawn}) == 6


def test_ranks_encode_each_text_once(tmp_path, monkeypatch):
    made, texts = MagicMock(), list("abcdeab")
    monkeypatch.setattr(start, "TextCache", lambda *_: made)
    for rank in range(3):
        procs = SimpleNamespace(rank=rank, world_size=3, meet=lambda: None, device="cpu")
        start.cache_text(MagicMock(), small(tmp_path), procs, texts)
    shares = [call.args[0] for call in made.prepare.call_args_list]
    assert shares == [["a", "d"], ["b", "e"], ["c"]]


@pytest.fixture
def made(tmp_path):
    """A run of which one step is made and kept."""
    return stepped(small(tmp_path), procs=replace(ALONE, stop=distributed.Stop()))


def end_of(run, *calls) -> str:
    """What is said when these end a run."""

    def called():
        with ends_well(run):
            for call in calls:
                call()

    with pytest.raises((StoppedError, OSError)) as told:
        called()
    return str(told.value)


SAVED, AT_ONCE = "by {}: the state after step 1 is saved", "keeps the state after step 1;"
SIGNALS = {
    ("SIGINT",): SAVED,
    ("SIGHUP", "SIGHUP"): SAVED,
    ("SIGUSR1", "SIGTERM"): SAVED,
    ("SIGINT", "SIGINT"): AT_ONCE,
    ("SIGUSR1", "SIGTERM", "SIGINT"): AT_ONCE,
    ("SIGTERM", "SIGHUP", "SIGTERM"): AT_ONCE,
}


def test_a_second_ctrl_c_or_sigterm_ends_at_once_and_other_signals_do_not(made):
    for names, end in SIGNALS.items():
        made.procs = replace(made.procs, stop=distributed.Stop())
        heard = [partial(made.procs.stop, getattr(signal, name)) for name in names]
        said = end_of(made, *heard, made.boundary)
        assert end.format(names[0]) in said and ("at once" in said) == (end == AT_ONCE), names


def test_what_torchrun_passes_on_is_not_a_second_ctrl_c(monkeypatch):
    """A terminal sends Ctrl-C to all; torchrun then sends SIGTERM to those who had it."""
    stop = distributed.Stop()
    stop.patient = True
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setattr(distributed.time, "monotonic", lambda: 10.0)

    def ends(since) -> bool:
        stop.since = since
        try:
            stop(signal.SIGTERM)
        except KeyboardInterrupt:
            return True
        return False

    stop(signal.SIGINT)
    assert [ends(since) for since in (9.5, 8.5)] == [False, True]


def test_a_signal_is_heard_unless_whoever_started_the_process_has_it_ignored():
    """None is sent: where nobody listened, it would end all tests."""
    numbers, hangup = [getattr(signal, name) for name in distributed.SIGNALS], signal.SIGHUP
    outside = signal.signal(hangup, signal.SIG_DFL)  # under nohup the tests have it ignored
    before = [signal.getsignal(number) for number in numbers]
    try:
        with distributed.signals() as stop:
            assert [signal.getsignal(number) for number in numbers] == [stop] * len(numbers)
            with pytest.raises(KeyboardInterrupt):  # before and after the loop nothing is to finish
                stop(signal.SIGTERM)
        assert [signal.getsignal(number) for number in numbers] == before
        signal.signal(hangup, signal.SIG_IGN)
        with distributed.signals():
            assert signal.getsignal(hangup) is signal.SIG_IGN
    finally:
        signal.signal(hangup, outside)


def test_a_signal_within_a_checkpoints_write_waits_for_its_end(made, monkeypatch):
    save = checkpoint.dcp.save

    def interrupted(*args, **kwargs):
        made.procs.stop(signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoint.dcp, "save", interrupted)
    assert "by SIGTERM" in end_of(made, partial(made.checkpoint, 2), made.boundary)
    assert checkpoint.checkpoint_steps(made.out / "checkpoint") == [1, 2]


# Where a signal comes, and the step whose state is kept then.
PASSES = {
    "the first rollout": (lambda run: True, 0),
    "an update": (lambda run: run.at == 2 and torch.is_grad_enabled(), 1),
    "a second update": (lambda run: run.at == 2 and run.moved, 1),
    "an evaluation": (lambda run: run.at == run.metrics[-1]["step"] == 2, 2),
}
JUDGED = {"judging": 2, "judging of an evaluation": 3}


def stopped(cfg, place):
    """A run to which a signal comes at one place; what is said of its end."""
    run = start_run(cfg, replace(ALONE, stop=distributed.Stop()))
    boundary = run.boundary

    def signalled(*_):
        run.procs.stop(signal.SIGTERM)
        pytest.fail("the judge is waited for")

    signalled.name = "judge"

    def before_pass():
        if place in PASSES and PASSES[place][0](run):
            run.procs.stop(signal.SIGTERM)
        boundary()
        assert not run.procs.stop.asked  # it has ended here

    run.boundary = before_pass
    if place == "judging":
        run.judging.rewards = {"pairwise": signalled}
    if place == "judging of an evaluation":
        run.heldout.compare = signalled
    with run.held, pytest.raises(StoppedError) as told, ends_well(run):
        train.train(cfg, run)
    return str(told.value)


def test_stopped_at_every_place_and_resumed_is_bit_identical(tmp_path):
    """One run is stopped at each place in turn, before the very next pass; nothing but these ends
    saves a state of it."""
    kept = dict(steps=3, eval_every=2, checkpoint_every=9, micro_batch=4, updates=2)
    whole, cfg = small(tmp_path / "whole", **kept), small(tmp_path / "stopped", **kept)
    whole_run(whole).held.close()
    places = {place: step for place, (_, step) in PASSES.items()} | JUDGED
    for place, step in places.items():
        said = stopped(cfg, place)
        cfg = replace(cfg, resume=True)
        assert "stopped by SIGTERM" in said and "--resume" in said and "\n" not in said
        assert (f"after step {step}" if step else "no step was whole yet") in said
        newest = checkpoint.newest_checkpoint(tmp_path / "stopped" / "checkpoint")
        assert (checkpoint.step_of(newest) if newest else 0) == step, place
    whole_run(cfg)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


FULL = OSError(errno.ENOSPC, "No space left on device")
BROKEN = RuntimeError("PytorchStreamWriter failed")


FAILURES = (FULL, BROKEN, CheckpointException("save", {0: (FULL, [])}))


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(made, monkeypatch):
    for failure in FAILURES:

        def full(*_, checkpoint_id, failure=failure, **__):
            os.makedirs(checkpoint_id)
            raise failure

        monkeypatch.setattr(checkpoint.dcp, "save", full)
        said = end_of(made, partial(made.checkpoint, 2))
        for part in ("GB are free there", "step_000002", "keeps the state after step 1;"):
            assert part in said and "\n" not in said, failure


def main_says(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.main()
    return str(stop.value)


@pytest.mark.parametrize(
    "setting, named",
    [
        ({"steps": 0}, "steps"),
        ({"judge": "openai", "base_url": "http://me:secret@host/v1"}, "OPENAI_BASE_URL"),
        ({"prompts": "no.txt"}, "--prompts 'no.txt'"),
        ({"device": "gpu"}, "--device 'gpu'"),
        ({"device": "cuda:99"}, "--device 'cuda:99'"),
        ({"model": "no/such/model"}, "no pipeline in"),
        ({"size": 36}, "not a multiple of 8"),
    ],
)
def test_wrong_settings_get_one_sentence(setting, named, tmp_path, monkeypatch):
    """Of settings, files, devices and models; test_config has each setting's."""
    says = main_says(monkeypatch, *flags(**({"out": tmp_path / "run"} | SMALL | setting)))
    assert named in says and "\n" not in says and "secret" not in says


def test_an_unwritable_folder_a_missing_checkpoint_and_other_settings(
    undisturbed, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "run")
    assert "cannot write to --out" in main_says(monkeypatch, "--out", below)
    assert "nothing to resume" in main_says(monkeypatch, "--out", str(tmp_path / "new"), "--resume")
    with hold(tmp_path / ".lock"):  # as a run at work there does
        for more in ([], ["--resume"]):
            says = main_says(monkeypatch, "--out", str(tmp_path), *more)
            assert "another process trains in" in says
    out, _ = undisturbed
    again = [*WHOLE, "--out", str(out)]
    assert "already holds a run" in main_says(monkeypatch, *again)
    assert "lr (0.0001 -> 0.1)" in main_says(monkeypatch, *again, "--resume", "--lr", "0.1")


LOOK = """
import builtins, os, sys
real = builtins.__import__
def imported(name, *rest):
    if name == "torch":
        print(os.environ.get("GOMP_SPINCOUNT"))
        os._exit(0)
    return real(name, *rest)
builtins.__import__ = imported
"""
TOUR = json.loads((ROOT / "tour.ipynb").read_text(encoding="utf-8"))["cells"][1]["source"]


@pytest.mark.parametrize(
    "imports, given, expected",
    [
        ("import train", {}, "2000"),
        ("import train", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("import train", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import exercises.hack", {}, "2000"),
        ("import study.scorers", {}, "2000"),
        ("import measure.speed", {}, "2000"),
        ("import shapes.pretrain", {}, "2000"),
        ("".join(TOUR).replace("from IPython", "#"), {}, "2000"),
    ],
)
def test_idle_threads_let_go_of_cores_unless_the_user_says_how_they_wait(imports, given, expected):
    """It is set before torch is imported, which reads it once, wherever training starts."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-u", "-c", LOOK + imports]
    found = subprocess.run(command, cwd=ROOT, env=clean | given, capture_output=True, text=True)
    assert found.stdout.strip() == expected, found.stderr
