"""rewards.py: known win rates, Bradley-Terry, lost comparisons, judges without a mind of their
own."""

import itertools
import time

import numpy as np
import pytest
import torch

from grpo import group_advantages
from judges.mllm import Answer
from rewards import (
    VERDICT_REMINDER,
    JudgeError,
    Lost,
    MLLMScorer,
    PairwiseReward,
    PointwiseReward,
    Verdict,
    bradley_terry,
    pair_schedule,
    win_rates,
)

FIRST, SECOND, TIE, UNPARSABLE, FAILED = Verdict
ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"

# ---- schedules and rates ----


@pytest.mark.parametrize(
    ("size", "k"),
    [
        (8, 1),
        (8, 2),
        (8, 3),
        (8, 6),
        (9, 2),
        (9, 4),
        (16, 4),
        (24, 3),
        (4, 1),
        (4, 2),
        (5, 2),
        (3, 2),
        (2, 1),
        (7, 6),
    ],
)
def test_sparse_schedule_is_balanced(size, k):
    for seed in range(10):
        pairs = pair_schedule(size, k, torch.Generator().manual_seed(seed))
        assert len(set(pairs)) == len(pairs) == size * k // 2
        assert all(0 <= i < j < size for i, j in pairs)
        assert {sum(image in pair for pair in pairs) for image in range(size)} == {k}
        reached = {0}
        for _ in range(size):
            reached |= {image for pair in pairs if reached & set(pair) for image in pair}
        assert k == 1 or len(reached) == size  # comparisons connect the group


def test_schedule_is_random_by_its_generator_only():
    torch.manual_seed(0)
    one = pair_schedule(16, 4)
    torch.manual_seed(1)
    assert pair_schedule(16, 4) == one
    seeded = [pair_schedule(16, 4, torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert pair_schedule(4) == list(itertools.combinations(range(4), 2))


@pytest.mark.parametrize(
    ("size", "k", "message"),
    [(1, None, "at least 2"), (8, 0, "from 1 to 7"), (8, 8, "from 1 to 7"), (9, 3, "must be even")],
)
def test_impossible_schedules(size, k, message):
    with pytest.raises(ValueError, match=message):
        pair_schedule(size, k)


def test_win_rates_by_hand():
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    verdicts = [SECOND, SECOND, SECOND, SECOND, FIRST, FIRST]  # the paper's figure: 0 .67 1 .33
    assert win_rates(pairs, verdicts, 4).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3])
    verdicts = [FIRST, TIE, UNPARSABLE, SECOND, FAILED, FAILED]
    # image 0: a win and a tie; 1: two losses; 2: a tie and a win; 3: nothing was counted
    assert win_rates(pairs, verdicts, 4).tolist() == [0.75, 0.0, 0.75, 0.5]
    assert win_rates([(0, 1)], [0.8], 2).tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("rate", [win_rates, bradley_terry])
def test_rates_sum_to_half_the_group(rate):
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5, 8):
        pairs = pair_schedule(size)
        for _ in range(20):
            draws = torch.randint(3, (len(pairs),), generator=generator).tolist()
            rates = rate(pairs, [[FIRST, SECOND, TIE][d] for d in draws], size)
            assert rates.shape == (size,) and rates.dtype == torch.float32
            assert rates.sum().item() == pytest.approx(size / 2, abs=1e-5)
            assert rates.min() >= 0 and rates.max() <= 1


def ranked(pairs):
    """Verdicts of a judge for whom the higher number is better."""
    return [FIRST if i > j else SECOND for i, j in pairs]


@pytest.mark.parametrize(("size", "k"), [(8, None), (24, None), (8, 4)])
def test_bradley_terry_is_finite_and_keeps_the_ranking(size, k):
    pairs = pair_schedule(size, k)
    rates = bradley_terry(pairs, ranked(pairs), size)
    assert rates.min() > 0 and rates.max() < 1
    if k is None:
        assert rates.argsort().tolist() == list(range(size))
    else:
        best, worst = rates.argmax().item(), rates.argmin().item()
        assert best >= size - 3 and worst <= 2


