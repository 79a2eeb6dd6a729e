"""Fonts that draw a text. Without this, Pillow draws a box for each letter that its font lacks,
and says nothing; its own font lacks all but English.

No font is shipped or downloaded. Matplotlib brings one (Latin, Greek, Cyrillic, Arabic); where it
lacks a letter, the installed ones are looked through. What none of them has is said once.

    headings = pillow_fonts(["before", "之前"], size=12)
    dress(figure)                                               # every text of a matplotlib figure
"""

import functools
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from common.wording import listed, one_line

log = logging.getLogger(__name__)

# Fonts that have a picture for everything, or colors that Pillow leaves blank; and cuts that are
# taken only where no plain one will do.
USELESS = re.compile("lastresort|blank|color", re.IGNORECASE)
FANCY = re.compile("bold|black|italic|oblique|light|thin|serif|mono", re.IGNORECASE)
told = set()  # scripts of which it was said that they cannot be drawn


def visible(text: str) -> set[int]:
    """The characters that need a glyph: not spaces, controls, joiners and variation selectors."""
    return {
        ord(c)
        for c in text
        if not (c.isspace() or unicodedata.category(c) in ("Cc", "Cf") or "\ufe00" <= c <= "\ufe0f")
    }


@functools.cache
def letters_of(font: str | bytes) -> frozenset[int]:
    """The characters of a font, a file or what stands in one; none if it cannot be drawn at any
    size."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(BytesIO(font) if isinstance(font, bytes) else font)
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (OSError, RuntimeError):  # damaged, or of a kind that the library does not know
        return frozenset()


def usual_font() -> str:
    """The file of the font that matplotlib takes unless told otherwise."""
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties())


@functools.cache
def installed() -> list[str]:
    """Font files: matplotlib's usual one, then the system's, plain ones first."""
    from matplotlib import font_manager

    found = [path for path in font_manager.findSystemFonts() if not USELESS.search(Path(path).name)]
    plain = lambda path: not FANCY.search(Path(path).name)
    return [usual_font(), *sorted(found, key=lambda path: (not plain(path), path))]


def tell(lost: dict[str, str]) -> None:
    """Warns of each script once that boxes stand for it. lost: one letter by script."""
    new = {script: letter for script, letter in lost.items() if script not in told}
    told.update(new)
    if new:
        log.warning(
            "boxes stand in pictures for %s: no installed font has all letters of such a text; "
            "Debian's fonts-noto-cjk, for one, has those of Chinese, Japanese and Korean",
            listed(f"{letter} ({script})" for script, letter in new.items()),
        )


def font_files(texts: Iterable[str]) -> list[str]:
    """For each text the first font file that draws all of it, else the one that draws the most;
    what that one lacks is warned of."""
    files, lost = [], set()
    for text in texts:
        wanted, best, missing = visible(text), "", None
        for path in installed():
            left = wanted - letters_of(path)
            if missing is None or len(left) < len(missing):
                best, missing = path, left
            if not missing:
                break
        files.append(best)
        lost |= missing
    tell({unicodedata.name(chr(code), "?").split()[0]: chr(code) for code in sorted(lost)})
    return files


def pillow_fonts(texts: Sequence[str], size: float) -> list:
    """For each text a Pillow font that draws it: Pillow's own for English."""
    from PIL import ImageFont

    own = ImageFont.load_default(size)
    known = letters_of(own.font_bytes)
    odd = [text for text in texts if visible(text) - known]
    others = dict(zip(odd, font_files(odd)))
    return [ImageFont.truetype(others[t], size) if t in others else own for t in texts]


def literal(text: str, width: float) -> str:
    """A text that others wrote, such that matplotlib draws just that, on a line of at most `width`
    times the font's size.

    It would take what stands between two $ for mathematics, and leave a line out of the legend
    whose label is empty or begins with an underscore.
    """
    from PIL import ImageFont

    (path,) = font_files([one_line(text)])
    font, boxes = ImageFont.truetype(path, 100), visible(text) - letters_of(path)
    for most in range(int(4 * width), 0, -1):  # of the narrowest letters; others are fewer
        shown = one_line(text, most)
        if font.getlength(shown) + 100 * sum(ord(c) in boxes for c in shown) <= 100 * width:
            break
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown or "(no name)"


def dress(figure) -> None:
    """Gives each text of a matplotlib figure that its font cannot draw one that can."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text, path in zip(texts, font_files(text.get_text() for text in texts)):
        if path != usual_font():
            text.get_fontproperties().set_file(path)
