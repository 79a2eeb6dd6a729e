"""An image as people see it: 8-bit RGB, whatever mode it came in.

to_rgb(Image.open("image.png"))
"""

import struct
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB: turned as its EXIF data say, on white where it is transparent, and with all
    levels of gray. (Pillow's convert("RGB") cuts these off at 255, drops the transparency and
    leaves the image on its side.)"""
    image.load()  # a TIFF is turned by this, and its tag put right
    with suppress(SyntaxError, struct.error, TypeError, ValueError):  # EXIF data that are garbled
        turned = image.copy()
        turned.getexif()  # which is kept, so that what cannot be written again costs no turn
        turned.info.pop("exif", None)
        image = ImageOps.exif_transpose(turned)
    if image.mode.startswith(("I", "F")):
        image = _gray(image)
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow has no way from La
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    image = image.convert("RGB")
    image.info = {}  # else a second call would turn it once more
    return image


def _gray(image: Image.Image) -> Image.Image:
    """Modes I;16 (and its kin), I and F in 8 bits. The latter two have no white of their own: it is
    the first of those below that no value is above. Below 0, or no finite number, is black."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0, posinf=0, neginf=0)
    whites = {"I": [255, 65535, 2**31 - 1], "F": [1, 255, 65535, values.max()]}
    if image.mode.startswith("I;16") and "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535  # is to be seen through
    white = next(w for w in whites.get(image.mode, [65535]) if values.max() <= w)
    return Image.fromarray(np.rint(values.clip(0) * (255 / white)).astype(np.uint8))
