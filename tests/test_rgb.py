"""rgb.py: an image shows the same whatever mode or file it comes in, and wherever it is read."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from common.rgb import to_rgb
from figures.pictures import enlarge
from judges import openai_client, scorers
from shapes.read import read
from shapes.server import parse_request
from unigenbench.images import open_image

GRAY = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
TURNED = GRAY.transpose(Image.Transpose.ROTATE_270), GRAY.transpose(Image.Transpose.ROTATE_180)
COLORS = Image.merge("RGB", [GRAY, *TURNED])
LEVELS = np.asarray(GRAY)
SIXTEEN = LEVELS.astype(np.uint16) * 257
ORIENTATION = 0x0112


def reread(image: Image.Image, kind="PNG", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def difference(one: Image.Image, other: Image.Image) -> int:
    pixels = [np.asarray(image, int) for image in (one, other)]
    assert one.mode == other.mode == "RGB" and pixels[0].shape == pixels[1].shape
    return int(abs(pixels[0] - pixels[1]).max())


def test_a_scale_of_grays_is_one_in_every_depth():
    big_endian = Image.frombytes("I;16B", (16, 16), SIXTEEN.astype(">u2").tobytes())
    wide = [SIXTEEN.astype(np.int32), LEVELS.astype(np.int32), LEVELS * np.int32(2**23)]
    real = [LEVELS.astype(np.float32) * scale for scale in (1, 1 / 255, 257, 1e6)]
    arrays = [Image.fromarray(values) for values in (SIXTEEN, *wide, *real)]
    files = [reread(arrays[0]), reread(arrays[0], "TIFF"), reread(arrays[5], "TIFF")]
    for image in (GRAY, GRAY.convert("LA"), GRAY.convert("P"), big_endian, *arrays, *files):
        assert difference(to_rgb(image), GRAY.convert("RGB")) <= 1, image
    values = np.array([[np.nan, np.inf], [-np.inf, 1.0], [-1.0, 0.5]], np.float32)
    black = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    assert black.tolist() == [[0, 0], [0, 255], [0, 128]]  # what is no number, or below 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "HSV", "LAB", "PA"])
def test_colors_are_the_same_in_every_mode(mode):
    plain = shown = COLORS
    if mode == "PA":
        shown = COLORS.quantize(256)
        plain = shown.convert("RGB")
    if mode == "LAB":
        plain = Image.new("RGB", (2, 2), "red")
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", mode)]
        shown = ImageCms.profileToProfile(plain, *profiles, outputMode="LAB")
    assert difference(to_rgb(shown.convert(mode)), plain) <= 6  # HSV rounds most


RED = Image.new("RGBA", (4, 4), (255, 0, 0, 0))  # of which nothing shows but the last pixel
RED.putpixel((3, 3), (255, 0, 0, 255))


def keyed(mode: str, value) -> Image.Image:
    """An image of one value, which its file says is transparent."""
    return reread(Image.new(mode, (4, 4), value), transparency=value)


def test_what_is_transparent_is_white():
    own = [RED, RED.convert("RGBa"), reread(RED), reread(RED, "WEBP", lossless=True)]
    gray = [RED.convert("LA"), RED.convert("LA").convert("La"), reread(RED.convert("LA"))]
    palettes = [RED.quantize(4), reread(RED, "GIF"), Image.new("PA", (4, 4)), keyed("P", 0)]
    palettes += [reread(Image.new("P", (4, 4)), transparency=b"\x00\xff")]
    keys = [keyed("1", 0), keyed("L", 7), keyed("RGB", (1, 2, 3)), keyed("I;16", 300)]
    for image in (*own, *gray, *palettes, *keys):
        assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255), image
    assert [to_rgb(image).getpixel((3, 3)) for image in own] == [(255, 0, 0)] * 4
    half, gray = (Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert(m) for m in ("RGBA", "LA"))
    palette = reread(Image.new("P", (4, 4)), transparency=b"\x80")
    for image in (half, half.convert("RGBa"), gray, gray.convert("La"), palette):
        assert to_rgb(image).getpixel((0, 0)) == (127, 127, 127), image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_an_image_stands_upright_and_is_turned_once(kind):
    upright = Image.new("RGB", (64, 128), "white")
    upright.paste("red", (0, 0, 64, 64))
    upright.paste("blue", (0, 0, 32, 64))
    stored = {1: upright, 3: upright.transpose(Image.Transpose.ROTATE_180)}
    stored[6] = upright.transpose(Image.Transpose.ROTATE_90)  # as a camera on its side does
    for value, turned in stored.items():
        exif = Image.Exif()
        exif[ORIENTATION] = value
        image = reread(turned, kind, exif=exif)
        for place in ((8, 8), (56, 8), (8, 120), (56, 120)):  # a color each, far from the edges
            assert to_rgb(image).getpixel(place) == pytest.approx(upright.getpixel(place), abs=9)
        assert to_rgb(to_rgb(image)).tobytes() == to_rgb(image).tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_garbled_exif_data_cost_nothing_and_no_turn():
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"MM\0*\0\0\0\x08"):
        assert difference(to_rgb(reread(COLORS, exif=exif)), COLORS) == 0
    odd = Image.Exif()
    odd[ORIENTATION], odd[0x011A] = 3, 72.0
    garbled = odd.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")  # of another type
    assert difference(to_rgb(reread(COLORS, exif=garbled)), COLORS.rotate(180)) == 0


def test_the_image_that_is_given_stays_as_it_is():
    for image in (RED, COLORS, Image.fromarray(SIXTEEN)):
        before = image.mode, image.tobytes(), dict(image.info)
        assert to_rgb(image) is not image
        assert (image.mode, image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize("image", [RED, Image.fromarray(SIXTEEN), RED.quantize(4)])
def test_all_who_read_an_image_see_the_same(image, tmp_path):
    upright = to_rgb(image)
    uri = openai_client.png_uri(image)
    asked = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    (scored,) = scorers._rgb([image], 1, "x")
    image.save(tmp_path / "0_0.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "0_0.png").read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    (served,) = parse_request({"messages": [{"content": content}]}).images
    drawn = enlarge(image).resize(image.size, Image.Resampling.NEAREST)
    for seen in (asked, scored, open_image(tmp_path / "0_0.png")[0], served, drawn):
        assert difference(seen, upright) == 0
    assert read([image]) == read([upright])
