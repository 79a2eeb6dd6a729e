"""What cannot work of a run's settings, one sentence each, before anything is loaded.

check_config(cfg, world=1)              # cfg: config.Config; SystemExit
"""

import dataclasses
import math
import operator
import os
from pathlib import Path

from rewards import pair_schedule
from training.config import RECIPES, Config, micro_batch_of, parse_rewards
from training.data import window_range


def need(ok, sentence: str) -> None:
    if not ok:
        raise SystemExit(sentence)


def check_config(cfg, world: int) -> None:
    """SystemExit with one sentence for settings that cannot work; world: processes of the run."""
    for check in (check_numbers, *CHECKS):
        check(cfg, world)


def check_numbers(cfg, world: int = 1) -> None:
    """Each number is valid by what its field says, as no NaN and no infinity is."""
    tests = {"least": operator.ge, "most": operator.le, "below": operator.lt}
    words = {"least": "at least", "most": "at most", "below": "below"}
    for f in dataclasses.fields(cfg):
        if f.type in (int, float):
            value, valid = getattr(cfg, f.name), f.metadata["valid"]
            limits = f.metadata["limits"].items()
            fine = -math.inf < value < math.inf and (valid is None or valid(value))
            fine = fine and all(tests[name](value, end) for name, end in limits)
            rules = [valid.__doc__] if valid else []
            rules += [f"{words[name]} {end}" for name, end in limits]
            must = f"must be a finite number {' and '.join(rules)}".rstrip()
            need(fine, f"--{f.name} {value}: {must} ({f.metadata['help']})")


def check_needs(cfg, world: int) -> None:
    """No flag was given that another setting leaves without any effect."""
    usual = Config(**RECIPES.get(cfg.recipe, {}))
    for f in dataclasses.fields(cfg):
        other, *values = f.metadata["needs"].split() or [""]
        if other and getattr(cfg, f.name) != getattr(usual, f.name):
            found = getattr(cfg, other)
            need(
                found in values if values else found,
                f"--{f.name} needs --{other} {' or '.join(values)}".rstrip()
                + ": it changes nothing otherwise",
            )


def check_window(cfg) -> None:
    if cfg.window:
        try:
            window_range(cfg)
        except ValueError as error:
            raise SystemExit(str(error))
    usual = Config(**RECIPES.get(cfg.recipe, {})).timestep_fraction
    need(
        not cfg.window or cfg.timestep_fraction == usual,
        "--timestep_fraction changes nothing with --window, which is replayed whole",
    )


def check_sampling(cfg, world: int) -> None:
    need(
        cfg.prompts_per_step % world == 0,
        f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of the {world} "
        "process(es): a group never spans ranks",
    )
    check_window(cfg)
    need(
        cfg.recipe == "shapes" or cfg.prompts,
        f"--recipe {cfg.recipe} needs --prompts FILE, a text file with one prompt a line",
    )
    need(
        not cfg.prompts or cfg.heldout >= 1,
        "--prompts needs --heldout N, at least 1: the last N "
        "prompts of the file are evaluated on and never trained on",
    )


def check_judging(cfg, world: int) -> None:
    try:
        named = parse_rewards(cfg.reward)
    except ValueError as error:
        raise SystemExit(str(error))
    need(
        not cfg.opponents or "pairwise" in named,
        f"--opponents {cfg.opponents} only means something with a pairwise reward",
    )
    need(
        cfg.opponents != 1 or cfg.group_size == 2,
        "--opponents 1 leaves the pairs of a group unrelated: at least 2, or 0 for all pairs",
    )
    if cfg.opponents:
        try:
            pair_schedule(cfg.group_size, cfg.opponents)
        except ValueError as error:
            raise SystemExit(
                f"--opponents {cfg.opponents} with --group_size {cfg.group_size}: {error}"
            )
    need(
        not cfg.judge_prompt or Path(cfg.judge_prompt).is_file(),
        f"--judge_prompt '{cfg.judge_prompt}': no such file",
    )
    need(
        "pairwise" in named or not cfg.judge_prompt and cfg.both_orders,
        "--judge_prompt and --no-both_orders are for a pairwise reward: each is a way of asking "
        "about two images",
    )
    need(
        cfg.judge != "local" or cfg.judge_model,
        "--judge local needs --judge_model, a folder or hub name",
    )


def check_server(cfg, world: int) -> None:
    need(
        cfg.judge != "openai" or cfg.concurrency >= world,
        f"--concurrency {cfg.concurrency} calls in flight are too few for {world} processes: at "
        "least one each, as many as the server bears",
    )
    need(
        "@" not in cfg.base_url,
        "--base_url must hold no user and password, since config.json "
        "keeps it: put them into OPENAI_BASE_URL",
    )
    need(
        cfg.judge != "openai" or cfg.base_url or os.environ.get("OPENAI_BASE_URL"),
        "--judge openai needs --base_url URL or OPENAI_BASE_URL, of the judge's server: none is "
        "assumed, since a cloud would be paid for each call",
    )
    need(
        cfg.patience >= cfg.call_timeout,
        f"--patience {cfg.patience} is shorter than "
        f"--call_timeout {cfg.call_timeout}: one slow call would be taken for a dead server",
    )


def check_learning(cfg, world: int) -> None:
    need(
        cfg.std_floor == -1 or cfg.std_floor >= 0,
        f"--std_floor {cfg.std_floor}: at least 0, or -1 for each reward's own",
    )
    need(
        not (cfg.shard and cfg.lora_rank),
        "--shard is for training all weights: leave "
        "--lora_rank 0, or train the LoRA without --shard",
    )
    need(
        not cfg.offload or (cfg.lora_rank and cfg.gradient_checkpointing and not cfg.compile),
        "--offload is for a LoRA with --gradient_checkpointing and without --compile: only frozen "
        "weights can wait elsewhere",
    )
    need(
        cfg.dtype != "bfloat16" or cfg.lora_rank or cfg.shard,
        f"--dtype {cfg.dtype} needs "
        "--lora_rank, or --shard which keeps float32 master weights: small updates vanish in "
        "bfloat16 weights",
    )
    samples = cfg.prompts_per_step // world * cfg.group_size
    batches = math.ceil(samples / micro_batch_of(cfg, samples))
    if batches % cfg.updates:
        raise SystemExit(updates_sentence(cfg, samples, batches))


def updates_sentence(cfg, samples: int, batches: int) -> str:
    """Why so many updates cannot be made of so many micro-batches, and what can."""
    size = micro_batch_of(cfg, samples)
    work = ", ".join(str(n) for n in range(1, batches + 1) if batches % n == 0)
    even = math.ceil(samples / (cfg.updates * math.ceil(batches / cfg.updates)))
    works = math.ceil(samples / even) % cfg.updates == 0
    remedy = f"; with --micro_batch {even} it would" if works else ""
    return (
        f"--updates {cfg.updates} must divide the micro-batches of a step, {batches} of "
        f"--micro_batch {size} samples: choose from {work}{remedy}"
    )


CHECKS = (check_needs, check_sampling, check_judging, check_server, check_learning)
