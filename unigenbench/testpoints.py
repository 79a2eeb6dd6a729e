"""What UniGenBench asks of a picture: its 27 testpoint dimensions and its prompt files.

Prompt files are the official ones as they are (repository CodeGoat24/UniGenBench); definitions of
the dimensions are in our own words.

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
from common.wording import listed

# English label -> Chinese label, one-sentence definition in English and Chinese (our own words)
DIMENSIONS = {
    "Style": (
        "风格",
        "The picture has the named style, medium, technique or artist's manner.",
        "画面呈现所要求的风格、媒介、技法或艺术家手法。",
    ),
    "World Knowledge": (
        "世界知识",
        "What is named from the real world looks as people know it.",
        "提示词提到的现实事物符合公认的样子。",
    ),
    "Attribute - Color": (
        "属性-颜色",
        "The named thing has the named color.",
        "指定事物具有指定的颜色。",
    ),
    "Attribute - Shape": (
        "属性-形状",
        "The named thing has the named shape.",
        "指定事物具有指定的形状。",
    ),
    "Attribute - Size": (
        "属性-大小",
        "The named thing is as large, tall, long or thick as stated.",
        "指定事物的大小、高矮、长短或粗细与描述一致。",
    ),
    "Attribute - Quantity": (
        "属性-数量",
        "The number of the named things is exactly the stated one.",
        "指定事物的数量与描述完全一致。",
    ),
    "Attribute - Material": (
        "属性-材质",
        "The named thing is visibly made of the named material.",
        "指定事物看得出由指定材质构成。",
    ),
    "Attribute - Expression": (
        "属性-表情",
        "The face shows the named emotion, beyond doubt.",
        "面部明确表现出指定的情绪。",
    ),
    "Action - Full-body (Character/Anthropomorphic)": (
        "动作-人物/拟人全身动作",
        "The person or person-like figure does the named act, whole body.",
        "人物或拟人角色以全身做出指定动作。",
    ),
    "Action - Hand (Character/Anthropomorphic)": (
        "动作-人物/拟人手部动作",
        "The hands do what is stated, and are whole and well formed.",
        "手部做出指定动作，且结构完整、形态正常。",
    ),
    "Action - Animal": ("动作-动物动作", "The animal does the named act.", "动物做出指定动作。"),
    "Action - Contact Interaction": (
        "动作-实体间有接触互动",
        "The things touch and act on each other as stated.",
        "各实体按描述发生有接触的互动。",
    ),
    "Action - Non-contact Interaction": (
        "动作-实体间无接触互动",
        "The things respond to each other as stated without touching, as in a glance.",
        "各实体按描述发生无接触的互动，例如对视。",
    ),
    "Action - State": (
        "动作-状态",
        "The thing is in the lasting state that the verb names.",
        "事物处于动词所指的持续状态。",
    ),
    "Relationship - Comparison": (
        "关系-比较关系",
        "Compared as stated, one thing is more or less than the other.",
        "两者按描述相比，差别方向正确。",
    ),
    "Relationship - Composition": (
        "关系-构成关系",
        "The whole is made up of the named parts.",
        "整体由指定的部分构成。",
    ),
    "Relationship - Inclusion": (
        "关系-包含关系",
        "The named thing is in, or shown on, its container.",
        "指定事物位于容器之内，或画在其表面之中。",
    ),
    "Relationship - Similarity": (
        "关系-相似关系",
        "Different things resemble each other in the stated way.",
        "不同事物在描述的方面彼此相似。",
    ),
    "Logical Reasoning": (
        "逻辑推理",
        "The picture shows what follows from the prompt by reasoning.",
        "画面体现由提示词推理得出的结果。",
    ),
    "Grammar - Negation": (
        "语法-否定",
        "What the prompt excludes is absent.",
        "提示词否定的内容没有出现。",
    ),
    "Grammar - Pronoun Reference": (
        "语法-代词指代",
        "Each pronoun's act or trait is on the one that it refers to.",
        "代词所述的动作或特征落在其所指对象上。",
    ),
    "Grammar - Consistency": (
        "语法-统一性",
        "All the named things share the stated trait.",
        "所有指定事物都具有描述的共同特征。",
    ),
    "Compound - Imagination": (
        "复合考点-想象力",
        "The impossible thing described is shown, and hangs together.",
        "现实中不可能的描述内容得到完整呈现。",
    ),
    "Compound - Feature Matching": (
        "复合考点-不同实体特征匹配",
        "Each thing has its own traits, none of another's.",
        "每个实体具有各自的特征，没有混淆。",
    ),
    "Entity Layout - Two-Dimensional Space": (
        "实体布局-二维空间",
        "Left, right, above, below: places in the picture plane are as stated.",
        "画面平面上的左右、上下位置与描述一致。",
    ),
    "Entity Layout - Three-Dimensional Space": (
        "实体布局-三维空间",
        "In front, behind, nearer: places in depth are as stated.",
        "空间纵深中的前后、远近位置与描述一致。",
    ),
    "Text Generation": (
        "文本生成",
        "The stated words stand in the picture, with no letter missing or added.",
        "画面中文字与要求一致，不多不少。",
    ),
}


def primary_of(sub: str) -> str:
    """The primary dimension of a sub dimension's English or Chinese label."""
    return sub.split("-")[0].strip()


