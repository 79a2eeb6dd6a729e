"""rewards.py: known win rates, lost comparisons, judges without a mind of their own."""

import itertools

import numpy as np
import pytest
import torch

from grpo import group_advantages
from judges.mllm import Answer
from judges.verdicts import VERDICT_REMINDER
from rewards import (
    JudgeError,
    PairwiseReward,
    PointwiseReward,
    Rewards,
    check_lost,
    join,
    pair_schedule,
    win_rates,
)

ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
TIE = "<answer>Both are equal</answer>"
BROKEN = Answer(error="HTTP 500")


# ----------------------------------------------------------------------------- pairs and win rates


@pytest.mark.parametrize(
    ("size", "k"),
    [(8, 1), (8, 2), (8, 3), (8, 6), (9, 2), (9, 4), (16, 4), (24, 3), (4, 1), (5, 2), (2, 1)],
)
def test_sparse_schedule_is_balanced_and_connects_the_group(size, k):
    pairs = pair_schedule(size, k)
    assert len(set(pairs)) == len(pairs) == size * k // 2
    assert all(0 <= i < j < size for i, j in pairs)
    assert {sum(image in pair for pair in pairs) for image in range(size)} == {k}
    reached = {0}
    for _ in range(size):
        reached |= {image for pair in pairs if reached & set(pair) for image in pair}
    assert k == 1 or len(reached) == size


def test_all_pairs_by_default():
    assert (
        pair_schedule(4) == pair_schedule(4, 3) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    )


@pytest.mark.parametrize(
    ("size", "k", "message"),
    [(1, None, "at least 2"), (8, 0, "from 1 to 7"), (8, 8, "from 1 to 7"), (9, 3, "numbers even")],
)
def test_impossible_schedules(size, k, message):
    with pytest.raises(ValueError, match=message):
        pair_schedule(size, k)


def test_win_rates_by_hand():
    pairs = pair_schedule(4)
    # the paper's figure: 0, 0.67, 1, 0.33
    assert win_rates(pairs, [0, 0, 0, 0, 1, 1], 4).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3])
    # image 0: a win and a tie; 1: two losses; 2: a tie and a win; 3: nothing was counted
    rates = win_rates(pairs, [1, 0.5, None, 0, None, None], 4)
    assert rates.tolist() == [0.75, 0.0, 0.75, 0.5] and rates.dtype == torch.float32
    assert win_rates([(0, 1)], [0.8], 2).tolist() == pytest.approx([0.8, 0.2])


def test_rates_sum_to_half_the_group():
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5, 8):
        pairs = pair_schedule(size)
        for _ in range(20):
            points = (torch.randint(3, (len(pairs),), generator=generator) / 2).tolist()
            rates = win_rates(pairs, points, size)
            assert rates.sum().item() == pytest.approx(size / 2, abs=1e-5)
            assert rates.min() >= 0 and rates.max() <= 1


# ----------------------------------------------------------------------------- PairwiseReward


class Judge:
    """Images are numbers here; the answer to (first, second, text) is a function."""

    name = "fake judge"

    def __init__(self, verdict):
        self.verdict, self.batches = verdict, []

    def ask(self, queries):
        self.batches.append(list(queries))
        said = [self.verdict(*query.images, query.text) for query in queries]
        return [s if isinstance(s, Answer) else Answer(text=s) for s in said]


def higher(first, second, text=""):
    return ONE if first > second else TWO if second > first else TIE


def lost(count, failure=BROKEN):
    """The first `count` answers are lost."""
    left = iter(range(count))
    return lambda *query: higher(*query) if next(left, None) is None else failure


def test_known_ranking_gives_known_win_rates():
    judge = Judge(higher)
    values, counts, error = PairwiseReward(judge)(["a", "b"], [[3, 1, 2, 0], [5, 5, 7, 4]])
    torch.testing.assert_close(values, torch.tensor([[1, 1 / 3, 2 / 3, 0], [0.5, 0.5, 1, 0]]))
    assert values.dtype == torch.float32 and error is None
    assert counts == {
        "wanted": 24,
        "comparisons": 24,
        "unparsable": 0,
        "failed": 0,
        "first": 11,
        "second": 11,
        "pairs": 12,
        "ties": 1,
        "agree": 12,
    }
    assert len(judge.batches) == 1  # all that there is to ask, at once


def test_comparisons_never_cross_prompts():
    judge = Judge(higher)
    images = [[10, 11, 12], [20, 21, 22]]
    prompts = ["{braces} \\1", "two"]
    PairwiseReward(judge)(prompts, images)
    for query in judge.batches[0]:
        group = query.images[0] // 10 - 1
        assert set(query.images) <= set(images[group])
        assert f"\nCaption: {prompts[group]}\n" in query.text
    shown = [query.images for query in judge.batches[0]]
    assert set(shown) == {pair for group in images for pair in itertools.permutations(group, 2)}


