"""What a run's settings name, made: the model and what learns of it, the judge, rewards, prompts.

model = load_model(cfg, procs)              # cfg: config.Config; procs: processes.Processes
rewards = rewards_of(cfg, judge_of(cfg), procs.device)
"""

import copy
from pathlib import Path

import torch

from judges import scorers
from judges.make import make_judge
from judges.sight import check_sight
from judges.verdicts import PAIRWISE_TEMPLATE
from models import base
from rewards import JUDGED, PairwiseReward, PointwiseReward
from shapes.verifier import ShapesMLLM
from support import processes
from support.config import Config, parse_rewards
from support.processes import DTYPES, Processes
from support.prompts import Prompts, TextCache, read_prompts, seed_of

# ----------------------------------------------------------------------------- what learns


def load_model(cfg: Config, procs: Processes) -> base.Model:
    """The base model with what is trained of it: a float32 LoRA, or all weights and a frozen copy.

    On the device, or spread over the ranks (FSDP2), or waiting in main memory (--offload).
    """
    dtype = DTYPES[cfg.dtype]
    elsewhere = cfg.shard or cfg.offload  # the device never holds the whole transformer
    model = base.load(
        cfg.model, cfg.size, cfg.guidance, "cpu" if elsewhere else procs.device, dtype
    )
    if cfg.vae_slicing:
        model.pipe.vae.enable_slicing()
    if cfg.lora_rank:
        torch.manual_seed(seed_of(cfg.seed, "lora"))  # its first matrices are random
        model.kind.add_lora(model.pipe, cfg.lora_rank, cfg.lora_alpha)
    else:
        model.frozen = copy.deepcopy(model.transformer)
        model.transformer.requires_grad_(True)
    if cfg.gradient_checkpointing:
        model.transformer.enable_gradient_checkpointing()
    if cfg.compile:  # each in place, so that no weight changes its name
        for block in processes.blocks(model.transformer):
            block.compile()
    if elsewhere:  # the other parts first: they make room for what is pinned
        for name, part in model.pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "transformer":
                part.to(procs.device)
    if cfg.shard:
        processes.shard(model.transformer, procs, dtype)
        processes.shard(model.frozen, procs, dtype, master=dtype)
    elif cfg.offload:
        processes.offload(model.transformer, procs.device)
    return model


def cache_text(model: base.Model, cfg: Config, procs: Processes, texts: list[str]) -> None:
    """Encodes all texts of the run now, each rank its share, and puts the encoders away."""
    cache = TextCache(cfg.text_cache, cfg.model, DTYPES[cfg.dtype])
    texts = list(dict.fromkeys(texts))
    cache.prepare(texts[procs.rank :: procs.world], model.text_of)
    procs.wait()
    for name, part in model.pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.to("cpu")
    model.text_of = lambda prompts: cache.load(prompts, model.kind.Text, procs.device)


# ----------------------------------------------------------------------------- what judges


def judge_of(cfg: Config, world: int = 1):
    """The judge that the settings name. The calls in flight are shared over `world` processes."""
    return make_judge(
        cfg.judge,
        cfg.base_url or None,
        cfg.judge_model or None,
        max_tokens=cfg.judge_tokens,
        seed=cfg.judge_seed if cfg.judge_seed >= 0 else None,
        max_calls=cfg.max_calls or None,
        concurrency=max(1, cfg.concurrency // world),
        timeout=cfg.call_timeout,
        patience=cfg.patience,
    )


def try_judge(cfg: Config, judge) -> str:
    """Asks about a red and a blue circle before anything expensive is begun.

    Returns what to warn of. Raises ValueError if no answer comes, or the judge does not see.
    """
    if cfg.judge == "shapes":
        return ""
    return check_sight(judge, comparison_of(cfg, judge).template, cfg.soft)


def read_template(path: str) -> str:
    """The file word for word, line breaks included. Raises ValueError if it is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--judge_prompt '{path}' is not UTF-8 text ({error.reason} at byte {error.start})"
        )


def comparison_of(cfg: Config, judge, **settings) -> PairwiseReward:
    """The run's pairwise reward; settings: other than its own, such as opponents."""
    template = read_template(cfg.judge_prompt) if cfg.judge_prompt else PAIRWISE_TEMPLATE
    return PairwiseReward(judge, template=template, soft=cfg.soft, **settings)


def rewards_of(cfg: Config, judge, device) -> dict:
    """The rewards of --reward by name; scorers on `device`."""

    def named(name: str, source: str):
        if name in JUDGED:
            return judged_reward(cfg, name, judge)
        return PointwiseReward(scorers.load(name, source, device))

    return {name: named(name, part.source) for name, part in parse_rewards(cfg.reward).items()}


def judged_reward(cfg: Config, name: str, judge) -> PairwiseReward | PointwiseReward:
    if name == "pairwise":
        opponents = cfg.opponents or None
        return comparison_of(cfg, judge, both_orders=cfg.both_orders, opponents=opponents)
    return PointwiseReward(scorers.MLLMScorer(judge))


def calls_of(cfg: Config) -> int:
    """The questions that the rewards put to the judge about one group; scorers ask nobody."""
    judge = ShapesMLLM()  # any will do, since it is asked nothing
    asked = [name for name in parse_rewards(cfg.reward) if name in JUDGED]
    return sum(judged_reward(cfg, name, judge).calls(cfg.group_size) for name in asked)


def call_budget(cfg: Config, heldout: int) -> str:
    """The questions that a whole run puts to its judge, repeats left aside."""
    evaluations = -(-cfg.steps // cfg.eval_every)  # also after the last step; not of the base
    group = calls_of(cfg)
    steps, held = group * cfg.prompts_per_step * cfg.steps, 2 * heldout * evaluations
    return (
        f"calls to the judge: {group} a group x {cfg.prompts_per_step} prompts x {cfg.steps} steps "
        f"= {steps:,}, and 2 orders x {heldout} held-out prompts x {evaluations} evaluations = "
        f"{held:,}; {steps + held:,} in all, and once more for each that is lost"
    )


# ----------------------------------------------------------------------------- what is asked for


def prompts_of(cfg: Config) -> Prompts | None:
    return read_prompts(cfg.prompts, cfg.heldout, cfg.prompts_per_step) if cfg.prompts else None
