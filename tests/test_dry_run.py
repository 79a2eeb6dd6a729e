"""A dry run checks all that needs no weights, and says in the end whether the run can start."""

import os
import re
import subprocess
import sys
import types
from dataclasses import replace

import pytest
from conftest import ROOT

from shapes.server import served
from training import dry_run, plan
from training.config import Config, parse_config

TINY = str(ROOT / "assets" / "tiny-flux")


def refused(cfg) -> str:
    with pytest.raises(SystemExit, match="^verdict: this run would be refused: ") as stop:
        dry_run.main(cfg)
    return str(stop.value)


def test_a_dry_run_makes_every_check_of_the_run_and_tells_all_that_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    (tmp_path / "t.txt").write_text("no place for it")
    odd = dict(device="gpu", prompts="none.txt", heldout=3, out="run", base_url="nonsense")
    odd |= dict(judge="openai", judge_prompt="t.txt", opponents=1, updates=5, lora_rank=300)
    odd |= dict(patience=1.0, lora_alpha=3)
    said = refused(Config(model=TINY, dry_run=True, reward="pairwise,clip=./none", **odd))
    for part in (
        *("--device 'gpu'", "--prompts 'none.txt'", "already holds a run", "begin with http"),
        *("lacks {prompt}", "--opponents 1", "--updates 5", "--lora_rank 300", "'./none'"),
        "--patience 1.0",
    ):
        assert said.count(part) == 1
    for name, value in (("gpu_memory", -1.0), ("ranks", -2), ("size", 0), ("lr", float("nan"))):
        with pytest.raises(SystemExit, match=f"--{name} .*: must be a"):
            dry_run.main(Config(model=TINY, dry_run=True, **{name: value}))


def test_memory_and_disk_of_this_machine_count_unless_it_plans_for_another(
    uncounted, monkeypatch, capsys
):
    cfg = Config(model=TINY, dry_run=True, gpu_memory=1.0, out="none")
    dry_run.main(cfg)
    assert "main memory, each rank: 0.0" in capsys.readouterr().out
    monkeypatch.setattr(dry_run, "main_memory", lambda: 1e5)
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1e5))
    assert re.search("main memory, .*too little here.*; disk, .*too little", refused(cfg))
    dry_run.main(replace(cfg, ranks=2))
    assert "2 rank(s)" in capsys.readouterr().out
    said = dry_run.calls_in_flight(replace(cfg, concurrency=6), 2, 60)
    assert "6 calls in flight, 3 a rank;" in said and "60 take 1.7 minutes" in said
    assert "--gpu_memory 0.001 leaves" in refused(replace(cfg, ranks=2, gpu_memory=0.001))
    assert "--prompts_per_step 1 must be a multiple" in refused(
        replace(cfg, ranks=2, prompts_per_step=1)
    )


def test_the_verifier_is_refused_for_prompts_that_it_does_not_know(tmp_path, uncounted, capsys):
    """A file of its own sentences, however they are written, is not refused."""
    file = tmp_path / "p.txt"
    settings = dict(model=TINY, prompts=str(file), heldout=1, prompts_per_step=1)
    cfg = Config(**settings, out=str(tmp_path / "run"), dry_run=True)
    for foreign in ("a cat on a mat", "a red circle", "a large red circle on a mat"):
        file.write_text(f"A large red circle.\n{foreign}\n")
        said = f"1 of 2 prompts in --prompts '{file}' are none, such as '{foreign}': give --judge"
        assert said in refused(cfg)
    file.write_text("A large red circle.\ntwo circles, all of them blue\n")
    dry_run.main(cfg)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """What a FLUX run needs besides weights: prompts, a judge, and a machine large enough."""
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(200)))
    monkeypatch.setattr(dry_run, "main_memory", lambda: 1e12)
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1e13))
    with served() as server:
        files = [f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path}"]
        yield [*files, f"--base_url={server.url}"]


@pytest.mark.slow
def test_the_lora_recipe_fits_80_and_48_GB_and_with_offload_24(ready, capsys, monkeypatch):
    plans = []
    make = lambda *settings: plans.append(plan.make_plan(*settings)) or plans[0]
    monkeypatch.setattr(dry_run, "make_plan", make)
    flags = ["--recipe", "flux-lora", "--dry_run", "--offload", "--gpu_memory", "24"]
    dry_run.main(parse_config([*flags, *ready]))
    said = capsys.readouterr().out
    for part in ("11,935,028,288 (33,619,968 trained)", "4,885,371,136, VAE 83,819,683"):
        assert part in said
    held = plans[0].bytes
    assert held["weights"] < 0.6e9 < held["gathered"]
    whole = plans[0].offloaded(False)
    for memory in (80, 48):
        plan.refuse(whole, memory)
    with pytest.raises(SystemExit, match="--offload"):
        plan.refuse(whole, 24)
    assert "16 calls in flight, 16 a rank" in said
    assert "main memory, each rank: 37." in said  # pinned: 34 otherwise
    assert said.splitlines()[-1].startswith("verdict: this run can start")


@pytest.mark.slow
def test_the_full_recipe_fits_64_GPUs_and_its_dry_run_takes_less_than_4_GB(ready, tmp_path):
    with open(tmp_path / "plan.txt", "w") as out:
        flags = ["--recipe", "flux-full", "--ranks", "64", "--dry_run", *ready]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *flags], stdout=out, stderr=subprocess.DEVNULL
        )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and used.ru_maxrss < 4e6  # KB
    said = (tmp_path / "plan.txt").read_text()
    assert "64 rank(s), 64 prompts x 8 images" in said and "128 calls in flight, 2 a rank" in said