def fold(label: str) -> str:
    return "".join(label.split()).casefold()


SUBS = tuple(DIMENSIONS)
PRIMARIES = (
    "Style",
    "World Knowledge",
    "Attribute",
    "Action",
    "Relationship",
    "Logical Reasoning",
    "Grammar",
    "Compound",
    "Entity Layout",
    "Text Generation",
)  # the paper's order
CANONICAL = {
    fold(label): (en, language)
    for en, (zh, *_) in DIMENSIONS.items()
    for label, language in ((en, "en"), (zh, "zh"))
}
PRIMARY_ZH = {primary_of(en): primary_of(zh) for en, (zh, *_) in DIMENSIONS.items()}


# ----------------------------------------------------------------------------- prompt files


class Prompt(NamedTuple):
    index: int
    text: str
    testpoints: list[tuple[str, str]]  # (sub dimension, English label; its description)
    theme: str  # as in the file: the official ones spell some sub-themes in two ways
    subtheme: str
    language: str  # "en" or "zh"


KEYS = {
    "testpoints": ("Testpoints", "考点"),
    "descriptions": ("Testpoint Description", "考点对应描述"),
    "theme": ("Primary Categories", "一级垂类"),
    "subtheme": ("Secondary Categories", "二级垂类"),
}


def language_of(label: str) -> str:
    """ "en" or "zh", for one of the 27 labels."""
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
    repaired = False
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        before, after = text[: error.pos], text[error.pos :]
        blank = before != before.rstrip()
        if not (
            error.msg.startswith("Expecting ',' delimiter")
            and blank
            and before.rstrip()[-1:] in ('"', "]")
            and after.startswith('"')
        ):
            raise ValueError(f"not valid JSON ({error})") from None
        try:
            value, repaired = json.loads(before.rstrip() + ", " + after), True
        except json.JSONDecodeError:
            raise ValueError(f"not valid JSON ({error}); one more comma does not mend it") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value, repaired


def parse_row(row: dict, ending: str) -> tuple[Prompt, bool]:
    """One line of a prompt file, and whether its JSON had to be repaired. Raises ValueError.

    ending: of the names of its columns, "_en" or "_zh"; "": the labels tell the language
    """
    text = line_ends(row[f"prompt{ending}"]).strip()
    if not text:
        raise ValueError("empty prompt")
    if not re.fullmatch(r"\s*\d+\s*", row["index"]):
        raise ValueError(f"index '{row['index']}' is not a whole number")
    fields, repaired = parse_json(row[f"sub_dims{ending}"])
    fields = {key.strip(): value for key, value in fields.items()}
    found = {
        name: next((fields[key] for key in keys if key in fields), None)
        for name, keys in KEYS.items()
    }
    labels, descriptions = found["testpoints"], found["descriptions"]
    if not isinstance(labels, list) or not isinstance(descriptions, list) or not labels:
        raise ValueError(
            "needs two lists, 'Testpoints' and 'Testpoint Description' (or 考点 and 考点对应描述)"
        )
    if len(labels) != len(descriptions):
        raise ValueError(f"{len(labels)} testpoints, but {len(descriptions)} descriptions")
    points = [(canonical(label), str(d).strip()) for label, d in zip(labels, descriptions)]
    return Prompt(
        int(row["index"]),
        text,
        points,
        str(found["theme"] or ""),
        str(found["subtheme"] or ""),
        ending[1:] or language_of(labels[0]),
    ), repaired


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
        except ValueError as error:
            raise ValueError(f"{path}, row {number} (index {row['index']}): {error}") from None
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
    """The official English prompt file of these prompts."""
    rows = []
    for p in prompts:
        subs, descriptions = zip(*p.testpoints)
        values = {
            "theme": p.theme,
            "subtheme": p.subtheme,
            "testpoints": subs,
            "descriptions": descriptions,
        }
        fields = {KEYS[name][0]: value for name, value in values.items()}
        rows.append([p.index, p.text, json.dumps(fields, ensure_ascii=False)])
    write_table(path, ["index", "prompt_en", "sub_dims_en"], rows)
