"""The verifier against the truth, what must not fool it, and the judge that speaks for it."""

import numpy as np
import pytest
from PIL import Image

import rewards
from judges import scorers
from judges.answers import parse_reasons, parse_scores
from judges.mllm import Query
from measure import verifier as known
from shapes.grammar import KINDS, parse_prompt
from shapes.prompts import heldout_prompts
from shapes.read import Reading, read
from shapes.render import LIGHT, Scene, Thing, render
from shapes.verifier import ShapesMLLM, answer_scores, compare, satisfied


@pytest.mark.parametrize("decoded", [False, True])
def test_what_is_right_is_accepted_and_one_wrong_attribute_rejected(decoded):
    """In pictures of all kinds, as drawn or as the autoencoder repaints them."""
    prompts, pixels = known.draw(45 * len(KINDS), np.random.default_rng(5))
    readings = known.read(known.autoencode(pixels, known.MODEL) if decoded else pixels)
    for sub, verdicts in known.accepted(prompts, readings).items():
        assert len(verdicts) >= 45 and np.mean(verdicts) >= (0.97 if decoded else 0.995), sub
    assert decoded or np.mean([reading.render_error for reading in readings]) < 1.0
    rng = np.random.default_rng(6)
    wrong = [known.one_wrong(p, rng) for p in prompts]
    rejected = sum(known.rejected(prompts, wrong, readings).values(), [])
    assert len(rejected) > 500 and np.mean(rejected) >= 0.99


def test_nothing_is_granted_on_an_empty_picture():
    (reading,) = read([Image.new("RGB", (32, 32), LIGHT)])
    assert reading.things == () and reading.unread == 0
    assert not any(any(satisfied(p, reading)) for p in heldout_prompts())


RED, BLUE = Thing("circle", "red", 16.0, 16.0, 5.6), Thing("square", "blue", 28.0, 16.0, 3.4)
EITHER, LINE = RED._replace(also="square"), RED._replace(outline=True)
INSIDE, NO_SQUARE = "a red circle inside a blue square", "a small red circle and no square"


def reading_of(*things, **more):
    return Reading(things, 0, False, 0.0)._replace(**more)


@pytest.mark.parametrize(
    "prompt, things, holds",
    [  # what holds of the first testpoints of each prompt, on both sides of a bound
        ("a small red circle", [RED._replace(r=4.2)], "111"),
        ("a small red circle", [RED._replace(r=4.4)], "110"),
        ("a large red circle", [RED._replace(r=4.9)], "111"),
        ("a large red circle", [RED._replace(r=4.7)], "110"),
        ("a large red circle", [RED._replace(r=7.1)], "110"),
        ("a small red circle", [RED._replace(r=3.4), RED], "110"),  # each circle is to be small
        ("a large red circle", [RED, RED._replace(color="blue")], "011"),
        ("three red circles", [RED] * 3, "1"),
        ("three red circles", [RED] * 2, "0"),
        ("one plus two red circles", [RED] * 3, "1"),
        ("two circles, all of them red", [RED] * 2, "11"),
        ("two circles, all of them red", [RED], "00"),  # all of one
        ("a red circle on a dark ground", [RED], "0"),
        ("a red circle drawn in outline", [LINE], "1"),
        ("a red circle drawn in outline", [RED, LINE], "0"),
        (NO_SQUARE, [RED], "1"),
        (NO_SQUARE, [RED, BLUE], "0"),
        (NO_SQUARE, [], "0"),
        ("a red circle and a blue square", [RED, BLUE], "1"),
        ("a red circle and a blue square", [RED, BLUE._replace(color="green")], "0"),
        ("a red circle larger than a blue square", [RED, BLUE._replace(r=4.7)], "1"),
        ("a red circle larger than a blue square", [RED, BLUE._replace(r=4.9)], "0"),
        ("a red circle smaller than a blue square", [RED, BLUE._replace(r=6.5)], "1"),
        ("a red circle to the left of a blue square", [RED, BLUE._replace(x=19.1)], "1"),
        ("a red circle to the left of a blue square", [RED, BLUE._replace(x=18.9)], "0"),
        ("a red circle to the left of a blue square", [RED, RED._replace(x=30.0), BLUE], "0"),
        ("a red circle above a blue square", [RED, BLUE._replace(y=19.1)], "1"),
        (INSIDE, [RED, BLUE._replace(x=16.0, r=9.4)], "1"),
        (INSIDE, [RED, BLUE._replace(x=16.0, r=9.3)], "0"),
        (INSIDE, [RED, BLUE._replace(x=19.9, r=9.4)], "0"),
        ("a small circle the color of a ripe tomato", [RED], "1"),
        ("a small circle the color of a ripe tomato", [RED._replace(color=None)], "0"),
        # what may be either shape is taken for the one that is named, is never absent, nor both
        ("a large red square", [EITHER], "111"),
        ("a large blue square and no circle", [BLUE, EITHER], "0"),
        ("a small blue triangle and no square", [BLUE._replace(shape="triangle"), EITHER], "0"),
        ("a red circle and a blue square", [EITHER], "010"),
        ("a red square and a blue circle", [EITHER], "010"),
    ],
)
def test_each_check_draws_its_line_where_it_says(prompt, things, holds):
    met = satisfied(parse_prompt(prompt), reading_of(*things))
    assert "".join(str(int(m)) for m in met).startswith(holds)


