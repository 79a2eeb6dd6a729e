"""Several rewards at once: pairwise 0.4 and CLIP 0.6, as in the released FLUX recipe.

Each reward scores the same groups; nothing is added up before it is normalised, since win rates
and logits have different scales. grpo.combine_advantages normalises each in its group, weighs,
adds, and normalises over the batch; MixedReward brings the layers together and logs each by name.

    python train.py --rewards pairwise:0.4,clip=assets/tiny-clip:0.6
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from judges.scorers import PUBLISHED
from rewards import RewardBatch

JUDGED = ("pairwise", "pointwise")  # by a multimodal LLM; the other names are scorers.py's


class Part(NamedTuple):
    """One reward of a mixture."""

    source: str  # folder or hub name of a scorer's weights; empty: the published ones
    weight: float


def parse_rewards(text: str) -> dict[str, Part]:
    """The parts of "NAME[=SOURCE][:WEIGHT],...", by name; a weight that is not given is 1.

    Raises ValueError for an unknown or repeated name, a source for a judged reward, or a weight
    that is no number above 0.
    """
    parts = {}
    for item in text.split(","):
        head, colon, weight = item.strip().rpartition(":")
        name, equals, source = (head if colon else weight).partition("=")
        if name not in JUDGED and name not in PUBLISHED:
            raise ValueError(
                f"--rewards: unknown reward '{name}' in '{text}', "
                f"choose from {', '.join([*JUDGED, *PUBLISHED])}"
            )
        if name in parts:
            raise ValueError(f"--rewards: '{name}' stands twice in '{text}', name each reward once")
        if equals and (name in JUDGED or not source):
            raise ValueError(
                f"--rewards: '{item.strip()}' in '{text}', only a scorer takes "
                "=SOURCE, the folder or hub name of its weights"
            )
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(
                f"--rewards: weight '{weight}' of '{name}' in '{text}' must be a number above 0"
            )
        parts[name] = Part(source, value)
    return parts


class MixedReward:
    """Rewards by name, called as one: rewards (P, G, R), one layer each in their order."""

    def __init__(self, rewards: dict):
        self.rewards = rewards

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> RewardBatch:
        """stats: NAME_mean and NAME_std (mean within-group) of each; counts are sums over all.

        Raises what the rewards raise: JudgeError if too many comparisons or scores are lost.
        """
        return self.result([self.judge(prompts, images)])

    def calls(self, group_size: int) -> int:
        """Questions that one group costs a judge; scorers ask none."""
        return sum(r.calls(group_size) for name, r in self.rewards.items() if name in JUDGED)

    def judge(self, prompts: Sequence[str], images: Sequence[Sequence]) -> list:
        """What each reward says of some groups of a step; `result` makes rewards of all of them."""
        return [reward.judge(prompts, images) for reward in self.rewards.values()]

    def result(self, parts: Sequence[list]) -> RewardBatch:
        """The rewards of a whole step, judged in parts; stats and errors as in __call__."""
        layers, stats = [], {}
        for (name, reward), judged in zip(self.rewards.items(), zip(*parts), strict=True):
            rewards, counts = reward.result(judged)
            layers.append(rewards)
            stats |= {key: value + stats.get(key, 0) for key, value in counts.items()}
            stats |= {
                f"{name}_mean": rewards.mean().item(),
                f"{name}_std": rewards.std(1, correction=0).mean().item(),
            }
        return RewardBatch(torch.stack(layers, -1), stats)
