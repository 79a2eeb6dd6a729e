"""The embedded world: its grammar, the verifier against the truth, and what must not fool it."""

import json

import numpy as np
import pytest
from PIL import Image

import rewards
from judges.mllm import Query
from shapes import scenes, world

COUNT = 2000


@pytest.fixture(scope="module")
def world():
    """Prompts of all kinds, scenes that satisfy them, and what the verifier reads of their
    pictures."""
    rng = np.random.default_rng(7)
    prompts = world.sample_prompts(COUNT, rng)
    drawn = [world.sample_scene(p, rng) for p in prompts]
    return prompts, drawn, read_all(drawn)


def read_all(drawn):
    images = [Image.fromarray(pixels) for pixels in scenes.render(drawn)]
    return [
        reading for i in range(0, len(images), 100) for reading in scenes.read(images[i : i + 100])
    ]


def one(shape="circle", color="red", x=16.0, y=16.0, r=5.5, outline=False):
    return scenes.Scene((scenes.Thing(shape, color, x, y, r, outline),))


def test_every_prompt_reads_back_and_its_testpoints_too():
    for split in ("train", "heldout"):
        for kind, prompts in world.all_prompts(split).items():
            for prompt in prompts:
                assert world.parse_prompt(prompt.text) == prompt and prompt.kind == kind
                assert all(world.parse_testpoint(*t) is not None for t in prompt.testpoints)
    assert world.parse_prompt("a cat on a mat") is None


def test_train_and_heldout_combinations_are_disjoint():
    train = {p.text for prompts in world.all_prompts("train").values() for p in prompts}
    heldout = {p.text for p in world.heldout_prompts()}
    assert len(heldout) >= 300 and not train & heldout
    assert {p.kind for p in world.heldout_prompts()} == set(world.KINDS)
    sampled = world.sample_prompts(500, np.random.default_rng(0))
    assert {p.text for p in sampled} <= train


def test_eight_primary_dimensions_are_covered():
    subs = {sub for p in world.heldout_prompts() for sub, _ in p.testpoints}
    assert {sub.split(" - ")[0] for sub in subs} == {
        "Attribute",
        "Entity Layout",
        "Relationship",
        "Grammar",
        "Compound",
        "Logical Reasoning",
        "World Knowledge",
        "Style",
    }


def test_verifier_agrees_with_the_truth(world):
    prompts, _, readings = world
    verdicts = [v for p, r in zip(prompts, readings) for v in world.satisfied(p, r)]
    assert np.mean(verdicts) >= 0.995
    assert np.mean([r.fidelity for r in readings]) < 1.0


def changed_scene(prompt, drawn, rng):
    """The scene with one attribute of one thing made wrong, and the sub dimensions that must
    fail."""
    things = list(drawn.things)
    k = next(i for i, t in enumerate(things) if t.shape == prompt.slots["s1"])
    thing = things[k]
    if rng.random() < 0.5:
        color = str(rng.choice([c for c in scenes.COLORS if c != thing.color]))
        things[k] = thing._replace(color=color)
        subs = {
            "Attribute - Color",
            "Grammar - Consistency",
            "World Knowledge",
            "Compound - Feature Matching",
        }
    else:
        shape = str(
            rng.choice([s for s in scenes.SHAPES if s not in (thing.shape, prompt.slots.get("s2"))])
        )
        things[k] = thing._replace(shape=shape)
        subs = {
            "Attribute - Shape",
            "Attribute - Quantity",
            "Logical Reasoning",
            "Compound - Feature Matching",
        }
    return scenes.Scene(tuple(things), drawn.dark), subs


def test_verifier_rejects_one_wrong_attribute(world):
    prompts, drawn, _ = world
    rng = np.random.default_rng(1)
    changed = [changed_scene(p, s, rng) for p, s in zip(prompts, drawn)]
    rejected = []
    for prompt, reading, (_, subs) in zip(prompts, read_all([s for s, _ in changed]), changed):
        for testpoint, verdict in zip(prompt.testpoints, world.satisfied(prompt, reading)):
            about = world.parse_testpoint(*testpoint).get("s1")
            # the other thing is still right
            if testpoint[0] in subs and about == prompt.slots["s1"]:
                rejected.append(not verdict)
    assert len(rejected) > 1000 and np.mean(rejected) >= 0.99


@pytest.mark.parametrize("size, r", [("small", 5.5), ("large", 3.6)])
def test_size_is_rejected_when_wrong(size, r):
    prompt = world.parse_prompt(f"a {size} red circle")
    assert world.satisfied(prompt, read_all([one(r=r)])[0]) == [True, True, False]


def test_blends_between_two_colors_are_no_color():
    names = list(scenes.COLORS)
    for a in range(len(names)):
        for b in range(a):
            mix = tuple(np.mean([scenes.COLORS[names[a]], scenes.COLORS[names[b]]], axis=0))
            alpha = scenes.coverage(np.array([0]), [16], [16], [5.5], [False])[0][..., None]
            pixels = np.array(scenes.LIGHT) * (1 - alpha) + np.array(mix) * alpha
            (reading,) = scenes.read([Image.fromarray(pixels.astype(np.uint8))])
            assert [t.color for t in reading.things] == [None], (names[a], names[b])


def test_a_shape_in_two_colors_is_not_accepted():
    pixels = scenes.render([one()])[0]
    other = scenes.render([one(color="blue")])[0]
    pixels[:, 16:] = other[:, 16:]
    (reading,) = scenes.read([Image.fromarray(pixels)])
    assert not any(t.shape == "circle" and t.color for t in reading.things)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("r", [3.6, 5.5])
