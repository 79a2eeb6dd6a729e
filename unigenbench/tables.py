"""Scores as tables of text: rows of cells, and their print on a terminal and in Markdown.

print(text_table(SCORE_HEADER, score_rows(score(results))))
print(text_table(["Dimension", "a", "b", *COMPARE_HEADER], compare_rows(scores, difference)))
"""

import numpy as np

from unigenbench.scores import OVERALL, Coverage, Scores
from unigenbench.testpoints import PRIMARIES, SUBS, primary_of

SCORE_HEADER = ["Dimension", "Accuracy", "95 % interval", "Correct", "Strict"]
COMPARE_HEADER = ["Difference", "95 % interval", "Strict difference"]
LABELS = {}  # of the lines of a table, by name: each primary dimension, and below it its subs
for _sub in SUBS:
    LABELS[primary_of(_sub)] = primary_of(_sub)
    LABELS.setdefault(_sub, "- " + _sub.partition(" - ")[2])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def range_text(bounds: tuple[float, float] | None, number: str, scale: float = 1) -> str:
    return "-" if bounds is None else " to ".join(number.format(scale * end) for end in bounds)


def percent_range(interval: tuple[float, float] | None) -> str:
    return range_text(interval, "{:.2f}", 100)


def coverage_line(c: Coverage) -> str:
    """How much was judged; starts with INCOMPLETE unless everything was."""
    whole = "" if c.judged == c.expected else "INCOMPLETE. "
    return (
        f"{whole}Testpoints: {c.expected} expected, {c.judged} judged, "
        f"{c.unparsable} unparsable, {c.failed} failed or missing."
    )


def overall_name(scores: Scores) -> str:
    """Overall, and over how many primary dimensions where that is not all of them."""
    n = len(scores.primary)
    return "Overall" if n == len(PRIMARIES) else f"Overall (mean over {n} of {len(PRIMARIES)})"


def score_rows(scores: Scores) -> list[list[str]]:
    """Dimension, accuracy, 95 % interval, correct/judged, strict accuracy; absent ones say so."""
    rows = []
    for name, label in LABELS.items():
        tally, cells = scores.primary.get(name) or scores.sub.get(name), ["absent", "", "", ""]
        if tally:
            accuracy = percent(tally.accuracy), percent_range(tally.interval)
            cells = [*accuracy, f"{tally.correct}/{tally.total}", percent(tally.strict)]
        rows.append([label, *cells])
    overall = (percent(scores.overall), percent_range(scores.interval), "", percent(scores.strict))
    return [*rows, [overall_name(scores), *overall]]


def compare_rows(scores: list[Scores], difference: dict) -> list[list[str]]:
    """Dimension, accuracy of both, second minus first, its paired interval, strict difference.

    All in percent. Only dimensions that both were judged on have a row.
    """
    rows = []
    for name, label in [*LABELS.items(), (OVERALL, overall_name(scores[0]))]:
        if name in difference:
            point, low, high = difference[name]
            tallies = [s.primary.get(name) or s.sub.get(name) for s in scores]
            both = [s.overall if name == OVERALL else t.accuracy for s, t in zip(scores, tallies)]
            a, b = [s.strict if name == OVERALL else t.strict for s, t in zip(scores, tallies)]
            bound = "-" if np.isnan(low) else f"{100 * low:+.2f} to {100 * high:+.2f}"
            rows.append(
                [label, *map(percent, both), f"{100 * point:+.2f}", bound, f"{100 * (b - a):+.2f}"]
            )
    return rows


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells):
        first, *others = (
            f"{cell:{'>' if n else '<'}{width}}"
            for n, (cell, width) in enumerate(zip(cells, widths))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join(map(line, (header, *rows)))


def markdown_table(header: list[str], rows: list[list[str]], notes=()) -> str:
    """A table, the first column to the left and the others to the right, and a paragraph a note."""

    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    rule = "|---|" + "---:|" * (len(header) - 1) + "\n"
    return line(header) + rule + "".join(map(line, rows)) + "".join(f"\n{note}\n" for note in notes)
