"""Settings that cannot work, told in one sentence before anything expensive starts."""

from pathlib import Path

from rewards import pair_schedule
from support.mixture import parse_rewards
from support.policy import micro_batches
from support.processes import DTYPES


def need(ok, sentence: str) -> None:
    if not ok:
        raise SystemExit(sentence)


def choose(cfg, name: str, choices) -> None:
    value = getattr(cfg, name)
    need(value in choices, f"--{name} '{value}': choose from {', '.join(choices)}")


def check_config(cfg, world: int) -> None:
    """SystemExit with one sentence for settings that cannot work; world: processes of the run."""
    check_sampling(cfg, world)
    check_judging(cfg)
    check_learning(cfg, world)


def check_sampling(cfg, world: int) -> None:
    choose(cfg, "sde_kind", ("flow", "dance"))
    choose(cfg, "dtype", tuple(DTYPES))
    need(
        cfg.group_size >= 2,
        f"--group_size {cfg.group_size}: a group needs at least 2 images, "
        "since rewards and advantages compare images of one prompt",
    )
    need(
        cfg.num_steps >= 2,
        f"--num_steps {cfg.num_steps}: at least 2, since the last step is not "
        "stochastic and carries no gradient",
    )
    need(
        cfg.prompts_per_step >= 1 and cfg.prompts_per_step % world == 0,
        f"--prompts_per_step {cfg.prompts_per_step} must be a multiple of the {world} "
        "process(es): a group never spans ranks",
    )
    need(
        cfg.noise_level > 0,
        f"--noise_level {cfg.noise_level}: without noise there is no policy to learn",
    )
    need(
        cfg.recipe == "shapes" or cfg.prompts,
        f"--recipe {cfg.recipe} needs --prompts FILE, a text file with one prompt a line",
    )
    need(
        not cfg.prompts or cfg.heldout >= 1,
        "--prompts needs --heldout N, at least 1: the last N "
        "prompts of the file are evaluated on and never trained on",
    )


def check_judging(cfg) -> None:
    choose(cfg, "judge", ("shapes", "openai", "local"))
    choose(cfg, "reward", ("pairwise", "pointwise"))
    try:
        named = parse_rewards(cfg.rewards or cfg.reward)
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
        not cfg.judge_prompt or "pairwise" in named,
        "--judge_prompt is the question of a pairwise reward",
    )
    need(
        cfg.judge != "local" or cfg.judge_model,
        "--judge local needs --judge_model, a folder or hub name",
    )
    need(
        not cfg.soft or cfg.judge == "local",
        "--soft needs --judge local: no other judge gives probabilities",
    )
    need(
        "@" not in cfg.base_url,
        "--base_url must hold no user and password, since config.json "
        "keeps it: put them into OPENAI_BASE_URL",
    )
    need(0 <= cfg.max_failed <= 1, f"--max_failed {cfg.max_failed}: a share, from 0 to 1")
    for name in ("concurrency", "call_timeout", "patience", "judge_tokens"):
        need(getattr(cfg, name) > 0, f"--{name} {getattr(cfg, name)}: must be positive")
    need(
        cfg.patience >= cfg.call_timeout,
        f"--patience {cfg.patience} is shorter than "
        f"--call_timeout {cfg.call_timeout}: one slow call would be taken for a dead server",
    )


def check_learning(cfg, world: int) -> None:
    choose(cfg, "logger", ("", "tensorboard", "wandb"))
    need(cfg.steps >= 1, f"--steps {cfg.steps}: training needs at least 1 step")
    for name in ("eval_every", "checkpoint_every"):
        need(getattr(cfg, name) > 0, f"--{name} {getattr(cfg, name)}: must be positive")
    need(
        0 < cfg.timestep_fraction <= 1,
        f"--timestep_fraction {cfg.timestep_fraction}: a share of the steps, above 0 and up to 1",
    )
    need(0 <= cfg.ema < 1, f"--ema {cfg.ema}: a decay from 0 (none) to below 1, such as 0.99")
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
    need(
        cfg.micro_batch >= 0, f"--micro_batch {cfg.micro_batch}: a number of samples, or 0 for all"
    )
    batches = micro_batches(cfg.prompts_per_step // world * cfg.group_size, cfg)
    need(
        cfg.updates >= 1 and len(batches) % cfg.updates == 0,
        f"--updates {cfg.updates} must "
        f"divide the micro-batches of a step, {len(batches)} of --micro_batch {batches[0].stop} "
        "samples",
    )
