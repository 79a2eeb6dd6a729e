"""fonts.py: what an installed font can draw is drawn; what none can is said once."""

import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from figures import fonts
from figures.pictures import new_figure, sample_grid, wrapped
from unigenbench.report import radar

BEAR, CAT, EMOJI = "\u718a", "\u732b", "\U0001f408"
USUAL = fonts.installed()[0]


@pytest.fixture(autouse=True)
def files(monkeypatch, tmp_path) -> list[str]:
    """The font files of a machine: matplotlib's own, a damaged one, and one for two Chinese
    letters, which a test may take away."""
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    font = TTFont(USUAL)
    tables = font["cmap"].tables = [t for t in font["cmap"].tables if t.format == 4]
    for table in tables:
        table.cmap = {ord(BEAR): "W", ord(CAT): "M"}
    font.save(tmp_path / "chinese.ttf")
    files = [USUAL, str(tmp_path / "damaged.ttf"), str(tmp_path / "chinese.ttf")]
    monkeypatch.setattr(fonts, "installed", lambda: files)
    monkeypatch.setattr(fonts, "warned", set())
    return files


def grid(tmp_path, caption):
    sample_grid([[Image.new("RGB", (32, 32), "red")]], [caption], tmp_path / "g.png")
    return Image.open(tmp_path / "g.png").tobytes()


def legend(tmp_path, name):
    radar({name: {"Style": 85.0, "Grammar": 62.3, "Action": 10.0}}, tmp_path / "r.png")
    return Image.open(tmp_path / "r.png").tobytes()


@pytest.mark.parametrize("draw", [grid, legend])
def test_letters_are_drawn_or_are_boxes_and_each_script_is_told_once(
    draw, files, tmp_path, caplog, recwarn
):
    assert draw(tmp_path, BEAR) != draw(tmp_path, CAT) and not caplog.records
    del files[2]
    assert draw(tmp_path, BEAR) == draw(tmp_path, CAT)
    draw(tmp_path, BEAR + EMOJI)
    first, second = [record.getMessage() for record in caplog.records]
    assert f"for {BEAR} (CJK): no" in first and f"for {EMOJI} (CAT): no" in second
    assert not recwarn.list  # nor does matplotlib repeat it for each letter


def test_the_font_that_draws_the_most_is_taken(files, tmp_path, caplog):
    taken = {f"a {BEAR}{CAT}": files[2], f"many {BEAR}": USUAL, BEAR + EMOJI: files[2], "": USUAL}
    assert {text: fonts.font_file(text) for text in taken} == taken
    caplog.clear()
    for text in ("carr\u00e9", "\u043a\u0440\u0443\u0433", "a\u200d\ufe0f\n"):
        grid(tmp_path, text)
    assert not caplog.records


@pytest.mark.parametrize("text", ["$a_b$", "\\$x\\$", r"a\$b $\frac{1}{2}$", "a_b^2 %"])
def test_a_name_is_drawn_as_it_stands_and_not_as_mathematics(text):
    def pixels(label, parse_math):
        figure = new_figure(figsize=(3, 1))
        figure.text(0.1, 0.5, label, parse_math=parse_math)
        figure.canvas.draw()
        return bytes(figure.canvas.buffer_rgba())

    assert pixels(fonts.literal(text, 80), True) == pixels(text, False)


@pytest.mark.parametrize("text", [BEAR * 40, f"one {BEAR} " * 20, "www " * 40])
def test_no_line_is_wider_than_its_column(text):
    (font,) = fonts.pillow_fonts([text], 12)
    lines = wrapped(text, font, 120, 5).split("\n")
    assert 2 <= len(lines) <= 5 and all(font.getlength(line) <= 120 for line in lines)
    assert wrapped(text, font, 1, 5)  # a column too narrow for one letter
