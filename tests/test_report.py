"""Charts have the size and pixels that they should; the page holds hostile text as text."""

import base64
import html.parser
import io
import json
import re
import urllib.parse

import numpy as np
import pytest
from browser import needs_browser, seen
from PIL import Image

from bench import score
from figures.pictures import PALETTE, save_figure
from unigenbench import report
from unigenbench.results import Result
from unigenbench.tables import markdown_table


def test_radar_shows_each_model_and_leaves_absent_dimensions_out(tmp_path):
    scores = {"A": 90.0, "B": 50.0, "C": 70.0, "D": None}
    report.radar({"one": scores}, tmp_path / "one.png")
    report.radar({"one": scores, "two": dict.fromkeys(scores, 10.0)}, tmp_path / "two.png")
    report.radar({"none": dict.fromkeys(scores)}, tmp_path / "none.png")
    rgb = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in PALETTE[:2]]
    for name, drawn in (("one", [True, False]), ("two", [True, True]), ("none", [False, False])):
        pixels = Image.open(tmp_path / f"{name}.png").convert("RGB").getcolors(1 << 24)
        assert [c in {color for _, color in pixels} for c in rgb] == drawn
    with pytest.raises(ValueError, match="same dimensions"):
        report.radar({"one": {"A": 1.0}, "two": {"B": 1.0}}, tmp_path / "x.png")


NAMES = ["$a^2$ and $b", "_hidden", "a\nb\r\x07\u2028c", "W" * 300, "\u718a" * 90]
NAMES += ["\ufdfa" * 60, "", "  ", "\udcff", "a\\$_"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_model_is_named_on_the_page_and_looks_like_no_other(monkeypatch, tmp_path):
    """Whatever its name is: it is that of a file."""
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: drawn.append(figure))
    names = [*NAMES, *(f"model {n}" for n in range(20))]
    report.radar({name: {"A": 9.0, "B": 5.0, "C": 7.0} for name in names}, "r.png")
    (figure,) = drawn
    save_figure(figure, tmp_path / "r.png")
    (legend,), lines = figure.legends, figure.axes[0].lines
    assert len(legend.get_texts()) == len(names)
    assert all("\n" not in text.get_text() for text in legend.get_texts())
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(names)


# ----------------------------------------------------------------------------- page

STYLE, COLOR = "Style", "Attribute - Color"
HOSTILE = "</script><script>document.title='owned'</script><!-- \" ' & <b>bold</b>"


def result(index, image, values, subs=(STYLE,), texts=("ink",), **others):
    others = dict(descriptions=list(texts)) | others
    prompt = HOSTILE if index == 7 else "good"
    return Result(index, prompt, list(subs), str(image), values, **others)


@pytest.fixture
def results(tmp_path):
    """Two prompts: 7 with one of three right, one image missing; 3 all right."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "3_0.png")
    Image.new("RGB", (900, 900), "blue").save(tmp_path / "7_0.png")
    two = dict(subs=(STYLE, COLOR), texts=(HOSTILE, "red"), reasons=[HOSTILE, ""])
    return [
        result(3, tmp_path / "3_0.png", [1], reasons=["is ink"]),
        result(7, tmp_path / "7_0.png", [0, 1], **two),
        result(7, tmp_path / "gone.png", None),
    ]


@pytest.fixture
def page(tmp_path, results):
    report.write_report({HOSTILE: results}, {HOSTILE: score(results)}, tmp_path / "r.html")
    return tmp_path / "r.html"


class Elements(html.parser.HTMLParser):
    """Tags, attributes, and the text of each script of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.scripts += [data] * (self.tags[-1:] == ["script"])


