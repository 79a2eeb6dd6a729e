"""What cannot work of a run's settings, one sentence each, before anything is loaded.

check_config(cfg, world=1)              # cfg: config.Config; SystemExit
"""

import dataclasses
import math
import operator
import os
from collections.abc import Iterator

from judges.make import parse_extra
from judges.released import kind_of
from rewards import pair_schedule
from training.config import (
    RECIPES,
    Config,
    micro_batch_of,
    parse_eval_rewards,
    parse_judge,
    parse_rewards,
)
from training.data import window_range


def check_config(cfg: Config, world: int) -> None:
    """SystemExit with one sentence for settings that cannot work; world: processes of the run."""
    check_numbers(cfg)
    for fault in faults(cfg, world):
        raise SystemExit(fault)


BOUNDS = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def check_numbers(cfg: Config) -> None:
    """SystemExit unless each number is within its field's bounds, as no NaN and no infinity is."""
    for f in dataclasses.fields(cfg):
        if f.type in (int, float):
            value, bounds = getattr(cfg, f.name), f.metadata["bounds"].items()
            within = all(BOUNDS[name][1](value, end) for name, end in bounds)
            if not (within and -math.inf < value < math.inf):
                rules = " and ".join(f"{BOUNDS[name][0]} {end}" for name, end in bounds)
                must = f"must be a finite number {rules}".rstrip()
                raise SystemExit(f"--{f.name} {value}: {must} ({f.metadata['help']})")


def faults(cfg: Config, world: int) -> Iterator[str]:
    """A sentence for each thing in the settings that cannot work; their numbers are checked."""
    for check in (needs, sampling, judging, server, learning, evaluation):
        yield from check(cfg, world)


def fault_of(check, *args) -> list[str]:
    """The sentence in which check(*args) ends, if it ends in one."""
    try:
        check(*args)
    except (ValueError, OSError, SystemExit) as error:
        return [str(error)]
    return []


# Settings that --eval_judge and --bench_judge heed too.
OF_BOTH = ("judge_tokens", "judge_seed", "max_calls", "concurrency", "call_timeout", "patience")


def needs(cfg: Config, world: int) -> Iterator[str]:
    """Flags that were given, and that another setting leaves without any effect."""
    usual = Config(**RECIPES.get(cfg.recipe, {}))
    for f in dataclasses.fields(cfg):
        other, *values = f.metadata["needs"].split() or [""]
        if other and getattr(cfg, f.name) != getattr(usual, f.name):
            found = getattr(cfg, other)
            others = [cfg.eval_judge, cfg.bench_judge] if f.name in OF_BOTH else []
            kinds = {found, *(text.partition("=")[0] for text in others)}
            if not (kinds & {*values} if values else found):
                needed = f"--{other} {' or '.join(values)}".rstrip()
                yield f"--{f.name} needs {needed}: it changes nothing otherwise"
    if cfg.window and cfg.timestep_fraction != usual.timestep_fraction:
        yield "--timestep_fraction changes nothing with --window, which is replayed whole"


def sampling(cfg: Config, world: int) -> Iterator[str]:
    if cfg.prompts_per_step % world:
        yield (
            f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of the {world} "
            "process(es): a group never spans ranks"
        )
    if cfg.window:
        yield from fault_of(window_range, cfg)
    if cfg.sde_kind == "cps" and cfg.noise_level > 1:
        yield f"--noise_level {cfg.noise_level} is a share with --sde_kind cps: at most 1"
    if cfg.sde_kind == "cps" and cfg.guard:
        yield (
            "--sde_kind cps needs --no-guard: the guard's weight of a step, 1 / (-dsigma), is that "
            "of flow and dance, where the mean moves by dsigma with the velocity"
        )
    if 0 < cfg.eval_size < 8:
        yield f"--eval_size {cfg.eval_size}: at least 8 pixels, or 0 for --size"
    if cfg.recipe != "shapes" and not cfg.prompts:
        yield f"--recipe {cfg.recipe} needs --prompts FILE, a text file with one prompt a line"
    if cfg.prompts and not cfg.heldout:
        yield "--prompts needs --heldout N, at least 1: so many of the file are never trained on"


def judging(cfg: Config, world: int) -> Iterator[str]:
    if unread := fault_of(parse_rewards, cfg.reward):
        yield from unread
        return
    pairwise = "pairwise" in parse_rewards(cfg.reward)
    if cfg.opponents and not pairwise:
        yield f"--opponents {cfg.opponents} only means something with a pairwise reward"
    if cfg.opponents == 1 and cfg.group_size > 2:
        yield "--opponents 1 leaves a group's pairs unrelated: at least 2, or 0 for all pairs"
    elif cfg.opponents:
        for fault in fault_of(pair_schedule, cfg.group_size, cfg.opponents):
            yield f"--opponents {cfg.opponents} with --group_size {cfg.group_size}: {fault}"
    if not pairwise and (cfg.judge_prompt or not cfg.both_orders):
        yield "--judge_prompt and --no-both_orders are for a pairwise reward, of two images"
    if cfg.soft and kind_of(cfg.judge_prompt)[0] == "flex":
        yield "--soft takes one probability, and flex: rewards by the categories of a whole answer"
    if cfg.judge == "local" and not cfg.judge_model:
        yield "--judge local needs --judge_model, a folder or hub name"