def test_bradley_terry_by_hand():
    # Two images, one game: by symmetry s and -s, and 1 - p(2s) + 1/2 - p(s) = 0 at the maximum.
    low, high = 0.0, 5.0
    for _ in range(60):
        s = (low + high) / 2
        slope = 1.5 - torch.sigmoid(torch.tensor([2 * s, s], dtype=torch.float64)).sum().item()
        low, high = (s, high) if slope > 0 else (low, s)
    p = torch.sigmoid(torch.tensor(2 * s)).item()
    assert bradley_terry([(0, 1)], [FIRST], 2).tolist() == pytest.approx([p, 1 - p], abs=1e-6)
    assert bradley_terry([(0, 1)], [TIE], 2).tolist() == [0.5, 0.5]
    assert bradley_terry([(0, 1)], [FAILED], 2).tolist() == [0.5, 0.5]


# ---- PairwiseReward ----


class Judge:
    """Images are numbers here; the verdict on (first, second, text) is a function."""

    name = "fake judge"

    def __init__(self, verdict):
        self.verdict, self.batches = verdict, []

    def ask(self, queries):
        self.batches.append(list(queries))
        answers = []
        for query in queries:
            said = self.verdict(*query.images, query.text)
            answers.append(said if isinstance(said, Answer) else Answer(text=said))
        return answers


def higher(first, second, text=""):
    return ONE if first > second else TWO if second > first else "<answer>Both are equal</answer>"


def lost(count, then=higher, failure=Answer(error="HTTP 500")):
    """The first `count` answers are lost."""
    left = iter(range(count))
    return lambda *query: then(*query) if next(left, None) is None else failure


