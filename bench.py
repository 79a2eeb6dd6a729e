"""UniGenBench as a tool: prompts -> images -> judged testpoints -> scores -> report.

    python bench.py                               # all of it, on the embedded default
    torchrun --nproc_per_node 8 bench.py generate --model M --prompts en --out IMAGES
    python bench.py judge --prompts en --images IMAGES --judge openai --base_url URL --out R.csv
    python bench.py score R.csv [OTHER.csv] [--json S.json]            # two files: compares them
    python bench.py report R.csv [OTHER.csv ...] --out report.html
    python bench.py construct --judge openai --base_url URL --count N --out PROMPTS.csv

Prompts: shapes (the embedded world), own (assets/prompts_en.csv), en, zh, en_long, zh_long (the
official files, looked for in data/), or a file. testpoints.py says what is asked, judge.py asks,
results.py says what a score is and where it departs from the official scripts. Every step takes up
where it stopped: images that open and answers that can be read are kept.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import report
import shapes
from construct import construct
from judge import IMAGES, image_name, judge_images, opens
from mllm import MLLM, LocalMLLM, OpenAIMLLM
from results import (SCORE_HEADER, Result, compare, compare_rows, coverage_line, read_results,
                     score, score_rows, write_results, write_scores)
from testpoints import (PRIMARIES, Prompt, load_prompts, parse_scores, question,
                        write_prompts)

HERE = Path(__file__).parent
PROMPT_FILES = {"own": HERE / "assets" / "prompts_en.csv",
                **{name: Path("data") / f"test_prompts_{name}.csv"
                   for name in ("en", "zh", "en_long", "zh_long")}}
FIRST_SEED = 3407  # of the released code: images 0..3 of every prompt have seeds 3407..3410


def find_prompts(name: str) -> list[Prompt]:
    """The prompts of a known set or of a file. Raises ValueError if there is no such file."""
    if name == "shapes":
        return [Prompt(i, p.text, list(p.testpoints), "Shapes", p.kind, "en")
                for i, p in enumerate(shapes.heldout_prompts())]
    path = PROMPT_FILES.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"no prompt file '{path}'; sets: shapes, {', '.join(PROMPT_FILES)}. The "
                         "official files are in data/ of github.com/CodeGoat24/UniGenBench")
    return load_prompts(path)


# ----------------------------------------------------------------------------- generate

class Sampling(NamedTuple):
    """Everything besides the model's files that decides an image's bytes."""
    model: str
    lora: str | None
    steps: int  # the official script: 30
    guidance: float  # the official script: 3.5
    size: int  # pixels, square; the official script: 1024
    shift: float  # of the noise schedule
    seeds: tuple[int, ...]  # of a prompt's images
    device: str
    dtype: str
    versions: dict[str, str]


def keep_settings(folder: Path, settings: dict) -> None:
    """Write settings.json, or check that images already there were made with the same settings.

    Raises ValueError if they were made with others, or nobody knows with which.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    images = any(folder.glob("*.png"))  # looked for first: another process may be starting as well
    if path.is_file():
        old, new = json.loads(path.read_text()), json.loads(json.dumps(settings))
        odd = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in old | new if old.get(k) != new.get(k)]
        if odd:
            raise ValueError(f"{folder} holds images of other settings ({'; '.join(odd)}); "
                             "choose another --out")
    elif images:
        raise ValueError(f"{folder} holds images, but no settings.json says how they were made; "
                         "choose another --out")
    else:
        report.write_atomic(path, json.dumps(settings, indent=2).encode())


def generate(prompts: list[Prompt], out, model: str, lora=None, steps=30, guidance=3.5, size=None,
             rank=0, ranks=1) -> None:
    """Four PNG a prompt into `out`; this process makes every `ranks`-th prompt.

    The images of one prompt are one batch, always: its shape decides the order of floating-point
    sums, so no other batch gives the same bytes. For the same reason each process on a CPU uses
    one thread.
    size: pixels; by default what the model was made for (FLUX.1-dev 1024, the tiny one 32)
    """
    import diffusers
    import torch

    from base import flux
    import sampler

    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    if not cuda:
        torch.set_num_threads(1)
    pipe = flux.load(model, device, torch.bfloat16 if cuda else torch.float32)
    if lora:
        pipe.load_lora_weights(lora)
    size = size or pipe.vae.config.sample_size
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + IMAGES))
    noise = flux.initial_noise(pipe, size, size, list(seeds))
    shift = flux.schedule_shift(pipe, noise.shape[1])
    out = Path(out)
    keep_settings(out, Sampling(
        model, lora, steps, guidance, size, shift, seeds, device.split(":")[0], str(pipe.dtype),
        {"torch": torch.__version__, "diffusers": diffusers.__version__})._asdict())
    sigmas = sampler.sigma_schedule(steps, shift).to(device)
    for prompt in tqdm(prompts[rank::ranks], desc="generate", disable=rank > 0):
        paths = [out / image_name(prompt.index, i) for i in range(IMAGES)]
        missing = [i for i, path in enumerate(paths) if not opens(path)]
        if not missing:
            continue
        text = flux.encode(pipe, [prompt.text]).rows([0] * IMAGES)
        with torch.no_grad():
            velocity = flux.velocity_fn(pipe, text, size, size, guidance)
            images = flux.decode(pipe, sampler.ode_sample(velocity, noise, sigmas), size, size)
        for i in missing:
            data = io.BytesIO()
            images[i].save(data, "PNG")
            report.write_atomic(paths[i], data.getvalue())


