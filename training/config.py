"""The settings of a run: one dataclass, the recipes, the command line. What cannot work: checks.py.

cfg = parse_config(["--recipe", "flux-lora", "--prompts", "prompts.txt"])
"""

import argparse
import dataclasses
import functools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


# What a number may be, by its bounds; a setting may add its own.
positive, nonnegative, share = {"above": 0}, {"least": 0}, {"least": 0, "most": 1}


def option(default, help, bounds=(), *, choices=None, needs="", free=False, **more):
    """A setting: its default and help, and what its own field says of it.

    bounds, more: of a number: least, above, most, below. choices: of a word. needs: another
    setting, "NAME" or "NAME VALUE ...", without which this one would change nothing. free: whether
    it may differ when a run is resumed.
    """
    about = dict(help=help, bounds=dict(bounds) | more, choices=choices, needs=needs, free=free)
    return field(default=default, metadata=about)


BENCH = dict(needs="bench_every")
# Where a run happens, what fits there, how its judge is reached and what may be lost.
free = functools.partial(option, free=True)
served = functools.partial(free, needs="judge openai")


class Part(NamedTuple):
    """One reward of a mixture."""

    source: str  # folder or hub name of a scorer's weights; empty: the published ones
    weight: float


def parse_rewards(text: str) -> dict[str, Part]:
    """The parts of "NAME[=SOURCE][:WEIGHT],...", by name; a weight that is not given is 1.

    Raises ValueError for a part that is none.
    """
    from judges.scorers import PUBLISHED, split_source
    from rewards import JUDGED

    parts, known = {}, [*JUDGED, *PUBLISHED]
    for item in map(str.strip, text.split(",")):
        head, _, weight = item.rpartition(":") if ":" in item else (item, "", "1")
        name, source = (head, "") if head in JUDGED else split_source(head) or ("", "")
        try:
            weight = float(weight)
        except ValueError:
            weight = math.nan
        if name not in known or name in parts or not 0 < weight < math.inf:
            raise ValueError(
                f"--reward: '{item}' in '{text}' is no NAME[=SOURCE][:WEIGHT]: NAME is one of "
                f"{', '.join(known)}, each once; =SOURCE for a scorer alone, the folder or hub "
                "name of its weights; WEIGHT a number above 0"
            )
        parts[name] = Part(source, weight)
    return parts


def parse_eval_rewards(text: str) -> dict[str, str]:
    """Sources of the scorers that are only seen, by name. Raises ValueError as parse_rewards."""
    from judges.scorers import parse_scorers

    return parse_scorers(text, "--eval_rewards") if text else {}


def sources_of(cfg: "Config") -> list[tuple[str, str, str]]:
    """(flag, name, source) of all rewards, and of all scorers that are only seen."""
    rewards, seen = parse_rewards(cfg.reward), parse_eval_rewards(cfg.eval_rewards)
    found = [("reward", name, part.source) for name, part in rewards.items()]
    return found + [("eval_rewards", name, source) for name, source in seen.items()]


def parse_judge(text: str, flag: str) -> tuple[str, str, str]:
    """Kind, URL and model of "shapes", "local=FOLDER" or "openai=[MODEL@]URL"; all empty of "".

    Raises ValueError for another text, which is not quoted: it may hold a password.
    """
    kind, _, where = text.partition("=")
    model, _, url = where.rpartition("@") if kind == "openai" else (where, "", "")
    whole = {"": not where, "shapes": not where, "local": model, "openai": url}
    if not whole.get(kind) or "://" in model:
        raise ValueError(
            f"--{flag} is none of shapes, local=FOLDER and openai=[MODEL@]URL, with no password "
            "in it: EVAL_API_KEY, or else OPENAI_API_KEY, is its key"
        )
    return kind, url, model


def parse_bench_prompts(text: str) -> tuple[str, int | None]:
    """A set or file, and how many of its prompts, None for all, of "en", "en:60" or "FILE:60"."""
    name, _, count = text.rpartition(":")
    return (name, int(count)) if name and count.isdecimal() else (text, None)


SOURCES = """(P) is what the paper says, (C) what the released code has, (T) what was tried here. In
brackets stands the default, of --recipe shapes; GUIDE.md lists every departure."""


