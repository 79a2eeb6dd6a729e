"""Text that others wrote, made fit for one line, and lists made fit for a sentence.

one_line("a\r\nb\x00")                                    # "a b": whatever stands in a file's name
listed(["0_0.png", "0_1.png", ...])                       # "0_0.png, 0_1.png, ... and 795 more"
reasons(["timeout after 60 s", "timeout after 61 s"])     # "2 such as timeout after 60 s"
"""

import re
import unicodedata
from collections.abc import Iterable

# A word with a digit, as of requests, times, ports, image names; but a status tells faults apart.
IDENTIFIER = re.compile(
    r"((?:HTTP(?:/[\d.]+)?|code|status|error)\W{0,3}\d{3}\b)|(?<![\w-])[\w-]*\d[\w-]*",
    re.IGNORECASE,
)
REPLACED = {"Cs": "\ufffd", "Cc": " ", "Zl": " ", "Zp": " "}  # by category


def columns_of(text: str) -> int:
    """How wide a text is on a line, in Latin letters: those of Chinese and emoji count as two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def one_line(text: str, most: int | None = None) -> str:
    """The text without line ends and control characters, and with a sign for half of a pair of
    surrogates, which no file could hold; in at most `most` columns, where need be without its
    middle, since names differ at their ends."""
    text = " ".join("".join(REPLACED.get(unicodedata.category(c), c) for c in text).split())
    if not most or columns_of(text) <= most:
        return text
    head, tail = text[:most], text[-most:]  # each character is a column at least
    while columns_of(head) > most * 2 // 3:
        head = head[:-1]
    while columns_of(head) + columns_of(tail) + 1 > most:
        tail = tail[1:]
    return f"{head}…{tail}"


def listed(items: Iterable, most: int = 5, separator: str = ", ") -> str:
    """The items for a sentence: the first ones, each on one line, and how many more there are."""
    items = list(items)
    shown = separator.join(one_line(str(item), 200) for item in items[:most])
    return shown + f" and {len(items) - most} more" * (len(items) > most)


def reasons(errors: Iterable[str]) -> str:
    """Why calls or files failed, for a sentence: the three most frequent kinds, with their counts.
    Of a kind are errors that differ in numbers and identifiers alone; its first stands for it."""
    kinds = {}
    for error in errors:
        kind = IDENTIFIER.sub(lambda match: match[1] or "#", one_line(error[:500]))
        kinds.setdefault(kind, []).append(error)
    groups = sorted(kinds.values(), key=len, reverse=True)
    shown = [
        f"{len(group)} {'x' if len(set(group)) == 1 else 'such as'} {one_line(group[0], 200)}"
        for group in groups[:3]
    ]
    if left := sum(map(len, groups[3:])):
        shown.append(f"{left} of other kinds")
    return "; ".join(shown)
