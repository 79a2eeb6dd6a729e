"""What stands around the loop: a run's steps, what follows each, its checkpoints and its end.

run = start_run(cfg, procs)                 # cfg: config.Config; loads, and measures the base
for step, parts in run.batches(optimizer, average): ...; run.after(train.TrainStep(...))
run.finish()                                # final/, pictures, the result in words
"""

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from common.files import writing
from figures import explain, gallery, pictures
from models.base import check_finite
from training import diagnostics, distributed, start
from training import log as run_log
from training.checks import check_config
from training.config import Config, micro_batch_of, parse_rewards
from training.data import Prompts, make_batch
from training.distributed import Processes, StoppedError
from training.heldout import Heldout
from training.judging import JudgeError, Judging
from training.record import Record

log = run_log.log


# ----------------------------------------------------------------------------- the run


class Run:
    """The loop's model, batches and judging, and what follows each of its steps."""

    def __init__(self, cfg: Config, procs: Processes, prompts: Prompts | None, judging, compare):
        """judging: Judging; compare: the PairwiseReward that progress is measured with."""
        self.cfg, self.procs, self.out, self.judging = cfg, procs, Path(cfg.out), judging
        self.model = procs.on_all_ranks(start.load_model, cfg, procs)
        transformer = self.model.transformer
        if not cfg.shard:
            self.model.policy = distributed.replicate(transformer, procs)
        trained = sum(weight.numel() for weight in self.model.trainable())
        procs.on_all_ranks(
            run_log.check_disk, self.out, run_log.disk_bytes(trained, cfg.ema, cfg.steps)
        )
        samples = cfg.prompts_per_step // procs.world_size * cfg.group_size
        self.micro_batch = micro_batch_of(cfg, samples)
        self.weights = {name: part.weight for name, part in parse_rewards(cfg.reward).items()}
        # Parts of whole groups and whole micro-batches: the update's are those of the rollout.
        whole = math.lcm(self.micro_batch, cfg.group_size) // cfg.group_size
        groups = whole if cfg.judge == "openai" else cfg.prompts_per_step
        # All that is random in the run, by step and rank: drawn when it is asked for.
        draw = functools.partial(make_batch, cfg, prompts)
        self.parts = lambda step: draw(step, procs.rank, procs.world_size).split(groups)
        record = judging.record
        self.heldout = Heldout(cfg, procs, self.model, compare, prompts, record=record)
        if cfg.text_cache:
            steps = range(1, cfg.steps + 1)
            drawn = [text for s in steps for text in draw(s).prompts]  # of all ranks
            start.cache_text(self.model, cfg, procs, drawn + self.heldout.texts)
        if procs.is_main and cfg.judge != "shapes":
            log.info(start.call_budget(cfg, len(self.heldout.texts)))
        self.heldout.measure_base()
        self.metrics = [{"step": 0, **self.heldout.base.metrics()}]
        self.write = lambda row: None
        self.at = 0  # the step at work
        self.seconds, self.kl = {}, 0.0  # of the step at work
        self.warned = Counter()  # warnings of each kind, and steps
        self.last = None  # the last evaluation of this process: (Held, grid)
        self.label = "training"  # of the progress bar
        self.observers = []  # of a study: called with each train.TrainStep, after the run's own

    @property
    def state(self) -> tuple:
        return self.model.transformer, self.optimizer, self.average

    def batches(self, optimizer, average):
        """Each step that is left, with what this rank samples in it, some groups a part.

        optimizer, average: of the model; they take up the checkpoint that the run resumes from.
        """
        self.optimizer, self.average = optimizer, average
        self.take_up()
        self.last_whole = distributed.LastWhole(*self.state, self.cfg.updates)
        self.model.before_pass = self.boundary
        for step in self.steps():
            yield step, self.parts(step)

    def take_up(self) -> None:
        """Weights, optimizer, average and log of the last checkpoint, with --resume."""
        last = self.procs.broadcast(distributed.newest_checkpoint, self.out / "checkpoint")
        if self.cfg.resume and last:  # none: stopped before the first
            distributed.load_checkpoint(last, *self.state)
            loaded = [("the checkpoint", weight) for weight in self.model.trainable()]
            self.procs.on_all_ranks(check_finite, loaded)
            self.metrics = run_log.read_metrics(self.out, distributed.step_of(last))
        if self.procs.is_main:
            run_log.write_metrics(self.out, self.metrics)

    def boundary(self) -> None:
        """Before each pass: the run ends here if a signal asked for it, on all ranks alike, unless
        the last whole step is lost by then and the present one has but to be written down."""
        if self.last_whole.known:
            self.procs.boundary()

    def evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.cfg.eval_every == 0 or step == self.cfg.steps)

    def steps(self):
        """The steps that are left, with a progress bar."""
        done = self.metrics[-1]["step"]
        self.first_step = done + 1  # of this process
        self.bar = tqdm(
            range(done + 1, self.cfg.steps + 1),
            initial=done,
            total=self.cfg.steps,
            desc=self.label,
            leave=self.label == "training",  # else one bar is seen at a time
            disable=not self.procs.is_main,
        )
        if self.evaluates(done) and "win_rate_vs_base" not in self.metrics[-1]:
            self.evaluate(done)  # the judge failed within it: only that is left of the step
        for step in self.bar:
            self.at = step
            yield step
            if step < self.cfg.steps:
                self.procs.boundary()

    @contextlib.contextmanager
    def timed(self, what: str):
        """Adds the seconds of a part of the step to the log."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds_{what}"] = time.perf_counter() - start

    def own(self, values: torch.Tensor) -> torch.Tensor:
        """This rank's groups, of (P, G) of all ranks: (B,), on the device."""
        return values.chunk(self.procs.world_size)[self.procs.rank].flatten().to(self.procs.device)

    def check(self, step: int, rollout) -> None:
        """Is replay the rollout, before anything is learned? How far is the base?"""
        cfg = self.cfg
        if step == self.first_step:  # after --resume too: ranks, device or versions may be others
            how = (slice(0, self.micro_batch), cfg.dtype, cfg.guard, cfg.clip_range)
            self.procs.on_all_ranks(diagnostics.check_on_policy, self.model, rollout, *how)
        count = min(cfg.group_size, self.micro_batch)
        self.kl = diagnostics.kl_to_base(self.model, rollout, count)

    def after(self, done) -> None:
        """Adds the step's line to metrics.jsonl; shows, evaluates and saves where it is time to.

        done: train.TrainStep.
        Raises FloatingPointError, before anything is written, if weights are no longer finite.
        """
        step, trained = done.step, [("the trained weights", w) for w in self.model.trainable()]
        self.procs.on_all_ranks(check_finite, trained)
        mine = run_log.learning_of(done.losses, done.norms) | {
            "kl_to_base": self.kl,
            **self.seconds,
        }
        row = {"step": step, **run_log.judging_of(done.rewards), "frac_floor": done.frac_floor}
        self.metrics.append(row | run_log.over_ranks(self.procs.gather([mine])))
        self.last_whole.whole()
        self.warn()
        if self.procs.is_main and (step == 1 or self.evaluates(step)):
            gallery.keep(self.out, self.heldout.compare.name, done)
        self.evaluate(step) if self.evaluates(step) else self.save(step)
        for observe in self.observers:
            observe(done)

    def warn(self) -> None:
        """Warns of what says that nothing is learned, or too much; of each kind the 1st, 2nd, 4th,
        ... time."""
        for kind, sentence in diagnostics.warnings_of(self.metrics, not self.warned).items():
            self.warned[kind] += 1
            if self.procs.is_main and self.warned[kind].bit_count() == 1:
                log.warning("step %d: %s", self.metrics[-1]["step"], sentence)
        self.warned["step"] += 1

    def evaluate(self, step: int) -> None:
        shown = self.cfg.judge == "shapes" and self.heldout.scenes  # where a verdict costs nothing
        scene = self.heldout.scenes[0] if shown else None
        with self.average.swapped_in():
            self.last = self.heldout.evaluate(), self.heldout.grid_images(self.model.transformer)
            group = scene and explain.draw_group(self.model, self.cfg, scene, self.cfg.seed)
        held, grid = self.last
        self.metrics[-1] |= held.metrics()
        self.save(step)
        if self.procs.is_main:
            name, value = next(iter(held.metrics().items()))
            self.bar.set_postfix_str(f"{name} {math.nan if value is None else value:.3f}")
            path = self.out / "samples" / f"step_{step:05d}.png"
            marks = self.heldout.marks(grid)
            pictures.sample_grid(grid, self.heldout.grid_prompts, path, marks=marks)
            if group:
                path = path.with_stem(f"group_{step:05d}")
                explain.group_picture(group, scene, self.cfg, path)
            pictures.training_curves(self.metrics, self.out / "curves.png")

    def save(self, step: int) -> None:
        """The log, and a checkpoint where it is time for one. The log first: a kill in between
        leaves a line after the checkpoint, which --resume drops."""
        if self.procs.is_main:
            run_log.write_metrics(self.out, self.metrics)
            self.write(self.metrics[-1])
        if step % self.cfg.checkpoint_every == 0 or self.evaluates(step):
            self.checkpoint(step)

    def checkpoint(self, step: int) -> None:
        """Saves the state after this step; the one before it and the best held-out one stay.

        Before the first step there is none: the run begins anew.
        """
        if not step:
            return
        best = run_log.best_step(self.metrics)
        folder = self.out / "checkpoint"
        with writing(folder / f"step_{step:06d}"):
            distributed.save_checkpoint(folder, self.procs, self.last_whole.state(), step, [best])

    def kept(self) -> str:
        """Which checkpoints there are, in words."""
        steps = distributed.checkpoint_steps(self.out / "checkpoint")
        if not steps:
            return f"no checkpoint of '{self.out}' was written yet"
        listed = ", ".join(map(str, steps))
        return f"'{self.out / 'checkpoint'}' keeps the state after step {listed}"

    @contextlib.contextmanager
    def ends_well(self):
        """An end before the last step, on all ranks alike, loses no whole step and says what stays.

        Where a judge fails and where signals are heeded the last whole step is still known: it is
        saved first. Numbers that are not finite come from weights that should not be.
        """
        stop, again = self.procs.stop, "repeat the command with --resume"
        stop.patient = True
        try:
            yield
        except JudgeError as error:
            slow = f" ({self.cfg.concurrency} calls were in flight: --concurrency has fewer)"
            slow = slow if "no answer within" in str(error) else ""
            saved = self.saved()
            raise JudgeError(f"{error}{slow}; {saved}: when the judge answers again, {again}")
        except StoppedError as name:
            raise StoppedError(f"stopped by {name}: {self.saved()}; to go on, {again}")
        except KeyboardInterrupt:
            raise StoppedError(f"stopped at once: {self.kept()}; to go on from there, {again}")
        except FloatingPointError as error:
            cause = f"the base model overflows in --dtype {self.cfg.dtype}"
            if self.optimizer.state:  # a step was made, in this run or in the one that it resumes
                cause = f"--lr {self.cfg.lr:g} is too high, and weights have run away"
            raise FloatingPointError(
                f"step {self.at}, {error}: likely {cause}; nothing of it is saved, "
                f"and {self.kept()}"
            )
        except OSError as error:  # such as a full disk
            raise OSError(f"{error}; {self.kept()}; to go on from there, {again}")
        finally:
            stop.patient = False

    def saved(self) -> str:
        """Saves the state after the last whole step, and says so."""
        step = self.metrics[-1]["step"]
        if self.last_whole.copy and self.procs.is_main:
            log.info(
                "step %d had changed the weights: what is saved is a copy from before", self.at
            )
        if self.procs.is_main:
            run_log.write_metrics(self.out, self.metrics)
        self.checkpoint(step)
        if not step:
            return f"no step was whole yet, and '{self.out}' keeps none"
        return f"the state after step {step} is saved in '{self.out}'"

    def finish(self) -> None:
        """final/ with its card, the pictures before and after, and the result in words."""
        cfg, heldout, model = self.cfg, self.heldout, self.model
        with self.average.swapped_in():
            held, grid = self.last or (heldout.evaluate(), heldout.grid_images(model.transformer))
            weights = distributed.full_weights(model.transformer) if cfg.shard else None
            if not self.procs.is_main:
                return
            with writing(self.out / "final"):
                model.save(self.out / "final", weights)
        result = held.against(heldout.base)
        changed = {
            f.name: getattr(cfg, f.name)
            for f in dataclasses.fields(cfg)
            if getattr(cfg, f.name) != f.default or f.name in ("recipe", "reward", "judge")
        }
        run_log.write_card(
            self.out / "final",
            type(model.pipe).__name__,
            cfg.model,
            bool(cfg.lora_rank),
            changed,
            result,
            {"base": heldout.base.metrics(), "trained": held.metrics()},
        )
        columns = heldout.grid_columns
        both = [before + after for before, after in zip(heldout.base_grid, grid)]
        pictures.sample_grid(
            both,
            heldout.grid_prompts,
            self.out / "before_after.png",
            ["before"] * columns + ["after"] * columns,
            heldout.marks(both),
        )
        print(
            f"{result}\nlook at {self.out / 'before_after.png'}, {self.out / 'curves.png'} and "
            f"{self.out / 'gallery.html'}; the model is in {self.out / 'final'}"
        )
        if not held.known:
            raise SystemExit("the judge could not be read: whether this run learned is not known")


