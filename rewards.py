"""Pairwise comparison -> verdicts -> win rates: the reward of Pref-GRPO; and its pointwise twin.

Pref-GRPO (arXiv 2508.20751): a multimodal LLM compares all pairs of a group, and the share of
comparisons that an image wins is its reward. A pointwise reward scores each image alone.

Departures from the released code: every pair is judged in both orders, and orders that disagree
make a tie (there: one order); an answer without a verdict is lost, asked once more, then left out
(there: half a win each); too many lost answers end the run with one sentence (there: KeyError).

    batch = PairwiseReward(OpenAIMLLM(model="UnifiedReward-Think"))(prompts, images)
    batch.rewards      # (P, G), what grpo.group_advantages takes
"""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from judges.mllm import MLLM, Query
from judges.verdicts import (
    PAIRWISE_TEMPLATE,
    POINTWISE_TEMPLATE,
    VERDICT_REMINDER,
    Verdict,
    parse_ratings,
    parse_verdict,
)

log = logging.getLogger(__name__)

SWAPPED = {Verdict.FIRST: Verdict.SECOND, Verdict.SECOND: Verdict.FIRST}
POINTS = {Verdict.FIRST: 1.0, Verdict.SECOND: 0.0, Verdict.TIE: 0.5}


class JudgeError(RuntimeError):
    """Too many comparisons or scores were lost for the reward to be trusted."""


class RewardBatch(NamedTuple):
    rewards: torch.Tensor  # (P, G) float32
    stats: dict[str, float]


class Comparison(NamedTuple):
    """Images `first` and `second` of group `prompt`, shown in this order."""

    prompt: int
    first: int
    second: int

    def turned(self) -> "Comparison":
        return Comparison(self.prompt, self.second, self.first)


class Said(NamedTuple):
    """One answer as it was shown."""

    outcome: Verdict | float
    error: str | None


class Judged(NamedTuple):
    """What a judge said about some groups of a step, pairs in the order of pair_schedule."""

    group_size: int
    one: list[Verdict | float]  # P * pairs, first image first
    other: list[Verdict | float]  # the other order, turned back; empty if only one is asked
    said: list[Said]  # every answer, repeats included


class Lost(NamedTuple):
    """What one process asked in a step, and what of it was lost for good."""

    failed: int
    unparsable: int
    asked: int
    error: str | None  # the last one


class Scorer(Protocol):
    name: str

    def score(self, prompts: list[str], images: list) -> list[float | None]:
        """One score for each (prompt, image); None where there is none."""


# ---- from verdicts to rates ----


