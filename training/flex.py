"""UnifiedReward-Flex's reward: the overall win rate, and those in the categories that it names.

FlexReward(judge, template=released_question("flex:templates.py"))(prompts, images)   # Rewards
"""

from collections.abc import Sequence

import torch

from judges.answers import CATEGORIES, Outcome
from rewards import Comparison, PairwiseReward, Rewards, points_table

# Of the released script: what the overall win rate counts, what those in categories do, and what
# each of these does by its place in the answer.
OVERALL, BY_CATEGORY = 0.3, 0.7
CATEGORY_WEIGHTS = (1.0, 0.7, 0.7)


def flex_rewards(overall: torch.Tensor, comparisons: Sequence[Comparison]) -> torch.Tensor:
    """(G,): UnifiedReward-Flex's reward of one group, from its overall win rates (G,).

    (0.3 overall + 0.7 sum_c(w_c rate_c) / sum_c(w_c)) / (0.3 + 0.7); rate_c: win rate in the
    category at a place of the answers, over the pairs that have one there in all orders that were
    asked. The overall win rate alone for an image without any.
    """
    total, weights = torch.zeros_like(overall), torch.zeros_like(overall)
    for place, weight in enumerate(CATEGORY_WEIGHTS):
        named = [(*c.outcome.categories, *[None] * CATEGORIES)[place] for c in comparisons]
        placed = [c._replace(outcome=Outcome(point)) for c, point in zip(comparisons, named)]
        for image, row in enumerate(points_table(placed, len(overall))):
            if known := [point for point in row if point is not None]:
                total[image] += weight * sum(known) / len(known)
                weights[image] += weight
    mixed = (OVERALL * overall + BY_CATEGORY * total / weights) / (OVERALL + BY_CATEGORY)
    return torch.where(weights > 0, mixed, overall)


class FlexReward(PairwiseReward):
    """PairwiseReward of a judge whose answers have categories; counts has categories_lost too, how
    many of them are missing or malformed."""

    def __call__(self, prompts, images) -> Rewards:
        found = super().__call__(prompts, images)
        groups = [[c for c in found.comparisons if c.group == p] for p in range(len(prompts))]
        values = [flex_rewards(*group) for group in zip(found.values, groups)]
        read = [c.outcome.categories for c in found.comparisons if c.outcome.points is not None]
        named = sum(point is not None for places in read for point in places)
        found.counts.update(categories_lost=CATEGORIES * len(read) - named)
        return found._replace(values=torch.stack(values))
