"""rewards.py: known win rates, lost answers, judges without a mind of their own; and what ends a
run, of training/judging.py."""

import itertools
from collections import Counter

import pytest
import torch

from grpo import group_advantages
from judges.answers import VERDICT_REMINDER
from judges.mllm import Answer
from judges.scorers import MLLMScorer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import PairwiseReward, PointwiseReward, Rewards, join, pair_schedule, win_rates
from training.judging import JudgeError, check_lost

ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
EQUAL = "<answer>Both are equal</answer>"
SOFT, ONCE = {"soft": True}, {"both_orders": False}
FAILURE, AWAY = Answer(error="HTTP 500"), Answer(error="dead", unreachable=True)


class Judge:
    """Images are numbers here; what it says of (first, second) is a function, or a table of
    probabilities."""

    name = "fake judge"

    def __init__(self, says):
        self.says, self.batches = says, []

    def ask(self, queries):
        self.batches.append(list(queries))
        said = [self.says(*query.images) for query in queries]
        return [answer if isinstance(answer, Answer) else Answer(answer) for answer in said]

    def first_probability(self, queries):
        self.batches.append(list(queries))
        return [self.says[query.images] for query in queries]


class Scores:
    name = "fake scorer"

    def score(self, prompts, images):
        pairs = zip(prompts, images, strict=True)
        return [None if image is None else len(prompt) + image for prompt, image in pairs]


def higher(first, second):
    return ONE if first > second else TWO if second > first else EQUAL


def first_or_tie(first, second):
    return ONE if first > second else EQUAL


def picked(counts, names: str) -> list[int]:
    return [counts[name] for name in names.split()]


# ---- schedules and rates ----


@pytest.mark.parametrize(("size", "k"), [(2, 1), (4, 1), (8, 3), (9, 4), (16, 4), (24, 5)])
def test_a_sparse_schedule_is_balanced_and_connects_the_group(size, k):
    pairs, reached = pair_schedule(size, k), {0}
    assert len(set(pairs)) == len(pairs) == size * k // 2
    assert all(0 <= i < j < size for i, j in pairs)
    assert {sum(image in pair for pair in pairs) for image in range(size)} == {k}
    for _ in range(size):
        reached |= {image for pair in pairs if reached & set(pair) for image in pair}
    assert k == 1 or len(reached) == size


@pytest.mark.parametrize(
    ("size", "k", "message"),
    [(1, None, "at least 2"), (8, 0, "from 1 to 7"), (8, 8, "from 1"), (9, 3, "one of .* even")],
)
def test_impossible_schedules(size, k, message):
    with pytest.raises(ValueError, match=message):
        pair_schedule(size, k)


def test_win_rates_by_hand():
    pairs = pair_schedule(4)
    assert pairs == pair_schedule(4, 3) == list(itertools.combinations(range(4), 2))
    points = [0, 0, 0, 0, 1, 1]  # the paper's figure: 0 .67 1 .33
    assert win_rates(pairs, points, 4).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3])
    points = [1, 0.5, None, 0, None, None]
    # image 0: a win and a tie; 1: two losses; 2: a tie and a win; 3: nothing was counted
    rates = win_rates(pairs, points, 4)
    assert rates.tolist() == [0.75, 0.0, 0.75, 0.5] and rates.dtype == torch.float32
    with pytest.raises(ValueError, match="shorter"):
        win_rates(pairs, points[:5], 4)


# ---- PairwiseReward ----


def test_a_known_ranking_gives_known_win_rates_and_comparisons_never_cross_prompts():
    judge, prompts = Judge(higher), ["{braces} \\1", "two"]
    images = [[3, 1, 2, 0], [15, 15, 17, 14]]
    rewards = PairwiseReward(judge)(prompts, images)
    known = torch.tensor([[1, 1 / 3, 2 / 3, 0], [0.5, 0.5, 1, 0]])
    torch.testing.assert_close(rewards.values, known)
    known = dict(wanted=24, comparisons=24, first=11, second=11, pairs=12, ties=1, agree=12)
    known |= dict(triples=6, cyclic=0)  # of the four of the second group two hold the tie
    assert (rewards.counts, rewards.error) == (Counter(known), None)
    (asked,) = judge.batches  # all that there is to ask, at once
    orders = [pair for group in images for pair in itertools.permutations(group, 2)]
    assert sorted(query.images for query in asked) == sorted(orders)
    for query in asked:
        prompt = prompts[query.images[0] > 9]
        assert query.text == PAIRWISE_TEMPLATE.replace("{prompt}", prompt)


def around(first, second, but=None):
    """0 over 2 over 1 over 0, 3 over all of them; but: what is said of 0 and 1."""
    if but and {first, second} == {0, 1}:
        return but
    return ONE if first == 3 or second != 3 and (second - first) % 3 == 2 else TWO


