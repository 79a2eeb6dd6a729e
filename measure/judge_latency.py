"""What a judge server's latency costs a step: judging against the ideal, and the share hidden.

    python -m measure.judge_latency       # about four minutes on two idle cores

The server runs in a process of its own and takes L = 200 ms a call; C calls are in flight. The
ideal is ceil(calls / C) * L. Bars: judging within 1.15 of it; less than
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

import sampler
import train
from judges.openai_client import OpenAIMLLM
from models import base
from rewards import PairwiseReward
from shapes.prompts import heldout_prompts
from training.config import Config
from training.data import Batch
from training.distributed import in_background


def measure(
    cfg: Config, latency: float, concurrency: int, rounds: int, model, batch: Batch, images
) -> None:
    judge = OpenAIMLLM(cfg.base_url, concurrency=concurrency)
    reward = PairwiseReward(judge)
    calls = reward.calls(cfg.group_size) * cfg.prompts_per_step
    ideal = math.ceil(calls / concurrency) * latency
    for number in range(rounds):
        start = time.perf_counter()
        reward(batch.prompts, images)
        seconds = time.perf_counter() - start
        print(
            f"L {latency * 1000:.0f} ms, C {concurrency:2}, {calls} calls, judging alone, round "
            f"{number + 1}: {seconds:.2f} s / ideal {ideal:.2f} s = {seconds / ideal:.3f}"
            + (" (opens the connections)" if number == 0 else ""),
            flush=True,
        )

    def waiting(part: Batch):
        time.sleep(1.3 * ideal * len(part.prompts) / len(batch.prompts))
        return [images[batch.prompts.index(prompt)] for prompt in part.prompts]

    def sampling(part: Batch):
        sigmas = sampler.sigma_schedule(steps)
        return train.sample(
            model,
            part,
            sigmas,
            noise_level=cfg.noise_level,
            kind="flow",
            micro_batch=cfg.group_size,
        ).images

    behind("elsewhere", ideal, waiting, reward, batch)
    steps = cfg.num_steps
    seconds = rolled_out(sampling, batch)
    steps = max(steps, math.ceil(steps * 1.3 * ideal / seconds))  # a rollout longer than judging
    behind("on this CPU", ideal, sampling, reward, batch)


def rolled_out(sample, batch: Batch) -> float:
    """Seconds of the rollout without judging."""
    start = time.perf_counter()
    for part in batch.split(1):
        sample(part)
    return time.perf_counter() - start


def behind(where: str, ideal: float, sample, reward, batch: Batch) -> None:
    """Prints what is seen of judging behind a rollout, cut into groups as the loop does it."""
    alone = rolled_out(sample, batch)
    start, jobs = time.perf_counter(), []
    for part in batch.split(1):
        jobs.append(in_background(reward, part.prompts, sample(part)))
    rolled = time.perf_counter() - start
    for job in jobs:
        job()
    whole = time.perf_counter() - start
    print(
        f"  behind a rollout {where} of {rolled:.2f} s ({alone:.2f} s without judging): seen in "
        f"the step: {(whole - rolled) / ideal:.1%} of the ideal after the rollout, "
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
            cfg = Config(
                out=folder,
                judge="openai",
                base_url=url,
                prompts_per_step=args.prompts,
                group_size=args.group_size,
            )
            model = base.load(cfg.model, cfg.size)
            prompts = [p.text for p in heldout_prompts()[: args.prompts]]
            count = args.prompts * args.group_size
            batch = Batch(prompts, list(range(count)), list(range(count, 2 * count)), [])
            sigmas = sampler.sigma_schedule(cfg.num_steps)
            images = train.sample(
                model, batch, sigmas, noise_level=cfg.noise_level, kind="flow", micro_batch=count
            ).images
            for concurrency in args.concurrency:
                measure(cfg, args.latency, concurrency, args.rounds, model, batch, images)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