def server(cfg: Config, world: int) -> Iterator[str]:
    yield from fault_of(parse_extra, cfg.judge_extra)
    if "@" in cfg.base_url:
        yield "--base_url, which config.json keeps, holds a password: put it into OPENAI_BASE_URL"
    if cfg.patience < cfg.call_timeout:
        yield (
            f"--patience {cfg.patience} is shorter than --call_timeout {cfg.call_timeout}: one "
            "slow call would be taken for a dead server"
        )
    if cfg.judge == "openai" and cfg.concurrency < world:
        yield (
            f"--concurrency {cfg.concurrency} calls in flight are too few for {world} processes: "
            "at least one each, as many as the server bears"
        )
    if cfg.judge == "openai" and not (cfg.base_url or os.environ.get("OPENAI_BASE_URL")):
        yield (
            "--judge openai needs --base_url URL or OPENAI_BASE_URL, of the judge's server: none "
            "is assumed, since a cloud would be paid for each call"
        )


def learning(cfg: Config, world: int) -> Iterator[str]:
    if -1 < cfg.std_floor < 0:
        yield f"--std_floor {cfg.std_floor}: at least 0, or -1 for each reward's own"
    if cfg.shard and cfg.offload:
        yield "--offload keeps weights in main memory and --shard on the other GPUs: choose one"
    if cfg.reduce_each and not (cfg.shard and not cfg.lora_rank):
        yield (
            "--reduce_each is for --shard of all weights: a LoRA's gradients are small, and "
            "replicated ones are whole in any case"
        )
    if cfg.offload and not (cfg.lora_rank and cfg.gradient_checkpointing and not cfg.compile):
        yield (
            "--offload is for a LoRA with --gradient_checkpointing and without --compile: only "
            "frozen weights can wait elsewhere"
        )
    if cfg.dtype == "bfloat16" and not (cfg.lora_rank or cfg.shard):
        yield (
            f"--dtype {cfg.dtype} needs --lora_rank, or --shard which keeps float32 master "
            "weights: small updates vanish in bfloat16 weights"
        )
    samples = math.ceil(cfg.prompts_per_step / world) * cfg.group_size
    size = micro_batch_of(cfg, samples)
    batches = math.ceil(samples / size)
    if batches % cfg.updates:
        work = ", ".join(str(n) for n in range(1, batches + 1) if batches % n == 0)
        even = math.ceil(samples / (cfg.updates * math.ceil(batches / cfg.updates)))
        works = math.ceil(samples / even) % cfg.updates == 0
        remedy = f"; with --micro_batch {even} it would" if works else ""
        yield (
            f"--updates {cfg.updates} must divide the micro-batches of a step, {batches} of "
            f"--micro_batch {size} samples: choose from {work}{remedy}"
        )


def evaluation(cfg: Config, world: int) -> Iterator[str]:
    """What would only show the reward again."""
    try:
        rewards, seen = parse_rewards(cfg.reward), parse_eval_rewards(cfg.eval_rewards)
        kind, url, model = parse_judge(cfg.eval_judge, "eval_judge")
        parse_judge(cfg.bench_judge, "bench_judge")
    except ValueError as error:
        yield str(error)
        return
    for name, source in seen.items():
        if name in rewards and rewards[name].source == source:
            yield f"--eval_rewards {name} is in --reward too: it would be trained on"
    own = (cfg.base_url or os.environ.get("OPENAI_BASE_URL", "")) * (cfg.judge == "openai")
    if (kind, url.rstrip("/"), model) == (cfg.judge, own.rstrip("/"), cfg.judge_model):
        yield (
            "--eval_judge is --judge, by which win_rate_vs_base is measured already: give another "
            "one, or leave it out"
        )
    if cfg.bench_every and not (cfg.bench_prompts and cfg.bench_judge):
        yield (
            "--bench_every needs --bench_prompts, such as en:60, and --bench_judge, which is never "
            "assumed: --bench_judge shapes knows prompts of shapes alone"
        )
    if cfg.bench_every % cfg.eval_every:
        yield (
            f"--bench_every {cfg.bench_every} must be a multiple of --eval_every {cfg.eval_every}: "
            "both are measured with the same weights"
        )
