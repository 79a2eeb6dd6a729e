"""What a judge server's latency costs a step: judging against the ideal, and the share hidden.

    python -m measure.judge_latency       # about four minutes on two idle cores; a script, not a test

The server runs in a process of its own and takes L = 200 ms a call; C calls are in flight. The
ideal is ceil(calls / C) * L. Bars: judging within 1.15 of it, the cache on disk included; less than
20 % of it to be seen in the step where the rollout takes longer, 1.3 times the ideal here. Two
rollouts: one that waits, as for an accelerator, and one of the tiny FLUX with as many denoising
steps as that takes, which competes with server and client for the CPU. Two figures for what is
seen: the judging after the rollout's end, and the step's time less that of the rollout alone.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import train
from judges.mllm import Cached, OpenAIMLLM
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from support.overlap import roll_out_and_judge

ROOT = Path(__file__).resolve().parent.parent


def measure(
    cfg: train.Config, latency: float, concurrency: int, rounds: int, pipe, rollouts
) -> None:
    judge, kept = (
        OpenAIMLLM(cfg.base_url, concurrency=concurrency),
        Path(cfg.out) / str(concurrency),
    )
    calls = PairwiseReward(judge).calls(cfg.group_size) * cfg.prompts_per_step
    ideal = math.ceil(calls / concurrency) * latency
    prompts, seeds, images = rollouts
    for number in range(rounds):
        reward = PairwiseReward(Cached(judge, kept / str(number)))  # empty, as with new pictures
        start = time.perf_counter()
        reward(prompts, images)
        seconds = time.perf_counter() - start
        print(
            f"L {latency * 1000:.0f} ms, C {concurrency:2}, {calls} calls, judging alone, round "
            f"{number + 1}: {seconds:.2f} s / ideal {ideal:.2f} s = {seconds / ideal:.3f}"
            + (" (opens the connections)" if number == 0 else ""),
            flush=True,
        )

    def waiting(chunk: list[str], _):
        time.sleep(1.3 * ideal * len(chunk) / len(prompts))
        return SimpleNamespace(images=[images[prompts.index(prompt)] for prompt in chunk])

    reward = PairwiseReward(Cached(judge, kept / "waiting"))
    chunks = [([prompt], [row]) for prompt, row in zip(prompts, seeds)]  # as sample_and_judge cuts
    behind("elsewhere", 1.3 * ideal, ideal, lambda: roll_out_and_judge(waiting, reward, chunks)[2])

    start = time.perf_counter()
    train.roll_out(pipe, cfg, prompts, seeds)
    steps = math.ceil(cfg.num_steps * 1.3 * ideal / (time.perf_counter() - start))
    cfg = replace(cfg, num_steps=max(steps, cfg.num_steps))
    start = time.perf_counter()
    train.roll_out(pipe, cfg, prompts, seeds)
    alone = time.perf_counter() - start
    learner = SimpleNamespace(pipe=pipe, encode=None)  # what sample_and_judge reads of it
    reward = PairwiseReward(Cached(judge, kept / "behind"))
    behind(
        "on this CPU",
        alone,
        ideal,
        lambda: train.sample_and_judge(learner, cfg, prompts, seeds, reward)[2],
    )


def behind(where: str, alone: float, ideal: float, step) -> None:
    """Prints what is seen of judging in step(), which gives the seconds of its parts."""
    start = time.perf_counter()
    took = step()
    whole = time.perf_counter() - start
    judged, hidden = took["seconds_judge"], took["seconds_judge_hidden"]
    print(
        f"  behind a rollout {where} of {took['seconds_rollout']:.2f} s ({alone:.2f} s without "
        f"judging): {judged:.2f} s of judging, {hidden / judged:.1%} hidden; seen in the step: "
        f"{(judged - hidden) / ideal:.1%} of the ideal after the rollout, "
        f"{(whole - alone) / ideal:.1%} of it over the rollout alone",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latency", type=float, default=0.2, help="seconds [0.2]")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = [sys.executable, "-m", "shapes.server", "--port", "0", "--latency", str(args.latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[-1]
        with tempfile.TemporaryDirectory() as folder:
            cfg = train.Config(
                model=str(ROOT / "assets" / "tiny-flux"),
                out=folder,
                judge="openai",
                base_url=url,
                prompts_per_step=args.prompts,
                group_size=args.group_size,
            )
            pipe = train.flux.load(cfg.model)
            prompts = [p.text for p in heldout_prompts()[: args.prompts]]
            seeds = [
                [2 * (p * args.group_size + g) for g in range(args.group_size)]
                for p in range(args.prompts)
            ]
            images = train.roll_out(pipe, cfg, prompts, seeds).images
            for concurrency in args.concurrency:
                measure(cfg, args.latency, concurrency, args.rounds, pipe, (prompts, seeds, images))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
