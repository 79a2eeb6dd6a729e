"""Result files: what a judge answered about each image, in the official evaluator's form.

They are read and written as they are. Of a row's scores what equals 1 is right and all else wrong,
"1" and 2 too, and a row in which JSON writes true, false or null is not judged, all as the official
scorer has it. One departure: a row that cannot be read, or has a score too few, is an error (there:
skipped, or cut short).

    results = read_results("results/flux.csv")
"""

import ast
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import stem_of, write_atomic
from common.wording import listed, one_line
from judges.answers import read_literal
from unigenbench.images import read_settings
from unigenbench.testpoints import (
    DIMENSIONS,
    Prompt,
    canonical,
    index_of,
    language_of,
    line_ends,
    read_table,
    write_table,
)


class Result(NamedTuple):
    """A judge's answer about one image. No scores and no output: the call failed, or no image."""

    index: int
    prompt: str
    subs: list[str]  # English labels
    image: str  # path
    scores: list[int] | None  # one 0 or 1 a testpoint; None: no judgment
    output: str = ""  # the judge's whole answer
    reasons: list[str] = []  # one a testpoint, or none
    descriptions: list[str] = []  # one a testpoint, or none: official files do not have them
    language: str = "en"
    model: str | None = None  # that the server said answered; of other files nobody knows

    @property
    def state(self) -> str:
        return "judged" if self.scores else "unparsable" if self.output else "failed"


COLUMNS = ("index", "prompt", "testpoint", "output", "result_json", "img_path")


def official_scores(text: str, count: int) -> list[int] | None:
    """One 0 or 1 for each of `count` testpoints, as the official scorer reads result_json.

    It reads a Python literal: None where only JSON has such words, true, false and null.
    Raises ValueError if there is no list of that length.
    """
    try:
        scores = ast.literal_eval(text).get("score")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not isinstance(scores, list) or len(scores) != count:
        raise ValueError(f"{scores!r} is not one score for each of {count} testpoints")
    return [int(value == 1) for value in scores]


def parse_result(row: dict) -> Result:
    """One line of a result file. Raises ValueError."""
    labels = read_literal(row["testpoint"])
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"testpoint is not a list of labels: {row['testpoint']!r}")
    subs = [canonical(label) for label in labels]
    judged = read_literal(row["result_json"] or "null")  # a failed judgment is stored as null
    judged = judged if isinstance(judged, dict) else {}
    scores = official_scores(row["result_json"], len(subs)) if judged else None
    model = judged.get("model")
    reasons, descriptions = (
        list(map(str, texts)) if isinstance(texts, list) and len(texts) == len(subs) else []
        for texts in (judged.get("analysis"), judged.get("description"))
    )
    return Result(
        index_of(row),
        line_ends(row["prompt"]).strip(),
        subs,
        row["img_path"],
        scores,
        row["output"],
        reasons,
        descriptions,
        language_of(labels[0]),
        model if isinstance(model, str) else None,
    )


def read_results(path) -> list[Result]:
    """The rows of an official result CSV, failed judgments included.

    Raises ValueError that names the row for a missing column, a list of too few scores, an unknown
    label, an image that stands there twice, or an index with two prompts.
    """
    columns, rows = read_table(path)
    if missing := set(COLUMNS) - set(columns):
        raise ValueError(f"{path} is no result file: it lacks {listed(sorted(missing))}")
    results, first_row, prompts = [], {}, {}
    for number, row in rows:
        try:
            result = parse_result(row)
            key, asked = (result.index, result.image), (result.prompt, result.subs)
            if key in first_row:
                raise ValueError(f"image {result.image} stands in row {first_row[key]} too")
            if prompts.setdefault(result.index, asked) != asked:
                raise ValueError(
                    f"another prompt or other testpoints than in a row above have "
                    f"the index {result.index}"
                )
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, row {number}: {one_line(str(error), 300)}") from None
        first_row[key] = number
        results.append(result)
    return results


def with_failed(results: list[Result], asked: dict[int, tuple], images: int) -> list[Result]:
    """The results, and a failed one for each image of a prompt that they lack.

    asked: text, English labels and language of each prompt, by its index
    """
    there = Counter(r.index for r in results)
    return results + [
        Result(index, text, subs, "", None, language=language)
        for index, (text, subs, language) in asked.items()
        for _ in range(images - there[index])
    ]


def with_dropped(results: list[Result]) -> list[Result]:
    """The results, and a failed one for each row that an evaluator dropped: every prompt should
    have as many as the one that has most."""
    most = max(Counter(r.index for r in results).values(), default=0)
    return with_failed(results, {r.index: (r.prompt, r.subs, r.language) for r in results}, most)


def complete(results: list[Result], prompts: list[Prompt], images: int) -> list[Result]:
    """The results, and a failed one for each of the prompts' images that they lack.

    Without the prompts nobody can tell from a result file that it lacks all images of one.
    Raises ValueError if the results are of other prompts.
    """
    asked = {p.index: (p.text, [sub for sub, _ in p.testpoints], p.language) for p in prompts}
    odd = [r for r in results if asked.get(r.index, ())[:2] != (r.prompt, r.subs)]
    if odd:
        raise ValueError(
            f"{len(odd)} results are not of this prompt set, the first of index {odd[0].index}"
        )
    return with_failed(results, asked, images)


