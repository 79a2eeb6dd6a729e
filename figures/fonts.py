"""Fonts that draw a text: Pillow draws a box, and says nothing, for each letter that its font
lacks; its own font lacks all but English.

No font is shipped or downloaded. Matplotlib brings one (Latin, Greek, Cyrillic, Arabic); where it
lacks a letter, the installed ones are looked through. What none of them has is said once.

    headings = pillow_fonts(["before", "之前"], size=12)
    dress(figure)                                               # every text of a matplotlib figure
"""

import functools
import logging
import re
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from common.wording import listed, one_line

log = logging.getLogger(__name__)

# Fonts that have a picture for everything, or colors that Pillow leaves blank; and cuts that are
# taken only where no plain one will do.
USELESS = re.compile("lastresort|blank|color", re.IGNORECASE)
FANCY = re.compile("bold|black|italic|oblique|light|thin|serif|mono", re.IGNORECASE)
warned = set()  # scripts of which it was said that they cannot be drawn


def visible(text: str) -> set[int]:
    """The characters that need a glyph: not spaces, controls, joiners and variation selectors."""
    return {
        ord(c)
        for c in text
        if not (c.isspace() or unicodedata.category(c) in ("Cc", "Cf") or "\ufe00" <= c <= "\ufe0f")
    }


@functools.cache
def letters_of(font: str | bytes) -> frozenset[int]:
    """The characters of a font, a file or what stands in one; none if it cannot be drawn."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(BytesIO(font) if isinstance(font, bytes) else font)
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (OSError, RuntimeError):  # damaged, or of a kind that the library does not know
        return frozenset()


@functools.cache
def installed() -> list[str]:
    """Font files: the one that matplotlib takes unless told otherwise, then the system's, plain
    ones first."""
    from matplotlib import font_manager

    found = [
        (bool(FANCY.search(Path(path).name)), path)
        for path in font_manager.findSystemFonts()
        if not USELESS.search(Path(path).name)
    ]
    usual = font_manager.findfont(font_manager.FontProperties())
    return [usual, *(path for _, path in sorted(found))]


def font_file(text: str) -> str:
    """The first font file that draws all of a text, else the one that draws the most; of what that
    one lacks each script is warned of once."""
    wanted, files = visible(text), installed()
    for path in files:  # no further ones are read than must be
        if wanted <= letters_of(path):
            return path
    best = min(files, key=lambda path: len(wanted - letters_of(path)))
    lost = {unicodedata.name(chr(c), "?").split()[0]: chr(c) for c in wanted - letters_of(best)}
    new = sorted(lost.keys() - warned)
    warned.update(new)
    if new:
        log.warning(
            "boxes stand in figures for %s: no installed font has all letters of such a text; "
            "Debian's fonts-noto-cjk, for one, has those of Chinese, Japanese and Korean",
            listed(f"{lost[script]} ({script})" for script in new),
        )
    return best


def pillow_fonts(texts: Sequence[str], size: float) -> list:
    """For each text a Pillow font that draws it: Pillow's own for English."""
    from PIL import ImageFont

    own = ImageFont.load_default(size)
    english = letters_of(own.font_bytes)
    odd = lambda text: visible(text) - english
    return [ImageFont.truetype(font_file(t), size) if odd(t) else own for t in texts]


def literal(text: str, width: float) -> str:
    """A text that others wrote, such that matplotlib draws just that, on a line of at most `width`
    times the font's size.

    It would take what stands between two $ for mathematics, and leave a line out of the legend
    whose label is empty or begins with an underscore.
    """
    from PIL import ImageFont

    path = font_file(one_line(text))
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

    for text in figure.findobj(Text):
        if text.get_text() and (path := font_file(text.get_text())) != installed()[0]:
            text.get_fontproperties().set_file(path)
