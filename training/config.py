"""The settings of a run: one dataclass, the recipes, the command line, and what cannot work.

cfg = parse_config(["--recipe", "flux-lora", "--prompts", "prompts.txt"])
check_config(cfg, world=1)              # SystemExit with one sentence, before anything is loaded
"""

import argparse
import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


def option(default, help, within="", *, needs="", free=False):
    """A setting: its default and help, and what its own field says of it.

    within: for a number its range, a bracket for an end that belongs to it: "(0, 1]"; infinity and
    NaN belong to none. needs: another setting, "NAME" or "NAME VALUE ...", without which this one
    would change nothing. free: whether it may differ when a run is resumed.
    """
    metadata = {"help": help, "within": within, "needs": needs, "free": free}
    return field(default=default, metadata=metadata)


def free(default, help, within="", *, needs=""):
    """A setting of where a run happens, what fits there, how its judge is reached and what may be
    lost: it may differ on --resume."""
    return option(default, help, within, needs=needs, free=True)


ROOT = Path(__file__).resolve().parent.parent


class Part(NamedTuple):
    """One reward of a mixture."""

    source: str  # folder or hub name of a scorer's weights; empty: the published ones
    weight: float


def parse_rewards(text: str) -> dict[str, Part]:
    """The parts of "NAME[=SOURCE][:WEIGHT],...", by name; a weight that is not given is 1.

    Raises ValueError for an unknown or repeated name, a source for a judged reward, or a weight
    that is no number above 0.
    """
    from judges.scorers import PUBLISHED
    from rewards import JUDGED

    parts = {}
    for item in text.split(","):
        head, colon, weight = item.strip().rpartition(":")
        name, equals, source = (head if colon else weight).partition("=")
        if name not in JUDGED and name not in PUBLISHED:
            raise ValueError(
                f"--reward: unknown reward '{name}' in '{text}', "
                f"choose from {', '.join([*JUDGED, *PUBLISHED])}"
            )
        if name in parts:
            raise ValueError(f"--reward: '{name}' stands twice in '{text}', name each reward once")
        if equals and (name in JUDGED or not source):
            raise ValueError(
                f"--reward: '{item.strip()}' in '{text}', only a scorer takes "
                "=SOURCE, the folder or hub name of its weights"
            )
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(
                f"--reward: weight '{weight}' of '{name}' in '{text}' must be a number above 0"
            )
        parts[name] = Part(source, value)
    return parts