@pytest.mark.parametrize(("answer", "which"), [(ONE, "first"), (TWO, "second")])
def test_a_judge_that_always_says_the_same_gives_all_half(answer, which):
    values, counts, _ = PairwiseReward(Judge(lambda *_: answer))(["p"], [list(range(8))])
    assert values.tolist() == [[0.5] * 8]
    assert (counts["agree"], counts["ties"], counts["pairs"]) == (0, 28, 28)
    assert counts[which] == counts["comparisons"] == 56
    one = PairwiseReward(Judge(lambda *_: answer), both_orders=False)(["p"], [range(8)])
    assert sorted(one.values[0].tolist()) == pytest.approx(
        [k / 7 for k in range(8)]
    )  # from nothing
    assert "agree" not in one.counts and one.counts["comparisons"] == 28  # nothing to agree with


@pytest.mark.parametrize("answer", [ONE, TWO])
@pytest.mark.parametrize("opponents", [None, 2, 3])
def test_a_judge_that_always_says_the_same_teaches_nothing(answer, opponents):
    reward = PairwiseReward(Judge(lambda *_: answer), opponents=opponents)
    values = reward(["p", "q"], [list(range(8))] * 2).values
    assert group_advantages(values).tolist() == [[0.0] * 8] * 2


def test_a_judge_that_answers_at_random_gives_the_spread_of_coin_tosses():
    groups, size, rng = 200, 8, np.random.default_rng(0)
    judge = Judge(lambda *_: ONE if rng.random() < 0.5 else TWO)
    rates = PairwiseReward(judge)(["p"] * groups, [list(range(size))] * groups).values
    # A pair's points, the mean of two tosses, have variance 1/8: a win rate over 7 pairs has 1/56.
    assert rates.var(1, correction=0).mean().item() == pytest.approx(1 / 56, rel=0.1)
    # no place in the group is favored: 3.5 deviations of the mean over 200 groups
    assert group_advantages(rates, 0.05).mean(0).abs().max() < 0.25


def test_a_win_in_one_order_and_a_tie_in_the_other_is_worth_three_quarters():
    judge = Judge(lambda first, second, _: ONE if first > second else TIE)
    values, counts, _ = PairwiseReward(judge)(["p"], [[1, 2]])
    assert values.tolist() == [[0.25, 0.75]] and counts["ties"] == counts["agree"] == 0


def test_an_all_tie_group():
    values, counts, _ = PairwiseReward(Judge(higher))(["p", "q"], [[1, 1, 1], [1, 2, 3]])
    assert values.tolist() == [[0.5] * 3, [0, 0.5, 1]]
    assert (counts["ties"], counts["pairs"], counts["agree"]) == (3, 6, 6)


def test_what_is_lost_is_asked_again_once_and_in_the_same_order():
    judge = Judge(lost(2))
    values, counts, _ = PairwiseReward(judge)(["p"], [[1, 2, 3]])
    assert values.tolist() == [[0, 0.5, 1]]
    assert judge.batches[1] == judge.batches[0][:2] and len(judge.batches) == 2
    assert (counts["wanted"], counts["comparisons"], counts["failed"]) == (6, 8, 0)


def test_an_answer_without_a_verdict_is_asked_again_with_a_reminder():
    judge = Judge(lost(1, failure="hm"))
    assert PairwiseReward(judge)(["p"], [[1, 2]]).values.tolist() == [[0, 1]]
    assert judge.batches[1][0].text == judge.batches[0][0].text + VERDICT_REMINDER


def test_lost_pairs_are_left_out_and_counted():
    def verdict(first, second, text):
        if (first, second) == (3, 1):  # one order only: the other alone must not count
            return BROKEN
        return "no idea" if {first, second} == {2, 3} else higher(first, second)

    values, counts, error = PairwiseReward(Judge(verdict))(["p"], [[1, 2, 3]])
    assert values.tolist() == [[0, 1, 0.5]]  # of image 3 nothing is known
    assert (counts["failed"], counts["unparsable"], counts["comparisons"]) == (1, 2, 9)
    assert (counts["pairs"], counts["ties"], counts["agree"]) == (1, 0, 1)
    assert "HTTP 500" in error or "no idea" in error


def test_a_rate_is_a_share_of_what_was_counted():
    def verdict(first, second, text):
        return BROKEN if {first, second} == {1, 4} else higher(first, second)

    values = PairwiseReward(Judge(verdict))(["p"], [[1, 2, 3, 4]]).values
    assert values.tolist() == [[0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]]  # 4: 2 of 2


@pytest.mark.parametrize(("bad", "stops"), [(4, False), (5, True)])
def test_too_many_losses_stop_the_run(bad, stops):
    images = list(range(10))  # 90 comparisons: 5 % allows 4, whatever is asked again
    victims = set(list(itertools.combinations(images, 2))[:bad])

    def verdict(first, second, text):
        return BROKEN if (first, second) in victims else higher(first, second)

    result = PairwiseReward(Judge(verdict))(["p"], [images])
    assert result.counts["failed"] == bad
    if not stops:
        return check_lost("fake judge", result, 0.05)
    with pytest.raises(JudgeError) as error:
        check_lost("fake judge", result, 0.05)
    assert str(error.value) == (
        "fake judge: 5 of 90 judgements lost (5 failed, 0 unparsable; 5% allowed), last error: "
        "HTTP 500"
    )


