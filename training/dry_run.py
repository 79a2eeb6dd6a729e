"""A dry run: every check of a run that needs no weights, its plan of memory, and a verdict.

python train.py --recipe flux-lora --prompts prompts.txt --base_url URL --dry_run --gpu_memory 80
torchrun is not needed: --ranks 64 plans for as many processes
"""

import math
import os
from pathlib import Path

from common.files import free_bytes
from judges.sight import check_sight
from models.base import is_hub_name
from shapes.verifier import ShapesMLLM
from training import distributed, start
from training import log as run_log
from training.checks import check_numbers, fault_of, faults
from training.config import Config, parse_judge, sources_of
from training.distributed import DTYPES
from training.plan import Plan, fits, make_plan, refuse, table


def main_memory() -> float:
    """Bytes of this machine's main memory; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def resources(plan: Plan) -> list[tuple[str, float, float]]:
    """Main memory of a rank and disk of the run, in bytes: (what, needed, what this machine has).

    A pipeline is loaded into main memory in --dtype before it goes to a GPU; with --shard so is the
    frozen copy. What --offload pins there takes more than the same weights did as they were loaded.
    """
    s, n = plan.settings, plan.counts
    loaded = n["transformer"] * (2 if s.shard and not s.lora_rank else 1) + n["text"] + n["vae"]
    loaded = DTYPES[s.dtype].itemsize * max(loaded, n["pinned"] if s.offload else 0)
    images = 3 * s.size**2 * (plan.prompts // plan.world * s.group_size + 2 * s.heldout)
    written = run_log.disk_bytes(n["trainable"], s.ema, s.steps)
    return [
        ("main memory, each rank", loaded + images, main_memory()),
        ("disk, for checkpoints and final/", written, free_bytes(Path(s.out))),
    ]


def calls_in_flight(s: Config, world: int, calls: int) -> str:
    """What a judge server has to bear."""
    each = max(1, s.concurrency // world)
    return (
        f"judge server: {each * world} calls in flight, {each} a rank; at 10 s a call a step's "
        f"{calls} take {math.ceil(calls / (each * world)) * 10 / 60:.1f} minutes"
    )


def check_folders(cfg: Config) -> None:
    """Raises ValueError for a scorer or a judge in process whose folder is not there."""
    named = [(f"--{flag}", source) for flag, _, source in sources_of(cfg)]
    named += [("--judge_model", cfg.judge_model)] if cfg.judge == "local" else []
    for flag in ("eval_judge", "bench_judge"):
        kind, _, model = parse_judge(getattr(cfg, flag), flag)
        named += [(f"--{flag}", model)] if kind == "local" else []
    for flag, name in named:
        if name and not is_hub_name(name) and not Path(name).is_dir():
            raise ValueError(f"{flag}: no folder '{name}'")


def check_judge(cfg: Config) -> None:
    """Tries the judge, but one in process. Raises ValueError where a run would."""
    named = cfg.base_url or os.environ.get("OPENAI_BASE_URL")
    reached = cfg.judge == "shapes" or (cfg.judge == "openai" and named)
    if reached and (doubt := start.try_judge(cfg, start.judge_of(cfg))):
        print(f"warning: {doubt}")
    for flag in ("eval_judge", "bench_judge"):
        served = getattr(cfg, flag).startswith("openai")
        pairs = flag == "eval_judge"
        if served and (doubt := check_sight(start.judge_of(cfg, flag=flag), pairs_first=pairs)):
            print(f"warning: --{flag}: {doubt}")


def check_plan(cfg: Config, world: int) -> None:
    """Prints what the run needs. SystemExit where there is too little of it."""
    plan = make_plan(cfg, world)
    print(table(plan))
    print(fits(plan, cfg.gpu_memory))
    if cfg.judge == "openai":
        print(calls_in_flight(cfg, world, plan.work["judge_calls"]))
    found = []
    for what, needed, here in resources(plan):
        print(f"{what}: {needed / 1e9:.2f} GB (this machine has {here / 1e9:.2f})")
        if needed > here and not cfg.ranks:
            found.append(f"{what}: too little here; --ranks plans for other machines")
    if found := found + fault_of(refuse, plan, cfg.gpu_memory):
        raise SystemExit("; ".join(found))


def main(cfg: Config) -> None:
    """Prints what the run needs, and the verdict; SystemExit where it could not run.

    Every check of the run is made that needs no weights; with --ranks, which plans for other
    machines, what this one has (GPU, memory, disk) is not held against it.
    """
    check_numbers(cfg)  # without which nothing can be planned
    world = cfg.ranks or int(os.environ.get("WORLD_SIZE", 1))
    found = [*faults(cfg, world)]
    for check, *args in (
        (distributed.check_device, cfg.device),
        (run_log.check_run, cfg),
        (start.prompts_of, cfg),
        (start.bench_prompts_of, cfg),
        (check_folders, cfg),
        (start.comparison_of, cfg, ShapesMLLM()),  # its template
        (check_judge, cfg),
        (check_plan, cfg, world),
    ):
        found += fault_of(check, *args)
    if found:
        found = dict.fromkeys(found)  # prompts that cannot be read are no prompts for a judge
        raise SystemExit("verdict: this run would be refused: " + "; ".join(found))
    print("verdict: this run can start; access to weights was not tried, nor a judge in process")
