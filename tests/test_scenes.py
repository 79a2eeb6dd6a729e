"""Reading pictures: blends, halves and pale shapes are refused, whatever the batch."""

import numpy as np
import pytest
from PIL import Image

from shapes import scenes
from shapes.prompts import sample_prompts, sample_scene


def one(shape="circle", color="red", x=16.0, y=16.0, r=5.5, outline=False):
    return scenes.Scene((scenes.Thing(shape, color, x, y, r, outline),))


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


def test_reading_does_not_depend_on_the_batch_or_on_enlargement():
    rng = np.random.default_rng(7)
    drawn = [sample_scene(p, rng) for p in sample_prompts(100, rng)]
    readings = scenes.read([Image.fromarray(pixels) for pixels in scenes.render(drawn)])
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
