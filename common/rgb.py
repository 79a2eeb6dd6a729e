"""An image as people see it: 8-bit RGB, whatever mode it came in.

to_rgb(Image.open("image.png"))
"""

import struct
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB: turned as its EXIF data say, on white where it is transparent.

    16-bit gray is scaled to 8 bits. Modes I and F, of 32 bits, have no white of their own: it is
    the first of 255, 65535 and 2**31 - 1 that no value is above, for F of 1, 255, 65535 and the
    largest value. What is below 0, or no finite number, is black. (Pillow's own convert("RGB")
    cuts all of these off at 255, drops the transparency and leaves the image on its side.)
    """
    image.load()  # a TIFF is turned by this, and its tag put right
    with suppress(SyntaxError, struct.error, TypeError, ValueError):  # EXIF data that are garbled
        turned = image.copy()
        turned.getexif()  # which is kept, so that what cannot be written again costs no turn
        turned.info.pop("exif", None)
        image = ImageOps.exif_transpose(turned)
    if image.mode.startswith(("I", "F")):
        image = _gray(image)
    elif image.mode == "LAB":
        image = _from_lab(image)
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow has no way from La
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    image = image.convert("RGB")
    image.info = {}  # else a second call would turn it once more
    return image


def _gray(image: Image.Image) -> Image.Image:
    """Modes I;16 (and its kin), I and F in 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0, posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        whites = [65535]
        if "transparency" in image.info:  # the value that is to be seen through
            values[values == image.info["transparency"]] = 65535
    elif image.mode == "I":
        whites = [255, 65535, 2**31 - 1]
    else:
        whites = [1, 255, 65535, values.max()]
    white = next(white for white in whites if values.max() <= white)
    return Image.fromarray(np.rint(values.clip(0) * (255 / white)).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
