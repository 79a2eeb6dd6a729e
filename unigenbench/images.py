"""The benchmark's image files: four a prompt, as the official evaluator names them.

image, data = open_image(folder / image_name(prompt.index, 0))         # folder/12_0.png
"""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from support.rgb import to_rgb

IMAGES = 4  # a prompt
FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the name says; none that Pillow runs a program for


def image_name(index: int, image: int) -> str:
    return f"{index}_{image}.png"


def open_image(path: Path) -> tuple[Image.Image, bytes]:
    """An image file, RGB, and its bytes.

    Raises ValueError if it is missing, cut off or no image.
    """
    try:
        data = path.read_bytes()
        Image.open(io.BytesIO(data), formats=FORMATS).verify()  # some are decoded without their end
        return to_rgb(Image.open(io.BytesIO(data), formats=FORMATS)), data
    except FileNotFoundError:
        raise ValueError(f"{path.name}: missing") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path.name}: no image ({' or '.join(FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name}: not a whole image ({error})") from None


def opens(path: Path) -> bool:
    try:
        return bool(open_image(path))
    except ValueError:
        return False
