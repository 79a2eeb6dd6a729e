"""The published scores of UniGenBench, from board.csv, and one's own in their place.

published("en")["FLUX.1-dev"].primary["Style"]          # 85.0
board_rows("en", {"mine": score(results)}, {"mine": ("QwenVL", "no: another question")})
"""

import csv
from pathlib import Path
from typing import NamedTuple

from common.wording import listed
from unigenbench.questions import OFFICIAL
from unigenbench.results import Result, models_of, question_of
from unigenbench.scores import Scores
from unigenbench.tables import percent, text_table
from unigenbench.testpoints import PRIMARIES

BOARD = Path(__file__).with_name("board.csv")
SETS = ("en", "zh", "en_long", "zh_long")
PROMPTS = 600  # in each
FEW = 4  # published polygons in a chart
HEADER = ["Model", "Overall", "Judge", "Date", "Source", "Comparable", *PRIMARIES]
NOTE = (
    "The base model, FLUX.1-dev, has three published values for the short English prompts: 59.39, "
    "60.97 and 61.30. Differences of this size say nothing. One's own rows are comparable with the "
    "published ones only if the same judge was asked the same question."
)
AGAINST = (
    "(published): judged by the benchmark's authors, with their judge and the official question; a "
    "difference from the others may be the judge's or the question's as well as the model's."
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


def find_published(name: str, models: str) -> dict[str, Row]:
    """The rows of some published models, whose names are given with commas between.

    Raises ValueError for one that is not there, or that has only an overall score.
    """
    known, found = published(name), {}
    for model in filter(None, map(str.strip, models.split(","))):
        if not known.get(model) or not known[model].primary:
            whole = ", ".join(row.model for row in known.values() if row.primary) or "none"
            raise ValueError(f"no published dimensions of '{model}' for {name}; there are: {whole}")
        found[f"{model} (published)"] = known[model]
    return found


def set_of(results: dict[str, list[Result]]) -> str:
    """The short set in their language: results do not say which length their prompts have."""
    languages = {r.language for of_one in results.values() for r in of_one}
    return "zh" if languages == {"zh"} else "en"


def judged(name: str, results: list[Result], settings: dict) -> tuple[str, str]:
    """Who judged one's own results, and doubt of them; settings: of the results, or {}."""
    judge, question = settings.get("judge", ""), question_of(settings)
    return listed(models_of(results)) or judge, doubt(name, results, judge, question)


def doubt(name: str, results: list[Result], judge: str, question: str = "") -> str:
    """Why one's own results are not comparable with the published ones, or when they are.

    judge, question: as their settings say; "": nothing says so, as beside an official evaluator's
    file
    """
    prompts = len({r.index for r in results})
    if {r.language for r in results} != {name[:2]}:
        return "no: another language"
    if prompts != PROMPTS:
        return f"no: {prompts} of {PROMPTS} prompts"
    if not all(r.scores for r in results):
        return "no: not all was judged"
    if len(models_of(results)) > 1:
        return "no: several judges"
    if judge and not question.startswith(OFFICIAL):
        return "no: another question"
    return f"only with the same judge, {question or 'question'}"


def board_rows(
    name: str, own: dict[str, Scores], said: dict[str, tuple[str, str]]
) -> list[list[str]]:
    """Rows for HEADER, best first: what is published, and one's own scores by name.

    said: who judged each of one's own, and what doubt says of it
    """
    rows = [
        (row.overall, row.model, [row.judge or "not said", row.date, row.source, ""], row.primary)
        for row in published(name).values()
    ]
    for model, scores in own.items():
        judge, why = said[model]
        primary = {p: 100 * t.accuracy for p, t in scores.primary.items() if t.total}
        value = -1.0 if scores.overall is None else 100 * scores.overall
        rows.append((value, f"> {model}", [judge or "not said", "", "yours", why], primary))
    return [
        [
            model,
            percent(None if value < 0 else value / 100),
            *rest,
            *(percent(primary[p] / 100 if p in primary else None) for p in PRIMARIES),
        ]
        for value, model, rest, primary in sorted(rows, key=lambda row: -row[0])
    ]


def board_text(rows: list[list[str]]) -> str:
    """The board for a terminal: overall scores, then the dimensions of those that have them."""
    start = HEADER.index(PRIMARIES[0])
    whole = [[row[0], *row[start:]] for row in rows if any(cell != "-" for cell in row[start:])]
    tables = [text_table(HEADER[:start], [row[:start] for row in rows])]
    tables += [text_table([HEADER[0], *PRIMARIES], whole)] if whole else []
    return "\n\n".join([*tables, NOTE])


def nearest(name: str, own: dict[str, Scores]) -> dict[str, Row]:
    """The FEW published rows with all dimensions that are nearest to the best of one's own; the
    best ones where one has none."""
    best = max((100 * s.overall for s in own.values() if s.overall is not None), default=100)
    whole = [row for row in published(name).values() if row.primary]
    whole.sort(key=lambda row: abs(row.overall - best))
    return {f"{row.model} (published)": row for row in whole[:FEW]}