@pytest.mark.parametrize(
    ("says", "settings", "triples", "cyclic"),
    [
        (around, {}, 4, 1),
        (around, ONCE, 4, 1),
        (lambda *pair: around(*pair, EQUAL), {}, 2, 0),
        (lambda *pair: around(*pair, ONE), {}, 2, 0),  # by the place: the orders disagree
        (lambda *pair: around(*pair, "no idea"), {}, 2, 0),
        (around, {"opponents": 2}, None, None),  # not all pairs: no triple can be told
    ],
)
def test_cycles_are_told_among_triples_whose_pairs_are_all_decided(says, settings, triples, cyclic):
    counts = PairwiseReward(Judge(says), **settings)(["p"], [[0, 1, 2, 3]]).counts
    assert (counts.get("triples"), counts.get("cyclic")) == (triples, cyclic)


def lost(count, failure):
    """`higher`, of which the first `count` answers are lost."""
    left = iter(range(count))
    return lambda *images: higher(*images) if next(left, None) is None else failure


def contrary(first, second):
    """Loses one order of one pair, and both of another: of image 3 nothing is known."""
    if (first, second) == (3, 1):
        return FAILURE
    return "no idea" if {first, second} == {2, 3} else higher(first, second)


ODDS = {(1, 2): 0.4, (2, 1): 0.8, (1, 3): 0.1, (3, 1): 0.9, (2, 3): None, (3, 2): 0.9}
COUNTS = "wanted comparisons failed unparsable pairs ties agree first second"


@pytest.mark.parametrize(
    ("says", "settings", "rates", "counts", "again", "reminded"),
    [  # wanted, asked, failed, unparsable; pairs, ties, agree; first, second
        (lambda *_: ONE, {}, (0.5, 0.5, 0.5), (6, 6, 0, 0, 3, 3, 0, 6, 0), [], 0),
        (lambda *_: TWO, {}, (0.5, 0.5, 0.5), (6, 6, 0, 0, 3, 3, 0, 0, 6), [], 0),
        (dict.fromkeys(ODDS, 0.75), SOFT, (0.5, 0.5, 0.5), (6, 6, 0, 0, 3, 3, 0, 6, 0), [], 0),
        (dict.fromkeys(ODDS, 0.5), SOFT, (0.5, 0.5, 0.5), (6, 6, 0, 0, 3, 3, 3, 0, 0), [], 0),
        (ODDS, SOFT, (0.2, 0.7, 0.9), (6, 7, 1, 0, 2, 0, 2, 3, 2), [(2, 3)], 0),
        (first_or_tie, {}, (0.25, 0.5, 0.75), (6, 6, 0, 0, 3, 0, 0, 3, 0), [], 0),
        (lost(2, FAILURE), {}, (0, 0.5, 1), (6, 8, 0, 0, 3, 0, 3, 3, 3), [(1, 2), (2, 1)], 0),
        (lost(1, FAILURE), ONCE, (0, 0.5, 1), (3, 4, 0, 0, 3, 0, 0, 0, 3), [(1, 2)], 0),
        (lost(1, "hm"), {}, (0, 0.5, 1), (6, 7, 0, 0, 3, 0, 3, 3, 3), [(1, 2)], 1),
        (contrary, {}, (0, 1, 0.5), (6, 9, 1, 2, 1, 0, 1, 1, 2), [(3, 1), (2, 3), (3, 2)], 2),
    ],
)
def test_what_a_judge_says_gives_known_rates(says, settings, rates, counts, again, reminded):
    """again: what is asked once more, and never a third time; reminded: how many of these with a
    reminder of the form, since their answer had no verdict; the others word for word."""
    judge = Judge(says)
    rewards = PairwiseReward(judge, **settings)(["p"], [[1, 2, 3]])
    assert rewards.values[0].tolist() == pytest.approx(rates)
    assert picked(rewards.counts, COUNTS) == list(counts)
    first, *others = judge.batches
    assert [query.images for batch in others for query in batch] == again and len(others) < 2
    texts = {first[0].text: len(again) - reminded, first[0].text + VERDICT_REMINDER: reminded}
    assert Counter(query.text for batch in others for query in batch) == Counter(texts)
    assert (rewards.error is None) == (counts[2] + counts[3] == 0)


def test_a_template_of_ones_own():
    judge = Judge(higher)
    PairwiseReward(judge, template="Look at '{prompt}' {x} \\1, {prompt}")(["a {y}"], [[1, 2]])
    assert {query.text for query in judge.batches[0]} == {"Look at 'a {y}' {x} \\1, a {y}"}
    assert "<" not in VERDICT_REMINDER and "{" not in VERDICT_REMINDER  # it has another form
    with pytest.raises(ValueError, match="lacks {prompt}"):
        PairwiseReward(judge, template="no place")


@pytest.mark.parametrize("reward", [PairwiseReward(Judge(higher)), PointwiseReward(Scores())])
@pytest.mark.parametrize("images", [[[1, 2]], [[1, 2], [1]], []])
def test_groups_must_match_the_prompts(reward, images):
    with pytest.raises(ValueError, match="one group of images for each prompt"):
        reward(["p", "q"], images)


