"""What a run's settings name, made: the model and what learns of it, the judge, rewards, prompts.

model = load_model(cfg, procs)              # cfg: config.Config; procs: distributed.Processes
rewards = rewards_of(cfg, judge_of(cfg), procs.device)
"""

import copy
import functools
import logging
import os
from pathlib import Path

import torch

from common.seeds import seed_of
from figures.pictures import OTHER_JUDGE
from judges import released, scorers
from judges.make import make_judge, parse_extra
from judges.sight import check_sight
from judges.templates import PAIRWISE_TEMPLATE, check_template, read_template
from models import base
from rewards import JUDGED, PairwiseReward, PointwiseReward
from shapes.grammar import parse_prompt
from shapes.verifier import ShapesMLLM
from training import distributed
from training.config import (
    Config,
    parse_bench_prompts,
    parse_eval_rewards,
    parse_judge,
    parse_rewards,
)
from training.data import Prompts, TextCache, read_prompts
from training.distributed import DTYPES, Processes
from training.flex import FlexReward
from training.judging import Record, answered, models_of
from unigenbench.sets import find_prompts
from unigenbench.testpoints import Prompt

log = logging.getLogger("train")


def load_model(cfg: Config, procs: Processes) -> base.Model:
    """The base model with what is trained of it: a float32 LoRA, or all weights and a frozen copy.

    On the device, or spread over the ranks (FSDP2), or waiting in main memory (--offload).
    """
    dtype = DTYPES[cfg.dtype]
    elsewhere = cfg.shard or cfg.offload  # the device never holds the whole transformer
    device = "cpu" if elsewhere else procs.device
    model = base.load(cfg.model, cfg.size, cfg.guidance, device, dtype)
    if model.distilled and procs.is_main:
        log.warning(
            "--model %s is step-distilled: such models turn blurry under this training, since they "
            "are no flow along which small steps lead; take the base that it was made from",
            cfg.model,
        )
    if cfg.vae_slicing:
        model.pipe.vae.enable_slicing()
    if cfg.lora_rank:
        torch.manual_seed(seed_of(cfg.seed, "lora"))  # its first matrices are random
        model.add_lora(cfg.lora_rank, cfg.lora_alpha)
    else:
        model.frozen = copy.deepcopy(model.transformer)
        model.transformer.requires_grad_(True)
    if cfg.gradient_checkpointing:
        model.transformer.enable_gradient_checkpointing()
    if cfg.compile:  # each in place, so that no weight changes its name
        for block in distributed.blocks(model.transformer):
            block.compile()
    if elsewhere:  # the other parts first: they make room for what is pinned
        for name, part in model.pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "transformer":
                part.to(procs.device)
    if cfg.shard and cfg.lora_rank:
        distributed.shard(model.transformer, procs, dtype, None, model.trainable())
    elif cfg.shard:
        distributed.shard(model.transformer, procs, dtype)
        distributed.shard(model.frozen, procs, dtype, master=dtype)
    elif cfg.offload:
        distributed.offload(model.transformer, procs.device)
    return model


def cache_text(model: base.Model, cfg: Config, procs: Processes, texts: list[str]) -> None:
    """Encodes all texts of the run now, each rank its share, and puts the encoders away."""
    cache = TextCache(cfg.text_cache, cfg.model, DTYPES[cfg.dtype])
    texts = list(dict.fromkeys(texts))
    cache.prepare(texts[procs.rank :: procs.world_size], model.text_of)
    procs.meet()
    for name, part in model.pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.to("cpu")
    model.text_of = lambda prompts: cache.load(prompts, model.Text, procs.device)


def prompts_of(cfg: Config) -> Prompts | None:
    """Those of --prompts. Raises ValueError for a file that does not hold enough."""
    return read_prompts(cfg.prompts, cfg.heldout, cfg.prompts_per_step) if cfg.prompts else None


