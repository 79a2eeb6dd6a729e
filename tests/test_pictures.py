"""Grids have the size and pixels that they should; curves draw what is there."""

import itertools

import pytest
from PIL import Image

from figures import pictures


def solid(color, side=32):
    return Image.new("RGB", (side, side), color)


def test_grid_enlarges_by_whole_pixels_and_shows_every_image(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pure = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    rows = [[solid(color) for color in pure[:2]], [solid(color) for color in pure[2:]]]
    pictures.sample_grid(rows, ["first", "second"], path, columns=["before", "after"])
    grid = Image.open(path)
    areas = {color: n for n, color in grid.getcolors(1 << 24)}
    assert [areas[c] for c in pure] == [96 * 96] * 4  # 32 pixels, times three, not blended
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]  # no half-written file is left


def test_grid_leaves_large_images_alone_and_takes_short_rows(tmp_path):
    rows = [[solid("red", 200)], [solid("red", 200), solid("blue", 200)]]
    pictures.sample_grid(rows, ["a", "b"], tmp_path / "g.png")
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
    [([[]], ["a"], None), ([[solid("red")]], [], None), ([[solid("red")]], ["a"], ["x", "y"])],
)
def test_grid_refuses_what_does_not_match(tmp_path, rows, captions, columns):
    with pytest.raises(ValueError, match="a grid needs"):
        pictures.sample_grid(rows, captions, tmp_path / "g.png", columns)


def test_series_skips_steps_that_lack_a_key_or_a_number():
    values = [1.0, None, float("nan"), 0.0]
    lines = [{"step": step, "a": value} for step, value in enumerate(values)] + [{"step": 9}]
    assert pictures.series(lines, "a") == ([0, 3], [1.0, 0.0])


LINES = [
    {"step": s, "reward_mean": 0.5 + 1e-7 * s, "reward_std": 0.1, "tie_rate": 0.2, "clip_frac": 0.1}
    | {"kl_to_base": 0.1 * s, "heldout_accuracy": 0.2 * s, "win_rate_vs_base": 0.5 + 0.1 * s}
    | {"heldout/Style": 0.3 * s}
    for s in range(3)
]


def test_curves_draw_what_is_there(tmp_path):
    """Each of the six panels changes when its keys are there, and none is needed."""
    pictures.training_curves([{"step": 0}], tmp_path / "none.png")
    pictures.training_curves(LINES, tmp_path / "all.png")
    none, full = Image.open(tmp_path / "none.png"), Image.open(tmp_path / "all.png")
    assert none.size == full.size
    w, h = none.width // 3, none.height // 2
    for x, y in itertools.product(range(3), range(2)):
        box = (x * w, y * h, x * w + w, y * h + h)
        assert none.crop(box).tobytes() != full.crop(box).tobytes()


@pytest.mark.parametrize("name", ["_x", "$x$", "a\nb", "long" * 30, "\udcff"])
def test_curves_name_each_reward_and_dimension(name, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    keys = [f"heldout/{name}", f"{name}_mean", f"{name}_std"]
    pictures.training_curves([{"step": s} | dict.fromkeys(keys, s / 2) for s in range(3)], "c.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes[1:4]]
    assert [len(legend.get_texts()) for legend in legends] == [1, 1, 1]
    for axes, legend in zip(figure.axes[1:4], legends):
        box = legend.get_window_extent()
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.height < 30


def test_grids_draw_no_control_characters(tmp_path):
    pixels = []
    for odd in (" ", "\x00", "\x85", "\u2028", "\r\n\x1b"):
        pictures.sample_grid([[solid("red")]], [f"a{odd}b"], tmp_path / "g", columns=[f"c{odd}d"])
        pixels.append(Image.open(tmp_path / "g").tobytes())
    assert len(set(pixels)) == 1


def beside_the_truth(lines) -> list[str]:
    return [label for panel in pictures.panels(lines) if panel.truth for _, label in panel.lines]


def test_the_reward_is_drawn_in_its_own_units_and_a_win_rates_constant_mean_is_not():
    assert beside_the_truth(LINES) == ["win rate"]
    scored = [line | {"reward_mean": 3.0 + line["step"]} for line in LINES]
    assert beside_the_truth(scored) == ["reward"]
    mixed = [line | {"pairwise_mean": 0.5, "clip_mean": 20.0 + line["step"]} for line in LINES]
    assert beside_the_truth(mixed) == ["clip"]