def test_page_is_whole_offline_and_holds_hostile_text_as_text(page, results):
    elements = Elements(page)
    assert "@@" not in re.sub(r"base64,[^\"]*", "", page.read_text())
    assert elements.tags.count("script") == 2 and "b" not in elements.tags
    links = [value for name, value in elements.attributes if name in ("src", "href")]
    assert links and all(link.startswith("data:") for link in links)
    bad, good = json.loads(elements.scripts[0])
    assert (bad["index"], good["index"], bad["prompt"]) == (7, 3, HOSTILE)  # the worst first
    assert bad["images"][0]["points"] == [
        [STYLE, HOSTILE, False, HOSTILE],
        [COLOR, "red", True, ""],
    ]
    assert bad["images"][1]["points"] == [[STYLE, "ink", None, "failed"]]
    assert bad["images"][1]["src"] is None  # missing: said, not made up
    assert bad["images"][0]["src"].startswith("data:image/webp")  # 900 pixels, shrunk
    assert good["images"][0]["src"].startswith("data:image/png")  # 32 pixels, as it is
    both = dict.fromkeys(["other", HOSTILE], results)  # whose names head the table's columns
    report.write_report(both, {name: score(r) for name, r in both.items()}, page)
    assert "<th>&lt;/script" in page.read_text() and "b" not in Elements(page).tags


def test_thumbnails_share_a_page_and_the_files_are_where_it_looks(monkeypatch, tmp_path):
    """Large and small images, noise that cannot be packed; the page may lie elsewhere, and in the
    name of a folder may be anything."""
    monkeypatch.setattr(report, "THUMBNAILS", 100_000)
    folder, out = tmp_path / "im %41#?", tmp_path / "out" / "r.html"
    folder.mkdir(), out.parent.mkdir()
    rng = np.random.default_rng(0)
    for n, side in enumerate([300, 700] * 5):
        noise = rng.integers(0, 256, (side, side // 2, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}_0.png")
    groups = report.gallery_data({"m": [result(n, folder / f"{n}_0.png", [1]) for n in range(10)]})
    report.write_gallery(out, ("", ""), [], [], [], groups)
    images = [group["images"][0] for group in json.loads(Elements(out).scripts[0])]
    sizes = [len(image["src"]) for image in images]
    assert 25_000 < sum(sizes) <= 100_000  # noise loses more of its bytes than of its area
    for n, image in enumerate(images):
        assert (out.parent / urllib.parse.unquote(image["file"])).samefile(folder / f"{n}_0.png")
        data = base64.b64decode(image["src"].split(",")[1])
        width, height = Image.open(io.BytesIO(data)).size
        assert height // 2 == width > 32  # not cropped, not smaller than need be


def test_images_that_are_not_there_are_counted_and_named(tmp_path, caplog):
    """As where the page is made elsewhere than the images were judged."""
    groups = report.gallery_data({"m": [result(0, "im/0_0.png", [1]), result(1, "", [1])]})
    report.write_gallery(tmp_path / "r.html", ("", ""), [], [], [], groups)
    assert [image["src"] for group in groups for image in group["images"]] == [None, None]
    said = caplog.records[-1].getMessage()
    assert said.startswith("2 of 2 images are not on the page: ") and "0_0.png: missing" in said


def test_what_was_not_judged_comes_first_with_what_failed():
    results = [result(1, "", [1, 0], (STYLE,) * 2), result(2, "", [1]), result(3, "", None)]
    assert [group["index"] for group in report.gallery_data({"model": results})] == [3, 1, 2]


def test_strict_accuracy_stands_beside_a_model_that_was_not_judged_whole():
    whole = Result(0, "p", ["Style"], "", [1])
    results = {"whole": [whole], "half": [whole, whole._replace(index=1, scores=None)]}
    header, _ = report.report_table({name: score(r) for name, r in results.items()}, {})
    assert header == ["Dimension", "whole", "half", "half, strict"]


def test_markdown_table():
    table = markdown_table(["Dim", "a|b"], [["Style", "50.00"]], ["a note"])
    assert table == "| Dim | a\\|b |\n|---|---:|\n| Style | 50.00 |\n\na note\n"


@needs_browser
def test_page_filters_in_a_real_browser(page, tmp_path):
    """A script works the filters and writes down what is on the screen."""
    script = """const look = () => seen.push(
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
      const large = document.querySelector("dialog img");
      seen.push(document.querySelector("dialog").open, document.title, large.src.slice(0, 7));
      large.onerror();  // as where the folder has been moved
      seen.push(large.src.slice(0, 10));"""
    assert seen(page, script, tmp_path) == [
        *([2, 1], [1], [1], [1], [2, 1], [1], [2, 1], [1], [2, 1]),
        *(True, False, False, True, True, "UniGenBench report", "file://", "data:image"),
    ]
