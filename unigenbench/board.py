"""The published scores of UniGenBench, from board.csv, and one's own in their place.

published("en")["FLUX.1-dev"].primary["Style"]          # 85.0
board_rows("en", {"mine": score(results)}, {"mine": "openai:QwenVL"})
"""

import csv
from pathlib import Path
from typing import NamedTuple

from unigenbench.scores import Scores
from unigenbench.tables import percent
from unigenbench.testpoints import PRIMARIES

BOARD = Path(__file__).with_name("board.csv")
SETS = ("en", "en_long", "zh", "zh_long")
HEADER = ["Model", "Overall", *PRIMARIES, "Judge", "Date", "Source", "Comparable"]
NOTE = (
    "The base model alone stands here with three published values, 59.39, 60.97 and 61.30: "
    "differences of this size say nothing. One's own rows are comparable with the published ones "
    "only if the same judge was asked the same question."
)


class Row(NamedTuple):
    """One published line; scores are in percent."""

    model: str
    overall: float
    primary: dict[str, float]  # of the ten, or empty where only the overall score is published
    judge: str
    date: str
    source: str


def published(name: str) -> dict[str, Row]:
    """By model, best first. name: one of SETS."""
    with open(BOARD, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["set"] == name]
    rows = [
        Row(
            line["model"],
            float(line["overall"]),
            {p: float(line[p]) for p in PRIMARIES if line[p]},
            *(line[key] for key in ("judge", "date", "source")),
        )
        for line in lines
    ]
    return {row.model: row for row in sorted(rows, key=lambda row: -row.overall)}


def find_published(name: str, models: str) -> dict[str, dict[str, float]]:
    """The dimensions of some published models, whose names are given with commas between.

    Raises ValueError for one that is not there, or that has only an overall score.
    """
    known, found = published(name), {}
    for model in filter(None, map(str.strip, models.split(","))):
        if not known.get(model) or not known[model].primary:
            whole = ", ".join(row.model for row in known.values() if row.primary) or "none"
            raise ValueError(f"no published dimensions of '{model}' for {name}; there are: {whole}")
        found[f"{model} (published)"] = known[model].primary
    return found


def board_rows(name: str, own: dict[str, Scores], judges: dict[str, str]) -> list[list[str]]:
    """Rows for HEADER, best first: what is published, and one's own scores by name.

    judges: who judged each of one's own, "" where nobody says.
    """
    rows = [
        (row.overall, row.model, row.primary, [row.judge or "not said", row.date, row.source, ""])
        for row in published(name).values()
    ]
    for model, scores in own.items():
        primary = {p: 100 * t.accuracy for p, t in scores.primary.items() if t.total}
        judge = judges.get(model) or "not said"
        why = "no: another question" if judges.get(model) else "only with the same judge, question"
        if scores.coverage.judged < scores.coverage.expected:
            why = "no: not all was judged"
        value = -1.0 if scores.overall is None else 100 * scores.overall
        rows.append((value, f"> {model}", primary, [judge, "", "yours", why]))
    rows.sort(key=lambda row: -row[0])
    return [
        [
            model,
            percent(None if value < 0 else value / 100),
            *(percent(primary[p] / 100 if p in primary else None) for p in PRIMARIES),
            *rest,
        ]
        for value, model, primary, rest in rows
    ]