def pair_schedule(
    group_size: int, opponents: int | None = None, generator: torch.Generator | None = None
) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, or a random schedule in which each image meets `opponents` others.

    The images sit in random order round a circle and each meets those some seats away: next seats,
    so that the comparisons connect the group (from two opponents on), and seats drawn at random.
    Without a generator the schedule is always the same.
    Raises ValueError if there are too few images, or if no schedule gives each that many opponents.
    """
    if group_size < 2:
        raise ValueError(f"a comparison needs at least 2 images in a group, got {group_size}")
    if opponents is None or opponents == group_size - 1:
        return list(itertools.combinations(range(group_size), 2))
    if not 1 <= opponents < group_size:
        raise ValueError(f"opponents must be from 1 to {group_size - 1}, got {opponents}")
    if group_size * opponents % 2:
        raise ValueError(
            f"{group_size} images cannot have {opponents} opponents each: one must be even"
        )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    seats = torch.randperm(group_size, generator=generator).tolist()
    further = (2 + torch.randperm((group_size - 3) // 2, generator=generator)).tolist()
    pairs = []
    for distance in [1, *further][: opponents // 2]:
        pairs += [(seats[s], seats[(s + distance) % group_size]) for s in range(group_size)]
    if opponents % 2:  # opposite seats: one opponent each
        half = group_size // 2
        pairs += [(seats[s], seats[s + half]) for s in range(half)]
    return sorted((min(pair), max(pair)) for pair in pairs)


def _points(outcome: Verdict | float) -> float | None:
    """What the first image gets of one point; None for a lost comparison."""
    return POINTS.get(outcome) if isinstance(outcome, Verdict) else outcome


def win_rates(
    pairs: Sequence[tuple[int, int]], verdicts: Sequence[Verdict | float], group_size: int
) -> torch.Tensor:
    """(G,) float32: (wins + half the ties) / counted comparisons; 0.5 for an image without any.

    verdicts: one for each pair, or P(first is better), a float. Lost ones are not counted.
    Rates sum to G/2 when all pairs are counted.
    """
    won, played = [0.0] * group_size, [0] * group_size
    for (i, j), verdict in zip(pairs, verdicts, strict=True):
        points = _points(verdict)
        if points is not None:
            won[i] += points
            won[j] += 1 - points
            played[i] += 1
            played[j] += 1
    return torch.tensor([w / n if n else 0.5 for w, n in zip(won, played, strict=True)])


def bradley_terry(
    pairs: Sequence[tuple[int, int]], verdicts: Sequence[Verdict | float], group_size: int
) -> torch.Tensor:
    """(G,) float32: each image's expected win rate against all others, from any set of comparisons.

    P(i beats j) = sigmoid(s_i - s_j); the strengths s maximise the likelihood (a tie is half a win
    each) times a prior, half a win and half a loss against a player of strength 0, which keeps an
    image that wins all finite. Expected win rates sum to G/2: the scale of `win_rates`.
    """
    wins = torch.zeros(group_size, group_size, dtype=torch.float64)
    for (i, j), verdict in zip(pairs, verdicts, strict=True):
        points = _points(verdict)
        if points is not None:
            wins[i, j] += points
            wins[j, i] += 1 - points
    games = wins + wins.T
    strength = torch.zeros(group_size, dtype=torch.float64)
    for _ in range(50):  # Newton on a concave function; 6 to 10 steps in practice
        expected = torch.sigmoid(strength[:, None] - strength)
        prior = torch.sigmoid(strength)
        gradient = (wins - games * expected).sum(1) + 0.5 - prior
        curvature = games * expected * (1 - expected)
        hessian = torch.diag(curvature.sum(1) + prior * (1 - prior)) - curvature
        step = torch.linalg.solve(hessian, gradient)
        strength += step / step.abs().max().clamp(min=1)  # at most 1, so that it cannot overshoot
        if step.abs().max() < 1e-10:
            break
    expected = torch.sigmoid(strength[:, None] - strength)
    return ((expected.sum(1) - 0.5) / (group_size - 1)).float()


# ---- rewards ----


def _group_size(prompts: Sequence[str], images: Sequence[Sequence]) -> int:
    sizes = {len(group) for group in images}
    if len(prompts) != len(images) or len(sizes) != 1:
        raise ValueError(
            f"need one group of images for each prompt, all of one size; got {len(prompts)} "
            f"prompts and groups of {[len(group) for group in images]}"
        )
    return sizes.pop()


def _turned(outcome: Verdict | float) -> Verdict | float:
    """The outcome with the two images exchanged."""
    return SWAPPED.get(outcome, outcome) if isinstance(outcome, Verdict) else 1 - outcome


def _verdict(outcome: Verdict | float) -> Verdict:
    """The verdict nearest to a probability."""
    if isinstance(outcome, Verdict):
        return outcome
    return Verdict.TIE if outcome == 0.5 else Verdict.FIRST if outcome > 0.5 else Verdict.SECOND


def _merged(outcome: Verdict | float, other: Verdict | float) -> Verdict | float:
    """One outcome from the two orders of a pair (`other` already turned): disagreement is a tie.

    A pair that lost one order is lost: the other order alone would let position bias in.
    """
    for one in (outcome, other):
        if _points(one) is None:
            return one
    if isinstance(outcome, float):
        return (outcome + other) / 2
    return outcome if outcome is other else Verdict.TIE


def _chained(rows) -> list[list]:
    """[[a, b], [c, d]] -> [a + c, b + d]: the parts' lists, joined field by field."""
    return [list(itertools.chain(*column)) for column in zip(*rows, strict=True)]


def _share(max_failed: float) -> float:
    if not 0 <= max_failed <= 1:
        raise ValueError(f"max_failed {max_failed}: a share, from 0 to 1")
    return max_failed


def _check_lost(name: str, what: str, lost: Sequence[Lost], max_failed: float) -> None:
    """JudgeError if more than that share is lost, all processes taken together."""
    failed, unparsable, asked = (sum(column) for column in zip(*(row[:3] for row in lost)))
    if failed + unparsable > max_failed * asked:
        raise JudgeError(
            f"{name}: {failed + unparsable} of {asked} {what} lost ({failed} failed, {unparsable} "
            f"unparsable; {max_failed:.0%} allowed), "
            f"last error: {next(row.error for row in reversed(lost) if row.error)}"
        )


