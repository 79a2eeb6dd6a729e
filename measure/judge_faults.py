"""Trains by a judge server with faults; by one that dies; ends with status 1 where a bar is missed.

    python -m measure.judge_faults              # 10 % 500s, 5 % garbage, 2 % hangs, 50 ms; 20 steps
    python -m measure.judge_faults --die kill   # the server's process is killed within a step
    python -m measure.judge_faults --die freeze # it accepts connections and answers none

Faults: prints the share of comparisons lost after retries (bar: under 1 %), and how many groups
that lost none have another win rate than a judge without faults gives to the same images (bar:
none). Group by group, since a lost comparison changes the weights, and so all images that come
after it.

Death: the real commands. Prints how long the run took to end, its status and last line; mends the
server, resumes, and compares log and weights with those of an undisturbed run. Bar for the time:
patience and two calls' timeouts, and 20 s for the pauses between retries and the rollout.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import torch

import train
from measure.servers import ROOT, judge_server
from rewards import PairwiseReward
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.distributed import Processes
from training.session import start_run

FAULTS = ("--latency=0.05", "--error_500=0.1", "--garbage=0.05", "--hang=0.02")


class Compared:
    """A reward whose answers are held against those of the verifier without a server."""

    def __init__(self, reward: PairwiseReward):
        self.reward, self.name, self.calls, self.made = reward, reward.name, reward.calls, []
        self.exact = PairwiseReward(ShapesMLLM(), opponents=reward.opponents)

    def __call__(self, prompts, images):
        result = self.reward(prompts, images)  # the loop asks about one group at a time
        lost = result.counts["failed"] + result.counts["unparsable"]
        wrong = not torch.equal(result.values, self.exact(prompts, images).values)
        self.made.append((lost, result.counts["wanted"], wrong and not lost, not lost))
        return result


def compare_with_faultless(cfg: Config) -> tuple[int, int, int, int]:
    """Comparisons lost, comparisons, groups with a wrong win rate and groups that lost none, in
    a run by a judge server."""
    run = start_run(cfg, Processes(0, 1, torch.device("cpu")))
    rewards = run.judging.rewards
    rewards["pairwise"] = compared = Compared(rewards["pairwise"])
    train.train(cfg, run)
    return tuple(map(sum, zip(*compared.made)))


def faults(folder: Path) -> tuple[bool, str]:
    """Whether the bars are met, and what was seen."""
    with judge_server(*FAULTS) as server:
        # 4,480 comparisons: about 11 are lost, too many for a bar of 1 % to be met or missed by
        # luck.
        sizes = dict(steps=20, eval_every=20, prompts_per_step=4, group_size=8, heldout=32)
        served = dict(judge="openai", base_url=server.url, call_timeout=3.0)
        cfg = Config(out=str(folder / "run"), **sizes, **served)
        lost, asked, wrong, groups = compare_with_faultless(cfg)
    return lost < 0.01 * asked and not wrong, (
        f"{cfg.steps} steps finished: {lost} of {asked} comparisons lost ({lost / asked:.2%}), "
        f"{server.answered}; of {groups} groups that lost none, {wrong} have another win rate than "
        "without faults"
    )


# ----------------------------------------------------------------------------- death

SETTINGS = "--judge=openai --steps=6 --prompts_per_step=4 --heldout=16 --eval_every=6"
PATIENCE, TIMEOUT = 15, 5


def start_process(out: Path, url: str, *flags: str) -> subprocess.Popen:
    limits = (f"--patience={PATIENCE}", f"--call_timeout={TIMEOUT}")
    where = (f"--out={out}", f"--base_url={url}")
    command = [sys.executable, "train.py", *SETTINGS.split(), *limits, *where, *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> list[dict]:
    """The run's log, without what a clock measures."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def death(how: str, folder: Path) -> tuple[bool, str]:
    """Whether the bars are met, and what was seen."""
    whole, out, latency = folder / "whole", folder / "disturbed", "--latency=0.05"
    with judge_server(latency) as server:
        undisturbed = start_process(whole, server.url)
        errors = undisturbed.communicate()[1]
        if undisturbed.returncode:
            raise SystemExit(f"the undisturbed run failed: {errors}")
        run = start_process(out, server.url)
        while len(rows(out)) < 4 and run.poll() is None:  # step 3 is done; then, within step 4
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(server.process.pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        start = time.perf_counter()
        errors = run.communicate()[1]
        seconds, last = time.perf_counter() - start, errors.strip().splitlines()[-1]
        done = len(rows(out)) - 1
        if how == "freeze":
            os.kill(server.process.pid, signal.SIGCONT)
        port = urlsplit(server.url).port
        again = judge_server(latency, port=port) if how == "kill" else contextlib.nullcontext()
        with again:
            resumed = start_process(out, server.url, "--resume")
            resumed.communicate()
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    same = not resumed.returncode and (out / weights).read_bytes() == (whole / weights).read_bytes()
    equal = rows(out) == rows(whole)
    ended = run.returncode and "Traceback" not in errors and "last error: " in last
    return bool(seconds <= PATIENCE + 2 * TIMEOUT + 20 and ended and same and equal), (
        f"{how}: the run ended {seconds:.1f} s later, status {run.returncode}, after step {done} "
        f"of 6, with '{last}'; resumed, log equal: {equal}, weights equal: {same}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "a server that dies, instead of faults"
    parser.add_argument("--die", choices=("kill", "freeze"), help=text)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        met, seen = death(args.die, Path(name)) if args.die else faults(Path(name))
    if not met:
        raise SystemExit(f"missed: {seen}")
    print(seen)


if __name__ == "__main__":
    main()
