"""The verifier against the truth, what must not fool it, and the judge that speaks for it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import rewards
from judges import scorers
from judges.answers import parse_reasons, parse_scores
from judges.mllm import Query
from measure import verifier as known
from shapes.grammar import KINDS, parse_prompt
from shapes.prompts import all_prompts, heldout_prompts, sample_scene
from shapes.read import Reading, read
from shapes.render import COLORS, LIGHT, Scene, Thing, render
from shapes.verifier import CHECKS, ShapesMLLM, answer_scores, compare, satisfied


@pytest.fixture(scope="module", params=["rendered", "decoded"])
def seen(request):
    """Prompts of all kinds and what is read of right pictures, as drawn or as the VAE repaints."""
    prompts, pixels = known.draw(45 * len(KINDS), np.random.default_rng(5))
    decoded = request.param == "decoded"
    shown = known.autoencode(pixels, known.MODEL) if decoded else pixels
    return prompts, known.read(shown), decoded


def one(shape="circle", color="red", x=16.0, y=16.0, r=5.5, outline=False):
    return Scene((Thing(shape, color, x, y, r, outline),))


def test_what_is_right_is_accepted_in_every_sub_dimension(seen):
    prompts, readings, decoded = seen
    for sub, verdicts in known.accepted(prompts, readings).items():
        assert len(verdicts) >= 45 and np.mean(verdicts) >= (0.97 if decoded else 0.995), sub
    assert decoded or np.mean([reading.render_error for reading in readings]) < 1.0


def test_one_wrong_attribute_is_rejected(seen):
    prompts, readings, _ = seen
    rng = np.random.default_rng(6)
    wrong = [known.one_wrong(p, rng) for p in prompts]
    rejected = sum(known.rejected(prompts, wrong, readings).values(), [])
    assert len(rejected) > 500 and np.mean(rejected) >= 0.99


def test_inner_shapes_of_all_pairs_are_read_after_the_autoencoder():
    pool = [p for split in ("train", "heldout") for p in all_prompts(split)["inclusion"]]
    rng = np.random.default_rng(0)
    pixels = render([sample_scene(p, rng) for p in pool])
    verdicts = map(satisfied, pool, known.read(known.autoencode(pixels, known.MODEL)))
    assert len(pool) == 180 and np.mean([all(met) for met in verdicts]) >= 0.97


def test_nothing_is_granted_on_an_empty_picture():
    (reading,) = read([Image.new("RGB", (32, 32), LIGHT)])
    assert reading.things == () and reading.unread == 0
    assert not any(any(satisfied(p, reading)) for p in heldout_prompts())


def test_an_unread_blob_blocks_counting_and_negation():
    two = [Thing("circle", "red", at, at, 3.6) for at in (8, 24)]
    pixels = render([Scene(tuple(two))])[0]
    clean = read([Image.fromarray(pixels)])[0]
    pixels[4:9, 20:29] = COLORS["red"]  # a bar: no shape of this world
    barred = read([Image.fromarray(pixels)])[0]
    count = parse_prompt("two red circles")
    none = parse_prompt("a small red circle and no square")
    assert barred.unread == 1
    assert satisfied(count, clean)[0] and not satisfied(count, barred)[0]
    assert satisfied(none, clean)[0] and not satisfied(none, barred)[0]


RED, BLUE = Thing("circle", "red", 16.0, 16.0, 5.6), Thing("square", "blue", 28.0, 16.0, 3.4)


def reading_of(*things, **more):
    return Reading(things, 0, False, 0.0)._replace(**more)


@pytest.mark.parametrize(
    "prompt, things, holds",
    [  # the first testpoint of each prompt, on both sides of its bound
        ("three red circles", [RED] * 3, True),
        ("three red circles", [RED] * 2, False),
        ("one plus two red circles", [RED] * 3, True),
        ("two circles, all of them red", [RED, RED], True),
        ("a red circle on a dark ground", [RED], False),
        ("a red circle drawn in outline", [RED._replace(outline=True)], True),
        ("a red circle drawn in outline", [RED, RED._replace(outline=True)], False),
        ("a small red circle and no square", [RED], True),
        ("a small red circle and no square", [RED, BLUE], False),
        ("a red circle and a blue square", [RED, BLUE], True),
        ("a red circle and a blue square", [RED, BLUE._replace(color="green")], False),
        ("a red circle larger than a blue square", [RED, BLUE._replace(r=4.7)], True),
        ("a red circle larger than a blue square", [RED, BLUE._replace(r=4.9)], False),
        ("a red circle smaller than a blue square", [RED, BLUE._replace(r=6.5)], True),
        ("a red circle to the left of a blue square", [RED, BLUE._replace(x=19.1)], True),
        ("a red circle to the left of a blue square", [RED, BLUE._replace(x=18.9)], False),
        ("a red circle above a blue square", [RED, BLUE._replace(y=19.1)], True),
        ("a red circle inside a blue square", [RED, BLUE._replace(x=16.0, r=9.4)], True),
        ("a red circle inside a blue square", [RED, BLUE._replace(x=16.0, r=9.3)], False),
        ("a red circle inside a blue square", [RED, BLUE._replace(x=19.9, r=9.4)], False),
        ("a small circle the color of a ripe tomato", [RED], True),
        ("a small circle the color of a ripe tomato", [RED._replace(color=None)], False),
    ],
)
def test_each_check_draws_its_line_where_it_says(prompt, things, holds):
    assert satisfied(parse_prompt(prompt), reading_of(*things))[0] == holds


def test_what_is_said_of_a_shape_holds_of_each_of_it():
    def first(prompt, *things):
        return satisfied(parse_prompt(prompt), reading_of(*things))

    assert first("a small red circle", RED._replace(r=3.4), RED) == [True, True, False]
    assert not first("a red circle to the left of a blue square", RED, RED._replace(x=30), BLUE)[0]
    assert not first("two circles, all of them red", RED)[1]  # all of one


@pytest.mark.parametrize(
    "size, within, beyond", [("small", 4.2, 4.4), ("large", 4.9, 4.7), ("large", 6.9, 7.1)]
)
def test_sizes_have_bounds_and_a_gap_between_them(size, within, beyond):
    for r, holds in ((within, True), (beyond, False)):
        reading = reading_of(RED._replace(r=r))
        assert satisfied(parse_prompt(f"a {size} red circle"), reading)[2] == holds


def test_every_sub_dimension_of_the_grammar_has_its_check():
    assert set(CHECKS) == {sub for _, testpoints in KINDS.values() for sub, _ in testpoints}


def test_the_world_imports_no_server_and_no_phrase_book():
    code = "import sys; from shapes import prompts, verifier; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert "shapes.read" in loaded
    assert not {"shapes.server", "shapes.phrasebook", "http.server"} & set(loaded)


def ask(prompt, *drawn, judge=None, template=rewards.PAIRWISE_TEMPLATE):
    images = tuple(Image.fromarray(p) for p in render(list(drawn)))
    (answer,) = (judge or ShapesMLLM()).ask([Query(images, template.replace("{prompt}", prompt))])
    return rewards.parse_verdict(answer.text)


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


@pytest.mark.parametrize("form", [rewards.PAIRWISE_TEMPLATE, 'Caption: {prompt}\nJSON: {"winner":'])
def test_the_judge_answers_in_the_form_that_is_asked_for(form):
    good, bad = one(), one(color="blue")
    asked = [ask("a large red circle", *pair, template=form) for pair in ((good, bad), (bad, good))]
    assert asked == [rewards.Verdict.FIRST, rewards.Verdict.SECOND]
    assert ask("a large red circle", good, good, template=form) is rewards.Verdict.TIE


def test_a_foreign_caption_is_no_verdict():
    assert ask("a cat", one(), one()) is rewards.Verdict.UNPARSABLE


def test_first_bias_and_errors_show():
    rng = np.random.default_rng(0)
    good = [one("circle", "red", x) for x in rng.uniform(8, 24, 60)]
    bad = [one("circle", "blue", x) for x in rng.uniform(8, 24, 60)]

    def rate(judge):
        said = [ask("a large red circle", *pair, judge=judge) for pair in zip(bad, good)]
        return np.mean([verdict is rewards.Verdict.SECOND for verdict in said])

    assert rate(ShapesMLLM()) == 1.0
    assert rate(ShapesMLLM(first_bias=1.0)) == 0.0
    assert 0.3 < rate(ShapesMLLM(error_rate=1.0)) < 0.7


def test_testpoints_are_answered_in_the_official_form():
    question = (
        "Testpoint 1: Attribute - Color\nDefinition: the color.\n"
        "Description: the circle is red\n"
        "Testpoint 2: Attribute - Shape\nDescription: a square\n"
    )
    foreign = "Testpoint 3: {}\nDescription: {}\n"
    image = Image.fromarray(render([one()])[0])
    ask = lambda text: ShapesMLLM().ask([Query((image,), text)])[0].text
    assert parse_scores(ask(question), 2) == [1, 0] and len(parse_reasons(ask(question), 2)) == 2
    for sub, text in [("Action - State", "asleep"), ("Attribute - Shape", "oval")]:
        answer = ask(question + foreign.format(sub, text))  # neither right nor wrong
        assert parse_scores(answer, 3) is None
        assert parse_reasons(answer, 3)[2] == f"'{text}' cannot be verified"


def explain(prompt, scene):
    demands = enumerate(parse_prompt(prompt).testpoints, 1)
    text = "\n".join(f"Testpoint {i}: {sub}\nDescription: {what}" for i, (sub, what) in demands)
    image = Image.fromarray(render([scene])[0])
    (answer,) = ShapesMLLM().ask([Query((image,), text)])
    return json.loads(answer.text.split("<analysis>")[1].split("</analysis>")[0])


def test_an_answer_says_what_was_read_and_what_was_wanted():
    color, shape, size = explain("a small blue circle", one("circle", (90, 75, 208), r=4.5))
    assert "radius 4.5 at 16, 16" in color and "color 51 from blue, wanted 4" in color
    assert shape == "'a circle' is shown"
    assert "radius 4.5" in size and "4.3" in size  # what it is, and what small is


def test_nothing_is_absent_that_a_thing_may_be():
    either = RED._replace(also="square")
    reading = reading_of(RED._replace(shape="triangle", r=3.4), either)
    for excluded in ("circle", "square"):
        assert satisfied(parse_prompt(f"a large red {excluded}"), reading_of(either)) == [True] * 3
        assert not satisfied(parse_prompt(f"a small red triangle and no {excluded}"), reading)[0]


def test_one_thing_is_never_two_shapes_at_once():
    reading = reading_of(RED._replace(also="square"))
    assert sum(satisfied(parse_prompt("a red circle and a blue square"), reading)) == 1
    assert sum(satisfied(parse_prompt("a red square and a blue circle"), reading)) == 1


def test_scores_rise_with_testpoints_and_cleanness():
    scorer = scorers.MLLMScorer(ShapesMLLM())
    images = [Image.fromarray(p) for p in render([one(), one(color="blue")])]
    good, bad = scorer.score(["a large red circle"] * 2, images)
    assert 4.5 < good <= 5 and bad < good - 0.3
    (blue,) = read(images[1:])
    said = answer_scores(parse_prompt("a large red circle"), blue)
    assert f"Alignment Score (1-5): {1 + 4 * 2 / 3:.4f}" in said  # two of three testpoints
