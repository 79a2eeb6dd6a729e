"""Grids have the size and pixels that they should; curves draw what is there."""

import itertools

import pytest
from PIL import Image

from figures import pictures

RED = Image.new("RGB", (32, 32), "red")


def solid(color, side=32):
    return Image.new("RGB", (side, side), color)


def grid(folder, rows, captions, **settings):
    pictures.sample_grid(rows, captions, folder / "new" / "g.png", **settings)
    assert [path.name for path in (folder / "new").iterdir()] == ["g.png"]  # no half-written file
    return Image.open(folder / "new" / "g.png")


def areas(image) -> dict:
    return {color: n for n, color in image.getcolors(1 << 24)}


def test_grid_enlarges_by_whole_pixels_shows_every_image_and_leaves_large_ones_alone(tmp_path):
    pure = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    rows = [list(map(solid, pure[:2])), list(map(solid, pure[2:]))]
    found = areas(grid(tmp_path, rows, ["first", "second"], columns=["before", "after"]))
    assert [found[color] for color in pure] == [96 * 96] * 4  # 32 pixels, times three, not blended
    rows = [[solid(pure[0], 200)], [solid(pure[0], 200), solid(pure[2], 200)]]  # one row is short
    found = areas(grid(tmp_path, rows, ["a", "b"]))
    assert (found[pure[0]], found[pure[2]]) == (2 * 200 * 200, 200 * 200)


def test_marks_say_which_testpoints_hold_below_each_image(tmp_path):
    def green(met):
        rows, marks = [[solid((1, 2, 3)), solid((4, 5, 6))]], [[met, [True]]]
        found = areas(grid(tmp_path, rows, ["a"], marks=marks))
        assert found[1, 2, 3] == found[4, 5, 6] == 96 * 96  # no mark lies on an image
        return found.get((0, 158, 115), 0)

    one = green([])
    assert one > 0 and green([True, True]) == 3 * one and green([True, False]) == 2 * one


def test_long_captions_stay_left_of_the_images(tmp_path):
    short, long = (
        grid(tmp_path, [[RED]], [text]).copy() for text in ("a", "a word and another one " * 40)
    )
    assert short.size == long.size and short.tobytes() != long.tobytes()
    right = (150, 0, *short.size)
    assert short.crop(right).tobytes() == long.crop(right).tobytes()


def test_grids_draw_no_control_characters(tmp_path):
    odd = (" ", "\x00", "\x85", "\u2028", "\r\n\x1b")
    drawn = [grid(tmp_path, [[RED]], [f"a{c}b"], columns=[f"c{c}d"]).tobytes() for c in odd]
    assert len(set(drawn)) == 1


@pytest.mark.parametrize(
    "rows, captions, columns",
    [([[]], ["a"], None), ([[RED]], [], None), ([[RED]], ["a"], ["x", "y"])],
)
def test_grid_refuses_what_does_not_match(tmp_path, rows, captions, columns):
    with pytest.raises(ValueError, match="a grid needs"):
        grid(tmp_path, rows, captions, columns=columns)


# ----------------------------------------------------------------------------- curves

LINES = [
    {"step": s, "reward_mean": 0.5 + 1e-7 * s, "reward_std": 0.1, "tie_rate": 0.2, "clip_frac": 0.1}
    | {"kl_to_base": 0.1 * s, "heldout_accuracy": 0.2 * s, "win_rate_vs_base": 0.5 + 0.1 * s}
    | {"heldout/Style": 0.3 * s}
    for s in range(3)
]


def test_series_skips_steps_that_lack_a_key_or_a_number():
    values = [1.0, None, float("nan"), 0.0]
    lines = [{"step": step, "a": value} for step, value in enumerate(values)] + [{"step": 9}]
    assert pictures.series(lines, "a") == ([0, 3], [1.0, 0.0])


def test_each_of_the_six_panels_draws_its_keys_and_needs_none(tmp_path):
    pictures.training_curves([{"step": 0}], tmp_path / "none.png")
    pictures.training_curves(LINES, tmp_path / "all.png")
    none, full = Image.open(tmp_path / "none.png"), Image.open(tmp_path / "all.png")
    assert none.size == full.size
    w, h = none.width // 3, none.height // 2
    for x, y in itertools.product(range(3), range(2)):
        box = (x * w, y * h, x * w + w, y * h + h)
        assert none.crop(box).tobytes() != full.crop(box).tobytes()


def test_what_nothing_is_trained_on_has_panels_of_its_own(tmp_path):
    seen = {"heldout_clip": 25.0, "heldout_redness": -3.0, "win_rate_vs_base_eval_judge": 0.6}
    lines = [line | {k: v + line["step"] for k, v in seen.items()} for line in LINES]
    more = pictures.panels(lines)[6:]
    assert [panel.lines[-1][0] for panel in more] == [*seen] and not pictures.panels(LINES)[6:]
    bench = pictures.panels([*LINES, {"step": 9, "bench_overall": 0.5}])[6:]
    assert [panel.lines[0][0] for panel in bench] == ["bench_overall"]
    pictures.training_curves(lines, tmp_path / "more.png")
    pictures.training_curves(LINES, tmp_path / "usual.png")
    more, usual = Image.open(tmp_path / "more.png"), Image.open(tmp_path / "usual.png")
    assert more.width == usual.width and more.height == pytest.approx(1.5 * usual.height, abs=1)


@pytest.mark.parametrize("name", ["_$x$", "a\n" + "long" * 30, "\udcff"])
def test_curves_name_each_reward_and_dimension(name, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    keys = [f"heldout/{name}", f"{name}_mean", f"{name}_std"]
    pictures.training_curves([{"step": s} | dict.fromkeys(keys, s / 2) for s in range(3)], "c.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    for axes in figure.axes[1:4]:
        box = axes.get_legend().get_window_extent()
        assert len(axes.get_legend().get_texts()) == 1 and box.height < 30
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


def test_the_reward_is_drawn_in_its_own_units_and_a_win_rates_constant_mean_is_not():
    rows = {"win rate": {}, "reward": {"reward_mean": 3.0}, "clip": {"clip_mean": 20.0}}
    for name, more in rows.items():
        lines = [m | {k: v + m["step"] for k, v in more.items()} for m in LINES]
        lines = [line | {"pairwise_mean": 0.5} for line in lines]
        (panel,) = [panel for panel in pictures.panels(lines) if panel.truth]
        assert [label for _, label in panel.lines] == [name]