def test_answers_without_a_verdict_stop_the_run_and_are_quoted():
    result = PairwiseReward(Judge(lambda *_: "I cannot say"))(["p"], [[1, 2]])
    with pytest.raises(JudgeError, match="2 unparsable.*ends with 'I cannot say'"):
        check_lost("fake judge", result, 0.05)


def test_losses_are_weighed_over_all_parts():
    reward = PairwiseReward(Judge(lambda a, b, _: BROKEN if {a, b} == {1, 2} else higher(a, b)))
    parts = [reward(["a"], [[1, 2, 3, 4]]), reward(["b"], [[5, 6, 7, 8]])]
    with pytest.raises(JudgeError, match="2 of 12 judgements lost"):
        check_lost("fake judge", parts[0], 0.1)
    check_lost("fake judge", join(parts), 0.1)  # 2 of 24


def test_a_step_judged_in_parts_is_the_step():
    images = [[3, 1, 2, 0], [5, 5, 7, 4], [1, 2, 3, 4]]
    for reward in (
        PairwiseReward(Judge(higher)),
        PairwiseReward(Judge(higher), opponents=2),
        PairwiseReward(Judge(higher), both_orders=False),
        PointwiseReward(Scores()),
    ):
        whole = reward(["a", "b", "c"], images)
        joined = join([reward(["a", "b"], images[:2]), reward(["c"], images[2:])])
        assert joined.values.tolist() == whole.values.tolist()
        assert joined.counts == whole.counts
        assert whole.counts["comparisons"] == 3 * reward.calls(4)


def test_joining_keeps_the_last_error_and_counts_of_zero():
    parts = [PairwiseReward(Judge(higher))(["p"], [[1, 2]]) for _ in range(2)]
    parts[0] = parts[0]._replace(error="early")
    assert join(parts).error == "early" and "failed" in join(parts).counts
    assert isinstance(join(parts), Rewards)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_sparse_comparisons(k):
    judge = Judge(higher)
    values, counts, _ = PairwiseReward(judge, opponents=k)(["p", "q"], [[*range(8)], [1] * 8])
    assert counts["comparisons"] == len(judge.batches[0]) == 2 * 8 * k
    assert values[0, 7] > values[0, 0] and values[1].tolist() == [0.5] * 8


def test_soft_points():
    class Soft(Judge):
        def first_probability(self, queries):
            odds = {(1, 2): 0.4, (2, 1): 0.8, (1, 3): 0.1, (3, 1): 0.9, (2, 3): None, (3, 2): 0.9}
            return [odds[query.images] for query in queries]

    values, counts, error = PairwiseReward(Soft(None), soft=True)(["p"], [[1, 2, 3]])
    torch.testing.assert_close(values, torch.tensor([[(0.3 + 0.1) / 2, 0.7, 0.9]]))
    assert counts["failed"] == 1 and counts["agree"] == counts["pairs"] == 2
    assert error == "no probability"


def test_a_template_without_a_place_for_the_prompt():
    with pytest.raises(ValueError, match="lacks {prompt}"):
        PairwiseReward(Judge(higher), template="no place")


@pytest.mark.parametrize("images", [[[1, 2]], [[1, 2], [1]], []])
def test_groups_must_match_the_prompts(images):
    for reward in (PairwiseReward(Judge(higher)), PointwiseReward(Scores())):
        with pytest.raises(ValueError, match="one group of images for each prompt"):
            reward(["p", "q"], images)


# ----------------------------------------------------------------------------- PointwiseReward


class Scores:
    name = "fake scorer"

    def score(self, prompts, images):
        pairs = zip(prompts, images, strict=True)
        return [None if image is None else len(prompt) + image for prompt, image in pairs]


def test_pointwise_reward():
    values, counts, error = PointwiseReward(Scores())(["a", "bb"], [[1, 2], [3, 4]])
    assert values.tolist() == [[2, 3], [5, 6]] and values.dtype == torch.float32
    assert counts == {"wanted": 4, "comparisons": 4, "failed": 0} and error is None


def test_a_lost_score_is_its_groups_mean():
    result = PointwiseReward(Scores())(["a", "a"], [[1, 3, None], [None, None, None]])
    assert result.values.tolist() == [[2, 4, 3], [0, 0, 0]] and result.counts["failed"] == 4
    with pytest.raises(JudgeError, match=r"fake scorer: 4 of 6 judgements lost \(4 failed"):
        check_lost("fake scorer", result, 0.05)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_lost(broken):
    result = PointwiseReward(Scores())(["a"], [[1, broken, 3]])
    assert result.values.tolist() == [[2, 3, 4]] and result.counts["failed"] == 1