def start_run(cfg: Config, procs: Processes) -> Run:
    """Prepares the run directory, loads what the settings name, and takes up a checkpoint."""
    with contextlib.ExitStack() as held:
        procs.on_all_ranks(
            lambda: held.enter_context(run_log.hold_run(cfg)) if procs.is_main else None
        )
        run = prepared(cfg, procs)
        run.held = held.pop_all()  # the directory's lock, as long as the run lives
    return run


def prepared(cfg: Config, procs: Processes) -> Run:
    """What can be wrong outside of the settings is tried first, on all ranks alike: the run
    directory, prompts, judge and scorers; then weights are loaded, and a checkpoint is taken up."""
    out = procs.broadcast(run_log.prepare_run, cfg)
    last = (
        procs.broadcast(distributed.newest_checkpoint, out / "checkpoint") if cfg.resume else None
    )
    procs.on_all_ranks(check_shared, cfg, procs.broadcast(run_log.contents, cfg), last)
    prompts = procs.on_all_ranks(start.prompts_of, cfg)
    judge = procs.on_all_ranks(start.judge_of, cfg, procs.world_size)
    record = Record(out / "verdicts") if procs.is_main and cfg.judge != "shapes" else None
    rewards = procs.on_all_ranks(start.rewards_of, cfg, judge, procs.device)
    compare = procs.on_all_ranks(start.comparison_of, cfg, judge)
    doubt = procs.on_all_ranks(start.try_judge, cfg, judge)
    if procs.is_main and doubt:
        log.warning("%s", doubt)
    logger, settings = cfg.logger if procs.is_main else "", dataclasses.asdict(cfg)
    write = procs.on_all_ranks(run_log.make_logger, logger, out, settings)
    # A server judges while sampling goes on; another judge is asked when its answer is needed.
    judging = Judging(rewards, procs, cfg.max_failed, cfg.judge == "openai", record)
    run = Run(cfg, procs, prompts, judging, compare)
    run.write = write
    return run


