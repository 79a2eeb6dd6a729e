"""What tests of runs share: one process or several in threads, a run of a few steps, its log."""

import functools
import itertools
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from conftest import ROOT

import train
from models import base
from training.distributed import Processes
from training.run import Run
from training.session import ends_well, start_run

ALONE = Processes(0, 1, torch.device("cpu"))
SHALLOW = tempfile.TemporaryDirectory()  # of the folder below, removed when the tests end


@functools.cache
def shallow() -> str:
    """A folder of the model that ships with the last block of each kind alone: its images are
    worse and still differ, and a step takes half the time."""
    model = base.load(str(ROOT / "assets" / "tiny-flux"))
    network = model.transformer
    network.transformer_blocks = network.transformer_blocks[-1:]
    network.single_transformer_blocks = network.single_transformer_blocks[-1:]
    network.register_to_config(num_layers=1, num_single_layers=1)
    model.pipe.save_pretrained(SHALLOW.name)
    return SHALLOW.name


def together(function, world=2) -> list:
    """What function(procs) gives on each of so many ranks, which are threads of this process."""
    barrier, given = threading.Barrier(world, timeout=60), [None] * world

    class Ranks(Processes):
        def gather(self, items):
            given[self.rank] = items
            barrier.wait()
            every = [item for part in given for item in part]
            barrier.wait()  # nobody gives anew what others have not taken
            return every

        def anywhere(self, here):
            return any(self.gather([here]))

    with ThreadPoolExecutor(world) as pool:
        ranks = [Ranks(rank, world, torch.device("cpu")) for rank in range(world)]
        return list(pool.map(function, ranks))


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
    with ends_well(run):
        train.train(cfg, run)
        run.finish()
    return run


def log_of(out) -> list[dict]:
    """metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
