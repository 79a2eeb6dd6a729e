"""What tests of real runs share: one process, a run of a few steps, and its log."""

import itertools
import json

import torch

import train
from support.processes import Processes
from support.run import Run, start_run

ALONE = Processes(0, 1, torch.device("cpu"))


def few_steps(run: Run, count=1) -> Run:
    """Makes so many steps of a run, and not its last, after which held-out prompts are measured and
    drawn: most tests are of what is learned, and that takes as long as two steps."""
    batches = run.batches
    run.batches = lambda *state: itertools.islice(batches(*state), count)
    train.train(run.cfg, run)
    return run


def stepped(cfg, count=1, procs=ALONE) -> Run:
    return few_steps(start_run(cfg, procs), count)


def whole_run(cfg) -> Run:
    run = start_run(cfg, ALONE)
    with run.ends_well():
        train.train(cfg, run)
        run.finish()
    return run


def log_of(out) -> list[dict]:
    """metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
