"""UniGenBench as a tool: prompts -> images -> judged testpoints -> scores -> report.

    python bench.py                               # all of it, on the tiny FLUX that ships here
    torchrun --nproc_per_node 8 bench.py generate --model M --prompts en --out IMAGES
    python bench.py judge --prompts en --images IMAGES --judge openai --base_url URL --out R.csv
    python bench.py quality IMAGES --prompts en --scorers clip,pickscore,hpsv2,aesthetic
    python bench.py score R.csv [OTHER.csv] [--json S.json]            # two files: compares them
    python bench.py report R.csv [OTHER.csv ...] --out report.html
    python bench.py agree A.csv B.csv [C.csv ...] [--out agree.html]   # judges of the same images
    python bench.py board [R.csv ...] [--prompts en] [--out board.png] # among published scores
    python bench.py construct --judge openai --base_url URL --count N --out PROMPTS.csv

A prompt demands a few testpoints. A judge, an MLLM, sees one of its four images and is asked one
`question` about all of them; `parse_scores` reads a 0 or 1 for each from the answer; `overall` is
what the benchmark makes of these. How stands in unigenbench/; each step goes on where it stopped.
Prompts: shapes, own (assets/prompts_en.csv), the official en, zh, en_long, zh_long, or a file.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036, so that an older one ends in a sentence
    raise SystemExit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

from unigenbench.interrupt import interruptible, stopped

if __name__ == "__main__":
    interruptible("bench.py")  # also while the libraries below load

import logging
import os
from collections import defaultdict
from pathlib import Path

from common.files import check_outputs, journal_of, stem_of
from common.wording import one_line
from judges.answers import parse_scores  # noqa: F401, a reader looks for it here
from judges.make import make_judge, parse_extra
from judges.mllm import MLLM
from judges.sight import check_sight
from judges.templates import read_template
from shapes.server import ClassroomMLLM
from unigenbench import tables
from unigenbench.agree import agreement_table, agreement_text, image_notes, write_agreement
from unigenbench.asking import judge_images, pace_of
from unigenbench.board import board_rows, board_text, find_published, judged, nearest, set_of
from unigenbench.construct import write_sets
from unigenbench.flags import check_flags, make_parser
from unigenbench.generate import draw_one, generate
from unigenbench.images import IMAGES, Layout
from unigenbench.official import FORMS, Official, read_official
from unigenbench.quality import quality
from unigenbench.questions import question, question_record  # noqa: F401, the first for readers
from unigenbench.report import files_of, polygons, radar, write_report
from unigenbench.results import (
    Result,
    check_judges,
    check_same_prompts,
    complete,
    files_read,
    judged_by,
    question_notes,
    read_models,
    read_named,
    read_results,
    settings_of,
    settings_path,
    with_dropped,
    write_results,
    write_settings,
)
from unigenbench.scores import Scores, compare, coverage_of, scores_of, write_scores
from unigenbench.sets import PROMPT_FILES, find_prompts
from unigenbench.testpoints import (  # noqa: F401, the second and third for readers
    PRIMARIES,
    Prompt,
    load_prompts,
    primary_of,
)

HERE = Path(__file__).parent


def overall(results: list[Result], strict: bool = False) -> float | None:
    """UniGenBench's score, 0 to 1; None if nothing was judged.

    A testpoint is 0 or 1. Testpoints weigh alike within a primary dimension, and so do the primary
    dimensions that there are. strict: what was not judged counts as wrong, not as nothing.
    """
    values = defaultdict(list, {name: [] for name in PRIMARIES})  # added in the paper's order
    for result in results:
        unjudged = [0] * len(result.subs) if strict else []
        for sub, value in zip(result.subs, result.scores or unjudged):
            values[primary_of(sub)].append(value)
    shares = [sum(v) / len(v) for v in values.values() if v]
    return sum(shares) / len(shares) if shares else None


def score(results: list[Result]) -> Scores:
    """The score, each dimension's, their 95 % intervals, and how much was judged.

    Rows that an evaluator dropped count as failed. Raises ValueError if there is nothing to score.
    """
    results = with_dropped(results)
    return scores_of(results, overall(results), overall(results, strict=True))


# ----------------------------------------------------------------------------- commands


def judge_of(args, official: Official | None = None) -> MLLM:
    names = ("max_tokens", "concurrency", "timeout", "patience", "temperature")
    limits = {name: getattr(args, name) for name in names}
    limits |= FORMS[official.form] if official else {}
    limits["others"] = limits.get("others", {}) | parse_extra(args.judge_extra)
    # For shapes the verifier, beside which a phrase book writes what construct asks for.
    return make_judge(args.judge, args.base_url, args.judge_model, shapes=ClassroomMLLM, **limits)


def run_generate(args) -> int:
    how = dict(model=args.model, lora=args.lora, steps=args.steps, guidance=args.guidance)
    how |= dict(size=args.size, offload=args.offload)
    if args.prompt:
        draw_one(args.prompt, args.out, **how)
        return 0
    prompts = find_prompts(args.prompts)[: args.limit]
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    generate(prompts, args.out, **how, rank=rank, ranks=ranks, images=args.images_per_prompt)
    return 0


def run_judge(args) -> int:
    prompts, out = find_prompts(args.prompts), Path(args.out)
    template = read_template(args.template, "--template") if args.template else None
    official = read_official(args.official, args.official_form, args.judge_model)
    asked = question_record(prompts[: args.limit], template, official)
    layout = Layout(args.images_per_prompt, args.image_suffix)
    journal, mllm = journal_of(out), judge_of(args, official)
    new = args.judge != "shapes" and not journal.exists()
    if new and (warning := check_sight(mllm, pairs_first=False)):
        print(f"warning: {warning}", file=sys.stderr)
    how = dict(template=template, official=official, limit=args.limit, layout=layout)
    how |= pace_of(args.judge, args.concurrency, args.patience, bool(official))
    results = judge_images(mllm, prompts, args.images, journal, **how)
    write_results(results, out)
    made = asked | {"images_per_prompt": layout.per_prompt}
    write_settings(out, mllm.name, made, Path(args.images), results)
    coverage = coverage_of(results)
    print(tables.coverage_line(coverage) + judged_by(results))
    return 0 if coverage.judged else 1


def run_quality(args) -> int:
    prompts, layout = find_prompts(args.prompts), Layout(args.images_per_prompt, args.image_suffix)
    text, whole = quality(prompts, args.scorers, args.images, args.out, layout, limit=args.limit)
    print(text)
    return 0 if whole else 1


def run_score(args) -> int:
    paths = [Path(p) for p in (args.results, args.other) if p]
    if args.json:
        prompts = PROMPT_FILES.get(args.prompts, args.prompts or "")
        read = [*paths, *map(settings_path, paths), prompts]
        check_outputs([args.json], read)
    results = [read_results(p) for p in paths]
    check_judges(dict(zip(paths, results)), args.allow_mixed_judges)
    if args.prompts:
        prompts = find_prompts(args.prompts)
        many = [settings_of(p).get("images_per_prompt", IMAGES) for p in paths]
        many = [args.images_per_prompt or n for n in many]
        results = [complete(r, prompts, n) for r, n in zip(results, many)]
    scores = [score(r) for r in results]
    for note in question_notes(paths):
        print(note)
    for path, s, r in zip(paths, scores, results):
        print(f"{one_line(str(path))}: {tables.coverage_line(s.coverage)}{judged_by(r)}")
    if len(paths) == 2:
        check_same_prompts(paths, results)
        header = ["Dimension", *(one_line(stem_of(p)) for p in paths), *tables.COMPARE_HEADER]
        print(tables.text_table(header, tables.compare_rows(scores, compare(*results))))
    else:
        print(tables.text_table(tables.SCORE_HEADER, tables.score_rows(scores[0])))
    if args.json:
        write_scores(scores[0], args.json, results[0][0].language, settings_of(paths[0]))
    whole = all(s.coverage.judged == s.coverage.expected for s in scores)
    return 0 if whole or args.allow_partial else 1


def run_report(args) -> int:
    paths, out = [Path(p) for p in args.results], Path(args.out)
    results = read_models(paths)
    check_outputs(files_of(out), files_read(paths, results))
    check_judges(results, args.allow_mixed_judges)
    against = find_published(args.prompts or set_of(results), args.against)
    scores = {name: score(r) for name, r in results.items()}
    write_report(results, scores, out, against, question_notes(paths))
    print(f"open {one_line(args.out)}")
    return 0


def run_agree(args) -> int:
    paths = [Path(p) for p in (args.first, *args.others)]
    results = read_named(paths)
    check_outputs([args.out] if args.out else [], files_read(paths, results))
    table = agreement_table(results, [*question_notes(paths), *image_notes(paths)])
    print(agreement_text(*table))
    if args.out:
        write_agreement(results, table, Path(args.out))
        print(f"open {one_line(args.out)}")
    return 0


def run_board(args) -> int:
    paths = [Path(p) for p in args.results]
    check_outputs([args.out] if args.out else [], [*paths, *map(settings_path, paths)])
    results = read_named(paths)
    name = args.prompts or set_of(results)
    scores = {model: score(r) for model, r in results.items()}
    made = map(settings_of, paths)
    said = {model: judged(name, r, s) for (model, r), s in zip(results.items(), made)}
    print(board_text(board_rows(name, scores, said)))
    if args.out:
        radar(polygons(scores, nearest(name, scores)), args.out)
        print(f"open {one_line(args.out)}")
    return 0


def run_construct(args) -> int:
    how = dict(seed=args.seed, language=args.language, patience=args.patience)
    return 1 if write_sets(judge_of(args), args.count, args.out, args.long, **how) else 0


# python bench.py is these four commands; 6 steps are what the tiny FLUX is trained with.
DEFAULT = (
    "generate --prompts shapes --model {model} --steps 6 --out {folder}/images",
    "judge --prompts shapes --images {folder}/images --out {folder}/results.csv",
    "score {folder}/results.csv --json {folder}/scores.json",
    "report {folder}/results.csv --out {folder}/report.html",
)


def run_default() -> int:
    model = os.path.relpath(HERE / "assets" / "tiny-flux")
    return max(
        run([word.format(model=model, folder="runs/bench") for word in line.split()])
        for line in DEFAULT
    )


COMMANDS = dict(generate=run_generate, judge=run_judge, score=run_score, report=run_report)
COMMANDS |= dict(agree=run_agree, board=run_board, construct=run_construct, quality=run_quality)


def run(argv: list[str]) -> int:
    """One step; its exit status."""
    args = make_parser().parse_args(argv)
    check_flags(args)
    return COMMANDS[args.command](args)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bench").setLevel(logging.INFO)
    try:
        raise SystemExit(run(sys.argv[1:]) if sys.argv[1:] else run_default())
    except (ValueError, OSError, ArithmeticError) as error:
        raise SystemExit(f"bench.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(stopped("bench.py")) from None


if __name__ == "__main__":
    main()
