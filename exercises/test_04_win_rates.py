"""Checks of exercise 4, in the order of work: python -m pytest exercises/test_04_win_rates.py"""

import itertools
import random
from collections import Counter

import rewards
from exercises import ex_04_win_rates as ex
from exercises.checks import expect, expect_as_ours, expect_part, expect_unchanged
from judges.mllm import Answer

POINTS = "the docstring of mean_points in exercises/ex_04_win_rates.py"
RATES = "the docstring of win_rates in exercises/ex_04_win_rates.py"
REWARD = "the docstring of PairwiseReward.__call__ in exercises/ex_04_win_rates.py"
STAYS_LOST = "parts 3 and 4 of " + REWARD
LOST = "'Lost answers' at the head of exercises/ex_04_win_rates.py"


class Judge:
    """Images are (prompt, quality). It prefers the better one; says: what it says instead."""

    name = "a judge of the check"

    def __init__(self, says=lambda first, second: None):
        self.says, self.asked = says, []

    def ask(self, queries):
        self.asked += queries
        kinds = {type(image).__name__ for query in queries for image in query.images}
        expect("what the judge is shown", " and ".join(kinds), "tuple", REWARD)
        return [Answer(self.answer(*query.images)) for query in queries]

    def answer(self, first, second):
        better = "Image 1" if first[1] > second[1] else "Image 2"
        return self.says(first, second) or f"<answer>{better} is better</answer>"


def rewarded(judge):
    """Two groups of three: of the dogs the first is best, of the cats the last is."""
    images = [[("dog", 3), ("dog", 2), ("dog", 1)], [("cat", 4), ("cat", 5), ("cat", 6)]]
    return ex.PairwiseReward(judge)(["dog", "cat"], images).values


def test_points_are_the_mean_of_both_orders():
    expect("points of a pair from 0.9 and 0.6", ex.mean_points(0.9, 0.6), 0.75, POINTS)
    got = ex.mean_points(0.0, 1.0)
    expect("points of a pair from 0 and 1", got, 0.5, POINTS)
    got = ex.mean_points(0.5172, 0.4963)
    said = {0.5: "a near tie made one.", 0.51: "rounded to it."}
    expect("points of a pair from 0.5172 and 0.4963", got, 0.50675, POINTS, said)


def test_a_pair_that_lost_one_order_is_lost():
    expect("points of a pair from None and 0.8", ex.mean_points(None, 0.8), None, LOST)
    expect("points of a pair from 0.8 and None", ex.mean_points(0.8, None), None, LOST)


def test_a_win_rate_is_the_share_of_comparisons_won():
    """The paper's example: image 2 beats all, 1 beats 0 and 3, 3 beats 0."""
    pairs = list(itertools.combinations(range(4), 2))
    rates = ex.win_rates(pairs, [0, 0, 0, 0, 1, 1], 4)
    expect("win rate of image 0, which loses all", rates[0], 0.0, RATES)
    half = ex.win_rates([(0, 1), (0, 2)], [1, 0], 3)[0]
    expect("win rate of image 0, which wins 1 of 2", half, 0.5, RATES)
    expect("win rate of image 3, which wins 1 of 3", rates[3], 1 / 3, RATES)
    back = ex.win_rates([(1, 0)], [1], 2)[1]
    expect("win rate of image 1, which wins as the first of (1, 0)", back, 1.0, RATES)


def test_a_tie_is_half_a_win():
    rate = ex.win_rates([(0, 1), (0, 2), (0, 3), (0, 4)], [0.5, 1, 1, 0], 5)[0]
    expect("win rate of 2 wins, a tie and a defeat", rate, 0.625, RATES)
    rate = ex.win_rates([(0, 1), (0, 2)], [1, 0.5], 3)[2]
    expect("win rate of image 2, which has a tie with image 0", rate, 0.5, RATES)


def test_a_probability_counts_as_it_is():
    rate = ex.win_rates([(0, 1), (0, 2)], [0.75, 0.9], 3)[0]
    expect("win rate of image 0 with 0.75 and 0.9", rate, 0.825, RATES)
    rate, exact = ex.win_rates([(0, 1)], [0.5172], 2)[0], {0.5: "nearly one half made one half."}
    expect("win rate of image 0 with 0.5172", rate, 0.5172, RATES, exact)


def test_a_lost_comparison_is_not_counted():
    rates = ex.win_rates([(0, 1), (0, 2), (0, 3), (0, 4)], [None, 1, 1, 0], 5)
    expect("win rate of 2 wins, a defeat and a lost answer", rates[0], 2 / 3, LOST)
    expect("win rate of an image without a comparison", rates[1], 0.5, RATES)