@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half_drawn_shapes_are_not_that_shape(shape, r, side):
    pixels = scenes.render([one(shape, r=r)])[0]
    half = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16], "bottom": np.s_[16:]}[
        side
    ]
    pixels[half] = scenes.LIGHT
    (reading,) = scenes.read([Image.fromarray(pixels)])
    # the upper part of a triangle is a smaller triangle, and rightly so
    tip = shape == "triangle" and side == "bottom"
    assert tip or not any(t.shape == shape for t in reading.things)


def test_pale_shapes_have_no_color():
    pixels = scenes.render([one()]).astype(float)[0]
    pale = np.array(scenes.LIGHT) + 0.5 * (pixels - scenes.LIGHT)
    (reading,) = scenes.read([Image.fromarray(pale.astype(np.uint8))])
    assert [(t.shape, t.color) for t in reading.things] == [("circle", None)]


def test_nothing_is_granted_on_an_empty_picture():
    (reading,) = scenes.read([Image.new("RGB", (32, 32), scenes.LIGHT)])
    assert reading.things == () and reading.unread == 0
    assert not any(any(world.satisfied(p, reading)) for p in world.heldout_prompts())


def test_an_unread_blob_blocks_counting_and_negation():
    pixels = scenes.render(
        [
            scenes.Scene(
                (
                    scenes.Thing("circle", "red", 8, 8, 3.6),
                    scenes.Thing("circle", "red", 24, 24, 3.6),
                )
            )
        ]
    )[0]
    clean = scenes.read([Image.fromarray(pixels)])[0]
    pixels[4:9, 20:29] = scenes.COLORS["red"]  # a bar: no shape of this world
    barred = scenes.read([Image.fromarray(pixels)])[0]
    count, none = (
        world.parse_prompt("two red circles"),
        world.parse_prompt("a small red circle and no square"),
    )
    assert barred.unread == 1
    assert world.satisfied(count, clean)[0] and not world.satisfied(count, barred)[0]
    assert world.satisfied(none, clean)[0] and not world.satisfied(none, barred)[0]


def test_reading_does_not_depend_on_the_batch_or_on_enlargement(world):
    _, drawn, readings = world
    image = Image.fromarray(scenes.render(drawn[5:6])[0])
    for seen in scenes.read([image]) + scenes.read([image.resize((128, 128), Image.NEAREST)]):
        assert len(seen.things) == len(readings[5].things) > 0
        for thing, other in zip(seen.things, readings[5].things):
            assert (thing.shape, thing.color, thing.outline) == (
                other.shape,
                other.color,
                other.outline,
            )
            assert (thing.x, thing.y, thing.r) == pytest.approx(
                (other.x, other.y, other.r), abs=1e-4
            )


# ---- the judge


def ask(prompt, *drawn, judge=None, template=rewards.PAIRWISE_TEMPLATE):
    images = tuple(Image.fromarray(p) for p in scenes.render(list(drawn)))
    (answer,) = (judge or world.ShapesMLLM()).ask(
        [Query(images, template.replace("{prompt}", prompt))]
    )
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
    clean = scenes.render([one()])[0]
    dirty = clean.copy()
    dirty[2:4, 2:30:2] = (200, 200, 200)
    images = [Image.fromarray(clean), Image.fromarray(dirty)]
    text = rewards.PAIRWISE_TEMPLATE.replace("{prompt}", "a large red circle")
    answers = world.ShapesMLLM().ask([Query(tuple(images), text), Query(tuple(images[::-1]), text)])
    assert [rewards.parse_verdict(a.text) for a in answers] == [
        rewards.Verdict.FIRST,
        rewards.Verdict.SECOND,
    ]


def test_cleanness_never_decides_between_looks():
    """Else whatever renders again best would creep in wherever no picture matches the caption."""
    clean, dirty = scenes.render([one("circle", "yellow"), one("triangle", "green")])
    dirty[2:4, 2:30:2] = (200, 200, 200)
    readings = scenes.read([Image.fromarray(clean), Image.fromarray(dirty)])
    assert readings[1].fidelity - readings[0].fidelity > world.ShapesMLLM.JND
    assert world.compare(world.parse_prompt("a large red square"), *readings, jnd=0.5)[1] == 0


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
    assert rate(world.ShapesMLLM()) == 1.0
    assert rate(world.ShapesMLLM(first_bias=1.0)) == 0.0
    assert 0.3 < rate(world.ShapesMLLM(error_rate=1.0)) < 0.7


def test_testpoints_are_answered_in_the_official_form():
    question = (
        "Testpoint 1: Attribute - Color\nDefinition: the color.\n"
        "Description: the circle is red\n"
        "Testpoint 2: Attribute - Shape\nDescription: a square\n"
        "Testpoint 3: Action - State\nDescription: asleep\n"
    )
    image = Image.fromarray(scenes.render([one()])[0])
    (answer,) = world.ShapesMLLM().ask([Query((image,), question)])
    assert json.loads(answer.text.split("<score>")[1].split("</score>")[0]) == [1, 0, 0]
    assert len(json.loads(answer.text.split("<analysis>")[1].split("</analysis>")[0])) == 3


def test_scores_rise_with_testpoints_and_cleanness():
    scorer = rewards.MLLMScorer(world.ShapesMLLM())
    images = [Image.fromarray(p) for p in scenes.render([one(), one(color="blue")])]
    good, bad = scorer.score(["a large red circle"] * 2, images)
    assert 4.5 < good <= 5 and bad < good - 0.3
