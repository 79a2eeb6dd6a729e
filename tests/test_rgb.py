"""rgb.py: a picture shows the same whatever mode or file it comes in, and wherever it is read."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from common.rgb import ORIENTATION, TURNS, to_rgb
from figures.pictures import enlarge
from judges import openai_client, scorers
from shapes.read import read
from shapes.server import parse_request
from unigenbench import report
from unigenbench.images import open_image

GRAY = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
COLORS = Image.merge("RGB", [GRAY, GRAY.transpose(TURNS[6]), GRAY.transpose(TURNS[3])])


def saved(image: Image.Image, kind="PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def reread(image: Image.Image, kind="PNG", **options) -> Image.Image:
    return Image.open(saved(image, kind, **options))


def difference(one: Image.Image, other: Image.Image) -> int:
    pixels = [np.asarray(image, int) for image in (one, other)]
    assert one.mode == other.mode == "RGB" and pixels[0].shape == pixels[1].shape
    return int(abs(pixels[0] - pixels[1]).max())


SIXTEEN = np.asarray(GRAY).astype(np.uint16) * 257


@pytest.mark.parametrize(
    "image",
    [
        GRAY,
        Image.fromarray(SIXTEEN),
        Image.frombytes("I;16B", (16, 16), SIXTEEN.astype(">u2").tobytes()),
        reread(Image.fromarray(SIXTEEN)),
        reread(Image.fromarray(SIXTEEN), "TIFF"),
        Image.fromarray(SIXTEEN.astype(np.int32)),
        Image.fromarray(np.asarray(GRAY).astype(np.int32)),
        Image.fromarray((np.asarray(GRAY) * (2.0**31 / 256)).astype(np.int32)),
        Image.fromarray(np.asarray(GRAY).astype(np.float32)),
        Image.fromarray((np.asarray(GRAY) / 255).astype(np.float32)),
        Image.fromarray(SIXTEEN.astype(np.float32)),
        Image.fromarray(np.asarray(GRAY).astype(np.float32) * 1e6),
        reread(Image.fromarray((np.asarray(GRAY) / 255).astype(np.float32)), "TIFF"),
        GRAY.convert("LA"),
        GRAY.convert("P"),
    ],
)
def test_a_scale_of_grays_is_one_in_every_depth(image):
    assert difference(to_rgb(image), GRAY.convert("RGB")) <= 1


def test_what_is_no_number_is_black():
    values = np.array([[np.nan, np.inf], [-np.inf, 1.0], [-1.0, 0.5]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[..., 0].tolist() == [
        [0, 0],
        [0, 255],
        [0, 128],
    ]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_colors_are_the_same_in_every_mode(mode):
    assert difference(to_rgb(COLORS.convert(mode)), COLORS) <= 6  # HSV rounds most


@pytest.mark.parametrize("color", ["black", "white", "red", "gray"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LAB", "CMYK", "PA"])
def test_plain_colors(mode, color):
    image = Image.new("RGB", (2, 2), color)
    expected = (image.convert(mode) if mode in ("1", "L", "P") else image).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        shown = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode == "PA":
        shown = image.quantize(4).convert("PA")
    else:
        shown = image.convert(mode)
    assert difference(to_rgb(shown), expected) <= 5


RED = Image.new("RGBA", (4, 4), (255, 0, 0, 0))  # of which nothing shows but the last pixel
RED.putpixel((3, 3), (255, 0, 0, 255))
HALF = Image.new("RGBA", (4, 4), (0, 0, 0, 128))


def keyed(mode: str, value) -> Image.Image:
    image = Image.new(mode, (4, 4), value)
    if mode == "P":
        image.putpalette(bytes(range(24)))
    return reread(image, transparency=value)


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED.convert("LA"),
        RED.convert("LA").convert("La"),
        RED.convert("RGBa"),
        RED.quantize(4),  # a palette with an alpha of its own
        reread(RED),
        reread(RED.convert("LA")),
        reread(RED, "WEBP", lossless=True),
        reread(RED, "GIF"),
        reread(RED, "TIFF"),
        keyed("1", 0),
        keyed("L", 7),
        keyed("RGB", (1, 2, 3)),
        keyed("P", 5),
        keyed("I;16", 300),
        reread(Image.new("P", (4, 4)), transparency=b"\x00\xff"),
        Image.new("PA", (4, 4)),
    ],
)
def test_what_is_transparent_is_white(image):
    shown = to_rgb(image)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    if image.size == RED.size and image.mode in ("RGBA", "RGBa"):
        assert shown.getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_what_is_half_transparent_is_half_white(mode):
    half = HALF.convert("LA").convert(mode) if mode in ("LA", "La") else HALF.convert(mode)
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    partly = reread(Image.new("P", (4, 4)), transparency=b"\x80")
    assert to_rgb(partly).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_picture_stands_upright_and_is_turned_once(kind, value):
    upright = Image.new("RGB", (64, 128), "white")
    upright.paste("red", (0, 0, 64, 64))
    upright.paste("blue", (0, 0, 32, 64))
    turned = upright
    if value > 1:  # as a camera that is held so stores it
        turned = upright.transpose({6: TURNS[8], 8: TURNS[6]}.get(value, TURNS[value]))
    exif = Image.Exif()
    exif[ORIENTATION] = value
    image = reread(turned, kind, exif=exif)
    for place in ((8, 8), (56, 8), (8, 120), (56, 120)):  # a color each, far from the edges
        seen, there = (im.getpixel(place) for im in (to_rgb(image), upright))
        assert seen == pytest.approx(there, abs=9)
    assert to_rgb(to_rgb(image)).tobytes() == to_rgb(image).tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"MM\0*\0\0\0\x08"]
)
def test_garbled_exif_data_cost_nothing(exif):
    assert difference(to_rgb(reread(COLORS, exif=exif)), COLORS) == 0


def test_the_picture_that_is_given_stays_as_it_is():
    for image in (RED, COLORS, Image.fromarray(SIXTEEN)):
        before = image.mode, image.tobytes(), dict(image.info)
        assert to_rgb(image) is not image
        assert (image.mode, image.tobytes(), dict(image.info)) == before


# ---- wherever a picture is read ----


def uri_shows(image: Image.Image, uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


@pytest.mark.parametrize("image", [RED, Image.fromarray(SIXTEEN), RED.quantize(4)])
def test_all_who_read_a_picture_see_the_same(image, tmp_path):
    upright = to_rgb(image)
    assert difference(uri_shows(image, openai_client._data_uri(image)), upright) == 0
    (rgb,) = scorers._rgb([image], 1, "x")
    assert difference(rgb, upright) == 0
    assert enlarge(image, 1).tobytes() == upright.tobytes()
    assert read([image]) == read([upright])
    path = tmp_path / "0_0.png"
    image.save(path)
    seen, _ = open_image(path)
    assert difference(seen, upright) == 0
    assert difference(uri_shows(image, report.data_uri(path)), upright) == 0
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    (served,) = parse_request({"messages": [{"content": content}]}).images
    assert difference(served, upright) == 0