def test_known_ranking_gives_known_win_rates():
    judge = Judge(higher)
    rewards, stats = PairwiseReward(judge)(["a", "b"], [[3, 1, 2, 0], [5, 5, 7, 4]])
    torch.testing.assert_close(rewards, torch.tensor([[1, 1 / 3, 2 / 3, 0], [0.5, 0.5, 1, 0]]))
    assert rewards.dtype == torch.float32
    assert stats == {
        "comparisons": 24,
        "unparsable": 0,
        "failed": 0,
        "uncompared": 0,
        "tie_rate": pytest.approx(1 / 12),
        "order_agreement": 1.0,
        "first_rate": 0.5,
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


@pytest.mark.parametrize(("answer", "first_rate"), [(ONE, 1.0), (TWO, 0.0)])
def test_a_judge_that_always_says_the_same_gives_all_half(answer, first_rate):
    rewards, stats = PairwiseReward(Judge(lambda *_: answer))(["p"], [list(range(8))])
    assert rewards.tolist() == [[0.5] * 8]
    assert (stats["order_agreement"], stats["tie_rate"]) == (0.0, 1.0)
    assert stats["first_rate"] == first_rate
    biased, stats = PairwiseReward(Judge(lambda *_: answer), both_orders=False)(["p"], [range(8)])
    assert sorted(biased[0].tolist()) == pytest.approx([k / 7 for k in range(8)])  # out of nothing
    assert "order_agreement" not in stats and stats["comparisons"] == 28  # nothing to agree with


@pytest.mark.parametrize("answer", [ONE, TWO])
@pytest.mark.parametrize("opponents", [None, 2, 3])
def test_a_judge_that_always_says_the_same_teaches_nothing(answer, opponents):
    reward = PairwiseReward(Judge(lambda *_: answer), opponents=opponents)
    rewards = reward(["p", "q"], [list(range(8))] * 2).rewards
    assert group_advantages(rewards).tolist() == [[0.0] * 8] * 2


def test_a_judge_that_answers_at_random_gives_the_spread_of_coin_tosses():
    groups, size, rng = 200, 8, np.random.default_rng(0)
    judge = Judge(lambda *_: ONE if rng.random() < 0.5 else TWO)
    rewards = PairwiseReward(judge)(["p"] * groups, [list(range(size))] * groups).rewards

    # The same by simulation: of each pair two tosses, and both must agree for a win.
    tosses = np.random.default_rng(1).integers(2, size=(2, 4000, size, size)).mean(0)
    points = np.triu(tosses, 1)
    points += np.transpose(np.triu(1 - tosses, 1), (0, 2, 1))
    simulated = torch.from_numpy(points.sum(2) / (size - 1)).float()
    # A pair's points have variance 1/8, so that a win rate over 7 pairs has 1/56.
    for rates in (rewards, simulated):
        assert rates.var(1, correction=0).mean().item() == pytest.approx(1 / 56, rel=0.1)
    asked, expected = group_advantages(rewards, 0.05), group_advantages(simulated, 0.05)
    for share in (0.05, 0.25, 0.75, 0.95):
        assert asked.quantile(share).item() == pytest.approx(
            expected.quantile(share).item(), abs=0.15
        )
    assert asked.mean(0).abs().max() < 0.25  # no place in the group is favoured: 3.5 deviations


def test_a_step_judged_in_parts_is_the_step():
    images = [[3, 1, 2, 0], [5, 5, 7, 4], [1, 2, 3, 4]]
    for reward in (
        PairwiseReward(Judge(higher)),
        PairwiseReward(Judge(higher), opponents=2),
        PairwiseReward(Judge(higher), both_orders=False),
        PointwiseReward(Scores()),
    ):
        whole = reward(["a", "b", "c"], images)
        parts = [reward.judge(["a", "b"], images[:2]), reward.judge(["c"], images[2:])]
        rewards, stats = reward.result(parts)
        assert rewards.tolist() == whole.rewards.tolist() and stats == whole.stats
        assert stats["comparisons"] == 3 * reward.calls(4)


def test_losses_are_weighed_over_the_step_not_its_parts():
    bad = Judge(
        lambda first, second, _: (
            Answer(error="HTTP 500") if {first, second} == {1, 2} else higher(first, second)
        )
    )
    reward = PairwiseReward(bad, max_failed=0.1)
    with pytest.raises(JudgeError, match="2 of 12 comparisons lost"):
        reward(["a"], [[1, 2, 3, 4]])
    parts = [reward.judge(["a"], [[1, 2, 3, 4]]), reward.judge(["b"], [[5, 6, 7, 8]])]
    assert reward.result(parts).stats["failed"] == 2
    scorer = PointwiseReward(Scores(), max_failed=0.2)
    parts = [scorer.judge(["a"], [[None, 2]]), scorer.judge(["b", "c"], [[1, 2], [3, 4]])]
    assert scorer.result(parts).rewards.tolist() == [[3, 3], [2, 3], [4, 5]]


def test_a_tie_in_one_order_and_a_win_in_the_other_is_a_tie():
    judge = Judge(lambda first, second, _: ONE if first > second else higher(0, 0))
    assert PairwiseReward(judge)(["p"], [[1, 2, 3]]).rewards.tolist() == [[0.5] * 3]


def test_an_all_tie_group():
    rewards, stats = PairwiseReward(Judge(higher))(["p", "q"], [[1, 1, 1], [1, 2, 3]])
    assert rewards.tolist() == [[0.5] * 3, [0, 0.5, 1]]
    assert stats["tie_rate"] == 0.5 and stats["first_rate"] == 0.5


def test_a_lost_comparison_is_asked_again_in_the_same_order():
    judge = Judge(lost(2))
    rewards, stats = PairwiseReward(judge, max_failed=0)(["p"], [[1, 2, 3]])
    assert rewards.tolist() == [[0, 0.5, 1]]
    assert judge.batches[1] == judge.batches[0][:2]
    assert (stats["comparisons"], stats["failed"]) == (8, 0)


def test_with_one_order_it_is_asked_again_the_other_way_round():
    judge = Judge(lost(2))
    rewards, stats = PairwiseReward(judge, both_orders=False, max_failed=0)(["p"], [[1, 2, 3]])
    assert rewards.tolist() == [[0, 0.5, 1]]
    assert [q.images for q in judge.batches[1]] == [(2, 1), (3, 1)]
    assert stats["first_rate"] == 2 / 3  # as it was shown: of (2, 3), (2, 1), (3, 1)


def test_an_unparsable_answer_is_asked_again_with_a_reminder():
    judge = Judge(lost(1, failure="hm"))
    rewards, _ = PairwiseReward(judge)(["p"], [[1, 2]])
    assert rewards.tolist() == [[0, 1]]
    assert judge.batches[1][0].text == judge.batches[0][0].text + VERDICT_REMINDER
    # It spells out no form: a template of one's own has another.
    assert "<" not in VERDICT_REMINDER and "{" not in VERDICT_REMINDER


def test_lost_pairs_are_left_out_and_counted():
    def verdict(first, second, text):
        if (first, second) == (3, 1):  # one order only: the other alone must not count
            return Answer(error="HTTP 500")
        return "no idea" if {first, second} == {2, 3} else higher(first, second)

    rewards, stats = PairwiseReward(Judge(verdict), max_failed=0.5)(["p"], [[1, 2, 3]])
    assert rewards.tolist() == [[0, 1, 0.5]]  # of image 3 nothing is known
    assert (stats["failed"], stats["unparsable"], stats["uncompared"]) == (1, 2, 1)
    assert (stats["comparisons"], stats["tie_rate"], stats["order_agreement"]) == (9, 0, 1)


@pytest.mark.parametrize(("bad", "stops"), [(4, False), (5, True)])
def test_too_many_losses_stop_the_run(bad, stops):
    images = list(range(10))  # 90 comparisons: 5 % allows 4
    victims = set(list(itertools.combinations(images, 2))[:bad])

    def verdict(first, second, text):
        return Answer(error="HTTP 503") if (first, second) in victims else higher(first, second)

    reward = PairwiseReward(Judge(verdict))
    if not stops:
        assert reward(["p"], [images]).stats["failed"] == bad
        return
    with pytest.raises(JudgeError) as error:
        reward(["p"], [images])
    assert str(error.value) == (
        "fake judge: 5 of 90 comparisons lost (5 failed, 0 unparsable; 5% allowed), "
        "last error: HTTP 503"
    )


@pytest.mark.parametrize(
    ("others", "stops"), [(Lost(0, 0, 30, None), False), (Lost(1, 1, 38, "x"), True)]
)
def test_what_may_be_lost_is_a_share_of_all_that_the_processes_asked(others, stops):
    def verdict(first, second, text):
        return Answer(error="HTTP 503") if (first, second) == (1, 2) else higher(first, second)

    # of this process's two comparisons one is lost, far more than 5 %: alone it would stop
    reward = PairwiseReward(Judge(verdict), gather=lambda mine: [*mine, others])
    if stops:
        with pytest.raises(JudgeError, match=r"3 of 40 comparisons lost \(2 failed, 1 unparsable"):
            reward(["p"], [[1, 2]])
    else:
        assert reward(["p"], [[1, 2]]).stats["failed"] == 1  # 1 of 32


def test_unparsable_answers_stop_the_run_and_are_quoted():
    with pytest.raises(JudgeError, match="2 unparsable.*ends with 'I cannot say'"):
        PairwiseReward(Judge(lambda *_: "I cannot say"))(["p"], [[1, 2]])


@pytest.mark.parametrize("k", [2, 3, 4])
def test_sparse_comparisons(k):
    judge = Judge(higher)
    rewards, stats = PairwiseReward(judge, opponents=k)(["p", "q"], [list(range(8)), [1] * 8])
    assert stats["comparisons"] == len(judge.batches[0]) == 2 * 8 * k
    concordant = sum(rewards[0, i] < rewards[0, j] for i, j in pair_schedule(8))
    assert concordant >= 22  # of 28: few comparisons give the ranking roughly
    assert rewards[1].tolist() == [0.5] * 8


def test_soft_verdicts():
    class Soft(Judge):
        def first_probability(self, queries):
            odds = {(1, 2): 0.4, (2, 1): 0.8, (1, 3): 0.1, (3, 1): 0.9, (2, 3): None, (3, 2): 0.9}
            return [odds[query.images] for query in queries]

    rewards, stats = PairwiseReward(Soft(None), soft=True, max_failed=0.2)(["p"], [[1, 2, 3]])
    torch.testing.assert_close(rewards, torch.tensor([[(0.3 + 0.1) / 2, 0.7, 0.9]]))
    assert stats["failed"] == 1 and stats["order_agreement"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"template": "no place"}, "lacks {prompt}"), ({"soft": True}, "need LocalMLLM")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PairwiseReward(Judge(higher), **settings)


