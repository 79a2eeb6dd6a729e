"""Pairwise preference as a reward: pairs -> points -> win rates. And its pointwise twin.

Pref-GRPO, arXiv 2508.20751: a vision-language model compares all pairs of a group of images made
from one prompt, and the share of its comparisons that an image wins is its reward.

    a group of G images -> G (G - 1) / 2 pairs -> an answer in each order -> points of each pair
                        -> win rates (G,) in [0, 1]

Departures from the released code:
  - each pair is judged in both orders and its points are the mean of the two, so that orders that
    disagree are a tie (there: one order, and a judge that prefers the first image is believed);
  - an answer without a verdict is asked for once more, then left out (there: half a win each);
  - too many lost answers end the run with one sentence (there: KeyError): training/judging.py.
Without ties a win rate is a rank, and a negligible difference weighs as much as a decisive one.

    rewards = PairwiseReward(judge)(prompts, images)          # rewards.values: (P, G) for grpo.py
    rewards.points(0)                                         # who beat whom in the first group
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from judges.answers import Outcome, Verdict, ask, parse_verdict  # noqa: F401
from judges.mllm import MLLM, Query
from judges.templates import PAIRWISE_TEMPLATE

JUDGED = ("pairwise", "pointwise")  # of --reward; training/start.py makes them

# The least std of a group that divides its rewards, in each reward's own units, where --std_floor
# gives no other: where images hardly differ, advantages stay small. Others have none.
STD_FLOORS = {
    # Win rates spread by 0.30 (paper); one decisive pair of 28, all others tied, makes 0.036.
    "pairwise": 0.05,
    # None: z-scores of a judge's scores are the baseline, to show what the paper shows.
    "pointwise": 0.0,
    # A cosine of 0.0005, a twentieth of the 0.01 that spreads of CLIP and HPS stay below (paper).
    # Its HPS example has 0.0026, and so is not changed. The first two are 100 cosines.
    "clip": 0.05,
    "pickscore": 0.05,
    "hpsv2": 0.0005,
    # Of a scale of 1 to 10. A guess: no published spread within groups is known.
    "aesthetic": 0.02,
    # Gray levels, mean over the image: nobody sees so little; groups of shapes spread by 1 to 3.
    "redness": 0.05,
}


def std_floors(names: Iterable[str], given: float = -1.0) -> dict[str, float]:
    """The std floor of each reward: its own, or the given one if that is not negative."""
    return {name: STD_FLOORS.get(name, 0.0) if given < 0 else given for name in names}


class Comparison(NamedTuple):
    """One question about two images of a group, or of one that is rated alone, and what was
    answered."""

    group: int
    first: int  # which image of the group was shown first
    second: int | None
    outcome: Outcome  # the one that counts
    query: Query | None = None  # the images and the question, as they were put
    lost: tuple[Outcome, ...] = ()  # what was answered before, where it had to be asked again


class Rewards(NamedTuple):
    """Rewards of P groups; over parts and ranks, groups are joined and counts add up."""

    values: torch.Tensor  # (P, G) float32
    # wanted, comparisons (asked), failed, unparsable, groups_lost (of which nothing is known),
    counts: Counter  # groups_unreachable (those of them whose judge could not be reached), ...
    error: str | None = None  # the last one
    comparisons: tuple[Comparison, ...] = ()  # none for a scorer, which answers no question

    def points(self, group: int) -> list[list[float | None]]:
        """(G, G): what the image of a row got of that of a column; None where lost or not asked."""
        asked = [c for c in self.comparisons if c.group == group]
        return points_table(asked, self.values.shape[1])


def join(parts: Sequence[Rewards]) -> Rewards:
    """The rewards of several parts of a batch as one, groups in order."""
    counts, comparisons, groups = Counter(), [], 0
    for part in parts:
        counts.update(part.counts)
        comparisons += [c._replace(group=groups + c.group) for c in part.comparisons]
        groups += len(part.values)
    error = next((part.error for part in reversed(parts) if part.error), None)
    return Rewards(torch.cat([part.values for part in parts]), counts, error, tuple(comparisons))


# ----------------------------------------------------------------------------- pairs and win rates


def pair_schedule(group_size: int, opponents: int | None = None) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j; or a sparse schedule in which each image meets `opponents` others.

    Sparse: images stand in a circle and each meets its next neighbors on either side (and, for an
    odd number, the image opposite), so that comparisons connect the group.
    Raises ValueError where there is no such schedule.
    """
    if group_size < 2:
        raise ValueError(f"a comparison needs at least 2 images in a group, got {group_size}")
    if opponents is None or opponents == group_size - 1:
        return list(itertools.combinations(range(group_size), 2))
    if not 1 <= opponents < group_size or group_size * opponents % 2:
        raise ValueError(
            f"{group_size} images cannot have {opponents} opponents each: opponents must be from 1 "
            f"to {group_size - 1}, and one of the two numbers even"
        )
    steps = [*range(1, opponents // 2 + 1)] + [group_size // 2] * (opponents % 2)
    circle = ((i, (i + step) % group_size) for step in steps for i in range(group_size))
    return sorted({(min(pair), max(pair)) for pair in circle})


def win_rates(
    pairs: Sequence[tuple[int, int]], points: Sequence[float | None], group_size: int
) -> torch.Tensor:
    """(G,) float32: the mean of the points an image got; 0.5 for an image without any comparison.

    points: what the first image of each pair gets: 1, 1/2, 0, or a probability; the second gets the
    rest. None where the comparison was lost: it is not counted. If none is, rates sum to G/2.
    """
    won, played = [0.0] * group_size, [0] * group_size
    for (i, j), point in zip(pairs, points, strict=True):
        if point is not None:
            won[i] += point
            won[j] += 1 - point
            played[i] += 1
            played[j] += 1
    return torch.tensor([w / n if n else 0.5 for w, n in zip(won, played)])


def mean_points(forward: float | None, backward: float | None) -> float | None:
    """Points of a pair from its two orders; None if one was lost: the other alone is biased."""
    return None if forward is None or backward is None else (forward + backward) / 2


def turned(points: float | None) -> float | None:
    """What the other image of a pair gets."""
    return None if points is None else 1 - points


def points_table(comparisons: Sequence[Comparison], group_size: int) -> list[list[float | None]]:
    """(G, G) of one group: what the image of a row got of its pair with that of a column, over the
    orders that were asked; None where the pair was lost, or there was none."""
    table = [[None] * group_size for _ in range(group_size)]
    first = {(c.first, c.second): c.outcome.points for c in comparisons if c.second is not None}
    for (i, j), points in first.items():
        table[i][j] = mean_points(points, turned(first.get((j, i), turned(points))))
        table[j][i] = turned(table[i][j])
    return table


def count_cycles(table: Sequence[Sequence[float | None]]) -> tuple[int, int]:
    """Of one group's points (G, G): the triples whose three pairs are all decided, neither lost nor
    tied, and how many of them are cyclic: a over b, b over c, c over a."""
    decided = cyclic = 0
    for i, j, k in itertools.combinations(range(len(table)), 3):
        around = (table[i][j], table[j][k], table[k][i])
        if not {None, 0.5} & set(around):
            decided += 1
            cyclic += len({points > 0.5 for points in around}) == 1
    return decided, cyclic


# ----------------------------------------------------------------------------- rewards


def group_size_of(prompts: Sequence[str], images: Sequence[Sequence]) -> int:
    """G, for P prompts with P groups of G images. Raises ValueError if they do not match."""
    sizes = {len(group) for group in images}
    if len(prompts) != len(images) or len(sizes) != 1:
        raise ValueError(
            f"need one group of images for each prompt, all of one size; got {len(prompts)} "
            f"prompts and groups of {[len(group) for group in images]}"
        )
    return sizes.pop()


def rewards_of(values, compared: Sequence[Comparison], lost: Sequence[bool], counts: Counter):
    """Rewards (P, G) with what was answered. lost: whether of a group nothing is known."""
    away = {c.group for c in compared if c.outcome.answer and c.outcome.answer.unreachable}
    counts.update(groups_lost=sum(lost), groups_unreachable=sum(lost[group] for group in away))
    error = next((c.outcome.error for c in reversed(compared) if c.outcome.error), None)
    return Rewards(values, counts, error, tuple(compared))


class PairwiseReward:
    """Win rates within each group, from a vision-language model that compares two images.

    both_orders: judge each pair both ways; a judge that always says "first" then yields all 0.5.
    opponents: compare each image with that many others only.
    template: text of the question; {prompt} in it is replaced and nothing else interpreted.
    soft: take P(first is better) for points (judges.answers.ask).
    """

    def __init__(
        self,
        mllm: MLLM,
        both_orders: bool = True,
        opponents: int | None = None,
        template: str = PAIRWISE_TEMPLATE,
        soft: bool = False,
    ):
        if "{prompt}" not in template:
            raise ValueError("the template of the pairwise judge lacks {prompt}")
        self.mllm, self.both_orders, self.opponents = mllm, both_orders, opponents
        self.template, self.soft, self.name = template, soft, mllm.name

    def calls(self, group_size: int) -> int:
        """Questions that one group costs, repeats of lost ones not included."""
        return len(pair_schedule(group_size, self.opponents)) * (2 if self.both_orders else 1)

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> Rewards:
        """Win rates (P, G) for P prompts and P groups of G PIL images.

        counts has pairs (not lost), ties, first and second (of answers, as shown) and agree too;
        where all pairs are judged, triples and cyclic.
        Raises ValueError if groups differ in size.
        """
        size = group_size_of(prompts, images)
        pairs = pair_schedule(size, self.opponents)
        compared = self.compare(pairs, prompts, images)
        each = len(compared) // len(prompts)  # questions per group
        groups = [compared[k : k + each] for k in range(0, len(compared), each)]
        tables = [points_table(group, size) for group in groups]
        points = [[table[i][j] for i, j in pairs] for table in tables]  # (P, pairs)
        rates = torch.stack([win_rates(pairs, group, size) for group in points])
        lost = [all(point is None for point in group) for group in points]
        known = [point for group in points for point in group if point is not None]
        counts = self.count(compared)
        counts.update(pairs=len(known), ties=known.count(0.5))
        if len(pairs) == size * (size - 1) // 2:
            triples, cyclic = map(sum, zip(*map(count_cycles, tables)))
            counts.update(triples=triples, cyclic=cyclic)
        return rewards_of(rates, compared, lost, counts)

    def compare(self, pairs, prompts, images) -> list[Comparison]:
        """Asks about the pairs of each group, the two orders of a pair one after the other."""
        texts = [self.template.replace("{prompt}", prompt) for prompt in prompts]
        orders = [o for i, j in pairs for o in ([(i, j), (j, i)] if self.both_orders else [(i, j)])]
        shown = [(p, i, j) for p in range(len(prompts)) for i, j in orders]
        queries = [Query((images[p][i], images[p][j]), texts[p]) for p, i, j in shown]
        asked = ask(self.mllm, queries, self.soft)  # what is lost is asked for once more
        return [
            Comparison(*place, outcomes[-1], query, tuple(outcomes[:-1]))
            for place, query, outcomes in zip(shown, queries, asked)
        ]

    def count(self, compared: Sequence[Comparison]) -> Counter:
        """What was wanted, asked, lost, and said of the first and the second image; of how many
        pairs both orders say the same."""
        final = Counter(c.outcome.verdict for c in compared)
        every = final + Counter(outcome.verdict for c in compared for outcome in c.lost)
        counts = Counter(
            wanted=len(compared),
            comparisons=every.total(),
            failed=final[Verdict.FAILED],
            unparsable=final[Verdict.UNPARSABLE],
            first=every[Verdict.FIRST],
            second=every[Verdict.SECOND],
        )
        if self.both_orders:
            points = [c.outcome.points for c in compared]
            both = [pair for pair in zip(points[::2], points[1::2]) if None not in pair]
            counts["agree"] = sum((a > 0.5, a < 0.5) == (b < 0.5, b > 0.5) for a, b in both)
        return counts


class PointwiseReward:
    """A score for each image alone, what Pref-GRPO is held against; called as PairwiseReward is.

    scorer: has a name and score(prompts, images), a number or None for each (judges/scorers.py);
    one that asks a judge has rate(prompts, images) too, which keeps what the judge answered.
    """

    def __init__(self, scorer):
        self.scorer, self.name = scorer, scorer.name

    def calls(self, group_size: int) -> int:
        """Scores that one group costs."""
        return group_size

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> Rewards:
        """Scores (P, G); an image without one gets its group's mean, and so no advantage."""
        size = group_size_of(prompts, images)
        captions = [prompt for prompt in prompts for _ in range(size)]
        shown = captions, [image for group in images for image in group]
        rated = self.scorer.rate(*shown) if hasattr(self.scorer, "rate") else []
        scores = [outcome.points for _, outcome in rated] or self.scorer.score(*shown)
        # NaN and infinity, such as float16 gives when it overflows, are no scores either.
        known = [s if s is not None and math.isfinite(s) else math.nan for s in scores]
        values = torch.tensor(known, dtype=torch.float32).view(len(prompts), size)
        lost = values.isnan()
        mean = values.nanmean(1, keepdim=True).nan_to_num(0.0)  # 0 for a group without any score
        counts = Counter(wanted=len(scores), comparisons=len(scores), failed=int(lost.sum()))
        compared = [
            Comparison(*divmod(k, size), None, outcome, query)
            for k, (query, outcome) in enumerate(rated)
        ]
        values = torch.where(lost, mean, values)
        rewards = rewards_of(values, compared, lost.all(1).tolist(), counts)
        error = rewards.error or f"no score from {self.name}"
        return rewards._replace(error=error if lost.any() else None)
