"""Trains by a judge server with faults; by one that dies; ends with status 1 where a bar is missed.

    python -m measure.judge_faults              # 10 % 500s, 5 % garbage, 2 % hangs, 50 ms; 20 steps
    python -m measure.judge_faults --die kill   # the server's process is killed within a step
    python -m measure.judge_faults --die freeze # it accepts connections and answers none

Faults: prints the share of comparisons lost after retries (bar: under 1 %), and how many groups
that lost none have another win rate than a judge without faults gives to the same pictures (bar:
none). Group by group, since a lost comparison changes the weights, and so all pictures that come
after it.

Death: the real commands. Prints how long the run took to end, its status and last line; mends the
server, resumes, and compares log and weights with those of an undisturbed run. Bar for the time:
patience and two calls' timeouts, and 20 s for the pauses between retries and the rollout.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

import train
from rewards import PairwiseReward
from shapes.server import Faults, JudgeServer
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.distributed import Processes
from training.session import start_run

ROOT = Path(__file__).resolve().parent.parent


class Compared:
    """A reward whose answers are held against those of the verifier without a server."""

    def __init__(self, reward: PairwiseReward):
        self.reward, self.name, self.calls, self.made = reward, reward.name, reward.calls, []
        self.truth = PairwiseReward(ShapesMLLM(), opponents=reward.opponents)

    def __call__(self, prompts, images):
        result = self.reward(prompts, images)  # the loop asks about one group at a time
        lost = result.counts["failed"] + result.counts["unparsable"]
        wrong = not torch.equal(result.values, self.truth(prompts, images).values)
        self.made.append((lost, result.counts["wanted"], wrong and not lost, not lost))
        return result


def compare_with_faultless(cfg: Config) -> tuple[int, int, int, int]:
    """Comparisons lost, comparisons, groups with a wrong win rate and groups that lost none, in
    a run by a judge server."""
    procs = Processes(0, 1, torch.device("cpu"))
    run = start_run(cfg, procs)
    rewards = run.judging.rewards
    rewards["pairwise"] = compared = Compared(rewards["pairwise"])
    train.train(cfg, run)
    return tuple(map(sum, zip(*compared.made)))


def faults() -> str:
    """Bar 1, in words; SystemExit if it is missed."""
    server = JudgeServer(
        ShapesMLLM(), 0, Faults(latency=0.05, error_500=0.1, garbage=0.05, hang=0.02)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        # 4,480 comparisons: about 11 are lost, too many for a bar of 1 % to be met or missed by
        # luck.
        cfg = replace(
            Config(),
            model=str(ROOT / "assets" / "tiny-flux"),
            out=f"{folder}/run",
            steps=20,
            judge="openai",
            base_url=f"http://127.0.0.1:{server.server_port}/v1",
            call_timeout=3.0,
            prompts_per_step=4,
            group_size=8,
            heldout=32,
            eval_every=20,
        )
        lost, asked, wrong, groups = compare_with_faultless(cfg)
    said = (
        f"{cfg.steps} steps finished: {lost} of {asked} comparisons lost ({lost / asked:.2%}), "
        f"{server.calls} calls; of {groups} groups that lost none, {wrong} have another win "
        "rate than without faults"
    )
    if lost >= 0.01 * asked or wrong:
        raise SystemExit(f"missed: {said}")
    return said


def start_server(port: int = 0) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "shapes.server", "--port", str(port), "--latency", "0.05"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return server, int(server.stdout.readline().split(":")[-1].split("/")[0])


def start_process(out: Path, port: int, *flags: str) -> subprocess.Popen:
    settings = {
        "out": out,
        "judge": "openai",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "steps": 6,
        "prompts_per_step": 4,
        "heldout": 16,
        "eval_every": 6,
        "patience": 15,
        "call_timeout": 5,
    }
    command = [sys.executable, "train.py", *flags, *(f"--{k}={v}" for k, v in settings.items())]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> list[dict]:
    """The run's log, without what a clock says."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def death(how: str, folder: Path) -> str:
    """Bar 2, in words; SystemExit if it is missed."""
    server, port = start_server()
    whole, out = folder / "whole", folder / "disturbed"
    try:
        undisturbed = start_process(whole, port)
        errors = undisturbed.communicate()[1]
        if undisturbed.returncode:
            raise SystemExit(f"the undisturbed run failed: {errors}")
        run = start_process(out, port)
        while len(rows(out)) < 4 and run.poll() is None:  # step 3 is done; then, within step 4
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        start = time.perf_counter()
        errors = run.communicate()[1]
        seconds, last = time.perf_counter() - start, errors.strip().splitlines()[-1]
        if how == "kill":
            server.wait()
            server, _ = start_server(port)
        else:
            os.kill(server.pid, signal.SIGCONT)
        done = len(rows(out)) - 1
        resumed = start_process(out, port, "--resume")
        resumed.communicate()
    finally:
        server.kill()
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    same = not resumed.returncode and (out / weights).read_bytes() == (whole / weights).read_bytes()
    said = (
        f"{how}: the run ended {seconds:.1f} s later, status {run.returncode}, after step "
        f"{done} of 6, with '{last}'; resumed, log equal: {rows(out) == rows(whole)}, weights "
        f"equal: {same}"
    )
    if (
        seconds > 15 + 2 * 5 + 20
        or not run.returncode
        or "Traceback" in errors
        or not same
        or "last error: " not in last
        or rows(out) != rows(whole)
    ):
        raise SystemExit(f"missed: {said}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--die", choices=("kill", "freeze"), help="a server that dies, instead of faults"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(death(args.die, Path(folder)) if args.die else faults())


if __name__ == "__main__":
    main()