def bench_prompts_of(cfg: Config) -> list[Prompt]:
    """Those of --bench_prompts, spread evenly over the set where not all are asked for.

    Raises ValueError for a set that cannot be read or is too small, or that --bench_judge, if it is
    the verifier, does not know.
    """
    if not cfg.bench_every:
        return []
    name, count = parse_bench_prompts(cfg.bench_prompts)
    prompts = find_prompts(name)
    count = len(prompts) if count is None else count
    if not 0 < count <= len(prompts):
        raise ValueError(f"--bench_prompts {cfg.bench_prompts}: 1 to {len(prompts)} of this set")
    prompts = [prompts[i * len(prompts) // count] for i in range(count)]
    if cfg.bench_judge == "shapes":
        check_known([p.text for p in prompts], "bench_prompts", cfg.bench_prompts, "bench_judge")
    return prompts


def judge_of(cfg: Config, world: int = 1, flag: str = "judge"):
    """The judge that --judge names, or another flag: --eval_judge, --bench_judge. Those are asked
    our own question. The calls in flight are shared over `world` processes.

    Raises ValueError for the verifier and prompts that it does not know.
    """
    kind, url, model, beside = cfg.judge, cfg.base_url, cfg.judge_model, flag != "judge"
    as_released = bool(released.kind_of(cfg.judge_prompt)[0]) and not beside
    own = dict(others=parse_extra(cfg.judge_extra))
    own |= {"encode": released.jpeg_uri} if as_released else {}
    if beside:
        kind, url, model = parse_judge(getattr(cfg, flag), flag)
        own = dict(api_key=os.environ.get("EVAL_API_KEY"))
    if kind == "shapes" and flag != "bench_judge":
        check_known(sum(prompts_of(cfg) or [], []), "prompts", cfg.prompts, "judge")
    return make_judge(
        kind,
        url or None,
        model or None,
        max_tokens=cfg.judge_tokens or (released.TOKENS if as_released else 2048),
        seed=cfg.judge_seed if cfg.judge_seed >= 0 else None,
        max_calls=cfg.max_calls or None,
        concurrency=max(1, cfg.concurrency // world),
        timeout=cfg.call_timeout,
        patience=cfg.patience,
        shapes=ShapesMLLM,
        **own,
    )


def check_known(texts: list[str], flag: str, file: str, judge: str) -> None:
    """Raises ValueError for a prompt of a file that the verifier cannot judge: it would be lost
    each time, whatever the reward is. flag, file: where texts are from; judge: the judge's flag."""
    foreign = [text for text in texts if parse_prompt(text) is None]
    others = "openai=[MODEL@]URL or local=FOLDER"
    if judge == "judge":
        others = "openai --base_url URL, or --judge local --judge_model FOLDER"
    if foreign:
        raise ValueError(
            f"the judge 'shapes' is the verifier: it knows captions of colored shapes alone, and "
            f"{len(foreign)} of {len(texts)} prompts in --{flag} '{file}' are none, such as "
            f"'{foreign[0][:60]}': give --{judge} {others}"
        )


def try_judge(cfg: Config, judge) -> str:
    """Asks about a red and a blue circle before anything expensive is begun.

    Returns what to warn of. Raises ValueError if no answer comes, or the judge does not see.
    """
    if cfg.judge == "shapes":
        return ""
    return check_sight(judge, comparison_of(cfg, judge).template, cfg.soft)


def measures_of(cfg: Config, procs: Processes) -> dict:
    """What held-out images are measured by and nothing is trained on, as heldout.Heldout has it.

    Raises ValueError for weights that cannot be loaded, and a judge that cannot judge.
    """
    measures = {}
    for name, source in parse_eval_rewards(cfg.eval_rewards).items():
        score = scorers.load(name, source, procs.device).score
        measures[f"heldout_{name}"] = lambda texts, images, _, score=score: score(texts, images)
    if cfg.eval_judge:
        judge = judge_of(cfg, procs.world_size, "eval_judge")
        if cfg.eval_judge != "shapes" and (doubt := check_sight(judge)) and procs.is_main:
            log.warning("--eval_judge: %s", doubt)
        kept = procs.is_main and cfg.eval_judge != "shapes"
        record = Record(Path(cfg.out) / "verdicts_eval_judge") if kept else None
        measures[OTHER_JUDGE] = functools.partial(
            points_by, PairwiseReward(judge), procs, record, set()
        )
    return measures


def bench_of(cfg: Config, procs: Processes) -> tuple[list[Prompt], object]:
    """The prompts of UniGenBench, none where it is not asked for, and on rank 0 their judge.

    Raises ValueError as bench_prompts_of and measures_of do.
    """
    prompts, judge = bench_prompts_of(cfg), None
    if prompts and procs.is_main:
        judge = judge_of(cfg, flag="bench_judge")
        if cfg.bench_judge != "shapes" and (doubt := check_sight(judge, pairs_first=False)):
            log.warning("--bench_judge: %s", doubt)
    return prompts, judge


def points_by(compare, procs: Processes, record, known: set, texts, images, base) -> list:
    """Each image's points against the base's, None where lost, which ends no run; half a point for
    the base itself, about which nobody is asked. known: models that have answered, added to."""
    if images[0] is base[0]:
        return [0.5] * len(images)
    compared = answered(procs, record, compare, texts, [*map(list, zip(images, base))])
    points = [compared.points(p)[0][1] for p in range(len(texts))]
    ranks = procs.gather([(points, compared.error, models_of([compared]))])
    every = [point for found, _, _ in ranks for point in found]
    if procs.is_main and (errors := [error for _, error, _ in ranks if error]):
        lost = every.count(None), len(every), errors[-1]
        log.warning("--eval_judge: %d of %d comparisons lost, last error: %s", *lost)
    new = set().union(*(models for *_, models in ranks)) - known
    if procs.is_main and known and new:
        log.warning("--eval_judge is answered by another model than before: %s", ", ".join(new))
    known |= new
    return points


def comparison_of(cfg: Config, judge, **settings) -> PairwiseReward:
    """The run's pairwise reward; settings: other than its own, such as opponents.

    Raises ValueError for a --judge_prompt that cannot be read, or does not ask about the prompt.
    """
    template, (kind, path) = PAIRWISE_TEMPLATE, released.kind_of(cfg.judge_prompt)
    if kind:
        template = released.released_question(cfg.judge_prompt)
    elif path:
        template = read_template(path, "--judge_prompt")
        check_template(template, f"--judge_prompt '{path}'", ["prompt"])
    reward = FlexReward if kind == "flex" else PairwiseReward
    return reward(judge, template=template, soft=cfg.soft, **settings)


def rewards_of(cfg: Config, judge, device) -> dict:
    """The rewards of --reward by name; scorers on `device`."""
    rewards = {}
    for name, part in parse_rewards(cfg.reward).items():
        if name in JUDGED:
            rewards[name] = judged_reward(cfg, name, judge)
        else:
            rewards[name] = PointwiseReward(scorers.load(name, part.source, device))
    return rewards


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


def call_budget(cfg: Config, heldout: int, bench: int = 0) -> str:
    """The questions that a whole run puts to its judges, repeats left aside. heldout, bench: their
    prompts."""
    evaluations = -(-cfg.steps // cfg.eval_every)  # also after the last step; not of the base
    scored = 1 + -(-cfg.steps // cfg.bench_every) if bench else 0  # of the base too
    group = calls_of(cfg)
    steps, held = group * cfg.prompts_per_step * cfg.steps, 2 * heldout * evaluations
    return (
        f"calls to the judge: {group} a group x {cfg.prompts_per_step} prompts x {cfg.steps} steps "
        f"= {steps:,}, and 2 orders x {heldout} held-out prompts x {evaluations} evaluations = "
        f"{held:,}; {steps + held:,} in all, and once more for each that is lost"
        + f"; {held:,} more to --eval_judge" * bool(cfg.eval_judge)
        + f"; {bench * scored:,} more to --bench_judge" * bool(bench)
    )