# ----------------------------------------------------------------------------- report

def settings_of(results_path: Path) -> dict:
    """The settings that judge wrote beside its results; {} for files of other origin."""
    path = results_path.with_suffix(".settings.json")
    return json.loads(path.read_text()) if path.is_file() else {}


def result_cards(results: list[Result]) -> list[report.Card]:
    return [report.Card(r.index, r.prompt, r.image, [
        report.Point(sub, (r.descriptions or [""] * len(r.subs))[n],
                     bool(r.scores[n]) if r.scores else None,
                     r.reasons[n] if r.reasons else r.state if not r.scores else "")
        for n, sub in enumerate(r.subs)]) for r in results]


def write_report(paths: list[Path], out: Path) -> None:
    """report.html, and beside it a radar chart (.png) and a table (.md) of the same name."""
    results = {path.stem: read_results(path) for path in paths}
    if len(results) < len(paths):
        raise ValueError("two result files have the same name, which a report shows models by")
    scores = {name: score(r) for name, r in results.items()}
    header, columns = ["Dimension", *scores], [score_rows(s) for s in scores.values()]
    rows = [[cells[0][0], *(c[1] for c in cells)] for cells in zip(*columns)]
    notes = [f"{name}: {coverage_line(s)}" for name, s in scores.items()]
    radar = out.with_suffix(".radar.png")
    report.radar({name: {p: 100 * s.primary[p].accuracy if p in s.primary and s.primary[p].total
                         else None for p in PRIMARIES} for name, s in scores.items()}, radar)
    report.write_atomic(out.with_suffix(".md"), report.markdown_table(header, rows, notes).encode())
    report.html_report(out, header, rows, notes, radar.read_bytes(),
                       {name: result_cards(r) for name, r in results.items()})


# ----------------------------------------------------------------------------- command line

