"""A run from its command to its end: tried, loaded, and ended in one sentence on all ranks alike.

with started(cfg) as run:               # cfg: config.Config; run: run.Run
    ...
"""

import contextlib
import dataclasses
import os
from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from training import checkpoint, distributed, start
from training import log as run_log
from training.benchmark import Benchmark
from training.checks import check_config
from training.config import Config
from training.data import make_batch
from training.distributed import Processes, StoppedError
from training.heldout import Heldout
from training.judging import JudgeError, Judging, Record
from training.run import Run

log = run_log.log


def start_run(cfg: Config, procs: Processes) -> Run:
    """The run that the settings name; its directory is locked until run.held closes.

    What can be wrong outside of the settings is tried first, on all ranks alike: the run directory,
    prompts, judge and scorers. Then weights are loaded, and the base is measured.
    """
    out = Path(cfg.out)
    with contextlib.ExitStack() as held:
        prepare = lambda: procs.is_main and held.enter_context(run_log.prepare_run(cfg))
        procs.on_all_ranks(prepare)
        last = procs.broadcast(checkpoint.newest_checkpoint, out / "checkpoint")
        contents = procs.broadcast(run_log.contents, cfg)
        procs.on_all_ranks(check_shared, cfg, contents, last if cfg.resume else None)
        prompts, judging, compare, measures, write = procs.on_all_ranks(tried, cfg, procs)
        bench_prompts, bench_judge = procs.on_all_ranks(start.bench_of, cfg, procs)
        model = procs.on_all_ranks(start.load_model, cfg, procs)
        if procs.world_size > 1 and not cfg.shard:
            model.policy = DistributedDataParallel(model.transformer)
        trained = sum(weight.numel() for weight in model.trainable())
        needed = run_log.disk_bytes(trained, cfg.ema, cfg.steps)
        procs.on_all_ranks(run_log.check_disk, out, needed)
        beside = dict(record=judging.record, measures=measures)
        heldout = Heldout(cfg, procs, model, compare, prompts, **beside)
        benched = [p.text for p in bench_prompts]
        if cfg.text_cache:
            drawn = [make_batch(cfg, prompts, step).prompts for step in range(1, cfg.steps + 1)]
            start.cache_text(model, cfg, procs, sum(drawn, []) + heldout.texts + benched)
        if procs.is_main and (cfg.judge != "shapes" or cfg.eval_judge or benched):
            log.info(start.call_budget(cfg, len(heldout.texts), len(benched)))
        heldout.measure_base()
        bench = Benchmark(cfg, procs, heldout, bench_prompts, bench_judge) if benched else None
        run = Run(cfg, procs, model, judging, heldout, prompts, bench)
        if bench and not last:
            with model.base() as base:
                run.metrics[0] |= bench.measure(0, base)
        if procs.is_main and not cfg.resume:  # the base, from which a run that is cut off begins
            run_log.write_metrics(out, run.metrics)
        run.write, run.held = write, held.pop_all()
    return run


def tried(cfg: Config, procs: Processes) -> tuple:
    """Prompts, judging, comparison, measures of held-out images, and logger of this rank; judges
    have seen two images."""
    prompts, out = start.prompts_of(cfg), Path(cfg.out)
    judge = start.judge_of(cfg, procs.world_size)
    rewards, compare = start.rewards_of(cfg, judge, procs.device), start.comparison_of(cfg, judge)
    if (doubt := start.try_judge(cfg, judge)) and procs.is_main:
        log.warning("%s", doubt)
    record = Record(out / "verdicts") if procs.is_main and cfg.judge != "shapes" else None
    # A server judges while sampling goes on; another judge is asked when its answer is needed.
    behind = cfg.judge == "openai"
    judging = Judging(rewards, procs, cfg.max_failed, behind, record, cfg.accept_judge)
    logger = run_log.make_logger(cfg.logger if procs.is_main else "", out, dataclasses.asdict(cfg))
    return prompts, judging, compare, start.measures_of(cfg, procs), logger


def check_shared(cfg: Config, contents: dict, last: Path | None) -> None:
    """Raises ValueError unless this rank sees the files that rank 0 sees, and what it has written.

    contents: run_log.contents on rank 0; last: the checkpoint to resume from, if there is one.
    """
    here = run_log.contents(cfg)
    odd = [f"--{name.split()[0]}" for name in here if here[name] != contents[name]]
    if odd:
        raise ValueError(f"{', '.join(odd)}: other files here than on rank 0; copy them anew")
    for written in [Path(cfg.out) / "config.json", *([last] if last else [])]:
        if not written.exists():
            raise ValueError(
                f"'{written}' is on rank 0 alone: --out must be a folder that all nodes share"
            )
    if last and (step := checkpoint.step_of(last)) > cfg.steps:
        raise ValueError(f"the run in '{cfg.out}' is at step {step}, past --steps {cfg.steps}")


@contextlib.contextmanager
def ends_well(run: Run):
    """An end before the last step, on all ranks alike, loses no whole step and says what stays.

    Where a judge fails and where signals are heeded the last whole step is still known: it is
    saved first. Numbers that are not finite come from weights that should not be.
    """
    cfg, stop, again = run.cfg, run.procs.stop, "repeat the command with --resume"
    stop.patient = True
    try:
        yield
    except JudgeError as error:
        slow = "no answer within" in str(error)
        few = f" ({cfg.concurrency} calls were in flight: --concurrency has fewer)" if slow else ""
        raise JudgeError(f"{error}{few}; {run.saved()}: when the judge answers again, {again}")
    except StoppedError as name:
        raise StoppedError(f"stopped by {name}: {run.saved()}; to go on, {again}")
    except KeyboardInterrupt:
        raise StoppedError(f"stopped at once: {run.kept()}; to go on from there, {again}")
    except FloatingPointError as error:
        cause = f"the base model overflows in --dtype {cfg.dtype}"
        if run.optimizer.state:  # a step was made, in this run or in the one that it resumes
            cause = f"--lr {cfg.lr:g} is too high, and weights have run away"
        raise FloatingPointError(
            f"step {run.at}, {error}: likely {cause}; nothing of it is saved, and {run.kept()}"
        )
    except OSError as error:  # such as a full disk
        raise OSError(f"{error}; {run.kept()}; to go on from there, {again}")
    finally:
        stop.patient = False


@contextlib.contextmanager
def started(cfg: Config):
    """The run that the settings name; whatever ends it is one sentence, printed by rank 0, and a
    status that is not 0."""
    sentence, is_main = None, os.environ.get("RANK", "0") == "0"
    try:
        check_config(cfg, int(os.environ.get("WORLD_SIZE", 1)))
        with distributed.signals() as stop:
            run = start_run(cfg, distributed.start_processes(cfg.device, cfg.shard, stop))
            with run.held, ends_well(run):
                yield run
    except (*distributed.SHARED_ERRORS, JudgeError) as error:
        sentence = str(error)
    except KeyboardInterrupt:
        sentence = "stopped before a step was made: nothing is lost, repeat the command"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if sentence:
        raise SystemExit(sentence if is_main else 1)