@pytest.mark.parametrize("share", [5, -0.1, float("nan")])
@pytest.mark.parametrize("reward", [PairwiseReward, PointwiseReward])
def test_five_percent_is_not_five(reward, share):
    with pytest.raises(ValueError, match="a share, from 0 to 1"):
        reward(Judge(higher), max_failed=share)


@pytest.mark.parametrize("reward", [PairwiseReward(Judge(higher)), PointwiseReward(None)])
@pytest.mark.parametrize("images", [[[1, 2]], [[1, 2], [1]], []])
def test_groups_must_match_the_prompts(reward, images):
    with pytest.raises(ValueError, match="one group of images for each prompt"):
        reward(["p", "q"], images)


def test_own_work_is_cheap():
    images = [list(range(8)) for _ in range(16)]
    reward = PairwiseReward(Judge(lambda *_: "Because of its colours. " * 20 + ONE))
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        reward(["p"] * 16, images)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.03  # about 0.008 on one core


# ---- PointwiseReward ----


class Scores:
    name = "fake scorer"

    def score(self, prompts, images):
        pairs = zip(prompts, images, strict=True)
        return [None if image is None else len(prompt) + image for prompt, image in pairs]


def test_pointwise_reward():
    rewards, stats = PointwiseReward(Scores())(["a", "bb"], [[1, 2], [3, 4]])
    assert rewards.tolist() == [[2, 3], [5, 6]] and rewards.dtype == torch.float32
    assert stats == {"comparisons": 4, "failed": 0}


