"""Which judge and which rewards a run's settings name, and what they cost.

    judge = make_judge(cfg, out)                 # cfg: train.Config
    reward = make_reward(cfg, judge, device)     # (prompts, images) -> RewardBatch
"""

import dataclasses
from pathlib import Path

import scorers
import shapes
from mixture import MixedReward, parse_rewards
from mllm import Cached, LocalMLLM, OpenAIMLLM
from rewards import MLLMScorer, PairwiseReward, PointwiseReward


def make_judge(cfg, out: Path):
    """The judge behind mllm.MLLM; answers of real ones are kept on disk, so that nothing is asked twice."""
    if cfg.judge == "shapes":
        return shapes.ShapesMLLM()
    judge = (OpenAIMLLM(base_url=cfg.base_url or None, model=cfg.judge_model or None,
                        concurrency=cfg.concurrency, timeout=cfg.call_timeout, patience=cfg.patience)
             if cfg.judge == "openai" else LocalMLLM(cfg.judge_model))
    return Cached(judge, out / "judge_cache")


def make_reward(cfg, judge, device):
    """--rewards, else --reward; scorers on `device`."""
    if cfg.rewards:
        return MixedReward({name: PointwiseReward(scorers.load(name, part.source, device))
                            if name in scorers.PUBLISHED else
                            make_reward(dataclasses.replace(cfg, reward=name, rewards=""), judge, device)
                            for name, part in parse_rewards(cfg.rewards).items()})
    if cfg.reward == "pointwise":
        return PointwiseReward(MLLMScorer(judge), cfg.max_failed)
    template = Path(cfg.judge_prompt).read_text() if cfg.judge_prompt else None
    return PairwiseReward(judge, cfg.both_orders, cfg.opponents or None, template, cfg.max_failed)


def call_budget(cfg, reward, heldout: int) -> str:
    """The questions that a whole run puts to its judge, lost and cached ones left aside, in one line."""
    evaluations = 1 + -(-cfg.steps // cfg.eval_every)  # the base, then also after the last step
    steps = reward.calls(cfg.group_size) * cfg.prompts_per_step * cfg.steps
    held = 2 * heldout * evaluations
    return (f"calls to the judge: {reward.calls(cfg.group_size)} a group x {cfg.prompts_per_step} prompts x "
            f"{cfg.steps} steps = {steps:,}, and 2 orders x {heldout} held-out prompts x {evaluations} "
            f"evaluations = {held:,}; {steps + held:,} in all, at most: cached answers cost nothing, "
            "lost ones are asked again")