class PairwiseReward:
    """Win rates within each group, from a multimodal LLM that compares two images at a time.

    both_orders: judge each pair both ways; a judge that always says "first" then yields all 0.5.
    opponents: compare each image with that many others only, and fit Bradley-Terry.
    template: text of the question; {prompt} in it is replaced and nothing else interpreted.
    max_failed: largest share of a step's comparisons that may be lost.
    gather: joins a list over all processes, so that the step is theirs (parallel.Processes.gather).
    soft: count P(first is better) instead of verdicts; the mllm must have `first_probability`.
    """

    def __init__(
        self,
        mllm: MLLM,
        both_orders: bool = True,
        opponents: int | None = None,
        template: str | None = None,
        max_failed: float = 0.05,
        soft: bool = False,
        gather: Callable[[list], list] = list,
    ):
        template = PAIRWISE_TEMPLATE if template is None else template
        if "{prompt}" not in template:
            raise ValueError("the template of the pairwise judge lacks {prompt}")
        if soft and not hasattr(mllm, "first_probability"):
            raise ValueError(f"soft verdicts need LocalMLLM; {mllm.name} gives no probabilities")
        self.mllm, self.both_orders, self.opponents = mllm, both_orders, opponents
        self.template, self.max_failed, self.soft = template, _share(max_failed), soft
        self.gather = gather

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> RewardBatch:
        """Rewards (P, G) in [0, 1] for P prompts and P groups of G PIL images.

        stats: tie_rate and, with both orders, order_agreement (shares of the counted pairs),
        first_rate (of decisive answers: 0.5 without position bias), comparisons (asked, repeats
        included), unparsable, failed (lost for good), uncompared (images that have none left).
        Raises JudgeError if too many comparisons are lost, ValueError if groups differ in size.
        """
        return self.result([self.judge(prompts, images)])

    def calls(self, group_size: int) -> int:
        """Questions that one group costs, repeats of lost ones not included."""
        return len(pair_schedule(group_size, self.opponents)) * (2 if self.both_orders else 1)

    def judge(self, prompts: Sequence[str], images: Sequence[Sequence]) -> Judged:
        """What the judge says of some groups of a step; `result` makes rewards of all of them."""
        group_size = _group_size(prompts, images)
        pairs = pair_schedule(group_size, self.opponents)
        forward = [Comparison(p, i, j) for p in range(len(prompts)) for i, j in pairs]
        backward = [c.turned() for c in forward] if self.both_orders else []
        outcomes, said = self._judge(forward + backward, prompts, images)
        turned = [_turned(outcome) for outcome in outcomes[len(forward) :]]
        return Judged(group_size, outcomes[: len(forward)], turned, said)

    def result(self, parts: Sequence[Judged]) -> RewardBatch:
        """The rewards of a whole step, judged in parts; stats and errors as in __call__."""
        group_size, one, other, said = parts[0].group_size, *_chained(part[1:] for part in parts)
        stats = self._counts(one + other, said)
        pairs = pair_schedule(group_size, self.opponents)
        other = other or one
        merged = [_merged(a, b) for a, b in zip(one, other, strict=True)]

        rate = win_rates if self.opponents is None else bradley_terry
        groups = [merged[k : k + len(pairs)] for k in range(0, len(merged), len(pairs))]
        rewards = torch.stack([rate(pairs, group, group_size) for group in groups])

        counted = [k for k, outcome in enumerate(merged) if _points(outcome) is not None]
        ties = sum(merged[k] is Verdict.TIE for k in counted)
        if self.both_orders:
            agreements = sum(_verdict(one[k]) is _verdict(other[k]) for k in counted)
            stats["order_agreement"] = agreements / max(len(counted), 1)
        compared = {(k // len(pairs), i) for k in counted for i in pairs[k % len(pairs)]}
        return RewardBatch(
            rewards,
            stats
            | {
                "tie_rate": ties / max(len(counted), 1),
                "uncompared": rewards.numel() - len(compared),
            },
        )

    def _counts(self, outcomes: list[Verdict | float], said: list[Said]) -> dict[str, float]:
        """What was asked and what was lost; JudgeError if that is too much."""
        failed, unparsable = outcomes.count(Verdict.FAILED), outcomes.count(Verdict.UNPARSABLE)
        error = next((error for _, error in reversed(said) if error), None)
        lost = self.gather([Lost(failed, unparsable, len(outcomes), error)])
        _check_lost(self.mllm.name, "comparisons", lost, self.max_failed)
        kinds = Counter(_verdict(outcome) for outcome, _ in said)
        decisive = kinds[Verdict.FIRST] + kinds[Verdict.SECOND]
        return {
            "comparisons": len(said),
            "unparsable": unparsable,
            "failed": failed,
            "first_rate": kinds[Verdict.FIRST] / decisive if decisive else 0.5,
        }

    def _judge(self, shown, prompts, images) -> tuple[list[Verdict | float], list[Said]]:
        """One outcome for each comparison, a lost one asked once more; and all that was said."""
        said = self._ask(shown, [""] * len(shown), prompts, images)
        outcomes = [outcome for outcome, _ in said]
        lost = [k for k, outcome in enumerate(outcomes) if _points(outcome) is None]
        if lost:
            # With both orders the other one is asked anyway; with one, turn the images round.
            again = [shown[k] if self.both_orders else shown[k].turned() for k in lost]
            reminders = [
                VERDICT_REMINDER if outcomes[k] is Verdict.UNPARSABLE else "" for k in lost
            ]
            repeats = self._ask(again, reminders, prompts, images)
            for k, (outcome, _) in zip(lost, repeats, strict=True):
                outcomes[k] = outcome if self.both_orders else _turned(outcome)
            said += repeats
        return outcomes, said

    def _ask(self, shown, reminders, prompts, images) -> list[Said]:
        """(outcome, error) of each comparison, in one call, so that a server sees them all."""
        texts = [self.template.replace("{prompt}", prompt) for prompt in prompts]
        queries = [
            Query((images[p][first], images[p][second]), texts[p] + reminder)
            for (p, first, second), reminder in zip(shown, reminders, strict=True)
        ]
        if self.soft:
            odds = self.mllm.first_probability(queries)
            lost = Said(Verdict.FAILED, "no probability")
            return [lost if p is None else Said(p, None) for p in odds]
        said = []
        for answer in self.mllm.ask(queries):
            verdict, error = parse_verdict(answer.text), answer.error
            if verdict is Verdict.UNPARSABLE:
                error = f"no verdict in an answer that ends with {answer.text[-80:]!r}"
            said.append(Said(verdict, error))
        return said


class PointwiseReward:
    """A score for each image alone, what Pref-GRPO is held against; called as PairwiseReward is."""

    def __init__(
        self, scorer: Scorer, max_failed: float = 0.05, gather: Callable[[list], list] = list
    ):
        self.scorer, self.max_failed, self.gather = scorer, _share(max_failed), gather

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> RewardBatch:
        """Rewards (P, G); an image without a score gets its group's mean, and so no advantage.

        stats: comparisons (images scored), failed. Raises JudgeError if too many scores are lost.
        """
        return self.result([self.judge(prompts, images)])

    def calls(self, group_size: int) -> int:
        """Scores that one group costs."""
        return group_size

    def judge(self, prompts: Sequence[str], images: Sequence[Sequence]) -> list[list[float | None]]:
        """The scores of some groups of a step; `result` makes rewards of all of them."""
        size = _group_size(prompts, images)
        captions = [prompt for prompt in prompts for _ in range(size)]
        scores = self.scorer.score(captions, [image for group in images for image in group])
        # NaN and infinity, such as float16 gives when it overflows, are no scores either.
        scores = [None if s is None or not math.isfinite(s) else s for s in scores]
        return [scores[k : k + size] for k in range(0, len(scores), size)]

    def result(self, parts: Sequence[list[list[float | None]]]) -> RewardBatch:
        """The rewards of a whole step, scored in parts; stats and errors as in __call__."""
        groups = list(itertools.chain(*parts))
        scores = list(itertools.chain(*groups))
        failed = scores.count(None)
        error = getattr(self.scorer, "last_error", "none told")
        lost = self.gather([Lost(failed, 0, len(scores), error if failed else None)])
        _check_lost(self.scorer.name, "scores", lost, self.max_failed)
        scores = [float("nan") if score is None else float(score) for score in scores]
        rewards = torch.tensor(scores, dtype=torch.float32).view(len(groups), -1)
        mean = rewards.nanmean(1, keepdim=True).nan_to_num(0.0)  # 0 for a group without any score
        rewards = torch.where(rewards.isnan(), mean, rewards)
        return RewardBatch(rewards, {"comparisons": len(scores), "failed": failed})


class MLLMScorer:
    """Mean of alignment, coherence and style, 1 to 5 each: UnifiedReward's pointwise form."""

    def __init__(self, mllm: MLLM, template: str = POINTWISE_TEMPLATE):
        if "{prompt}" not in template:
            raise ValueError("the template of the pointwise judge lacks {prompt}")
        self.mllm, self.name, self.template = mllm, mllm.name, template
        self.last_error = "none"

    def score(self, prompts: list[str], images: list) -> list[float | None]:
        queries = [
            Query((image,), self.template.replace("{prompt}", prompt))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        answers = self.mllm.ask(queries)
        scores = [None if answer.text is None else parse_ratings(answer.text) for answer in answers]
        lost = [answer for answer, score in zip(answers, scores, strict=True) if score is None]
        if lost:
            said = f"no scores in an answer that ends with {(lost[-1].text or '')[-80:]!r}"
            self.last_error = lost[-1].error or said
            log.warning("%s: %d scores lost, last error: %s", self.name, len(lost), self.last_error)
        return scores