@pytest.mark.parametrize("prompt, number", [("two red circles", 2), (NO_SQUARE, 1)])
def test_an_unread_blob_blocks_counting_and_negation(prompt, number):
    for unread in (0, 1):
        reading = reading_of(*[RED] * number, unread=unread)
        assert satisfied(parse_prompt(prompt), reading)[0] == (not unread)


ROUND, SQUARE = reading_of(RED, render_error=1.0), reading_of(BLUE._replace(color="red", r=5.6))


@pytest.mark.parametrize(
    "first, second, winner",
    [
        (SQUARE, ROUND, 1),  # more testpoints
        (ROUND, ROUND._replace(render_error=1.4), 0),  # below what is noticed
        (ROUND, ROUND._replace(render_error=1.6), 1),
        (ROUND, reading_of(RED, RED, render_error=9.0), 0),  # to leave out does not pay
        (ROUND, reading_of(RED._replace(shape="triangle")), 0),  # nor to look otherwise
        (ROUND, ROUND._replace(unread=1), 0),
        (reading_of(RED, RED), ROUND._replace(unread=1, render_error=0.0), 1),
    ],
)
def test_testpoints_decide_then_fewer_blots_and_then_the_cleaner_one(first, second, winner):
    prompt = parse_prompt("a large red square")
    assert compare(prompt, first, second, jnd=0.5)[1] == winner
    assert compare(prompt, second, first, jnd=0.5)[1] == (3 - winner if winner else 0)


# ----------------------------------------------------------------------------- the judge


def images_of(*things):
    return tuple(map(Image.fromarray, render([Scene((thing,)) for thing in things])))


GOOD, BAD = images_of(RED, RED._replace(color="blue"))


def ask(prompt, *images, judge=None, template=rewards.PAIRWISE_TEMPLATE):
    (answer,) = (judge or ShapesMLLM()).ask([Query(images, template.replace("{prompt}", prompt))])
    return rewards.parse_verdict(answer.text).name


@pytest.mark.parametrize("form", [rewards.PAIRWISE_TEMPLATE, 'Caption: {prompt}\nJSON: {"winner":'])
def test_the_judge_answers_in_the_form_that_is_asked_for(form):
    shown = ((GOOD, BAD), (BAD, GOOD), (GOOD, GOOD))
    answered = [ask("a large red circle", *pair, template=form) for pair in shown]
    assert answered == ["FIRST", "SECOND", "TIE"]
    assert ask("a cat", GOOD, BAD, template=form) == "UNPARSABLE"


def test_first_bias_and_errors_show():
    at = np.random.default_rng(0).uniform(8, 24, (60, 2))
    pairs = [images_of(RED._replace(x=a, color="blue"), RED._replace(x=b)) for a, b in at]

    def right(judge):
        return np.mean([ask("a large red circle", *p, judge=judge) == "SECOND" for p in pairs])

    assert right(ShapesMLLM()) == 1.0
    assert right(ShapesMLLM(first_bias=1.0)) == 0.0
    assert 0.3 < right(ShapesMLLM(error_rate=1.0)) < 0.7


def scores_and_reasons(image, *testpoints):
    """Scores and reasons in the official form; a definition may stand between."""
    lines = [
        f"Testpoint {n}: {sub}\n" + "Definition: of it.\n" * (n % 2) + f"Description: {text}"
        for n, (sub, text) in enumerate(testpoints, 1)
    ]
    (answer,) = ShapesMLLM().ask([Query((image,), "\n".join(lines))])
    count = len(testpoints)
    return parse_scores(answer.text, count), parse_reasons(answer.text, count)


def test_testpoints_are_answered_in_the_official_form_with_what_was_read_and_wanted():
    (blend,) = images_of(RED._replace(color=(90, 75, 208), r=4.5))
    demands = parse_prompt("a small blue circle").testpoints
    scores, (color, shape, size) = scores_and_reasons(blend, *demands)
    assert scores == [0, 1, 0] and shape == "'a circle' is shown"
    assert "radius 4.5 at 16, 16" in color and "color 51 from blue, wanted 4" in color
    assert "radius 4.5" in size and "4.3" in size  # what it is, and what small is


@pytest.mark.parametrize("foreign", [("Action - State", "asleep"), ("Attribute - Shape", "oval")])
def test_what_is_not_of_shapes_is_neither_right_nor_wrong(foreign):
    scores, reasons = scores_and_reasons(GOOD, ("Attribute - Color", "the circle is red"), foreign)
    assert scores is None and reasons[1] == f"'{foreign[1]}' cannot be verified"


def test_scores_rise_with_testpoints_and_cleanness():
    scorer = scorers.MLLMScorer(ShapesMLLM())
    good, bad = scorer.score(["a large red circle"] * 2, [GOOD, BAD])
    assert 4.5 < good <= 5 and bad < good - 0.3
    said = answer_scores(parse_prompt("a large red circle"), *read([BAD]))
    assert f"Alignment Score (1-5): {1 + 4 * 2 / 3:.4f}" in said  # two of three testpoints
