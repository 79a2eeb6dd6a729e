"""What a judge is asked about two images, or about one; and questions of one's own.

What they show as the form is no answer itself: a judge that repeats its question has given none.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

PAIRWISE_TEMPLATE = """\
You are given two images, Image 1 and Image 2 (in this order), that were made from the same caption.

Caption: {prompt}

Decide which of them is better. Look first at how well each follows the caption: objects, counts,
colors, places, actions, text. Then look at errors of form, and last at how good it looks.
The order in which the images are shown means nothing.
Explain your reasons in a few sentences. Then finish with your verdict between <answer> and
</answer>, which is, word for word, exactly one of these three:
Image 1 is better
Image 2 is better
Both are equal
"""

POINTWISE_TEMPLATE = """\
You are given one image that was made from a caption.

Caption: {prompt}

Score it on three scales from 1 (worst) to 5 (best), fractions welcome: alignment (does it show what
the caption says?), coherence (is it free of errors of form?) and style (does it look good?).
Finish with exactly these three lines, with your numbers in place of X:
Alignment Score (1-5): X
Coherence Score (1-5): X
Style Score (1-5): X
"""


def read_template(path: str | Path, flag: str) -> str:
    """The file word for word, line breaks included. Raises ValueError if it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{flag} '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{flag} '{path}' is not UTF-8 text ({why})") from None


def check_template(
    text: str, where: str, names: Sequence[str], needs: Sequence[str] = (), formatted: bool = False
) -> None:
    """Raises ValueError, in one sentence, for a template in which not all would be filled in.

    where: what the sentence calls it. names: the placeholders that it may have; the first must
    stand there, and one of needs. formatted: it is a format string, in which {{ is a brace; else
    all but {name} is taken word for word, so that JSON may stand there as it is.
    """
    lone = text.count("{") != text.count("}")
    fields = re.findall(r"(?<!\{)\{(\s*\w*(?:[.:!\[][^\s{}\"']*)?\s*)\}(?!\})", text)
    if formatted:
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
            fields = [
                n + f"!{how}" * bool(how) + f":{form}" * bool(form) for _, n, form, how in parts
            ]
        except ValueError:
            lone = True
    if lone:
        twice = " (one that is meant as such is written twice, {{ or }})" if formatted else ""
        raise ValueError(f"{where} has a brace that is opened or closed alone{twice}")
    if odd := [field for field in fields if field not in names]:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"{where} has a placeholder other than {known}: {{{odd[0]}}}")
    for group in (names[:1], needs):
        if group and not set(group) & set(fields):
            lacks = " or ".join(f"{{{name}}}" for name in group)
            twice = "; between two braces it is none" if f"{{{{{group[0]}}}}}" in text else ""
            raise ValueError(f"{where} lacks {lacks}, where what is to be judged is put{twice}")