def check_same_prompts(paths: list, results: list[list[Result]]) -> None:
    """Raises ValueError if the results of some of these files are of other prompts."""
    first, *others = ({r.index: (r.prompt, r.subs) for r in of_one} for of_one in results)
    for path, other in zip(paths[1:], others):
        odd = sorted(i for i in first.keys() | other.keys() if first.get(i) != other.get(i))
        if odd:
            raise ValueError(
                f"{paths[0]} and {path} are of different prompts ({len(odd)} differ, the first "
                f"with index {odd[0]}): take each by itself"
            )


def read_named(paths: list[Path]) -> dict[str, list[Result]]:
    """The results of each file by the file's name. Raises ValueError."""
    names = Counter(one_line(stem_of(path)) for path in paths)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"two result files have the same name, {listed(twice)}, which they are told apart by: "
            "rename one"
        )
    return dict(zip(names, map(read_results, paths)))


def read_models(paths: list[Path]) -> dict[str, list[Result]]:
    """The results of each file by the file's name, all of the same prompts. Raises ValueError."""
    results = read_named(paths)
    check_same_prompts(paths, [*results.values()])
    return results


def write_results(results: list[Result], path) -> None:
    """The official result CSV; reasons, descriptions and model go into its result_json."""
    rows = []
    for r in results:
        labels = [DIMENSIONS[sub].label(r.language) for sub in r.subs]
        judged = dict(prompt=r.prompt, testpoint=labels, description=r.descriptions)
        judged |= dict(analysis=r.reasons, score=r.scores)
        # None would be null, for which the official scorer drops the row.
        judged |= {"model": r.model} if r.model else {}
        text = json.dumps(judged if r.scores else None, ensure_ascii=False)
        rows.append([r.index, r.prompt, labels, r.output, text, r.image])
    write_table(path, COLUMNS, rows)


def models_of(results: Sequence[Result]) -> dict[str, int]:
    """How many of the judgments each model gave, by the names that a server gives."""
    return dict(Counter(r.model for r in results if r.model and r.scores))


def named_models(results: list[Result]) -> str:
    return listed(f"{one_line(name, 100)} ({n})" for name, n in models_of(results).items())


def judged_by(results: list[Result]) -> str:
    """A sentence that names the models, after another one; "" where nobody knows them."""
    named = named_models(results)
    return f" Judged by {named}." if named else ""


def check_judges(results: dict, allow_mixed: bool = False) -> None:
    """Raises ValueError if several models judged these files, known by name, unless allowed.

    APIs answer under one name with a model of another.
    """
    models = {model for of_one in results.values() for model in models_of(of_one)}
    if len(models) > 1 and not allow_mixed:
        known = {
            one_line(str(name)): said for name, r in results.items() if (said := named_models(r))
        }
        told = "; ".join(f"{name} by {said}" for name, said in known.items())
        raise ValueError(
            f"the judgments are of {len(models)} models, and scores of two judges are two scores "
            f"({told}): judge again with one of them, or take all with --allow_mixed_judges"
        )


def settings_path(results_path: Path) -> Path:
    """Where judge keeps the settings of its results: beside them."""
    return results_path.with_name(f"{stem_of(results_path)}.settings.json")


def files_read(paths: list[Path], results: dict[str, list[Result]]) -> list[Path]:
    """These result files, and what is read beside them: their settings and images."""
    images = [Path(r.image) for of_one in results.values() for r in of_one]
    return [*paths, *map(settings_path, paths), *images]


def settings_of(results_path: Path) -> dict:
    """The settings that judge wrote beside its results; {} for files of other origin."""
    return read_settings(settings_path(results_path))


def question_of(settings: dict) -> str:
    """Names the question, its first digits included, and how it was asked; "" if nobody knows."""
    asked = settings.get("question") or {}
    digests = ", ".join(digest[:8] for digest in asked.get("question_sha256", {}).values())
    form = f"; {asked['form']} form" if "form" in asked else ""
    return f"{asked['name']} ({digests}{form})" if asked else ""


def question_notes(paths: list[Path]) -> list[str]:
    """What is to be said where these results are not answers to one question."""
    asked = {one_line(str(path)): question_of(settings_of(path)) for path in paths}
    if len(set(asked.values())) < 2:
        return []
    told = "; ".join(f"{name}: {said or 'not known'}" for name, said in asked.items())
    return [f"These files answer different questions, from which differences may come: {told}."]


def write_settings(
    results_path: Path,
    judge: str,
    asked: dict,
    images: Path,
    results: Sequence[Result],
) -> None:
    """What these results were made with, beside them. asked: as question_record has it."""
    settings = {
        "judge": judge,
        "models": models_of(results),
        **asked,
        "images": read_settings(images / "settings.json") or None,
    }
    write_atomic(settings_path(results_path), json.dumps(settings, indent=2).encode())