def print_rows(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
                        for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def make_judge(args) -> tuple[MLLM, int, int]:
    """The judge that the flags name; how many calls at a time, and images a call."""
    if args.judge == "openai":  # one image a call: an answer is kept as soon as it is there
        return (OpenAIMLLM(args.base_url, args.judge_model, concurrency=args.concurrency),
                args.concurrency, 1)
    if args.judge == "local":
        if not args.judge_model:
            raise ValueError("--judge local needs --judge_model FOLDER_OR_NAME")
        return LocalMLLM(args.judge_model), 1, 8
    return shapes.ShapesMLLM(), 1, 64


def run_generate(args) -> int:
    prompts = find_prompts(args.prompts)[:args.limit]
    generate(prompts, args.out, args.model, args.lora, args.steps, args.guidance, args.size,
             int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    return 0


def run_judge(args) -> int:
    prompts, out = find_prompts(args.prompts)[:args.limit], Path(args.out)
    template = Path(args.template).read_text(encoding="utf-8") if args.template else None
    mllm, lanes, batch = make_judge(args)
    results = judge_images(mllm, prompts, args.images, out.with_suffix(".journal.jsonl"), template,
                           lanes, batch)
    write_results(results, out)
    made = Path(args.images) / "settings.json"
    asked = hashlib.sha256("".join(question(p, template) for p in prompts).encode()).hexdigest()
    settings = {"judge": mllm.name, "prompts": len(prompts), "questions_sha256": asked,
                "images": json.loads(made.read_text()) if made.is_file() else None}
    report.write_atomic(out.with_suffix(".settings.json"), json.dumps(settings, indent=2).encode())
    print(coverage_line(score(results)))
    return 0


def run_score(args) -> int:
    paths = [Path(p) for p in (args.results, args.other) if p]
    results = [read_results(p) for p in paths]
    scores = [score(r) for r in results]
    for path, s in zip(paths, scores):
        print(f"{path}: {coverage_line(s)}")
    if len(paths) == 2:
        print_rows(["Dimension", *(p.stem for p in paths), "Difference", "95 % interval"],
                   compare_rows(scores, compare(*results)))
    else:
        print_rows(SCORE_HEADER, score_rows(scores[0]))
    if args.json:
        write_scores(scores[0], args.json, results[0][0].language, settings_of(paths[0]))
    whole = all(s.coverage.judged == s.coverage.expected for s in scores)
    return 0 if whole or args.allow_partial else 1


def run_report(args) -> int:
    write_report([Path(p) for p in args.results], Path(args.out))
    print(f"open {args.out}")
    return 0


def run_construct(args) -> int:
    mllm, _, _ = make_judge(args)
    out = Path(args.out)
    prompts, given_up = construct(mllm, args.count, out.with_suffix(".journal.jsonl"), args.seed)
    if prompts:
        write_prompts(prompts, out)
    for plan in given_up:
        print(f"given up: {plan.theme}, {plan.subtheme}, {plan.subject}: {', '.join(plan.subs)}")
    return 1 if given_up else 0


# python bench.py is these four commands; 6 steps are what the tiny FLUX is trained with.
DEFAULT = ("generate --prompts shapes --model {model} --steps 6 --out {folder}/images",
           "judge --prompts shapes --images {folder}/images --out {folder}/results.csv",
           "score {folder}/results.csv --json {folder}/scores.json",
           "report {folder}/results.csv --out {folder}/report.html")


def run_default() -> int:
    model = os.path.relpath(HERE / "assets" / "tiny-flux")
    return max(run([word.format(model=model, folder="runs/bench") for word in line.split()])
               for line in DEFAULT)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="steps; without one: all, on the embedded default")

    def command(function, name, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=function)
        return sub

    sets = f"shapes, {', '.join(PROMPT_FILES)}, or a file"
    p = command(run_generate, "generate", "four images a prompt")
    p.add_argument("--model", required=True, help="folder or hub name of a FLUX pipeline")
    p.add_argument("--lora", help="folder or hub name of a LoRA for it")
    p.add_argument("--prompts", required=True, help=sets)
    p.add_argument("--out", required=True, help="folder of images")
    p.add_argument("--limit", type=int, help="the first N prompts")
    p.add_argument("--steps", type=int, default=30, help="denoising steps (30)")
    p.add_argument("--guidance", type=float, default=3.5, help="guidance embedding (3.5)")
    p.add_argument("--size", type=int, help="pixels (what the model was made for)")

    p = command(run_judge, "judge", "ask a judge about each image")
    p.add_argument("--prompts", required=True, help=sets)
    p.add_argument("--images", required=True, help="folder of images")
    p.add_argument("--out", required=True, help="results CSV; the journal lies beside it")
    p.add_argument("--limit", type=int, help="the first N prompts")
    p.add_argument("--template", help="file with a question of your own, or the released one")
    add_judge_flags(p)

    p = command(run_score, "score", "table of scores, or of the difference between two results")
    p.add_argument("results", help="results CSV")
    p.add_argument("other", nargs="?", help="results CSV to compare with")
    p.add_argument("--json", help="write the scores of the first here")
    p.add_argument("--allow_partial", action="store_true", help="exit 0 though not all was judged")

    p = command(run_report, "report", "one HTML file, a radar chart and a Markdown table")
    p.add_argument("results", nargs="+", help="results CSV, one a model")
    p.add_argument("--out", default="report.html", help="report.html")

    p = command(run_construct, "construct", "prompts of our own, written and checked by an MLLM")
    p.add_argument("--count", type=int, required=True, help="number of prompts")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    p.add_argument("--out", required=True, help="prompt file; the journal lies beside it")
    add_judge_flags(p)
    return parser


def add_judge_flags(parser) -> None:
    parser.add_argument("--judge", choices=("shapes", "openai", "local"), default="shapes",
                        help="the embedded verifier, an OpenAI-compatible server, a model folder")
    parser.add_argument("--base_url", help="of the server")
    parser.add_argument("--judge_model", help="its name on the server, or a folder or hub name")
    parser.add_argument("--concurrency", type=int, default=16, help="calls at a time (16)")


def run(argv: list[str]) -> int:
    """One step; its exit status."""
    args = make_parser().parse_args(argv)
    return args.run(args)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bench").setLevel(logging.INFO)
    try:
        raise SystemExit(run(sys.argv[1:]) if sys.argv[1:] else run_default())
    except (ValueError, OSError) as error:
        raise SystemExit(f"bench.py: {error}") from None


if __name__ == "__main__":
    main()