def test_a_lost_score_is_its_groups_mean():
    images = [[1, 3, None], [None, None, None]]
    rewards, stats = PointwiseReward(Scores(), max_failed=1.0)(["a", "a"], images)
    assert rewards.tolist() == [[2, 4, 3], [0, 0, 0]] and stats["failed"] == 4
    with pytest.raises(
        JudgeError,
        match=r"fake scorer: 4 of 6 scores lost \(4 failed, .* 5% "
        r"allowed\), last",
    ):
        PointwiseReward(Scores())(["a", "a"], images)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_lost(broken):
    rewards, stats = PointwiseReward(Scores(), max_failed=0.5)(["a"], [[1, broken, 3]])
    assert rewards.tolist() == [[2, 3, 4]] and stats["failed"] == 1
    with pytest.raises(JudgeError, match="1 of 3 scores lost"):
        PointwiseReward(Scores())(["a"], [[1, broken, 3]])


GOOD = "Alignment Score (1-5): 4.25\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 4"


def test_mllm_scorer_asks_for_each_image_alone(caplog):
    class Rater(Judge):
        def ask(self, queries):
            self.batches.append(queries)
            return [Answer(text=GOOD), Answer(text="none"), Answer(error="HTTP 500")]

    rater = Rater(None)
    scorer = MLLMScorer(rater)
    assert scorer.name == "fake judge"
    assert scorer.score(["a {x}", "b", "c"], [1, 2, 3]) == [pytest.approx(11.75 / 3), None, None]
    assert [query.images for query in rater.batches[0]] == [(1,), (2,), (3,)]
    assert "\nCaption: a {x}\n" in rater.batches[0][0].text
    assert "2 scores lost" in caplog.text and "HTTP 500" in caplog.text
    with pytest.raises(JudgeError, match="2 of 3 scores lost .*, last error: HTTP 500"):
        PointwiseReward(scorer)(["p"], [[1, 2, 3]])
    with pytest.raises(ValueError, match="lacks {prompt}"):
        MLLMScorer(rater, template="x")
