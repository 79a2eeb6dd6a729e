"""What UniGenBench asks of an image: its 27 testpoint dimensions and its prompt files.

Prompt files are the official ones (repository CodeGoat24/UniGenBench); what the dimensions mean is
in our own words, in dimensions.csv.

    prompts = load_prompts("test_prompts_en.csv")
    prompts[0].testpoints                                      # [("Style", "Drawn in ink."), ...]
"""

import csv
import io
import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common.files import write_atomic
from common.wording import listed, one_line

TABLE = Path(__file__).with_name("dimensions.csv").read_text(encoding="utf-8")  # the paper's order


class Dimension(NamedTuple):
    """A sub dimension: its label and what it means, in two languages."""

    en: str
    zh: str
    definition_en: str
    definition_zh: str
    subjects: str  # of prompts that can test it, as construct draws them

    def label(self, language: str) -> str:
        return self.zh if language == "zh" else self.en

    def definition(self, language: str) -> str:
        return self.definition_zh if language == "zh" else self.definition_en


def primary_of(sub: str) -> str:
    """The primary dimension of a sub dimension's English or Chinese label."""
    return sub.split("-")[0].strip()


def fold(label: str) -> str:
    return "".join(label.split()).casefold()


DIMENSIONS = {row["en"]: Dimension(**row) for row in csv.DictReader(TABLE.splitlines())}
SUBS = tuple(DIMENSIONS)  # 27
PRIMARIES = tuple(dict.fromkeys(map(primary_of, SUBS)))  # 10
CANONICAL = {
    fold(dimension.label(language)): (sub, language)
    for sub, dimension in DIMENSIONS.items()
    for language in ("en", "zh")
}


# ----------------------------------------------------------------------------- prompt files


class Prompt(NamedTuple):
    index: int
    text: str
    testpoints: list[tuple[str, str]]  # (sub dimension, English label; its description)
    theme: str  # as in the file: the official ones spell some sub-themes in two ways
    subtheme: str
    language: str  # "en" or "zh"


KEYS = {  # of sub_dims: theme, subtheme, testpoints, descriptions
    "Primary Categories": "一级垂类",
    "Secondary Categories": "二级垂类",
    "Testpoints": "考点",
    "Testpoint Description": "考点对应描述",
}


def language_of(label: str) -> str:
    """The language, "en" or "zh", of one of the 27 labels."""
    return CANONICAL[fold(label)][1]


def canonical(label: str) -> str:
    """The English label of an English or Chinese one. Raises ValueError if it is neither."""
    if not isinstance(label, str) or fold(label) not in CANONICAL:
        raise ValueError(f"'{label}' is none of the 27 testpoint labels")
    return CANONICAL[fold(label)][0]


def parse_json(text: str) -> tuple[dict, bool]:
    """An object, and whether one comma was missing between two strings and has been put in.

    Only `"..." "..."` and `] "..."` with a blank between is taken for a missing comma, only once.
    Raises ValueError for all else.
    """
    try:
        value, repaired = json.loads(text), False
    except json.JSONDecodeError as error:
        before, after = text[: error.pos], text[error.pos :]
        missing = error.msg.startswith("Expecting ',' delimiter") and after.startswith('"')
        if not (missing and re.search(r'["\]]\s+$', before)):
            raise ValueError(f"not valid JSON ({error})") from None
        try:
            value, repaired = json.loads(f"{before}, {after}"), True
        except json.JSONDecodeError:
            raise ValueError(f"not valid JSON ({error}); one more comma does not mend it") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value, repaired


def index_of(row: dict) -> int:
    if not re.fullmatch(r"\s*\d+\s*", row["index"]):
        raise ValueError(f"index '{row['index']}' is not a whole number")
    return int(row["index"])


def parse_row(row: dict, ending: str) -> tuple[Prompt, bool]:
    """One line of a prompt file, and whether its JSON had to be repaired. Raises ValueError.

    ending: of the names of its columns, "_en" or "_zh"; "": the labels tell the language
    """
    text = line_ends(row[f"prompt{ending}"]).strip()
    if not text:
        raise ValueError("empty prompt")
    fields, repaired = parse_json(row[f"sub_dims{ending}"])
    fields = {key.strip(): value for key, value in fields.items()}
    theme, subtheme, labels, descriptions = (
        fields.get(en, fields.get(zh)) for en, zh in KEYS.items()
    )
    if not isinstance(labels, list) or not isinstance(descriptions, list) or not labels:
        raise ValueError(
            "needs two lists, 'Testpoints' and 'Testpoint Description' (or 考点 and 考点对应描述)"
        )
    if len(labels) != len(descriptions):
        raise ValueError(f"{len(labels)} testpoints, but {len(descriptions)} descriptions")
    points = [(canonical(label), str(d).strip()) for label, d in zip(labels, descriptions)]
    themes = str(theme or ""), str(subtheme or "")
    language = ending[1:] or language_of(labels[0])
    return Prompt(index_of(row), text, points, *themes, language), repaired