# ---- PointwiseReward, and parts of a batch ----


def test_pointwise_reward():
    reward = PointwiseReward(Scores())
    values, counts, error, _ = reward(["a", "bb"], [[1, 2], [3, 4]])
    assert values.tolist() == [[2, 3], [5, 6]] and values.dtype == torch.float32
    assert counts == Counter(wanted=4, comparisons=4, failed=0) and error is None


@pytest.mark.parametrize("broken", [None, float("nan"), -float("inf")])
def test_a_lost_score_is_its_groups_mean(broken):
    images = [[1, 3, broken], [broken] * 3]
    values, counts, error, _ = PointwiseReward(Scores())(["a", "a"], images)
    assert values.tolist() == [[2, 4, 3], [0, 0, 0]]
    assert picked(counts, "failed wanted") == [4, 6] and error == "no score from fake scorer"
    assert group_advantages(values)[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize("settings", [{}, {"opponents": 2}, ONCE, None])
def test_a_batch_judged_in_parts_is_the_batch(settings):
    judged = settings is not None
    reward = PairwiseReward(Judge(higher), **settings) if judged else PointwiseReward(Scores())
    images = [[3, 1, 2, 0], [5, 5, 7, 4], [1, 2, 3, 4]]
    whole = reward(["a", "b", "c"], images)
    joined = join([reward(["a", "b"], images[:2]), reward(["c"], images[2:])])
    assert joined.values.tolist() == whole.values.tolist()
    assert joined[1:] == whole[1:] and [joined.points(p) for p in range(3)]
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


# ---- what ends a run ----


@pytest.mark.parametrize(
    ("failed", "unparsable", "whole", "away", "groups", "share", "stops"),
    [
        (3, 3, 0, 0, 20, 0.05, False),
        (3, 4, 0, 0, 20, 0.05, True),
        (1, 0, 0, 0, 20, 0, True),  # nothing may be lost
        (120, 0, 0, 0, 20, 1, False),
        (6, 0, 1, 0, 2, 0.05, False),  # one prompt that is always refused
        (6, 0, 1, 1, 2, 0.05, True),  # not for its prompt
        (12, 0, 2, 1, 40, 0.03, False),  # within the share anyway
        (11, 0, 1, 0, 16, 0.05, True),  # what others lose still counts
        (12, 0, 2, 0, 16, 0.05, True),  # a judge that died, not a prompt
        (12, 0, 2, 0, 40, 0.05, False),  # within the share
        (6, 0, 1, 0, 1, 0.05, True),  # nothing is left
        (12, 0, 2, 0, 2, 0.5, True),
        (6, 0, 1, 0, 2, 0, True),
        (12, 0, 2, 0, 2, 1, False),
    ],
)
def test_what_may_be_lost_is_a_share_of_what_was_wanted_but_for_a_group_that_lost_everything(
    failed, unparsable, whole, away, groups, share, stops
):
    """Groups of 6 judgements, so many of them lost as a whole, of those for a judge that is away.
    Repeats are no reason to lose more."""
    wanted, known = 6 * groups, dict(failed=failed, unparsable=unparsable, groups_lost=whole)
    counts = Counter(wanted=wanted, comparisons=2 * wanted, groups_unreachable=away, **known)
    rewards = Rewards(torch.zeros(groups, 2), counts, "HTTP 429")
    if not stops:
        return check_lost("x", rewards, share)
    with pytest.raises(JudgeError) as error:
        check_lost("x", rewards, share)
    assert str(error.value) == (
        f"x: {failed + unparsable} of {wanted} judgements lost ({failed} failed, {unparsable} "
        f"unparsable; {share:.0%} allowed), last error: HTTP 429"
    )


def test_groups_that_lost_everything_are_counted_and_whether_the_judge_could_be_reached():
    says = lambda *images: AWAY if 5 in images else FAILURE if 7 in images else "No."
    whole, away, groups = "groups_lost", "groups_unreachable", [[1, 5], [5, 6], [1, 7], [2, 3]]
    pairs = PairwiseReward(Judge(says))(["a", "b", "c", "d"], groups)
    assert picked(pairs.counts, f"{whole} {away}") == [4, 2]
    scores = PointwiseReward(MLLMScorer(Judge(lambda i: AWAY if i == 5 else FAILURE)))
    scores = scores(["a", "b"], [[5, 5], [1, 2]])
    assert picked(scores.counts, f"{whole} {away}") == [2, 1] and scores.error == "HTTP 500"

    some = lambda *images: AWAY if 5 in images else higher(*images)
    pairs = PairwiseReward(Judge(some))(["a", "b"], [[5, 6, 5], [4, 5, 6]])  # a pair is left
    assert picked(pairs.counts, f"{whole} {away}") == [1, 1]
    assert len(set(pairs.values[0].tolist())) == 1  # and so no advantage
    scores = PointwiseReward(Scores())(["a", "b"], [[None, None], [None, 2]])
    assert picked(join([scores, scores]).counts, f"{whole} {away}") == [2, 0]
