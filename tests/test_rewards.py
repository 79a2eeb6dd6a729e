"""rewards.py: known win rates, lost answers, judges without a mind of their own, what ends a
run."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from grpo import group_advantages
from judges.answers import VERDICT_REMINDER
from judges.mllm import Answer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import (
    PairwiseReward,
    PointwiseReward,
    Rewards,
    join,
    mean_points,
    pair_schedule,
    win_rates,
)
from training.judging import JudgeError, check_lost

ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
EQUAL = "<answer>Both are equal</answer>"
FAILURE = Answer(error="HTTP 500")

# ---- schedules and rates ----


@pytest.mark.parametrize(
    ("size", "k"),
    [
        (2, 1),
        (3, 2),
        (4, 1),
        (4, 2),
        (4, 3),
        (5, 2),
        (7, 6),
        (8, 1),
        (8, 2),
        (8, 3),
        (8, 6),
        (9, 2),
        (9, 4),
        (16, 4),
        (24, 3),
        (24, 5),
    ],
)
def test_a_sparse_schedule_is_balanced_and_connects_the_group(size, k):
    pairs = pair_schedule(size, k)
    assert len(set(pairs)) == len(pairs) == size * k // 2
    assert all(0 <= i < j < size for i, j in pairs)
    assert {sum(image in pair for pair in pairs) for image in range(size)} == {k}
    reached = {0}
    for _ in range(size):
        reached |= {image for pair in pairs if reached & set(pair) for image in pair}
    assert k == 1 or len(reached) == size


def test_a_schedule_depends_on_nothing_but_its_numbers():
    torch.manual_seed(0)
    np.random.seed(0)
    one = pair_schedule(16, 4)
    torch.manual_seed(1)
    np.random.seed(1)
    assert pair_schedule(16, 4) == one
    assert pair_schedule(4) == pair_schedule(4, 3) == list(itertools.combinations(range(4), 2))


@pytest.mark.parametrize(
    ("size", "k", "message"),
    [
        (1, None, "at least 2"),
        (0, 2, "at least 2"),
        (8, 0, "from 1 to 7"),
        (8, -2, "from 1 to 7"),
        (8, 8, "from 1 to 7"),
        (9, 3, "one of the two numbers even"),
    ],
)
def test_impossible_schedules(size, k, message):
    with pytest.raises(ValueError, match=message):
        pair_schedule(size, k)


def test_win_rates_by_hand():
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    points = [0, 0, 0, 0, 1, 1]  # the paper's figure: 0 .67 1 .33
    assert win_rates(pairs, points, 4).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3])
    points = [1, 0.5, None, 0, None, None]
    # image 0: a win and a tie; 1: two losses; 2: a tie and a win; 3: nothing was counted
    assert win_rates(pairs, points, 4).tolist() == [0.75, 0.0, 0.75, 0.5]
    assert win_rates([(0, 1)], [0.8], 2).tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(ValueError, match="shorter"):
        win_rates(pairs, points[:5], 4)


@pytest.mark.parametrize("soft", [False, True])
def test_win_rates_sum_to_half_the_group(soft):
    rng = np.random.default_rng(0)
    for size, k in ((2, None), (5, None), (5, 2), (8, None), (8, 3)):
        pairs = pair_schedule(size, k)
        for _ in range(20):
            points = rng.random(len(pairs)) if soft else rng.choice([0, 0.5, 1], len(pairs))
            rates = win_rates(pairs, points.tolist(), size)
            assert rates.shape == (size,) and rates.dtype == torch.float32
            assert rates.sum().item() == pytest.approx(size / 2, abs=1e-5)
            assert rates.min() >= 0 and rates.max() <= 1


@pytest.mark.parametrize(
    ("forward", "backward", "points"),
    [
        (1, 1, 1),
        (0, 0, 0),
        (1, 0, 0.5),
        (0.5, 0.5, 0.5),
        (1, 0.5, 0.75),
        (0.5, 0, 0.25),
        (0.9, 0.7, 0.8),
        (None, 1, None),
        (0, None, None),
        (None, None, None),
    ],
)
def test_points_of_two_orders(forward, backward, points):
    assert mean_points(forward, backward) == (points if points is None else pytest.approx(points))


# ---- PairwiseReward ----


class Judge:
    """Images are numbers here; what it says of (first, second, text) is a function."""

    name = "fake judge"

    def __init__(self, says):
        self.says, self.batches = says, []

    def ask(self, queries):
        self.batches.append(list(queries))
        answers = []
        for query in queries:
            said = self.says(*query.images, query.text)
            answers.append(said if isinstance(said, Answer) else Answer(text=said))
        return answers


class Soft(Judge):
    """Gives probabilities, by the pair that it is shown."""

    def first_probability(self, queries):
        self.batches.append(list(queries))
        return [self.says[query.images] for query in queries]


def higher(first, second, text=""):
    return ONE if first > second else TWO if second > first else EQUAL


def lost(count, failure=FAILURE):
    """`higher`, of which the first `count` answers are lost."""
    left = iter(range(count))
    return lambda *query: higher(*query) if next(left, None) is None else failure


def test_a_known_ranking_gives_known_win_rates():
    judge = Judge(higher)
    rewards = PairwiseReward(judge)(["a", "b"], [[3, 1, 2, 0], [5, 5, 7, 4]])
    known = torch.tensor([[1, 1 / 3, 2 / 3, 0], [0.5, 0.5, 1, 0]])
    torch.testing.assert_close(rewards.values, known)
    assert rewards.values.dtype == torch.float32
    assert rewards.counts == Counter(
        wanted=24,
        comparisons=24,
        failed=0,
        unparsable=0,
        first=11,
        second=11,
        pairs=12,
        ties=1,
        agree=12,
    )
    assert rewards.error is None
    assert len(judge.batches) == 1  # all that there is to ask, at once


def test_comparisons_never_cross_prompts():
    judge = Judge(higher)
    images = [[10, 11, 12], [20, 21, 22]]
    prompts = ["{braces} \\1", "two"]
    PairwiseReward(judge)(prompts, images)
    for query in judge.batches[0]:
        group = query.images[0] // 10 - 1
        assert set(query.images) <= set(images[group])
        assert query.text == PAIRWISE_TEMPLATE.replace("{prompt}", prompts[group])
    shown = [query.images for query in judge.batches[0]]
    assert set(shown) == {pair for group in images for pair in itertools.permutations(group, 2)}
    assert len(shown) == 12


@pytest.mark.parametrize("opponents", [None, 2, 3])
@pytest.mark.parametrize("answer", [ONE, TWO])
def test_a_judge_that_always_says_the_same_gives_all_half_and_teaches_nothing(answer, opponents):
    reward = PairwiseReward(Judge(lambda *_: answer), opponents=opponents)
    values, counts, *_ = reward(["p", "q"], [list(range(8))] * 2)
    assert values.tolist() == [[0.5] * 8] * 2
    assert group_advantages(values).tolist() == [[0.0] * 8] * 2
    assert (counts["agree"], counts["ties"]) == (0, counts["pairs"])
    said = ("first", "second") if answer == ONE else ("second", "first")
    assert [counts[name] for name in said] == [counts["comparisons"], 0]


def test_with_one_order_a_judge_that_always_says_the_same_is_believed():
    reward = PairwiseReward(Judge(lambda *_: ONE), both_orders=False)
    values, counts, *_ = reward(["p"], [list(range(8))])
    assert sorted(values[0].tolist()) == pytest.approx([k / 7 for k in range(8)])  # out of nothing
    assert counts["comparisons"] == 28 and "agree" not in counts  # nothing to agree with


def test_a_judge_that_answers_at_random_gives_the_spread_of_coin_tosses():
    groups, size, rng = 200, 8, np.random.default_rng(0)
    judge = Judge(lambda *_: ONE if rng.random() < 0.5 else TWO)
    values = PairwiseReward(judge)(["p"] * groups, [list(range(size))] * groups).values

    # The same by simulation: of each pair two tosses, and both must agree for a win.
    tosses = np.random.default_rng(1).integers(2, size=(2, 4000, size, size)).mean(0)
    points = np.triu(tosses, 1)
    points += np.transpose(np.triu(1 - tosses, 1), (0, 2, 1))
    simulated = torch.from_numpy(points.sum(2) / (size - 1)).float()
    # A pair's points have variance 1/8, so that a win rate over 7 pairs has 1/56.
    for rates in (values, simulated):
        assert rates.var(1, correction=0).mean().item() == pytest.approx(1 / 56, rel=0.1)
    asked, expected = group_advantages(values, 0.05), group_advantages(simulated, 0.05)
    for share in (0.05, 0.25, 0.75, 0.95):
        assert asked.quantile(share).item() == pytest.approx(
            expected.quantile(share).item(), abs=0.15
        )
    assert asked.mean(0).abs().max() < 0.25  # no place in the group is favored: 3.5 deviations


def test_a_win_in_one_order_and_a_tie_in_the_other_is_worth_three_quarters():
    judge = Judge(lambda first, second, _: ONE if first > second else EQUAL)
    values, counts, *_ = PairwiseReward(judge)(["p"], [[1, 2, 3]])
    assert values.tolist() == [[0.25, 0.5, 0.75]]
    assert (counts["pairs"], counts["ties"], counts["agree"]) == (3, 0, 0)
    assert (counts["first"], counts["second"]) == (3, 0)


def test_a_group_in_which_all_are_equal():
    values, counts, *_ = PairwiseReward(Judge(higher))(["p", "q"], [[1, 1, 1], [1, 2, 3]])
    assert values.tolist() == [[0.5] * 3, [0, 0.5, 1]]
    assert (counts["ties"], counts["agree"], counts["first"], counts["second"]) == (3, 6, 3, 3)


@pytest.mark.parametrize("both_orders", [True, False])
def test_what_failed_is_asked_for_once_more_word_for_word(both_orders):
    judge = Judge(lost(2))
    values, counts, error, _ = PairwiseReward(judge, both_orders)(["p"], [[1, 2, 3]])
    assert values.tolist() == [[0, 0.5, 1]]
    assert judge.batches[1] == judge.batches[0][:2] and len(judge.batches) == 2
    wanted = 6 if both_orders else 3
    assert (counts["wanted"], counts["comparisons"]) == (wanted, wanted + 2)
    assert (counts["failed"], error) == (0, None)


def test_an_answer_without_a_verdict_is_asked_for_once_more_with_a_reminder():
    judge = Judge(lost(1, failure="hm"))
    values, counts, *_ = PairwiseReward(judge)(["p"], [[1, 2]])
    assert values.tolist() == [[0, 1]] and counts["unparsable"] == 0
    (again,) = judge.batches[1]
    assert again.images == judge.batches[0][0].images
    assert again.text == judge.batches[0][0].text + VERDICT_REMINDER
    # It spells out no form: a template of one's own has another.
    assert "<" not in VERDICT_REMINDER and "{" not in VERDICT_REMINDER


def test_what_is_lost_twice_is_left_out_and_one_lost_order_loses_the_pair():
    def says(first, second, text):
        if (first, second) == (3, 1):
            return Answer(error="HTTP 500")
        return "no idea" if {first, second} == {2, 3} else higher(first, second)

    judge = Judge(says)
    values, counts, error, _ = PairwiseReward(judge)(["p"], [[1, 2, 3]])
    assert values.tolist() == [[0, 1, 0.5]]  # of image 3 nothing is known
    assert (counts["failed"], counts["unparsable"], counts["wanted"]) == (1, 2, 6)
    assert (counts["comparisons"], len(judge.batches)) == (9, 2)  # never a third time
    assert (counts["pairs"], counts["ties"], counts["agree"]) == (1, 0, 1)
    assert (counts["first"], counts["second"]) == (1, 2)  # of answers: (1, 3) had one
    assert error in ("HTTP 500", "no verdict in an answer that ends with 'no idea'")


@pytest.mark.parametrize(
    ("failure", "kind", "error"),
    [
        (Answer(error="HTTP 500"), "failed", "HTTP 500"),
        ("I cannot say", "unparsable", "no verdict in an answer that ends with 'I cannot say'"),
    ],
)
def test_the_last_error_is_kept(failure, kind, error):
    rewards = PairwiseReward(Judge(lambda *_: failure))(["p"], [[1, 2]])
    assert rewards.values.tolist() == [[0.5, 0.5]]
    assert (rewards.counts[kind], rewards.error) == (2, error)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_sparse_comparisons(k):
    judge = Judge(higher)
    reward = PairwiseReward(judge, opponents=k)
    ranking = [4, 0, 6, 2, 7, 1, 5, 3]
    values, counts, *_ = reward(["p", "q"], [ranking, [1] * 8])
    assert counts["comparisons"] == len(judge.batches[0]) == 2 * reward.calls(8) == 2 * 8 * k
    shown = {tuple(sorted(map(ranking.index, q.images))) for q in judge.batches[0][: 8 * k]}
    assert shown == set(pair_schedule(8, k))
    wins = lambda i: sum(ranking[i] > ranking[j] for p in shown if i in p for j in p)
    assert values[0].tolist() == pytest.approx([wins(i) / k for i in range(8)])
    assert values[1].tolist() == [0.5] * 8


@pytest.mark.parametrize(
    ("settings", "calls"),
    [({}, 56), ({"both_orders": False}, 28), ({"opponents": 3}, 24), ({"opponents": 7}, 56)],
)
def test_what_a_group_costs(settings, calls):
    judge = Judge(higher)
    reward = PairwiseReward(judge, **settings)
    reward(["p"], [list(range(8))])
    assert reward.calls(8) == len(judge.batches[0]) == calls


def test_a_template_of_ones_own():
    judge = Judge(higher)
    PairwiseReward(judge, template="Look at '{prompt}' {x} \\1, {prompt}")(["a {y}"], [[1, 2]])
    assert {query.text for query in judge.batches[0]} == {"Look at 'a {y}' {x} \\1, a {y}"}
    with pytest.raises(ValueError, match="lacks {prompt}"):
        PairwiseReward(judge, template="no place")


def test_soft_points():
    odds = {(1, 2): 0.4, (2, 1): 0.8, (1, 3): 0.1, (3, 1): 0.9, (2, 3): None, (3, 2): 0.9}
    judge = Soft(odds)
    values, counts, error, _ = PairwiseReward(judge, soft=True)(["p"], [[1, 2, 3]])
    torch.testing.assert_close(values, torch.tensor([[(0.3 + 0.1) / 2, 0.7, 0.9]]))
    assert (counts["failed"], counts["pairs"], counts["agree"]) == (1, 2, 2)
    assert [query.images for query in judge.batches[1]] == [(2, 3)] and error == "no probability"


def test_a_soft_judge_that_always_prefers_one_place_gives_all_half():
    odds = dict.fromkeys(itertools.permutations(range(4), 2), 0.75)
    values, counts, *_ = PairwiseReward(Soft(odds), soft=True)(["p"], [[0, 1, 2, 3]])
    assert values.tolist() == [[0.5] * 4]
    assert (counts["ties"], counts["agree"], counts["first"]) == (6, 0, 12)
    even = PairwiseReward(Soft(dict.fromkeys(odds, 0.5)), soft=True)(["p"], [[0, 1, 2, 3]]).counts
    assert (even["ties"], even["agree"], even["first"], even["second"]) == (6, 6, 0, 0)


@pytest.mark.parametrize("reward", [PairwiseReward(Judge(higher)), PointwiseReward(Judge(higher))])
@pytest.mark.parametrize("images", [[[1, 2]], [[1, 2], [1]], []])
def test_groups_must_match_the_prompts(reward, images):
    with pytest.raises(ValueError, match="one group of images for each prompt"):
        reward(["p", "q"], images)


# ---- PointwiseReward ----


class Scores:
    name = "fake scorer"

    def score(self, prompts, images):
        pairs = zip(prompts, images, strict=True)
        return [None if image is None else len(prompt) + image for prompt, image in pairs]


def test_pointwise_reward():
    reward = PointwiseReward(Scores())
    values, counts, error, _ = reward(["a", "bb"], [[1, 2], [3, 4]])
    assert values.tolist() == [[2, 3], [5, 6]] and values.dtype == torch.float32
    assert counts == Counter(wanted=4, comparisons=4, failed=0) and error is None
    assert reward.calls(8) == 8


@pytest.mark.parametrize("broken", [None, float("nan"), float("inf"), -float("inf")])
def test_a_lost_score_is_its_groups_mean(broken):
    images = [[1, 3, broken], [broken] * 3]
    values, counts, error, _ = PointwiseReward(Scores())(["a", "a"], images)
    assert values.tolist() == [[2, 4, 3], [0, 0, 0]]
    assert (counts["failed"], counts["wanted"]) == (4, 6) and error == "no score from fake scorer"
    assert group_advantages(values)[:, 2].tolist() == [0, 0]


# ---- parts of a batch, and what ends a run ----


@pytest.mark.parametrize(
    "reward",
    [
        PairwiseReward(Judge(higher)),
        PairwiseReward(Judge(higher), opponents=2),
        PairwiseReward(Judge(higher), both_orders=False),
        PointwiseReward(Scores()),
    ],
    ids=["pairwise", "sparse", "one order", "pointwise"],
)
def test_a_batch_judged_in_parts_is_the_batch(reward):
    images = [[3, 1, 2, 0], [5, 5, 7, 4], [1, 2, 3, 4]]
    whole = reward(["a", "b", "c"], images)
    joined = join([reward(["a", "b"], images[:2]), reward(["c"], images[2:])])
    assert joined.values.tolist() == whole.values.tolist()
    assert (joined.counts, joined.error) == (whole.counts, None)
    assert joined.counts["comparisons"] == 3 * reward.calls(4)


def test_joined_counts_add_up_groups_keep_their_order_and_the_last_error_is_kept():
    parts = [
        Rewards(torch.tensor([[1.0, 2.0]]), Counter(wanted=2, failed=1), "early"),
        Rewards(torch.tensor([[3.0, 4.0], [5.0, 6.0]]), Counter(wanted=4, failed=2), "late"),
        Rewards(torch.tensor([[7.0, 8.0]]), Counter(wanted=2, ties=1)),
    ]
    joined = join(parts)
    assert joined.values.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert joined.counts == Counter(wanted=8, failed=3, ties=1) and joined.error == "late"
    assert parts[0].counts == Counter(wanted=2, failed=1)  # as it was


@pytest.mark.parametrize(("bad", "stops"), [(0, False), (4, False), (5, True)])
def test_too_many_losses_end_the_run(bad, stops):
    images = list(range(10))  # 90 comparisons: 5 % allows 4
    victims = set(list(itertools.combinations(images, 2))[:bad])

    def says(first, second, text):
        return Answer(error="HTTP 503") if (first, second) in victims else higher(first, second)

    rewards = PairwiseReward(Judge(says))(["p"], [images])
    assert rewards.counts["failed"] == bad
    if not stops:
        return check_lost("fake judge", rewards, 0.05)
    with pytest.raises(JudgeError) as error:
        check_lost("fake judge", rewards, 0.05)
    assert str(error.value) == (
        "fake judge: 5 of 90 judgements lost (5 failed, 0 unparsable; 5% allowed), "
        "last error: HTTP 503"
    )


@pytest.mark.parametrize(
    ("counts", "share", "stops"),
    [
        (Counter(wanted=100, failed=3, unparsable=2), 0.05, False),
        (Counter(wanted=100, failed=3, unparsable=3), 0.05, True),
        # repeats are no reason to lose more
        (Counter(wanted=100, comparisons=200, failed=6), 0.05, True),
        (Counter(wanted=100, failed=1), 0, True),
        (Counter(wanted=100, failed=100), 1, False),
    ],
)
def test_what_may_be_lost_is_a_share_of_what_was_wanted(counts, share, stops):
    rewards = Rewards(torch.zeros(1, 2), counts, "HTTP 429")
    if not stops:
        return check_lost("x", rewards, share)
    with pytest.raises(JudgeError, match="last error: HTTP 429"):
        check_lost("x", rewards, share)


def lost_groups(*lost, of=6, more=0):
    """Rewards of groups of `of` judgements each; lost: whether a group lost them all."""
    counts = Counter(wanted=of * len(lost), failed=of * sum(lost) + more)
    counts["groups_lost"] = sum(lost)
    return Rewards(torch.zeros(len(lost), 2), counts, "refused")


@pytest.mark.parametrize(
    ("rewards", "share", "stops"),
    [
        (lost_groups(True, False), 0.05, False),  # one prompt that is always refused
        (lost_groups(True, *[False] * 15), 0.05, False),
        (lost_groups(True, *[False] * 15, more=5), 0.05, True),  # what others lose still counts
        (lost_groups(True, True, *[False] * 14), 0.05, True),  # a judge that died, not a prompt
        (lost_groups(True, True, *[False] * 38), 0.05, False),  # within the share
        (lost_groups(True), 0.05, True),  # nothing is left
        (lost_groups(True, True), 0.5, True),
        (lost_groups(True, False), 0.0, True),  # nothing may be lost
        (lost_groups(True, True), 1.0, False),
    ],
)
def test_a_group_that_lost_everything_is_set_aside_if_it_stands_alone(rewards, share, stops):
    if not stops:
        return check_lost("x", rewards, share)
    with pytest.raises(JudgeError, match="last error: refused"):
        check_lost("x", rewards, share)


def test_groups_that_lost_everything_are_counted_of_pairs_and_scores():
    def refuses_five(first, second, _):
        return FAILURE if 5 in (first, second) else higher(first, second)

    images = [[1, 2, 3], [5, 6, 5], [4, 5, 6]]  # of the second no pair is left, of the third one
    pairs = PairwiseReward(Judge(refuses_five))(["a", "b", "c"], images)
    assert pairs.counts["groups_lost"] == 1
    assert len(set(pairs.values[1].tolist())) == 1  # and so no advantage
    scores = PointwiseReward(Scores())(["a", "b"], [[None, None], [None, 2]])
    assert scores.counts["groups_lost"] == 1
    assert join([pairs, pairs]).counts["groups_lost"] == 2


def test_losses_are_weighed_over_the_joined_parts():
    judge = Judge(
        lambda first, second, _: (
            Answer(error="HTTP 500") if {first, second} == {1, 2} else higher(first, second)
        )
    )
    parts = [PairwiseReward(judge)(["p"], [images]) for images in ([1, 2, 3, 4], [5, 6, 7, 8])]
    with pytest.raises(JudgeError, match="2 of 12 judgements lost"):
        check_lost("a", parts[0], 0.1)
    check_lost("a", join(parts), 0.1)  # 2 of 24
    scores = [PointwiseReward(Scores())(["p"], [images]) for images in ([None, 2], [1, 2], [3, 4])]
    with pytest.raises(JudgeError, match=r"1 of 2 judgements .* last error: no score from fake"):
        check_lost("b", scores[0], 0.2)
    check_lost("b", join(scores), 0.2)