def line_ends(text: str) -> str:
    """The text with \\n for Windows' line ends and old Macs': a prompt is known by its words."""
    return re.sub(r"\r\n?", "\n", text)


def read_table(path) -> tuple[list[str], list[tuple[int, dict]]]:
    """Names of the columns, and number and fields of each row of a CSV file; row 1 is the first
    below the header. Fields are as they were written, line ends and control characters included.

    A BOM and Windows line ends are all right, and rows of empty fields alone are left out.
    Raises ValueError if it is no such file, or one of its rows has not a field for each column.
    """
    csv.field_size_limit(2**31 - 1)  # a judge's answer may be long
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns, *rows = [*lines] or [[]]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV file of UTF-8 text with commas "
            f"and double quotes (line {lines.line_num}: {error}); save it as one"
        ) from None
    columns = [name.strip() for name in columns]
    if len(columns) == 1 and re.search(r"[;\t|]", columns[0]):
        raise ValueError(
            f"{path} has no commas between its columns: {columns[0][:60]!r}; save it with commas"
        )
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise ValueError(f"{path} has more than one column {listed(twice)}; leave one of them")
    rows = [(n, row) for n, row in enumerate(rows, 1) if any(field.strip() for field in row)]
    for number, row in rows:
        if len(row) != len(columns):
            raise ValueError(
                f"{path}, row {number}: {len(row)} fields, but the header has {len(columns)}; a "
                "field that holds a comma or a line end needs double quotes around it"
            )
    return columns, [(number, dict(zip(columns, row))) for number, row in rows]


def write_table(path, columns, rows) -> None:
    """A CSV file that read_table, csv and pandas read back to the last character.

    All texts are quoted: csv leaves a lone \\r as it is, at which readers would end the row.
    Half of a pair of surrogates, which UTF-8 cannot hold, becomes its escape, as JSON writes it.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode(errors="backslashreplace"))


def load_prompts(path) -> list[Prompt]:
    """The prompts of an official CSV file: index, prompt_en|prompt_zh|prompt, and sub_dims alike.

    A BOM, Windows line ends and English or Chinese keys are all right. A missing comma in a row's
    JSON is put in where only one reading is possible, with a warning that names the row.
    Raises ValueError that names the file, the row (1 is the first below the header) and the fault.
    """
    columns, rows = read_table(path)
    ending = next((end for end in ("_en", "_zh", "") if f"prompt{end}" in columns), "_en")
    missing = {"index", f"prompt{ending}", f"sub_dims{ending}"} - set(columns)
    if missing:
        raise ValueError(
            f"{path} lacks the column {listed(sorted(missing))}; it has: "
            f"{listed(columns, 9) or 'nothing'}"
        )
    prompts, first_row = [], {}
    for number, row in rows:
        try:
            prompt, repaired = parse_row(row, ending)
            if prompt.index in first_row:
                raise ValueError(f"the index stands in row {first_row[prompt.index]} too")
        except (ValueError, RecursionError) as error:
            row_name = f"row {number} (index {one_line(row['index'], 40)})"
            raise ValueError(f"{path}, {row_name}: {one_line(str(error), 300)}") from None
        if repaired:
            warnings.warn(
                f"{path}, row {number} (index {prompt.index}): put in a missing comma", stacklevel=2
            )
        first_row[prompt.index] = number
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} has no prompts below its header")
    return prompts


def write_prompts(prompts: list[Prompt], path) -> None:
    """The official prompt file of these prompts, which are of one language."""
    rows, language = [], prompts[0].language
    for p in prompts:
        subs, descriptions = zip(*p.testpoints)
        labels = [DIMENSIONS[sub].label(language) for sub in subs]
        keys = KEYS.values() if language == "zh" else KEYS
        fields = dict(zip(keys, (p.theme, p.subtheme, labels, descriptions)))
        rows.append([p.index, p.text, json.dumps(fields, ensure_ascii=False)])
    write_table(path, ["index", f"prompt_{language}", f"sub_dims_{language}"], rows)