def check_shared(cfg: Config, contents: dict, last: Path | None) -> None:
    """Raises ValueError unless this rank sees the files that rank 0 sees, and what it has written.

    contents: run_log.contents on rank 0; last: the checkpoint to resume from, if there is one.
    """
    odd = [
        f"--{k.split()[0]}" for k, found in run_log.contents(cfg).items() if found != contents[k]
    ]
    if odd:
        raise ValueError(f"{', '.join(odd)}: other files here than on rank 0; copy them anew")
    for written in [Path(cfg.out) / "config.json", *([last] if last else [])]:
        if not written.exists():
            raise ValueError(
                f"'{written}' is on rank 0 alone: --out must be a folder that all nodes share"
            )
    if last and distributed.step_of(last) > cfg.steps:
        step = distributed.step_of(last)
        raise ValueError(f"the run in '{cfg.out}' is at step {step}, past --steps {cfg.steps}")


@contextlib.contextmanager
def started(cfg: Config):
    """The run that the settings name; whatever ends it is one sentence, told by rank 0, and a
    status that is not 0."""
    said, first = None, os.environ.get("RANK", "0") == "0"
    try:
        check_config(cfg, int(os.environ.get("WORLD_SIZE", 1)))
        with distributed.signals() as stop:
            run = start_run(cfg, distributed.start_processes(cfg.device, cfg.shard, stop))
            with run.held, run.ends_well():
                yield run
    except (*distributed.SHARED_ERRORS, JudgeError) as error:
        said = str(error)
    except KeyboardInterrupt:
        said = "stopped before a step was made: nothing is lost, repeat the command"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if said:
        raise SystemExit(said if first else 1)