SOURCES = """(P) is what the paper says, (C) what the released code has, (T) what was tried here. In
brackets stands the default, of --recipe shapes; GUIDE.md lists every departure."""


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag. Its help says where a value comes from: SOURCES."""

    recipe: str = option("shapes", "a set of the values below: shapes | flux-lora | flux-full")
    # of each file or folder that is named here, config.json keeps what stands in it, not where
    model: str = free("assets/tiny-flux", "pipeline folder or hub name")
    out: str = free("runs/shapes", "the run directory")
    steps: int = free(
        80, "training steps: each a rollout, and --updates optimizer steps", "[1, 999999]"
    )
    seed: int = option(0, "seed of prompts and noise", "[-1e18, 1e18]")
    resume: bool = free(False, "continue the run in --out from its last checkpoint")
    # what is sampled
    prompts: str = free("", "UTF-8 file, one prompt a line; empty: prompts of the shapes world")
    prompts_per_step: int = option(16, "P, over all processes", "[1, 1e6]")
    group_size: int = option(
        8, "G, images a prompt (C: 8), two at least to be compared", "[2, 1e6]"
    )
    size: int = option(32, "height and width, pixels (C: 720)", "[8, 1e5]")
    num_steps: int = option(6, "K, denoising steps (C: 25); the last is not stochastic", "[2, 1e4]")
    shift: float = option(1.0, "bends the sigmas towards noise (C: 3)", "(0, 1000]")
    noise_level: float = option(
        0.7, "exploration of the SDE (C: 0.7): without noise there is no policy to learn", "(0, 10]"
    )
    window: int = option(
        0,
        "W, stochastic steps in a row, drawn anew each training step; 0: all but the last",
        "[0, 1e4]",
    )
    window_range: str = option(
        "", "A:B, the window lies in steps A to B - 1; empty: in all but the last", needs="window"
    )
    sde_kind: str = option("flow", "flow (Flow-GRPO) | dance (DanceGRPO)")
    guidance: float = option(3.5, "guidance input of a distilled FLUX (C: 3.5)", "[0, 1000]")
    same_noise: bool = option(False, "one initial noise for the whole group (C: yes)")
    # how it is judged
    reward: str = option(
        "pairwise",
        "pairwise (win rate) | pointwise (score) | a scorer's NAME[=SOURCE] | a mixture "
        "NAME[=SOURCE]:WEIGHT,... (C: pairwise:0.4,clip:0.6)",
    )
    judge: str = option("shapes", "shapes (verifier) | openai (a server) | local (in process)")
    judge_model: str = free(
        "", "model name at the server, or folder of a local judge", needs="judge openai local"
    )
    judge_prompt: str = free("", "file with a comparison template; {prompt} is replaced")
    judge_tokens: int = free(2048, "longest answer, tokens", "[1, 1e6]", needs="judge openai local")
    soft: bool = option(
        False, "count P(first is better), which a judge in process can give", needs="judge local"
    )
    both_orders: bool = option(True, "judge each pair in both orders; disagreement is a tie")
    opponents: int = option(
        0, "compare each image with so many others (sparse); 0: all pairs", "[0, 1e6]"
    )
    max_failed: float = free(0.05, "share of a step's comparisons that may be lost", "[0, 1]")
    # how a judge server is called
    base_url: str = free(
        "", "of an OpenAI-compatible judge server, else $OPENAI_BASE_URL", needs="judge openai"
    )
    concurrency: int = free(
        16,
        "calls in flight at a judge server, over all processes; fewer after timeouts",
        "[1, 1e5]",
        needs="judge openai",
    )
    call_timeout: float = free(
        60.0, "seconds for one call of a judge server", "(0, 1e6]", needs="judge openai"
    )
    patience: float = free(
        180.0,
        "seconds without any answer after which a judge server is dead",
        "(0, 1e6]",
        needs="judge openai",
    )
    max_calls: int = free(
        0,
        "cap on calls to a judge server, each process; 0: none",
        "[0, 1e12]",
        needs="judge openai",
    )
    judge_seed: int = free(
        0,
        "sent to a judge server; -1: none, for servers that refuse it",
        "[-1, 9e18]",
        needs="judge openai",
    )
    # how it learns
    lr: float = option(
        1e-4, "AdamW (C: 1e-5 at full FLUX size; T: 5e-4 destroys the tiny one)", "(0, 1]"
    )
    weight_decay: float = option(1e-4, "(C)", "[0, 1]")
    max_grad_norm: float = option(1.0, "(C); 0: the gradient is not clipped", "[0, inf)")
    lora_rank: int = option(0, "0 trains all weights (C: 64 for LoRA)", "[0, 1e4]")
    lora_alpha: int = option(
        0, "scales the LoRA by alpha / rank; 0: as the rank (C: 128)", "[0, 1e6]", needs="lora_rank"
    )
    guard: bool = option(True, "GRPO-Guard's ratio and step weights (C: yes)")
    clip_range: float = option(1e-4, "of the ratio (C)", "(0, 1]")
    adv_clip: float = option(5.0, "of advantages (C)", "(0, 1e6]")
    std_floor: float = option(
        -1.0,
        "least std of a group's rewards that divides, in their units, of a mixture one for all; "
        "-1: each reward's own (rewards.STD_FLOORS)",
        "[-1, 1e6]",
    )
    timestep_fraction: float = option(
        0.6,
        "share of the stochastic steps that is replayed (C: 0.6); a window is replayed whole",
        "(0, 1]",
    )
    kl_coef: float = option(0.0, "weight of the KL to the base (C: a flag, 0)", "[0, 1e6]")
    updates: int = option(
        1,
        "optimizer steps a rollout, N, each on every N-th micro-batch (C: 2); on images of every "
        "group if N times --micro_batch divides --group_size, else of some groups alone",
        "[1, 1e6]",
    )
    ema: float = option(
        0.9, "decay of the weights' moving average that is evaluated and saved; 0: none", "[0, 1)"
    )
    # what fits
    micro_batch: int = free(
        0, "samples through the network at once; 0: all, or a group if a server judges", "[0, 1e9]"
    )
    dtype: str = option(
        "float32", "of the network: float32 | bfloat16; what is trained stays float32"
    )
    gradient_checkpointing: bool = free(
        False, "each block's activations are computed again backwards"
    )
    shard: bool = free(False, "FSDP2: weights, gradients and optimizer spread over all processes")
    text_cache: str = free("", "folder for text embeddings; the text encoders then leave the GPU")
    vae_slicing: bool = free(False, "decode one image at a time")
    offload: bool = free(False, "a LoRA's frozen blocks wait in main memory, fetched to run")
    compile: bool = free(False, "torch.compile of the transformer's blocks")
    # what is written
    eval_every: int = free(8, "steps between held-out evaluations", "[1, 1e9]")
    heldout: int = option(
        0, "held-out prompts to evaluate on; 0: all of the shapes world's", "[0, 1e9]"
    )
    checkpoint_every: int = free(10, "steps between checkpoints", "[1, 1e9]")
    logger: str = free("", "tensorboard | wandb, beside metrics.jsonl")
    device: str = free("", "cpu, cuda, ...; empty: cuda if there is one")
    dry_run: bool = free(False, "print what the run needs in memory and work, and stop")
    gpu_memory: float = free(80.0, "GB a GPU, for --dry_run", "(0, 1e6]", needs="dry_run")
    ranks: int = free(
        0, "processes to plan for with --dry_run; 0: those of torchrun", "[0, 1e6]", needs="dry_run"
    )


def micro_batch_of(cfg: Config, samples: int) -> int:
    """How many of a rank's samples go through the network at once.

    By default all; with a judge server a group, so that it is judged while the next one is sampled.
    """
    return min(cfg.micro_batch or (cfg.group_size if cfg.judge == "openai" else samples), samples)


# Sets of values other than Config's defaults, side by side. (C) where no other source is named; the
# README says where the paper's text differs. FLUX.1-dev needs --prompts and a judge server.
RELEASED = {
    "model": "black-forest-labs/FLUX.1-dev",
    "judge": "openai",
    "size": 720,
    "num_steps": 25,
    "shift": 3.0,
    "same_noise": True,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "vae_slicing": True,
    "reward": "pairwise:0.4,clip:0.6",
    "text_cache": "runs/text_cache",
    "eval_every": 40,
    "heldout": 64,  # ours, all three
    "checkpoint_every": 20,
    # (C) too, by Config's defaults: group_size, noise_level, guidance, timestep_fraction,
    # clip_range, guard, adv_clip, weight_decay, max_grad_norm, kl_coef. Ours there: the question,
    # both_orders, std_floor, ema, and which CLIP; (C) has DFN5B ViT-H/14.
}
RECIPES = {
    "shapes": {},
    "flux-lora": RELEASED
    | {  # one 80 GB GPU; tried on random weights alone, see docs/limits.md
        "out": "runs/flux-lora",
        "lora_rank": 16,
        "lr": 1e-4,  # ours, as the rank is: (C) has 1e-5, rank 64 and alpha 128
        "prompts_per_step": 4,
        "steps": 600,  # ours: what one GPU samples in days, not weeks
        "micro_batch": 4,
        "updates": 2,
    },
    "flux-full": RELEASED
    | {  # 8 nodes of 8 GPUs, one prompt a GPU
        "out": "runs/flux-full",
        "shard": True,
        "lr": 1e-5,
        "prompts_per_step": 64,
        "steps": 465,  # 3 epochs over 9,999 prompts less those held out
        "micro_batch": 1,
        "updates": 2,  # 8 images in accumulations of 4
        "concurrency": 128,  # ours: two calls in flight for each GPU
    },
}


GROUPS = {  # of --help: the first field of each
    "recipe": "the run",
    "prompts": "what is sampled",
    "reward": "how it is judged",
    "base_url": "how a judge server is called",
    "lr": "how it learns",
    "micro_batch": "what fits",
    "eval_every": "what is written",
    "dry_run": "planning",
}


def parse_config(arguments: list[str] | None = None) -> Config:
    """Config from the command line: recipe first, then the flags that were given."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Pref-GRPO: sample, compare, normalize, descend.",
        epilog=SOURCES,
    )
    group = parser
    for f in dataclasses.fields(Config):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        kind = {"type": f.type}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{f.metadata['help']} [{f.default}]".replace("%", "%%")
        group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=text, **kind)
    given = vars(parser.parse_args(arguments))
    recipe = given.get("recipe", "shapes")
    if recipe not in RECIPES:
        raise SystemExit(f"unknown --recipe '{recipe}': choose from {', '.join(RECIPES)}")
    cfg = Config(**(RECIPES[recipe] | given))
    beside = ROOT / cfg.model  # what ships lies beside the files, wherever the command is given
    if cfg.model.startswith("assets/") and not Path(cfg.model).exists() and beside.exists():
        cfg = dataclasses.replace(cfg, model=os.path.relpath(beside))
    return cfg


