"""The verifier against the truth, what must not fool it, and the judge that speaks for it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import rewards
from judges import scorers
from judges.mllm import Query
from measure import verifier as known
from shapes.grammar import KINDS, parse_prompt, parse_testpoint
from shapes.prompts import all_prompts, heldout_prompts, sample_prompts, sample_scene
from shapes.read import Reading, read
from shapes.render import COLORS, LIGHT, SHAPES, Scene, Thing, render
from shapes.verifier import CHECKS, ShapesMLLM, answer_scores, compare, satisfied
from unigenbench.questions import parse_reasons, parse_scores

COUNT = 1000


@pytest.fixture(scope="module")
def drawn_world():
    """Prompts of all kinds, scenes that satisfy them, and what is read of their pictures."""
    rng = np.random.default_rng(7)
    prompts = sample_prompts(COUNT, rng)
    drawn = [sample_scene(p, rng) for p in prompts]
    return prompts, drawn, read_all(drawn)


def read_all(drawn):
    images = [Image.fromarray(pixels) for pixels in render(drawn)]
    return [reading for i in range(0, len(images), 100) for reading in read(images[i : i + 100])]


def one(shape="circle", color="red", x=16.0, y=16.0, r=5.5, outline=False):
    return Scene((Thing(shape, color, x, y, r, outline),))


def test_verifier_agrees_with_the_truth(drawn_world):
    prompts, _, readings = drawn_world
    verdicts = [v for p, r in zip(prompts, readings) for v in satisfied(p, r)]
    assert np.mean(verdicts) >= 0.995
    assert np.mean([r.render_error for r in readings]) < 1.0


@pytest.fixture(scope="module")
def decoded_world():
    """Prompts of all kinds and what is read of right pictures that the autoencoder repainted."""
    prompts, pixels = known.draw(45 * len(KINDS), np.random.default_rng(5))
    return prompts, known.read(known.autoencode(pixels, known.MODEL))


def test_the_autoencoder_costs_no_sub_dimension_its_testpoints(decoded_world):
    for sub, verdicts in known.accepted(*decoded_world).items():
        assert len(verdicts) >= 45 and np.mean(verdicts) >= 0.97, sub


def test_what_the_autoencoder_repainted_is_still_told_from_what_is_wrong(decoded_world):
    prompts, readings = decoded_world
    rng = np.random.default_rng(6)
    wrong = [known.one_wrong(p, rng) for p in prompts]
    assert np.mean(sum(known.rejected(prompts, wrong, readings).values(), [])) >= 0.99


def test_inner_shapes_of_all_pairs_are_read_after_the_autoencoder():
    pool = [p for split in ("train", "heldout") for p in all_prompts(split)["inclusion"]]
    rng = np.random.default_rng(0)
    pixels = render([sample_scene(p, rng) for p in pool])
    verdicts = map(satisfied, pool, known.read(known.autoencode(pixels, known.MODEL)))
    assert len(pool) == 180 and np.mean([all(met) for met in verdicts]) >= 0.97


def changed_scene(prompt, drawn, rng):
    """The scene with one attribute of one thing wrong; the sub dimensions that must fail."""
    things = list(drawn.things)
    k = next(i for i, t in enumerate(things) if t.shape == prompt.slots["s1"])
    thing = things[k]
    if rng.random() < 0.5:
        color = str(rng.choice([c for c in COLORS if c != thing.color]))
        things[k] = thing._replace(color=color)
        subs = {
            "Attribute - Color",
            "Grammar - Consistency",
            "World Knowledge",
            "Compound - Feature Matching",
        }
    else:
        shape = str(
            rng.choice([s for s in SHAPES if s not in (thing.shape, prompt.slots.get("s2"))])
        )
        things[k] = thing._replace(shape=shape)
        subs = {
            "Attribute - Shape",
            "Attribute - Quantity",
            "Logical Reasoning",
            "Compound - Feature Matching",
        }
    return Scene(tuple(things), drawn.dark), subs


def test_verifier_rejects_one_wrong_attribute(drawn_world):
    prompts, drawn, _ = drawn_world
    rng = np.random.default_rng(1)
    changed = [changed_scene(p, s, rng) for p, s in zip(prompts, drawn)]
    rejected = []
    for prompt, reading, (_, subs) in zip(prompts, read_all([s for s, _ in changed]), changed):
        for testpoint, verdict in zip(prompt.testpoints, satisfied(prompt, reading)):
            about = parse_testpoint(*testpoint).get("s1")
            # the other thing is still right
            if testpoint[0] in subs and about == prompt.slots["s1"]:
                rejected.append(not verdict)
    assert len(rejected) > 500 and np.mean(rejected) >= 0.99


@pytest.mark.parametrize("size, r", [("small", 5.5), ("large", 3.6)])
def test_size_is_rejected_when_wrong(size, r):
    prompt = parse_prompt(f"a {size} red circle")
    assert satisfied(prompt, read_all([one(r=r)])[0]) == [True, True, False]


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


def thing(shape="circle", color="red", x=16.0, y=16.0, r=5.6, outline=False):
    return Thing(shape, color, x, y, r, outline)


RED, BLUE = thing(), thing("square", "blue", x=28.0, r=3.4)


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
    assert satisfied(parse_prompt(prompt), Reading(tuple(things), 0, False, 0.0))[0] == holds


def test_what_is_said_of_a_shape_holds_of_each_of_it():
    def first(prompt, *things):
        return satisfied(parse_prompt(prompt), Reading(things, 0, False, 0.0))

    assert first("a small red circle", RED._replace(r=3.4), RED) == [True, True, False]
    assert not first("a red circle to the left of a blue square", RED, RED._replace(x=30), BLUE)[0]
    assert not first("two circles, all of them red", RED)[1]  # all of one


@pytest.mark.parametrize(
    "size, r, holds",
    [
        ("small", 4.2, True),
        ("small", 4.4, False),
        ("large", 4.7, False),
        ("large", 4.9, True),
        ("large", 7.1, False),
    ],
)
def test_sizes_have_bounds_and_a_gap_between_them(size, r, holds):
    reading = Reading((thing(r=r),), 0, False, 0.0)
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


def test_more_testpoints_win_in_both_orders():
    good, bad = one("circle", "red"), one("circle", "blue")
    assert ask("a large red circle", good, bad) is rewards.Verdict.FIRST
    assert ask("a large red circle", bad, good) is rewards.Verdict.SECOND


def test_equal_pictures_tie_and_so_do_invisible_differences():
    assert ask("a large red circle", one(), one(x=10.0)) is rewards.Verdict.TIE
    assert (
        ask("a large red circle", one("square", "blue", r=3.6), one("triangle", "blue", r=3.6))
        is rewards.Verdict.TIE
    )


def test_a_visibly_cleaner_picture_wins_among_equals():
    clean = render([one()])[0]
    dirty = clean.copy()
    dirty[2:4, 2:30:2] = (200, 200, 200)
    images = [Image.fromarray(clean), Image.fromarray(dirty)]
    text = rewards.PAIRWISE_TEMPLATE.replace("{prompt}", "a large red circle")
    answers = ShapesMLLM().ask([Query(tuple(images), text), Query(tuple(images[::-1]), text)])
    assert [rewards.parse_verdict(a.text) for a in answers] == [
        rewards.Verdict.FIRST,
        rewards.Verdict.SECOND,
    ]


def test_cleanness_never_decides_between_looks():
    """Else whatever renders again best would creep in wherever no picture matches the caption."""
    clean, dirty = render([one("circle", "yellow"), one("triangle", "green")])
    dirty[2:4, 2:30:2] = (200, 200, 200)
    readings = read([Image.fromarray(clean), Image.fromarray(dirty)])
    assert readings[1].render_error - readings[0].render_error > ShapesMLLM.JND
    assert compare(parse_prompt("a large red square"), *readings, jnd=0.5)[1] == 0


ROUND = Reading((RED,), 0, False, 1.0)


@pytest.mark.parametrize(
    "first, second, winner",
    [
        (ROUND, ROUND._replace(render_error=1.4), 0),  # below what is noticed
        (ROUND, ROUND._replace(render_error=1.6), 1),
        (
            ROUND,
            ROUND._replace(things=(RED, RED), render_error=9.0),
            0,
        ),  # to leave out does not pay
        (ROUND, ROUND._replace(unread=1), 0),
        (ROUND._replace(things=(RED, RED)), ROUND._replace(unread=1, render_error=0.0), 1),
    ],
)
def test_among_equals_fewer_blots_win_and_then_the_cleaner_one(first, second, winner):
    prompt = parse_prompt("a large red square")
    assert compare(prompt, first, second, jnd=0.5)[1] == winner
    assert compare(prompt, second, first, jnd=0.5)[1] == (3 - winner if winner else 0)


def test_json_form_where_it_is_asked_for():
    template = (
        'Caption: {prompt}\nAnswer with JSON: {"reason": ..., "winner": "Image 1" | '
        '"Image 2" | "tie"}'
    )
    assert (
        ask("a large red circle", one(), one(color="blue"), template=template)
        is rewards.Verdict.FIRST
    )
    assert ask("a large red circle", one(), one(), template=template) is rewards.Verdict.TIE


def test_a_foreign_caption_is_no_verdict():
    assert ask("a cat", one(), one()) is rewards.Verdict.UNPARSABLE


def test_first_bias_and_errors_show():
    rng = np.random.default_rng(0)
    good = [one("circle", "red", x) for x in rng.uniform(8, 24, 60)]
    bad = [one("circle", "blue", x) for x in rng.uniform(8, 24, 60)]
    rate = lambda judge: np.mean(
        [
            ask("a large red circle", b, g, judge=judge) is rewards.Verdict.SECOND
            for g, b in zip(good, bad)
        ]
    )
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
    for sub, text in [
        ("Action - State", "asleep"),
        ("Style", "ink"),
        ("Attribute - Shape", "oval"),
    ]:
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
    assert (
        "off-color circle of radius 4.5 at 16, 16" in color
        and "color 51 from blue, wanted 4" in color
    )
    assert shape == "'a circle' is shown"
    assert "radius 4.5" in size and "4.3" in size  # what it is, and what small is


def test_an_answer_says_by_how_much_an_inner_shape_failed():
    bar = Thing("square", "blue", 16, 13, 3.0), Thing("square", "blue", 16, 18, 3.0)
    outer = Thing("triangle", "red", 16, 16, 9.0)
    inside, _, around = explain("a blue square inside a red triangle", Scene((outer, *bar)))
    assert re.search(r"refused: \w+ at 16, 15: overlap 0\.\d\d, wanted 0\.95", inside)
    assert around == "'the triangle is red' is shown"


@pytest.mark.parametrize("prompt", ["a large red circle", "a large red square"])
def test_what_passes_for_two_shapes_is_what_the_prompt_says(prompt):
    reading = Reading((RED._replace(also="square"),), 0, False, 0.0)
    assert satisfied(parse_prompt(prompt), reading) == [True] * 3


@pytest.mark.parametrize("shape, also", [("circle", "square"), ("square", "circle")])
def test_nothing_is_absent_that_a_thing_may_be(shape, also):
    things = (RED._replace(shape="triangle", r=3.4), RED._replace(shape=shape, also=also))
    reading = Reading(things, 0, False, 0.0)
    for excluded in ("circle", "square"):
        assert not satisfied(parse_prompt(f"a small red triangle and no {excluded}"), reading)[0]


def test_one_thing_is_never_two_shapes_at_once():
    reading = Reading((RED._replace(also="square"),), 0, False, 0.0)
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
