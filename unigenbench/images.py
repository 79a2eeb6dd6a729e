"""The benchmark's image files: as many per prompt and so named as the official flags say.

image, data = open_image(folder / image_name(prompt.index, 0))         # folder/12_0.png

An image that was drawn here holds its prompt, since its name is but an index.
"""

import hashlib
import io
import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from common.rgb import to_rgb
from common.wording import listed, one_line

log = logging.getLogger("bench")

IMAGES = 4  # per prompt, where no flag says otherwise
FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the name says; none that Pillow runs a program for
PROMPT = "unigenbench:prompt"  # the keyword of a text chunk of PNG; others write "prompt", as JSON


def image_name(index: int, image: int, suffix: str = ".png") -> str:
    return f"{index}_{image}{suffix}"


class Layout(NamedTuple):
    """What files a folder should have."""

    per_prompt: int = IMAGES
    suffix: str = ".png"  # whatever follows the number of the image

    def names(self, index: int) -> list[str]:
        return [image_name(index, i, self.suffix) for i in range(self.per_prompt)]

    def check(self, folder: Path, indices: list[int]) -> None:
        """Warns of other files than the images of the prompts with these indices.

        Raises ValueError if there is no folder, or none of them is in it.
        """
        if not folder.is_dir():
            raise ValueError(f"no image folder '{folder}'")
        known = {name for index in indices for name in self.names(index)}
        there = {path.name for path in folder.iterdir()} - {"settings.json"}
        if there & known or not known:
            if odd := sorted(there - known):
                text = "%d files are no image of these prompts and are left out: %s"
                log.warning(text, len(odd), listed(odd))
            return
        alike = {found[1] for name in there if (found := re.fullmatch(r"\d+_\d+(\D.*)", name))}
        alike -= {self.suffix}
        here = f", here {' or '.join(sorted(alike))}" if alike else ""
        raise ValueError(
            f"'{folder}' has no image of these prompts: expected INDEX_IMAGE{self.suffix}, from "
            f"{self.names(min(indices))[0]} on, and there is {listed(sorted(there)) or 'nothing'}; "
            f"--image_suffix is what follows the number{here}"
        )


OFFICIAL_LAYOUT = Layout()


def open_image(path: Path, prompt: str | None = None) -> tuple[Image.Image, bytes]:
    """An image file, RGB, and its bytes.

    Raises ValueError if it is missing, cut off, no image, or says that it is of another prompt.
    """
    try:
        data = path.read_bytes()
        Image.open(io.BytesIO(data), formats=FORMATS).verify()  # some are decoded without their end
        image = to_rgb(Image.open(io.BytesIO(data), formats=FORMATS))
    except FileNotFoundError:
        raise ValueError(f"{path.name}: missing") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path.name}: no image ({' or '.join(FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name}: not a whole image ({error})") from None
    if prompt is not None and (drawn := prompt_of(data)) not in (None, one_line(prompt)):
        raise ValueError(f"{path.name}: drawn of another prompt, '{drawn[:60]}'")
    return image, data


def png_of(image: Image.Image, prompt: str) -> bytes:
    """The bytes of an image file that says of which prompt it was drawn."""
    data, info = io.BytesIO(), PngInfo()
    info.add_itxt(PROMPT, prompt)
    image.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def prompt_of(data: bytes) -> str | None:
    """The prompt that an image file was drawn of, in one line; None where it does not say so, as
    those of other tools and of earlier versions do not."""
    prompt = Image.open(io.BytesIO(data), formats=FORMATS).info.get(PROMPT)
    return None if prompt is None else one_line(prompt)


def read_settings(path: Path) -> dict:
    """What a settings.json says; {} where there is none. Raises ValueError for a damaged one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it") from None


def opens(path: Path, prompt: str | None = None) -> bool:
    """Whether a whole image is there, of this prompt as far as it says."""
    try:
        return bool(open_image(path, prompt))
    except ValueError:
        return False


def digest_of(data: bytes, text: str) -> str:
    """16 hex digits of an image file's bytes and what was asked about it."""
    return hashlib.sha256(data + text.encode()).hexdigest()[:16]


def fingerprint(parts: dict) -> str:
    """16 hex digits of some 64 numbers from every weight: training changes nearly all of them.

    parts: of a pipeline, by name; what has no weights is passed over
    """
    digest = hashlib.sha256()
    for part in parts.values():
        for name, weight in getattr(part, "named_parameters", lambda: ())():
            few = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
            digest.update(name.encode() + few.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
