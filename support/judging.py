"""Which judge and which rewards a run's settings name, and what they cost.

judge = make_judge(cfg, out)                         # cfg: train.Config
reward = make_reward(cfg, judge, device, gather)     # (prompts, images) -> RewardBatch
"""

from pathlib import Path

from judges import scorers
from judges.mllm import Cached, LocalMLLM, OpenAIMLLM
from judges.verdicts import Verdict, parse_scores, parse_verdict
from rewards import MLLMScorer, PairwiseReward, PointwiseReward
from shapes.verifier import ShapesMLLM
from support.mixture import MixedReward, parse_rewards


def readable(text: str) -> bool:
    """Whether an answer holds a verdict or scores. Only such are kept on disk: else a judge that
    wrote nonsense, and so ended the run, would be quoted for ever after it is mended."""
    return parse_verdict(text) is not Verdict.UNPARSABLE or parse_scores(text) is not None


def make_judge(cfg, out: Path):
    """The judge behind mllm.MLLM; answers of real ones are kept on disk, so that nothing is asked
    twice."""
    if cfg.judge == "shapes":
        return ShapesMLLM()
    if cfg.judge == "local":
        judge = LocalMLLM(cfg.judge_model, max_new_tokens=cfg.judge_tokens)
    else:
        judge = OpenAIMLLM(
            base_url=cfg.base_url or None,
            model=cfg.judge_model or None,
            max_tokens=cfg.judge_tokens,
            seed=cfg.judge_seed if cfg.judge_seed >= 0 else None,
            max_calls=cfg.max_calls or None,
            concurrency=cfg.concurrency,
            timeout=cfg.call_timeout,
            patience=cfg.patience,
        )
    return Cached(judge, out / "judge_cache", readable)


def read_template(path: str) -> str:
    """The file word for word, line breaks included. Raises ValueError if it is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--judge_prompt '{path}' is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def make_comparison(cfg, judge, gather=list, **settings) -> PairwiseReward:
    """The run's pairwise reward; settings: other than its own, such as opponents."""
    template = read_template(cfg.judge_prompt) if cfg.judge_prompt else None
    return PairwiseReward(
        judge,
        template=template,
        max_failed=cfg.max_failed,
        soft=cfg.soft,
        gather=gather,
        **settings,
    )


def make_reward(cfg, judge, device, gather=list):
    """--rewards, else --reward; scorers on `device`. gather: joins lists over the processes."""

    def named(name: str, source: str):
        if name in scorers.PUBLISHED:
            return PointwiseReward(scorers.load(name, source, device), gather=gather)
        if name == "pointwise":
            return PointwiseReward(MLLMScorer(judge), cfg.max_failed, gather)
        return make_comparison(
            cfg, judge, gather, both_orders=cfg.both_orders, opponents=cfg.opponents or None
        )

    parts = {
        name: named(name, part.source)
        for name, part in parse_rewards(cfg.rewards or cfg.reward).items()
    }
    return MixedReward(parts) if cfg.rewards else parts[cfg.reward]


def call_budget(cfg, reward, heldout: int) -> str:
    """The questions that a whole run puts to its judge, lost and cached ones left aside, in one
    line."""
    evaluations = 1 + -(-cfg.steps // cfg.eval_every)  # the base, then also after the last step
    steps = reward.calls(cfg.group_size) * cfg.prompts_per_step * cfg.steps
    held = 2 * heldout * evaluations
    return (
        f"calls to the judge: {reward.calls(cfg.group_size)} a group x "
        f"{cfg.prompts_per_step} prompts x {cfg.steps} steps = {steps:,}, and 2 orders x "
        f"{heldout} held-out prompts x {evaluations} evaluations = {held:,}; "
        f"{steps + held:,} in all, at most: cached answers cost nothing, lost ones are asked "
        "again"
    )
