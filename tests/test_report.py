"""Pictures have the size and pixels that they should; the page holds hostile text as text."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

from unigenbench import report
from unigenbench.report import Card, Point


def solid(color, side=32):
    return Image.new("RGB", (side, side), color)


def colors(image):
    return {color for _, color in image.convert("RGB").getcolors(1 << 24)}


# ----------------------------------------------------------------------------- pictures


def test_grid_enlarges_by_whole_pixels_and_shows_every_image(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pure = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    report.sample_grid(
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
    report.sample_grid(
        [[solid("red", 200)], [solid("red", 200), solid("blue", 200)]],
        ["a", "b"],
        tmp_path / "g.png",
    )
    areas = {c: n for n, c in Image.open(tmp_path / "g.png").getcolors(1 << 24)}
    assert areas[255, 0, 0] == 2 * 200 * 200 and areas[0, 0, 255] == 200 * 200


def test_long_captions_stay_left_of_the_images(tmp_path):
    for name, caption in (("short", "a"), ("long", "a word and another one " * 40)):
        report.sample_grid([[solid("red")]], [caption], tmp_path / name)
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
        report.sample_grid(rows, captions, tmp_path / "g.png", columns)


def test_series_skips_steps_that_lack_a_key_or_a_number():
    lines = [
        {"step": 0, "a": 1.0},
        {"step": 1},
        {"step": 2, "a": None},
        {"step": 3, "a": float("nan")},
        {"step": 4, "a": 0.0},
    ]
    assert report.series(lines, "a") == ([0, 4], [1.0, 0.0])


def test_curves_draw_what_is_there(tmp_path):
    """Each of the four panels changes when its keys are there, and none is needed."""
    keys = [key for _, _, lines, _, _ in report.PANELS for key, _ in lines]
    report.training_curves([{"step": 0}], tmp_path / "none.png")
    report.training_curves(
        [{"step": s, **dict.fromkeys(keys, 0.1 * s)} for s in range(3)], tmp_path / "all.png"
    )
    none, full = Image.open(tmp_path / "none.png"), Image.open(tmp_path / "all.png")
    assert len(keys) == 6 and none.size == full.size
    w, h = none.width // 2, none.height // 2
    for box in ((0, 0, w, h), (w, 0, 2 * w, h), (0, h, w, 2 * h), (w, h, 2 * w, 2 * h)):
        assert none.crop(box).tobytes() != full.crop(box).tobytes()


def test_radar_shows_each_model_and_leaves_absent_dimensions_out(tmp_path):
    scores = {"A": 90.0, "B": 50.0, "C": 70.0, "D": None}
    report.radar({"one": scores}, tmp_path / "one.png")
    report.radar({"one": scores, "two": dict.fromkeys(scores, 10.0)}, tmp_path / "two.png")
    report.radar({"none": dict.fromkeys(scores)}, tmp_path / "none.png")
    rgb = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in report.PALETTE[:2]]
    for name, drawn in (("one", [True, False]), ("two", [True, True]), ("none", [False, False])):
        assert [c in colors(Image.open(tmp_path / f"{name}.png")) for c in rgb] == drawn
    with pytest.raises(ValueError, match="same dimensions"):
        report.radar({"one": {"A": 1.0}, "two": {"B": 1.0}}, tmp_path / "x.png")


# ----------------------------------------------------------------------------- page

HOSTILE = "</script><script>document.title='owned'</script><!-- \" ' & <b>bold</b>"


@pytest.fixture
def page(tmp_path):
    """A page of two prompts: 7 with one of three right, one image missing; 3 all right."""
    solid("red").save(tmp_path / "3_0.png")
    solid("blue", 900).save(tmp_path / "7_0.png")
    cards = [
        Card(3, "good", str(tmp_path / "3_0.png"), [Point("Style", "ink", True, "is ink")]),
        Card(
            7,
            HOSTILE,
            str(tmp_path / "7_0.png"),
            [Point("Style", HOSTILE, False, HOSTILE), Point("Attribute - Color", "red", True, "")],
        ),
        Card(7, HOSTILE, str(tmp_path / "gone.png"), [Point("Style", "ink", None, "failed")]),
    ]
    path = tmp_path / "report.html"
    report.radar({HOSTILE: {"Style": 50.0, "Grammar": 1.0, "Action": 2.0}}, tmp_path / "radar.png")
    report.html_report(
        path,
        ["Dimension", HOSTILE],
        [["Style", "50.00"]],
        [f"note {HOSTILE}"],
        (tmp_path / "radar.png").read_bytes(),
        {HOSTILE: cards},
    )
    return path


class Elements(html.parser.HTMLParser):
    """Collects tags, attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags[-1:] == ["script"]:
            self.scripts[-1] += data


def test_page_is_whole_offline_and_holds_hostile_text_as_text(page):
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert "@@" not in re.sub(r"base64,[^\"]*", "", text)
    assert elements.tags.count("script") == 2 and "b" not in elements.tags
    links = [value for name, value in elements.attributes if name in ("src", "href")]
    assert links and all(link.startswith("data:") for link in links)
    groups = json.loads(elements.scripts[0])
    assert [g["index"] for g in groups] == [7, 3]  # the worst first
    assert groups[0]["prompt"] == HOSTILE and groups[0]["images"][0]["points"][0][3] == HOSTILE
    assert groups[0]["images"][1]["src"] is None  # missing: said, not made up
    assert groups[0]["images"][0]["src"].startswith("data:image/webp")  # 900 pixels, shrunk
    assert groups[1]["images"][0]["src"].startswith("data:image/png")  # 32 pixels, as it is


def test_markdown_table():
    table = report.markdown_table(["Dim", "a|b"], [["Style", "50.00"]], ["a note"])
    assert table == "| Dim | a\\|b |\n|---|---:|\n| Style | 50.00 |\n\na note\n"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")
def test_page_filters_in_a_real_browser(page, tmp_path):
    """A script put at the end of a copy works the filters and writes down what is on the screen."""
    probe = """<script>
      const seen = [], look = () => seen.push(
        [...document.querySelectorAll(".group")].map(g => g.querySelectorAll("figure").length));
      const set = (id, value) => { const e = document.getElementById(id); e.value = value;
        e.dispatchEvent(new Event("input", {bubbles: true})); look(); };
      look(); set("verdict", "fail"); set("verdict", "pass"); set("verdict", "open");
      set("verdict", ""); set("sub", "Attribute - Color"); set("sub", ""); set("words", "GOO");
      set("words", "");
      document.dispatchEvent(new KeyboardEvent("keydown", {key: "j"}));
      seen.push(document.activeElement.querySelector("small").textContent.endsWith("prompt 7"));
      const seeable = id => getComputedStyle(document.getElementById(id)).display !== "none";
      seen.push(seeable("model-label"), seeable("more"), seeable("words"));  // one model, one page
      document.querySelector(".view").click();
      seen.push(document.querySelector("dialog").open, document.title);
      document.body.replaceChildren("SEEN" + JSON.stringify(seen) + "END");
      </script></body>"""
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    dom = subprocess.run(
        [BROWSER, *flags, copy.as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    seen = json.loads(re.search(r">SEEN(.*?)END", dom, re.DOTALL)[1])
    assert seen == [
        [2, 1],
        [1],
        [1],
        [1],
        [2, 1],
        [1],
        [2, 1],
        [1],
        [2, 1],
        True,
        False,
        False,
        True,
        True,
        "UniGenBench report",
    ]
