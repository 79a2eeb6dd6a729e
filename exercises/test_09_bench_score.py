"""Checks of exercise 9, in the order of the work: python -m pytest exercises/test_09_bench_score.py

By hand, what was judged: Style 1 of 1, Attribute 3 of 4, Relationship 0 of 2. With the pictures
that were not: Style 1 of 2, Attribute 3 of 5, Relationship 0 of 3.
"""

import random

from exercises import ex_09_bench_score as ex
from exercises.checks import expect, expect_as_ours
from unigenbench.results import Result
from unigenbench.testpoints import SUBS

COLOR, SHAPE, SIZE, BIGGER = (
    "Attribute - Color",
    "Attribute - Shape",
    "Attribute - Size",
    "Relationship - Comparison",
)
PART = "part {} of the docstring of overall in exercises/ex_09_bench_score.py"
FIRST_LINE = "the first line of the docstring of overall in exercises/ex_09_bench_score.py"
COLLECT, FAILED, MEAN = map(PART.format, (1, 2, 3))


def result(subs, scores):
    """Index, prompt and path of the picture play no part; the judge's words are there or not."""
    return Result(1, "a prompt", subs, "1_0.png", scores, "?!?" if scores is None else "words")


JUDGED = [
    result(["Style", COLOR, SHAPE], [1, 1, 0]),
    result([COLOR, SIZE], [1, 1]),
    result([BIGGER, BIGGER], [0, 0]),
]
LOST = [result([COLOR, BIGGER, "Style"], None)]


def test_the_score_of_what_was_judged():
    got = ex.overall(JUDGED)
    expect("score of three pictures", got, 1.75 / 3, MEAN)


def test_labels_and_pictures_do_not_weigh():
    """Of five testpoints of one primary dimension, in two pictures, three hold."""
    pictures = [result([COLOR, COLOR, SHAPE], [1, 0, 1]), result([COLOR, SHAPE], [0, 1])]
    expect("score of two pictures with labels that repeat", ex.overall(pictures), 3 / 5, MEAN)
    got = ex.overall([result(["属性-数量", "属性-颜色", "风格"], [1, 0, 1])])
    said = {2 / 3: "Chinese labels not split: primary_of reads them too."}
    expect("score of a picture with Chinese labels", got, 3 / 4, COLLECT, said)


def test_what_was_not_judged_is_left_out():
    got = ex.overall(JUDGED + LOST)
    expect("score with a picture not judged", got, 1.75 / 3, FAILED)


def test_strict_keeps_failures_in_the_denominator():
    got = ex.overall(JUDGED + LOST, strict=True)
    expect("strict score with a picture not judged", got, 1.1 / 3, FAILED)
    repeats = [result([COLOR, SHAPE], [1, 1]), result([COLOR, COLOR], None)]
    got = ex.overall(repeats, strict=True)
    expect("strict score with a label that repeats", got, 1 / 2, FAILED)


def test_nothing_to_score():
    expect("score of no pictures", ex.overall([]), None, FIRST_LINE)
    expect("score of a picture not judged", ex.overall(LOST), None, FIRST_LINE)
    got = ex.overall(LOST, strict=True)
    expect("strict score of a picture not judged", got, 0.0, FAILED)


def test_any_results():
    """Few and many testpoints a picture, in any order and of all dimensions."""
    draw = random.Random(0)
    for count in (1, 2, 7, 40):
        for share in (0, 0.3, 1):
            results = []
            for _ in range(count):
                subs = draw.choices(SUBS, k=draw.randint(1, 6))
                scores = [draw.randint(0, 1) for _ in subs]
                results.append(result(subs, None if draw.random() < share else scores))
            for strict in (False, True):
                what = f"of {count} pictures, {share:.0%} of them not judged, {strict=}"
                inputs = dict(results=results, strict=strict)
                expect_as_ours(ex, "overall", what, COLLECT, **inputs)
            expect_as_ours(ex, "overall", f"of {count} pictures", COLLECT, results=results)
