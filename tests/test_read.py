"""Reading pictures: blends, halves and pale shapes are refused, whatever the batch."""

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from shapes.prompts import sample_prompts, sample_scene
from shapes.read import read
from shapes.render import COLORS, LIGHT, SHAPES, Scene, Thing, coverage, render


def one(shape="circle", color="red", x=16.0, y=16.0, r=5.5, outline=False):
    return Scene((Thing(shape, color, x, y, r, outline),))


def test_blends_between_two_colors_are_no_color():
    names = list(COLORS)
    for a in range(len(names)):
        for b in range(a):
            mix = tuple(np.mean([COLORS[names[a]], COLORS[names[b]]], axis=0))
            alpha = coverage(np.array([0]), [16], [16], [5.5], [False])[0][..., None]
            pixels = np.array(LIGHT) * (1 - alpha) + np.array(mix) * alpha
            (reading,) = read([Image.fromarray(pixels.astype(np.uint8))])
            assert [t.color for t in reading.things] == [None], (names[a], names[b])


def test_a_shape_in_two_colors_is_not_accepted():
    pixels = render([one()])[0]
    other = render([one(color="blue")])[0]
    pixels[:, 16:] = other[:, 16:]
    (reading,) = read([Image.fromarray(pixels)])
    assert not any(t.shape == "circle" and t.color for t in reading.things)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("r", [3.6, 5.5])
@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half_drawn_shapes_are_not_that_shape(shape, r, side):
    pixels = render([one(shape, r=r)])[0]
    half = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16], "bottom": np.s_[16:]}[
        side
    ]
    pixels[half] = LIGHT
    (reading,) = read([Image.fromarray(pixels)])
    # the upper part of a triangle is a smaller triangle, and rightly so
    tip = shape == "triangle" and side == "bottom"
    assert tip or not any(t.shape == shape for t in reading.things)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("contrast, kept", [(0.85, True), (0.5, False)])
def test_a_color_may_be_a_little_pale(color, contrast, kept):
    pixels = render([one(color=color)]).astype(float)[0]
    pale = np.array(LIGHT) + contrast * (pixels - LIGHT)
    (reading,) = read([Image.fromarray(pale.astype(np.uint8))])
    assert [(t.shape, t.color) for t in reading.things] == [("circle", color if kept else None)]
    assert kept or re.search(r"color \d+ from \w+, wanted 56", reading.faults[0])


@pytest.mark.parametrize("outer, inner", list(itertools.permutations(COLORS, 2)))
def test_a_half_transparent_inner_shape_has_no_color(outer, inner):
    mix = tuple(np.mean([COLORS[outer], COLORS[inner]], axis=0))
    things = Thing("square", outer, 16, 16, 9.0), Thing("circle", mix, 16, 16, 4.3)
    (reading,) = read([Image.fromarray(render([Scene(things)])[0])])
    assert not any(t.shape == "circle" and t.color for t in reading.things)


def superellipse(power, r=5.6):
    """A blue shape between a circle (power 2) and a square (power without end)."""
    grid = np.abs((np.arange(256) + 0.5) / 8 - 16) / r
    inside = grid[:, None] ** power + grid[None] ** power < 1
    share = inside.reshape(32, 8, 32, 8).mean((1, 3))[..., None]
    pixels = np.array(LIGHT) * (1 - share) + np.array(COLORS["blue"]) * share
    return Image.fromarray(pixels.astype(np.uint8))


def test_soft_corners_leave_a_square_and_only_half_way_shapes_pass_for_two():
    things = [read([superellipse(power)])[0].things[0] for power in np.arange(2, 10, 0.125)]
    seen = [(thing.shape, thing.also) for thing in things]
    assert seen[:4] == [("circle", None)] * 4 and seen[-32:] == [("square", None)] * 32
    assert seen == sorted(seen, key=[*dict.fromkeys(seen)].index)  # circle, in doubt, square
    assert 1 <= sum(also is not None for _, also in seen) <= 8


@pytest.mark.parametrize("color", COLORS)
def test_soft_edges_that_meet_do_not_join_two_things(color):
    things = [Thing("square", color, x, 16, 3.386) for x in (8, 16)]  # 6 pixels, 2 between
    pixels = render([Scene(tuple(things))]).astype(float)[0]
    soft = 0.3 * (np.array(COLORS[color]) - LIGHT)
    pixels[13:19, 11:13] = LIGHT + soft
    (reading,) = read([Image.fromarray(pixels.astype(np.uint8))])
    assert [(t.shape, t.color) for t in reading.things] == [("square", color)] * 2


def test_reading_does_not_depend_on_the_batch_or_on_enlargement():
    rng = np.random.default_rng(7)
    drawn = [sample_scene(p, rng) for p in sample_prompts(100, rng)]
    readings = read([Image.fromarray(pixels) for pixels in render(drawn)])
    image = Image.fromarray(render(drawn[5:6])[0])
    for seen in read([image]) + read([image.resize((128, 128), Image.NEAREST)]):
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
