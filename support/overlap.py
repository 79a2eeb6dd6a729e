"""Judging behind the rollout: while a server judges some groups, the next ones are sampled.

A served judge leaves this machine idle, and sampling leaves the server idle: so a step's prompts
are cut into chunks of whole groups, and each is judged in the background as soon as it is sampled.
All chunks share the judge's slots, so that no slot waits for the end of a chunk. Rewards are made
at the end from all of them: they, and the share of comparisons that may be lost, are those of the
step.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future


def in_background(function: Callable, *args) -> Future:
    """The future result of function(*args) from a daemon thread, which no Ctrl-C has to wait
    for."""
    future = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # whatever it is, it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=work, name="judging", daemon=True).start()
    return future


def covered(spans: Iterable[tuple[float, float]], until: float = float("inf")) -> float:
    """Seconds up to `until` that lie in at least one of the spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        end = min(end, until)
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def roll_out_and_judge(roll_out: Callable, reward, chunks: Iterable[tuple[list, list]]):
    """(rollouts, one a chunk; RewardBatch of the step; seconds) for chunks of (prompts, seeds).

    seconds: of sampling; `judge`, in which judging was under way; `judge_hidden`, the part of it
    that passed while sampling. Raises what reward.judge and reward.result raise.
    """

    def judge(prompts: list, images: list) -> tuple:
        begin = time.perf_counter()
        return reward.judge(prompts, images), (begin, time.perf_counter())

    start = time.perf_counter()
    rollouts, judging = [], []
    for prompts, seeds in chunks:
        rollouts.append(roll_out(prompts, seeds))
        judging.append(in_background(judge, prompts, rollouts[-1].images))
    rolled = time.perf_counter()
    parts, spans = zip(*(future.result() for future in judging), strict=True)
    seconds = {
        "seconds_rollout": rolled - start,
        "seconds_judge": covered(spans),
        "seconds_judge_hidden": covered(spans, until=rolled),
    }
    return rollouts, reward.result(parts), seconds
