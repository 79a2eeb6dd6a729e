"""Grids have the size and pixels that they should; curves draw what is there."""

import pytest
from PIL import Image

from support import pictures


def solid(color, side=32):
    return Image.new("RGB", (side, side), color)


def test_grid_enlarges_by_whole_pixels_and_shows_every_image(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pure = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    pictures.sample_grid(
        [[solid(pure[0]), solid(pure[1])], [solid(pure[2]), solid(pure[3])]],
        ["first", "second"],
        path,
        columns=["before", "after"],
    )
    grid = Image.open(path)
    areas = {color: n for n, color in grid.getcolors(1 << 24)}
    assert [areas[c] for c in pure] == [96 * 96] * 4  # 32 pixels, times three, not blended
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]  # no half-written file is left


def test_grid_leaves_large_images_alone_and_takes_short_rows(tmp_path):
    pictures.sample_grid(
        [[solid("red", 200)], [solid("red", 200), solid("blue", 200)]],
        ["a", "b"],
        tmp_path / "g.png",
    )
    areas = {c: n for n, c in Image.open(tmp_path / "g.png").getcolors(1 << 24)}
    assert areas[255, 0, 0] == 2 * 200 * 200 and areas[0, 0, 255] == 200 * 200


def test_marks_say_which_testpoints_hold_below_each_image(tmp_path):
    def green(met):
        rows = [[solid((1, 2, 3)), solid((4, 5, 6))]]
        pictures.sample_grid(rows, ["a"], tmp_path / "g.png", marks=[[met, [True]]])
        areas = {c: n for n, c in Image.open(tmp_path / "g.png").getcolors(1 << 24)}
        assert areas[1, 2, 3] == areas[4, 5, 6] == 96 * 96  # no mark lies on an image
        return areas.get((0, 158, 115), 0)

    one = green([])
    assert one > 0 and green([True, True]) == 3 * one and green([True, False]) == 2 * one


def test_long_captions_stay_left_of_the_images(tmp_path):
    for name, caption in (("short", "a"), ("long", "a word and another one " * 40)):
        pictures.sample_grid([[solid("red")]], [caption], tmp_path / name)
    short, long = Image.open(tmp_path / "short"), Image.open(tmp_path / "long")
    assert short.size == long.size
    right = (150, 0, *short.size)
    assert short.crop(right).tobytes() == long.crop(right).tobytes()
    assert short.tobytes() != long.tobytes()


@pytest.mark.parametrize(
    "rows, captions, columns",
    [
        ([], [], None),
        ([[]], ["a"], None),
        ([[solid("red")]], [], None),
        ([[solid("red")]], ["a"], ["x", "y"]),
    ],
)
def test_grid_refuses_what_does_not_match(tmp_path, rows, captions, columns):
    with pytest.raises(ValueError, match="a grid needs"):
        pictures.sample_grid(rows, captions, tmp_path / "g.png", columns)


def test_series_skips_steps_that_lack_a_key_or_a_number():
    lines = [
        {"step": 0, "a": 1.0},
        {"step": 1},
        {"step": 2, "a": None},
        {"step": 3, "a": float("nan")},
        {"step": 4, "a": 0.0},
    ]
    assert pictures.series(lines, "a") == ([0, 4], [1.0, 0.0])


def test_curves_draw_what_is_there(tmp_path):
    """Each of the four panels changes when its keys are there, and none is needed."""
    keys = [key for _, _, lines, _, _ in pictures.PANELS for key, _ in lines]
    pictures.training_curves([{"step": 0}], tmp_path / "none.png")
    pictures.training_curves(
        [{"step": s, **dict.fromkeys(keys, 0.1 * s)} for s in range(3)], tmp_path / "all.png"
    )
    none, full = Image.open(tmp_path / "none.png"), Image.open(tmp_path / "all.png")
    assert len(keys) == 6 and none.size == full.size
    w, h = none.width // 2, none.height // 2
    for box in ((0, 0, w, h), (w, 0, 2 * w, h), (0, h, w, 2 * h), (w, h, 2 * w, 2 * h)):
        assert none.crop(box).tobytes() != full.crop(box).tobytes()
