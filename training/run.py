"""The steps of a run, and what follows each: checks, log, evaluation, figures, checkpoint.

with session.started(cfg) as run:       # cfg: config.Config; loads, and measures the base
    train.train(cfg, run)               # run.batches(...), and run.after(...) for each step
    run.finish()                        # final/, figures, the result in words
"""

import contextlib
import math
import time
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from common.files import writing
from figures import explain, gallery, pictures
from models.base import Model, check_finite
from training import checkpoint, diagnostics, distributed
from training import log as run_log
from training.benchmark import Benchmark, in_words
from training.config import Config, micro_batch_of, parse_rewards
from training.data import Batch, Prompts, make_batch
from training.distributed import Processes
from training.heldout import GRID_COLUMNS, Heldout
from training.judging import Judging

log = run_log.log


class Run:
    """The steps of a run, and what follows each of them.

    The state after the last whole step stays the run's to save while the next is at work. It lies
    in the live tensors until the optimizer moves them; where a step has several updates, a copy of
    it in main memory is made then, since to finish the step may take minutes.
    """

    def __init__(
        self,
        cfg: Config,
        procs: Processes,
        model: Model,
        judging: Judging,
        heldout: Heldout,
        prompts: Prompts | None,
        bench: Benchmark | None = None,
    ):
        self.cfg, self.procs, self.out = cfg, procs, Path(cfg.out)
        self.model, self.judging, self.heldout, self.prompts = model, judging, heldout, prompts
        self.bench = bench
        samples = cfg.prompts_per_step // procs.world_size * cfg.group_size
        self.micro_batch = micro_batch_of(cfg, samples)
        self.weights = {name: part.weight for name, part in parse_rewards(cfg.reward).items()}
        self.metrics = [{"step": 0, **heldout.base.metrics()}]
        self.write = lambda row: None  # to a logger
        self.at = 0  # the step at work
        self.moved, self.copy = False, None  # has it moved the weights; the state before that
        self.seconds, self.kl = {}, 0.0  # of the step at work
        self.warned = Counter()  # warnings of each kind, and steps
        self.last = None  # the last evaluation of this process: (Held, grid)
        self.label = "training"  # of the progress bar
        self.observers = []  # of a study: called with each train.TrainStep, after the run's own

    @property
    def state(self) -> tuple:
        return self.model.transformer, self.optimizer, self.average

    def batches(self, optimizer, average):
        """Each step that is left, with what this rank samples in it.

        optimizer, average: of the model; they take up the checkpoint that the run resumes from.
        """
        cfg, procs = self.cfg, self.procs
        self.optimizer, self.average = optimizer, average
        self.take_up()
        optimizer.register_step_pre_hook(self.before_update)
        self.model.before_pass = self.boundary
        done = self.metrics[-1]["step"]
        self.first_step = done + 1  # of this process
        one_bar = self.label != "training"  # of several runs one bar is seen at a time
        how = dict(initial=done, total=cfg.steps, desc=self.label, leave=not one_bar)
        self.bar = tqdm(range(done + 1, cfg.steps + 1), disable=not procs.is_main, **how)
        if self.evaluates(done) and "win_rate_vs_base" not in self.metrics[-1]:
            self.evaluate(done)  # the judge failed within it: only that is left of the step
        for step in self.bar:
            self.at = step
            yield step, self.parts(step)
            if step < cfg.steps:
                procs.boundary()

    def parts(self, step: int) -> list[Batch]:
        """All that is random in a step on this rank, some groups a part where a server judges.

        Parts are of whole groups and whole micro-batches: the update's are those of the rollout.
        """
        cfg, procs = self.cfg, self.procs
        groups = math.lcm(self.micro_batch, cfg.group_size) // cfg.group_size
        batch = make_batch(cfg, self.prompts, step, procs.rank, procs.world_size)
        return batch.split(groups if cfg.judge == "openai" else cfg.prompts_per_step)

    def take_up(self) -> None:
        """Weights, optimizer, average and log of the last checkpoint, with --resume."""
        last = self.procs.broadcast(checkpoint.newest_checkpoint, self.out / "checkpoint")
        if self.cfg.resume and last:  # none: stopped before the first
            checkpoint.load_checkpoint(last, *self.state)
            loaded = [("the checkpoint", weight) for weight in self.model.trainable()]
            self.procs.on_all_ranks(check_finite, loaded)
            self.metrics = run_log.read_metrics(self.out, checkpoint.step_of(last))
            models = self.metrics[-1].get("answered_by", "").split(", ")
            self.judging.known = {*models} - {""}
            if self.procs.is_main:
                run_log.write_metrics(self.out, self.metrics)

    def before_update(self, *_) -> None:
        first, self.moved = not self.moved, True
        if first and self.cfg.updates > 1:
            self.copy = checkpoint.copied(checkpoint.training_state(*self.state))

    def boundary(self) -> None:
        """Before each pass: the run ends here if a signal asked for it, on all ranks alike, unless
        the last whole step is lost by then and the present one has but to be written down."""
        if self.copy or not self.moved:
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

    # ------------------------------------------------------------------ what follows a step

    def after(self, done) -> None:
        """Adds the step's line to metrics.jsonl; shows, evaluates and saves where it is time to.

        done: train.TrainStep.
        Raises FloatingPointError, before anything is written, if weights are no longer finite.
        """
        step, trained = done.step, [("the trained weights", w) for w in self.model.trainable()]
        self.procs.on_all_ranks(check_finite, trained)
        mine = run_log.learning_of(done.losses, done.norms) | {"kl_to_base": self.kl}
        row = {"step": step, **run_log.judging_of(done.rewards), "frac_floor": done.frac_floor}
        if self.judging.known:
            row["answered_by"] = ", ".join(sorted(self.judging.known))
        ranks = self.procs.gather([mine | self.seconds])
        self.metrics.append(row | run_log.over_ranks(ranks))
        self.moved, self.copy = False, None  # it is whole: its state is in the live tensors
        self.warn()
        if self.procs.is_main and (step == 1 or self.evaluates(step)):
            gallery.keep(self.out, self.heldout.compare.name, done)
        self.evaluate(step) if self.evaluates(step) else self.save(step)
        for observe in self.observers:
            observe(done)

    def warn(self) -> None:
        """Warns of what says that nothing is learned, or too much; of each kind the 1st, 2nd, 4th,
        ... time."""
        found = diagnostics.warnings_of(self.metrics, not self.warned, not self.cfg.kl_coef)
        for kind, sentence in found.items():
            self.warned[kind] += 1
            if self.procs.is_main and self.warned[kind].bit_count() == 1:
                log.warning("step %d: %s", self.metrics[-1]["step"], sentence)
        self.warned["step"] += 1

    def evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.cfg.eval_every == 0 or step == self.cfg.steps)

    def evaluate(self, step: int) -> None:
        """Adds the held-out results to the step's line, saves it, and draws what people look at."""
        cfg, heldout, group, scores = self.cfg, self.heldout, None, {}
        with self.average.swapped_in():
            self.last = heldout.evaluate(), heldout.grid_images(self.model.transformer)
            if self.bench and (step % cfg.bench_every == 0 or step == cfg.steps):
                scores = self.bench.measure(step, self.model.transformer)
            if cfg.judge == "shapes" and heldout.scenes:  # where a verdict costs nothing
                group = explain.draw_group(self.model, cfg, heldout.scenes[0], cfg.seed)
        held, grid = self.last
        self.metrics[-1] |= held.metrics() | scores
        self.save(step)
        if self.procs.is_main:
            name, value = next(iter(held.metrics().items()))
            self.bar.set_postfix_str(f"{name} {math.nan if value is None else value:.3f}")
            path = self.out / "samples" / f"step_{step:05d}.png"
            heldout.draw(grid, path)
            if group:
                path = path.with_stem(f"group_{step:05d}")
                explain.group_picture(group, heldout.scenes[0], cfg, path)
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
        best, folder = run_log.best_step(self.metrics), self.out / "checkpoint"
        with writing(folder / f"step_{step:06d}"):
            state = self.copy or checkpoint.training_state(*self.state)
            checkpoint.save_checkpoint(folder, self.procs, state, step, [best])

    # ------------------------------------------------------------------------------ its end

    def kept(self) -> str:
        """Which checkpoints there are, in words."""
        folder = self.out / "checkpoint"
        if steps := checkpoint.checkpoint_steps(folder):
            return f"'{folder}' keeps the state after step {', '.join(map(str, steps))}"
        return f"no checkpoint of '{self.out}' was written yet"

    def saved(self) -> str:
        """Saves the state after the last whole step, and says so."""
        step = self.metrics[-1]["step"]
        if self.procs.is_main:
            if self.copy:
                log.info("step %d is not whole: what is saved is a copy from before it", self.at)
            run_log.write_metrics(self.out, self.metrics)
        self.checkpoint(step)
        if not step:
            return f"no step was whole yet, and '{self.out}' keeps none"
        return f"the state after step {step} is saved in '{self.out}'"

    def finish(self) -> None:
        """final/ with its card, the images before and after, and the result in words."""
        cfg, heldout, model, out = self.cfg, self.heldout, self.model, self.out
        with self.average.swapped_in():
            held, grid = self.last or (heldout.evaluate(), heldout.grid_images(model.transformer))
            result = held.against(heldout.base)
            if self.bench:
                result += in_words(self.metrics, len(self.bench.prompts))
            self.write_model("final", f"After step {cfg.steps}, the last: {result}", held.metrics())
        if not self.procs.is_main:
            return
        both = [before + after for before, after in zip(heldout.base_grid, grid)]
        heads = [head for head in ("before", "after") for _ in range(GRID_COLUMNS)]
        heldout.draw(both, out / "before_after.png", heads)
        print(
            f"{result}\nlook at {out / 'before_after.png'}, {out / 'curves.png'} and "
            f"{out / 'gallery.html'}; the model is in {out / 'final'}"
        )
        if not held.known:
            raise SystemExit("the judge could not be read: whether this run learned is not known")

    def export(self) -> None:
        """best/, as final/ is: the weights after the step that did best on held-out prompts."""
        cfg, folder, model = self.cfg, self.out / "checkpoint", self.model
        rows = {row["step"]: row for row in run_log.read_metrics(self.out, cfg.steps)}
        step = run_log.best_step([*rows.values()])
        if step not in checkpoint.checkpoint_steps(folder):
            raise ValueError(f"'{folder}' keeps no held-out step to export; --resume goes on first")
        average = distributed.EMA(model.transformer, cfg.ema)
        state = model.transformer, torch.optim.AdamW(model.trainable()), average
        checkpoint.load_checkpoint(folder / f"step_{step:06d}", *state)
        result = (
            f"After step {step} of {max(rows)}, the best of those measured on held-out prompts."
        )
        scores = {name: rows[step].get(name) for name in self.heldout.base.metrics()}
        with average.swapped_in():
            self.write_model("best", result, scores)
        if self.procs.is_main:
            print(f"{result}\nthe model is in {self.out / 'best'}")

    def write_model(self, name: str, result: str, scores: dict) -> None:
        """A folder of the run that diffusers loads, and its card; scores: held out, of these
        weights."""
        folder, model = self.out / name, self.model
        spread = self.cfg.shard and not self.cfg.lora_rank  # a LoRA is whole on every rank
        weights = distributed.full_weights(model.transformer) if spread else None
        if self.procs.is_main:
            with writing(folder):
                model.save(folder, weights)
            both = self.heldout.base.metrics(), scores
            run_log.write_card(folder, self.cfg, type(model.pipe).__name__, result, *both)