def test_each_pair_is_asked_about_in_both_orders_and_within_its_prompt():
    judge = Judge()
    values = rewarded(judge)
    asked, of = len(judge.asked), {query.images[0][0] for query in judge.asked}
    expect("of how many of 2 groups images are shown", len(of), 2, REWARD)
    expect("questions about 2 groups of 3 images", asked, 12, REWARD)
    shown = {tuple(query.images) for query in judge.asked}
    what = "how many of these 12 questions differ in the images or in their order"
    expect(what, len(shown), 12, REWARD)
    foreign = sum(f"Caption: {query.images[0][0]}\n" not in query.text for query in judge.asked)
    expect("how many questions have another group's prompt", foreign, 0, REWARD)
    expect("the shape of the values", tuple(values.shape), (2, 3), REWARD)


def test_the_order_in_which_images_are_shown_decides_nothing():
    values = rewarded(Judge(lambda first, second: "<answer>Image 1 is better</answer>"))
    what = "win rate of the first image, by a judge that always says the first"
    expect(what, values[0, 0], 0.5, REWARD)


def test_the_better_image_wins():
    values = rewarded(Judge())
    expect("win rate of the best dog", values[0, 0], 1.0, REWARD)
    expect("win rate of the worst cat", values[1, 0], 0.0, REWARD)


def test_a_win_and_a_tie_are_three_quarters():
    """Of two dogs the judge prefers the first, or ties where it sees the other one before."""
    even = "<answer>Both are equal</answer>"
    judge = Judge(lambda first, second: even if first[1] < second[1] else None)
    rate = ex.PairwiseReward(judge)(["dog"], [[("dog", 2), ("dog", 1)]]).values[0, 0]
    expect("win rate of a win in one order and a tie in the other", rate, 0.75, REWARD)


def test_a_pair_of_which_one_answer_is_lost_is_left_out():
    """The third of four dogs is beaten by the first, ties with the second and beats the last.

    Shown before one of the better two, it gets no answer of use: what is left is its win.
    """

    def says(first, second):
        if first[1] == 2 and second[1] > 2:
            return "I cannot say."
        return "<answer>Both are equal</answer>" if (first[1], second[1]) == (3, 2) else None

    dogs = [("dog", quality) for quality in (4, 3, 2, 1)]
    rate = ex.PairwiseReward(Judge(says))(["dog"], [dogs]).values[0, 2]
    what = "win rate of an image that lost an answer against two others, and beats the third"
    expect(what, rate, 1.0, STAYS_LOST)


def test_any_points_and_pairs():
    points = (None, 0.0, 0.0137, 0.1, 0.4963, 0.5, 0.5172, 0.9871, 1.0)
    for forward, backward in itertools.product(points, points):
        what, inputs = f"from {forward} and {backward}", dict(forward=forward, backward=backward)
        expect_as_ours(ex, "mean_points", what, POINTS, **inputs)
    draw = random.Random(0)
    for size in (2, 3, 5, 8):
        for count in (1, size, 4 * size):
            pairs = [tuple(draw.sample(range(size), 2)) for _ in range(count)]
            inputs = dict(
                pairs=pairs, points=draw.choices(points[size % 2 :], k=count), group_size=size
            )
            what = f"of {size} images in {count} pairs, in any order, some more than once"
            expect_as_ours(ex, "win_rates", what, RATES, **inputs)


def test_any_groups_and_answers():
    """Groups of one prompt and of equal images, too; of all that is said a third is no win."""
    phrases = ("Image 1 is better", "Image 2 is better", "Both are equal", "I cannot tell")

    def says(first, second):
        which = (7 * first[1] + 3 * second[1] + first[1] * second[1]) % 11 % 4
        return f"<answer>{phrases[which]}</answer>"

    draw = random.Random(0)
    for groups, size in ((1, 2), (3, 4), (4, 6)):
        prompts = ["dog", "cat", "dog", "owl"][:groups]
        images = [[(prompt, draw.randrange(9)) for _ in range(size)] for prompt in prompts]
        expect_unchanged(ex.PairwiseReward(Judge(says)), REWARD, prompts=prompts, images=images)
        got = ex.PairwiseReward(Judge(says))(prompts, images)
        expect("the kind of what is returned", type(got).__name__, "Rewards", REWARD)
        expect("the kind of its counts", isinstance(got.counts, Counter), True, REWARD)
        ours = rewards.PairwiseReward(Judge(says))(prompts, images)
        expect_part(f"values of {groups} groups of {size}", got.values, ours.values, REWARD)
