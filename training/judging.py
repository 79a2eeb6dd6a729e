"""The rewards of a step: asked for while images are still being sampled, collected from all ranks.

judging.submit(prompts, images)             # some groups, for every reward of the run
compared, rewards = judging.collect()       # {name: Rewards} of this rank, and of all
"""

import functools
from collections.abc import Callable, Sequence

from rewards import Rewards, join
from training.distributed import Processes, in_background
from training.record import Record


class JudgeError(RuntimeError):
    """Too many comparisons or scores were lost for the reward to be trusted."""


class Judging:
    def __init__(
        self,
        rewards: dict[str, Callable],
        procs: Processes,
        max_failed: float,
        behind: bool = False,
        record: Record | None = None,
    ):
        """rewards: by name, each from prompts and images to Rewards; max_failed: the share of a
        step's judgments that may be lost; behind: whether they are asked for in the background
        while sampling goes on (a server), or when they are collected; record: of what was answered.
        """
        self.rewards, self.procs, self.max_failed = rewards, procs, max_failed
        self.begin = in_background if behind else functools.partial
        self.record = record
        self.pending: list[tuple[str, Callable]] = []

    def submit(self, prompts: Sequence[str], images: Sequence[Sequence]) -> None:
        """Begins to judge P prompts with P groups of G images."""
        self.pending += [(name, self.begin(r, prompts, images)) for name, r in self.rewards.items()]

    def collect(self) -> tuple[dict[str, Rewards], dict[str, Rewards]]:
        """Rewards by name of what was submitted: this rank's, with comparisons, and all ranks'.

        Raises JudgeError, on all ranks, if too much is lost, and StoppedError if a signal comes;
        what was answered is recorded before.
        """
        jobs, self.pending = self.pending, []
        parts = [(name, self.written(self.procs.unless_stopped(job))) for name, job in jobs]
        mine = {name: join([part for n, part in parts if n == name]) for name in self.rewards}
        ranks = self.procs.gather([{name: bare(part) for name, part in mine.items()}])
        rewards = {name: join([rank[name] for rank in ranks]) for name in mine}
        for name, result in rewards.items():
            check_lost(self.rewards[name].name, result, self.max_failed)
        return mine, rewards

    def written(self, part: Rewards) -> Rewards:
        if self.record:
            self.record.write(part.comparisons)
        return part


def bare(rewards: Rewards) -> Rewards:
    """Without the comparisons, whose images other ranks have no use for."""
    return rewards._replace(comparisons=())


def check_lost(name: str, rewards: Rewards, max_failed: float) -> None:
    """Raises JudgeError if more than that share of what was wanted is lost.

    A group that lost everything, such as that of a prompt which the judge refuses, has advantages
    of 0. It is set aside and does not count, if there are others, and such groups are one or no
    more than that share of all: else one prompt would end a run at the same step for ever. Those
    that were lost because the judge is dead, or wants a longer wait, are not set aside.
    """
    counts, groups = rewards.counts, len(rewards.values)
    lost = counts["failed"] + counts["unparsable"]
    aside = counts["groups_lost"] - counts["groups_unreachable"]
    spared = aside < groups and aside <= max(max_failed > 0, max_failed * groups)
    whole = counts["wanted"] // groups * aside if spared else 0
    if lost - whole > max_failed * (counts["wanted"] - whole):
        raise JudgeError(
            f"{name}: {lost} of {counts['wanted']} judgements lost ({counts['failed']} failed, "
            f"{counts['unparsable']} unparsable; {max_failed:.0%} allowed), "
            f"last error: {rewards.error}"
        )
