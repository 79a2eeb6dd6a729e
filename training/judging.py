"""The rewards of a step: asked for while images are still being sampled, collected from all ranks.

judging.submit(prompts, images)             # some groups, for every reward of the run
compared, rewards = judging.collect()       # {name: Rewards} of this rank, and of all

What a judge was asked and what it answered is written down for people, and bounded. Nothing is read
back: a run that goes on asks at most about the step that was interrupted.

verdicts.jsonl    one line an answer: question, answer and how it was read; at SIZE bytes it becomes
                  verdicts.old.jsonl, and a new one begins
pair_00.png, ...  the images of the first question of each call, the last PICTURES of them; the line
                  of that answer names the file
"""

import functools
import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from figures.pictures import sample_grid
from rewards import Rewards, join
from training.distributed import Processes

SIZE = 16_000_000  # bytes of one file of lines, of which there are two
PICTURES = 100


class JudgeError(RuntimeError):
    """Too many comparisons or scores were lost for the reward to be trusted."""


class Record:
    def __init__(self, folder: str | Path):
        self.folder, self.calls = Path(folder), itertools.count()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, comparisons: Sequence) -> None:
        """comparisons: rewards.Comparison, each with its query; none of a scorer."""
        if not comparisons:
            return
        shown, path = f"pair_{next(self.calls) % PICTURES:02}.png", self.folder / "verdicts.jsonl"
        sample_grid([comparisons[0].query.images], ["as they were shown"], self.folder / shown)
        for query, outcome in [(c.query, o) for c in comparisons for o in (*c.lost, c.outcome)]:
            answer = outcome.answer._asdict() if outcome.answer else {}
            answer.pop("tokens", None)
            name = shown if query is comparisons[0].query else ""
            line = {"pictures": name, "read_as": outcome.read_as, **answer, "question": query.text}
            with open(path, "ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                if file.tell() > SIZE:
                    os.replace(path, self.folder / "verdicts.old.jsonl")


def in_background(function: Callable, *args) -> Callable:
    """Starts function(*args) in a thread; returns what waits for its result, or raises its error.

    A daemon thread, which no Ctrl-C has to wait for, as an executor's would have to.
    """
    future = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # whatever it is, it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=work, name="judging", daemon=True).start()
    return future.result


class Judging:
    def __init__(
        self,
        rewards: dict[str, Callable],
        procs: Processes,
        max_failed: float,
        behind: bool = False,
        record: Record | None = None,
        accepted: str = "",
    ):
        """rewards: by name, each from prompts and images to Rewards; max_failed: the share of a
        step's judgments that may be lost; behind: whether they are asked for in the background
        while sampling goes on (a server), or when they are collected; record: of what was answered;
        accepted: names of models, with commas, whose answers count beside one other model's.
        """
        self.rewards, self.procs, self.max_failed = rewards, procs, max_failed
        self.begin = in_background if behind else functools.partial
        self.record = record
        self.accepted = {name.strip() for name in accepted.split(",")} - {""}
        self.known: set[str] = set()  # models that have answered, by the names that a server gives
        self.pending: list[tuple[str, Callable]] = []

    def submit(self, prompts: Sequence[str], images: Sequence[Sequence]) -> None:
        """Begins to judge P prompts with P groups of G images."""
        self.pending += [(name, self.begin(r, prompts, images)) for name, r in self.rewards.items()]

    def collect(self) -> tuple[dict[str, Rewards], dict[str, Rewards]]:
        """Rewards by name of what was submitted: this rank's, with comparisons, and all ranks'.

        Raises JudgeError, on all ranks, if too much is lost, or if another model answers than
        before; what was answered is recorded before.
        """
        jobs, self.pending = self.pending, []
        parts = [(name, answered(self.procs, self.record, job)) for name, job in jobs]
        mine = {name: join([part for n, part in parts if n == name]) for name in self.rewards}
        models = models_of(part for _, part in parts)
        ranks = self.procs.gather([({name: bare(part) for name, part in mine.items()}, models)])
        rewards = {name: join([rank[name] for rank, _ in ranks]) for name in mine}
        self.check_models(set().union(*(models for _, models in ranks)))
        for name, result in rewards.items():
            check_lost(self.rewards[name].name, result, self.max_failed)
        return mine, rewards

    def check_models(self, models: set[str]) -> None:
        """Raises JudgeError if answers come from more than one model that nobody accepted.

        APIs answer under one name with a model of another. Names are compared with each other, not
        with --judge_model, since servers give dated ones.
        """
        self.known = self.known | models
        if len(odd := sorted(self.known - self.accepted)) > 1:
            raise JudgeError(
                f"the judge's answers come from {len(odd)} models: {', '.join(odd)}; scores of two "
                "judges are two rewards. To go on all the same, name the newer one, or several "
                "with commas, as --accept_judge"
            )


def models_of(parts) -> set[str]:
    """The models that some Rewards' answers say they are from."""
    outcomes = [c.outcome for part in parts for c in part.comparisons]
    return {o.answer.model for o in outcomes if o.answer and o.answer.model}


def answered(procs: Processes, record: Record | None, job: Callable, *args) -> Rewards:
    """What job(*args) gives, written down. A signal to one rank breaks it off on that rank, and
    what ends one rank ends all."""
    rewards = procs.on_all_ranks(procs.stop.unless_asked, job, *args)
    if record:
        record.write(rewards.comparisons)
    return rewards


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
