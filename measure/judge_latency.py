"""What a judge server's latency costs a step: judging against the ideal, and the share hidden.

    python -m measure.judge_latency       # about four minutes on two idle cores

The server takes L = 200 ms a call; C calls are in flight. The ideal is ceil(calls / C) * L. Bars:
judging within 1.15 of it; less than 20 % of it to be seen in the step where the rollout takes
longer, 1.3 times the ideal here. Two rollouts: one that waits, as for an accelerator, and one of
the tiny FLUX with as many denoising steps as that takes, which competes with server and client for
the CPU. Two figures for what is seen: the judging after the rollout's end, and the step's time less
that of the rollout alone.
"""

import argparse
import dataclasses
import math
import time

from judges.openai_client import OpenAIMLLM
from measure.servers import judge_server
from measure.speed import timed
from measure.step import Step
from rewards import PairwiseReward
from training.config import Config
from training.data import Batch, make_batch
from training.judging import in_background


def measure(step: Step, batch: Batch, url: str, latency: float, concurrency: int, rounds: int):
    cfg = step.cfg
    reward = PairwiseReward(OpenAIMLLM(url, concurrency=concurrency))
    calls = reward.calls(cfg.group_size) * cfg.prompts_per_step
    ideal = math.ceil(calls / concurrency) * latency
    images = step.sample(cfg, batch, len(batch.noise_seeds)).images
    for number in range(rounds):
        seconds, _ = timed(reward, batch.prompts, images)
        print(
            f"L {latency * 1000:.0f} ms, C {concurrency:2}, {calls} calls, judging alone, round "
            f"{number + 1}: {seconds:.2f} s / ideal {ideal:.2f} s = {seconds / ideal:.3f}"
            + " (opens the connections)"
            * (number == 0),
            flush=True,
        )

    def waiting(part: Batch):
        time.sleep(1.3 * ideal * len(part.prompts) / len(batch.prompts))
        return [images[batch.prompts.index(prompt)] for prompt in part.prompts]

    def sampling(part: Batch):
        return step.sample(cfg, part, cfg.group_size).images

    behind("elsewhere", ideal, waiting, reward, batch)
    seconds, _ = timed(lambda: [sampling(part) for part in batch.split(1)])
    # a rollout longer than judging
    steps = max(cfg.num_steps, math.ceil(cfg.num_steps * 1.3 * ideal / seconds))
    cfg = dataclasses.replace(cfg, num_steps=steps)
    behind("on this CPU", ideal, sampling, reward, batch)


def behind(where: str, ideal: float, sample, reward, batch: Batch) -> None:
    """Prints what is seen of judging behind a rollout, cut into groups as the loop does it."""
    alone, _ = timed(lambda: [sample(part) for part in batch.split(1)])
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
    step = Step(Config(prompts_per_step=args.prompts, group_size=args.group_size))
    batch = make_batch(step.cfg, None, 1)
    with judge_server(f"--latency={args.latency}") as server:
        for concurrency in args.concurrency:
            measure(step, batch, server.url, args.latency, concurrency, args.rounds)


if __name__ == "__main__":
    main()