def need(ok, sentence: str) -> None:
    if not ok:
        raise SystemExit(sentence)


def choose(cfg, name: str, choices) -> None:
    value = getattr(cfg, name)
    need(value in choices, f"--{name} '{value}': choose from {', '.join(choices)}")


def check_config(cfg, world: int) -> None:
    """SystemExit with one sentence for settings that cannot work; world: processes of the run."""
    for check in (check_numbers, *CHECKS):
        check(cfg, world)


def check_numbers(cfg, world: int = 1) -> None:
    """Each number lies in the range that its field names, which no NaN and no infinity does."""
    for f in dataclasses.fields(cfg):
        if f.type in (int, float):
            value, within = getattr(cfg, f.name), f.metadata["within"]
            low, high = map(float, within[1:-1].split(","))
            above = value > low or within[0] == "[" and value == low
            below = value < high or within[-1] == "]" and value == high
            start = f"{'at least' if within[0] == '[' else 'above'} {low:g}"
            end = f"{'at most' if within[-1] == ']' else 'below'} {high:g}".replace(
                "below inf", "finite"
            )
            need(
                above and below,
                f"--{f.name} {value}: must be a number {start} and {end} ({f.metadata['help']})",
            )


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


def main_memory() -> float:
    """Bytes of this machine's main memory; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def window_range(cfg) -> tuple[int, int]:
    """The first and the last step, plus one, in which --window may lie.

    Raises ValueError if the text is no range, or the window does not fit into it.
    """
    last = cfg.num_steps - 1  # always an ODE step, and so outside
    low, colon, high = (cfg.window_range or f"0:{last}").partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise ValueError(f"--window_range '{cfg.window_range}': two step numbers A:B, such as 1:4")
    if not int(low) + cfg.window <= int(high) <= last:
        raise ValueError(
            f"--window {cfg.window} must fit into --window_range {low}:{high}, and that into "
            f"0:{last}: the last of {cfg.num_steps} steps is not stochastic"
        )
    return int(low), int(high)


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


def check_memory(cfg, world: int) -> None:
    """What a step keeps at the very least fits the main memory of this machine.

    Pictures of 3 bytes a pixel; float32 latents of a quarter number a pixel (models compress by 8
    or less to 16 channels or more), two a denoising step; 400 bytes a comparison.
    """
    samples = cfg.prompts_per_step // world * cfg.group_size
    states = samples * cfg.size**2 * (2 * cfg.num_steps + 4)
    least, room = states + 400 * samples * (cfg.opponents or cfg.group_size - 1), main_memory()
    need(
        least <= room,
        f"--group_size {cfg.group_size} and --prompts_per_step {cfg.prompts_per_step} of --size "
        f"{cfg.size} and --num_steps {cfg.num_steps} keep at least {least / 1e9:,.0f} GB of "
        f"pictures, latents and comparisons in a process; this machine has {room / 1e9:.0f}",
    )


def check_sampling(cfg, world: int) -> None:
    from sampler import DIFFUSIONS

    choose(cfg, "sde_kind", tuple(DIFFUSIONS))
    choose(cfg, "dtype", ("float32", "bfloat16"))
    need(
        cfg.prompts_per_step % world == 0,
        f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of the {world} "
        "process(es): a group never spans ranks",
    )
    check_window(cfg)
    check_memory(cfg, world)
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
    choose(cfg, "judge", ("shapes", "openai", "local"))
    from rewards import pair_schedule

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
        "about two pictures",
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
    choose(cfg, "logger", ("", "tensorboard", "wandb"))
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