@dataclass(frozen=True)
class Config:
    """Every setting of a run; each is a flag. Its help says where a value comes from: SOURCES."""

    recipe: str = option(
        "shapes",
        "a set of the values below",
        choices=("shapes", "flux-lora", "flux-fast", "klein-lora", "flux-full"),
    )
    # of each file or folder that is named here, config.json keeps what stands in it, not where
    model: str = free("assets/tiny-flux", "pipeline folder or hub name")
    out: str = free("runs/shapes", "the run directory")
    steps: int = free(
        80, "training steps: each a rollout, and --updates optimizer steps", positive, most=999_999
    )
    seed: int = option(0, "seed of prompts and noise")
    resume: bool = free(False, "continue the run in --out from its last checkpoint")
    export: str = free(
        "",
        "best: write the best held-out step to best/, and stop",
        choices=("", "best"),
        needs="resume",
    )
    # what is sampled
    prompts: str = free("", "UTF-8 file, one prompt per line; empty: prompts of shapes")
    prompts_per_step: int = option(16, "P, over all processes", positive)
    group_size: int = option(8, "G, images per prompt (C: 8), two at least to be compared", least=2)
    size: int = option(32, "height and width, pixels (C: 720)", least=8)
    num_steps: int = option(6, "K, denoising steps (C: 25); the last is not stochastic", least=2)
    shift: float = option(
        1.0, "bends the sigmas towards noise (C: 3); 0: as the pipeline itself does", nonnegative
    )
    noise_level: float = option(
        0.7, "exploration of the SDE (C: 0.7): without noise there is no policy to learn", positive
    )
    window: int = option(
        0, "stochastic steps in a row, drawn anew each step; 0: all but the last", nonnegative
    )
    window_range: str = option(
        "", "A:B, the window lies in steps A to B - 1; empty: in all but the last", needs="window"
    )
    sde_kind: str = option(
        "flow", "of Flow-GRPO, DanceGRPO or Flow-CPS", choices=("flow", "dance", "cps")
    )
    guidance: float = option(
        3.5, "guidance: an input of FLUX.1 (C: 3.5), a second pass elsewhere", nonnegative
    )
    same_noise: bool = option(False, "one initial noise for the whole group (C: yes)")
    # how it is judged
    reward: str = option(
        "pairwise",
        "pairwise (win rate) | pointwise (score) | a scorer's NAME[=SOURCE] | a mixture "
        "NAME[=SOURCE]:WEIGHT,... (C: pairwise:0.4,clip:0.6)",
    )
    judge: str = option(
        "shapes", "the verifier, a server, or one in process", choices=("shapes", "openai", "local")
    )
    judge_model: str = free(
        "", "model name at the server, or folder of a local judge", needs="judge openai local"
    )
    judge_prompt: str = free(
        "",
        "file with a comparison template; {prompt} is replaced. think:FILE, flex:FILE: ask as the "
        "released code does, by your copy of its templates.py",
    )
    judge_tokens: int = free(
        0,
        "longest answer, tokens; 0: 2048, with think: and flex: 4096 (C)",
        nonnegative,
        needs="judge openai local",
    )
    soft: bool = option(
        False,
        "count P(first is better), as a judge in process and some servers give it",
        needs="judge openai local",
    )
    both_orders: bool = option(True, "judge each pair in both orders; disagreement is a tie")
    opponents: int = option(0, "compare each image with so many others; 0: all pairs", nonnegative)
    max_failed: float = free(0.05, "share of a step's comparisons that may be lost", share)
    # how a judge server is called
    base_url: str = served("", "of an OpenAI-compatible judge server, else $OPENAI_BASE_URL")
    concurrency: int = served(
        16, "calls in flight at a judge server, over all processes; fewer after timeouts", positive
    )
    call_timeout: float = served(60.0, "seconds for one call of a judge server", positive)
    patience: float = served(
        180.0, "seconds without any answer after which a judge server is dead", positive
    )
    max_calls: int = served(0, "cap on calls to a server, each process; 0: none", nonnegative)
    accept_judge: str = served("", "models, with commas, that may answer beside the first one")
    judge_extra: str = option(
        "",
        'JSON object of further fields of each request, such as {"reasoning_effort": "low"}',
        needs="judge openai",
    )
    judge_seed: int = served(
        0, "sent to a judge server; -1: none, for servers that refuse it", least=-1
    )
    # how it learns
    lr: float = option(
        1e-4, "AdamW (C: 1e-5 at full FLUX size; T: 5e-4 destroys the tiny one)", positive, most=1
    )
    weight_decay: float = option(1e-4, "(C)", share)
    max_grad_norm: float = option(1.0, "(C); 0: the gradient is not clipped", nonnegative)
    lora_rank: int = option(0, "0 trains all weights (C: 64 for LoRA)", nonnegative)
    lora_alpha: int = option(
        0, "a LoRA counts alpha / rank; 0: as the rank (C: 128)", nonnegative, needs="lora_rank"
    )
    guard: bool = option(True, "GRPO-Guard's ratio and step weights (C: yes)")
    clip_range: float = option(1e-4, "of the ratio (C)", positive, most=1)
    adv_clip: float = option(5.0, "of advantages (C)", positive)
    std_floor: float = option(
        -1.0,
        "least std of a group's rewards that divides, in their units, of a mixture one for all; "
        "-1: each reward's own (rewards.STD_FLOORS)",
        least=-1,
    )
    timestep_fraction: float = option(
        0.6,
        "share of the stochastic steps that is replayed (C: 0.6); a window is replayed whole",
        positive,
        most=1,
    )
    kl_coef: float = option(0.0, "weight of the KL to the base (C: a flag, 0)", nonnegative)
    updates: int = option(
        1,
        "optimizer steps a rollout, N, each on every N-th micro-batch (C: 2); on images of every "
        "group if N times --micro_batch divides --group_size, else of some groups alone",
        positive,
    )
    ema: float = option(
        0.9, "decay of the moving average that is evaluated and saved; 0: none", least=0, below=1
    )
    # what fits
    micro_batch: int = free(
        0, "samples through the network at once; 0: all, or a group if a server judges", nonnegative
    )
    dtype: str = option(
        "float32", "of the network; what is trained stays float32", choices=("float32", "bfloat16")
    )
    gradient_checkpointing: bool = free(False, "activations are computed again backwards")
    shard: bool = free(
        False,
        "FSDP2: weights, gradients and optimizer, or a LoRA's base, spread over all processes",
    )
    reduce_each: bool = free(
        False, "with --shard: reduce gradients after each micro-batch, so that none is held whole"
    )
    text_cache: str = free("", "folder for text embeddings; the text encoders then leave the GPU")
    vae_slicing: bool = free(False, "decode one image at a time")
    offload: bool = free(False, "a LoRA's frozen blocks wait in main memory, fetched to run")
    compile: bool = free(False, "torch.compile of the transformer's blocks")
    # what is written
    eval_every: int = free(8, "steps between held-out evaluations", positive)
    heldout: int = option(0, "held-out prompts to evaluate on; 0: all of shapes", nonnegative)
    eval_size: int = option(
        0, "pixels of held-out images; 0: as --size", nonnegative, needs="prompts"
    )
    eval_rewards: str = option(
        "", "scorers NAME[=SOURCE],... of held-out images, which nothing is trained on"
    )
    eval_judge: str = free(
        "", "another judge of held-out images: shapes, local=FOLDER or openai=[MODEL@]URL"
    )
    eval_steps: int = option(0, "denoising steps of held-out images; 0: --num_steps", nonnegative)
    bench_every: int = free(0, "steps between UniGenBench scores; 0: none", nonnegative)
    bench_prompts: str = option(
        "", "of which prompts, one image each: a set of bench.py, or a file, [:N] of them", **BENCH
    )
    bench_judge: str = free("", "by which judge, as --eval_judge names it", **BENCH)
    checkpoint_every: int = free(10, "steps between checkpoints", positive)
    logger: str = free("", "beside metrics.jsonl", choices=("", "tensorboard", "wandb"))
    device: str = free("", "cpu, cuda, ...; empty: cuda if there is one")
    dry_run: bool = free(False, "print what the run needs in memory and work, and stop")
    gpu_memory: float = free(80.0, "GB a GPU, for --dry_run", positive, needs="dry_run")
    ranks: int = free(
        0, "processes to plan for with --dry_run; 0: torchrun's", nonnegative, needs="dry_run"
    )
    # 40 % of an H100's 989 in bfloat16
    tflops: float = free(
        396.0, "TFLOP a second that a GPU is planned to do", positive, needs="dry_run"
    )
    price: float = free(3.0, "dollars a GPU hour, for --dry_run", nonnegative, needs="dry_run")


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
    "flux-fast": RELEASED
    | {  # what peers do in 2026 (Flow-Factory's default for FLUX.1-dev), on one 80 GB GPU
        "out": "runs/flux-fast",
        "size": 512,
        "num_steps": 10,
        "window": 1,  # of steps 1 to 3 one is stochastic, and trained
        "window_range": "1:4",
        "group_size": 16,
        "same_noise": False,
        "lora_rank": 64,
        "lora_alpha": 128,
        "lr": 3e-4,
        "eval_size": 1024,  # training at one size and drawing at another has shown grid patterns
        "eval_steps": 28,
        "prompts_per_step": 8,  # ours, and all below: (there 48, on 8 GPUs)
        "steps": 600,
        "micro_batch": 4,
        "updates": 2,
    },
    "klein-lora": RELEASED
    | {  # the released script for FLUX.2-klein, at the size of one GPU
        "out": "runs/klein-lora",
        "model": "black-forest-labs/FLUX.2-klein-base-4B",
        "size": 512,
        "shift": 0.0,
        "guidance": 4.0,
        "reward": "pairwise:0.7,clip:0.3",
        "lora_rank": 64,
        "lora_alpha": 128,
        "lr": 5e-5,
        "eval_size": 1024,  # ours, and all below; (C) has groups of 9
        "prompts_per_step": 4,
        "steps": 600,
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
    about = "Pref-GRPO: sample, compare, normalize, update."
    parser = argparse.ArgumentParser(prog="train.py", description=about, epilog=SOURCES)
    parser.error = lambda message: parser.exit(2, f"{message}\n")  # without seventy flags before
    for f in dataclasses.fields(Config):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        kind = {"type": f.type, "choices": f.metadata["choices"]}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{f.metadata['help']} [{f.default}]".replace("%", "%%")
        group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=text, **kind)
    given = vars(parser.parse_args(arguments))
    cfg = Config(**(RECIPES[given.get("recipe", "shapes")] | given))
    beside = ROOT / cfg.model  # what ships lies beside the files, wherever the command is given
    if cfg.model.startswith("assets/") and not Path(cfg.model).exists() and beside.exists():
        cfg = dataclasses.replace(cfg, model=os.path.relpath(beside))
    return cfg
