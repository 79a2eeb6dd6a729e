"""The commands of bench.py and their flags.

args = make_parser().parse_args(["report", "a.csv", "b.csv"])
args.command, args.results, args.out                      # "report", ["a.csv", "b.csv"], ...
"""

import argparse
import math
from pathlib import Path

from common.files import journal_path
from judges.make import KINDS
from unigenbench.board import SETS
from unigenbench.images import IMAGES
from unigenbench.official import FORMS

PROMPTS = f"shapes, own, {', '.join(SETS)}, or a file"
PUBLISHED = "of which prompts the published scores are (en or zh, as the results are)"


def positive(text: str) -> int:
    """A whole number of at least 1; argparse names the flag where it is not."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def temperature(text: str) -> float | None:
    """A number of at least 0, or None for the word none; argparse names the flag else."""
    value = None if text == "none" else float(text)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError
    return value


def check_flags(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that contradict one another, or of which one changes nothing;
    the judge of shapes, where none is given, is the verifier."""
    if args.command == "generate":
        if bool(args.prompts) == bool(args.prompt):
            raise ValueError("give --prompts, a set, or --prompt, one of your own: one of the two")
        if args.prompt and (args.limit or args.images_per_prompt != IMAGES):
            raise ValueError("--limit and --images_per_prompt are of --prompts: leave them out")
    if args.command == "score" and args.images_per_prompt and not args.prompts:
        raise ValueError("--images_per_prompt is what --prompts expects of each: give that too")
    if args.command == "judge":
        if args.official and args.temperature:
            raise ValueError("--official sends no temperature: leave --temperature out")
        if not args.judge and args.prompts != "shapes":
            raise ValueError(
                f"--judge has to be given for --prompts {args.prompts}: openai with --base_url, or "
                "local with --judge_model; shapes, the verifier, judges prompts of shapes alone"
            )
        args.judge = args.judge or "shapes"
    if args.command == "construct" and args.long:
        one, two = (journal_path(Path(name).resolve()) for name in (args.out, args.long))
        if one == two:
            raise ValueError(
                f"--long {args.long} is --out, or shares its journal: give the long prompts a file "
                "of another name"
            )
    if "judge" in args:
        if args.judge == "shapes" and (args.base_url or args.judge_model):
            raise ValueError("--base_url and --judge_model need --judge openai or local")
        if args.judge_extra and args.judge != "openai":
            raise ValueError("--judge_extra goes to a server: it needs --judge openai")


def make_parser() -> argparse.ArgumentParser:
    text = "UniGenBench as a tool: prompts -> images -> judged testpoints -> scores -> report."
    parser = argparse.ArgumentParser(description=text)
    commands = parser.add_subparsers(
        title="steps; without one: all, on the tiny FLUX that ships here",
        dest="command",
        required=True,
    )

    def command(name, text):
        return commands.add_parser(name, help=text, description=text)

    p = command("generate", "images of prompts")
    p.add_argument("--model", required=True, help="folder or hub name of a pipeline of diffusers")
    p.add_argument("--lora", help="folder or hub name of a LoRA for it")
    p.add_argument("--prompts", help=PROMPTS)
    p.add_argument("--prompt", metavar="TEXT", help="one image of this, instead")
    p.add_argument("--out", required=True, help="folder of images; of --prompt a PNG file")
    p.add_argument("--limit", type=positive, help="the first N prompts")
    p.add_argument("--steps", type=positive, default=30, help="denoising steps (30)")
    p.add_argument("--guidance", type=float, default=3.5, help="guidance embedding (3.5)")
    p.add_argument("--size", type=positive, help="pixels (what the model was made for)")
    p.add_argument("--images_per_prompt", type=positive, default=IMAGES, help=f"({IMAGES})")
    text = "for a GPU that does not hold the model: it gets one part of it at a time"
    p.add_argument("--offload", action="store_true", help=text)

    add_asking_commands(command)
    add_reading_commands(command)

    p = command("construct", "prompts of our own, written and checked by an MLLM")
    p.add_argument("--count", type=positive, required=True, help="number of prompts")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    p.add_argument("--language", choices=("en", "zh"), default="en", help="of the prompts (en)")
    p.add_argument("--out", required=True, help="prompt file; the journal lies beside it")
    text = "second stage: prompt file of a long form of each, which tests more"
    p.add_argument("--long", metavar="PROMPTS", help=text)
    add_judge_flags(p)
    return parser


def add_asking_commands(command) -> None:
    """A judge and scorers, of images that are there."""
    p = command("judge", "ask a judge about each image")
    p.add_argument("--images", required=True, help="folder of images")
    add_image_flags(p)
    p.add_argument("--out", required=True, help="results CSV; the journal lies beside it")
    p.add_argument("--template", help="file with a question of your own, or the released one")
    text = "your copy of the official evaluator's eval_common.py, whose question is asked"
    p.add_argument("--official", metavar="PATH", help=text)
    text = "how it is asked: as the offline judges are, or APIs (api for gemini, else offline)"
    p.add_argument("--official_form", choices=tuple(FORMS), help=text)
    add_judge_flags(p, default=None)

    p = command("quality", "what published scorers make of each image")
    p.add_argument("images", help="folder of images")
    add_image_flags(p)
    text = "NAME[=FOLDER],...: clip, pickscore, hpsv2, aesthetic, with published weights or others"
    p.add_argument("--scorers", required=True, help=text)
    text = "CSV of single scores (quality.csv); the journal lies beside it"
    p.add_argument("--out", default="quality.csv", help=text)


def add_image_flags(parser) -> None:
    """Which images of whom."""
    parser.add_argument("--prompts", required=True, help=PROMPTS)
    parser.add_argument("--images_per_prompt", type=positive, default=IMAGES, help=f"({IMAGES})")
    text = "what follows INDEX_IMAGE in their names: PNG, JPEG or WebP (.png)"
    parser.add_argument("--image_suffix", default=".png", help=text)
    parser.add_argument("--limit", type=positive, help="the first N prompts")


def add_reading_commands(command) -> None:
    """Those that read result files."""
    p = command("score", "table of scores, or of the difference between two results")
    p.add_argument("results", help="results CSV")
    p.add_argument("other", nargs="?", help="results CSV to compare with")
    p.add_argument("--json", help="write the scores of the first here")
    p.add_argument("--prompts", help="count what these files lack of this prompt set as failed")
    text = "how many --prompts expects (as judge was told, else 4)"
    p.add_argument("--images_per_prompt", type=positive, help=text)
    p.add_argument("--allow_partial", action="store_true", help="exit 0 though not all was judged")
    mixed = "take together what several models judged"
    p.add_argument("--allow_mixed_judges", action="store_true", help=mixed)

    p = command("report", "one HTML file, a radar chart and a Markdown table")
    p.add_argument("results", nargs="+", help="results CSV, one a model")
    p.add_argument("--out", default="report.html", help="report.html")
    p.add_argument("--allow_mixed_judges", action="store_true", help=mixed)
    text = "published models beside them, such as FLUX.1-dev,FLUX.2-dev"
    p.add_argument("--against", default="", metavar="MODELS", help=text)
    p.add_argument("--prompts", choices=SETS, help=PUBLISHED)

    p = command("agree", "how far judges agree about the same images")
    p.add_argument("first", help="results CSV that the others are held against")
    p.add_argument("others", nargs="+", help="results CSV, one a judge")
    p.add_argument("--out", help="one HTML file with the testpoints where they differ most")

    p = command("board", "the published scores, and one's own in their place")
    p.add_argument("results", nargs="*", help="results CSV, one a model")
    p.add_argument("--prompts", choices=SETS, help=PUBLISHED)
    p.add_argument("--out", help="radar chart, PNG")


def add_judge_flags(parser, default: str | None = "shapes") -> None:
    text = "the verifier, for prompts of shapes alone; a server; a model folder"
    parser.add_argument("--judge", choices=KINDS, default=default, help=text)
    parser.add_argument("--base_url", help="of the server, which is OpenAI-compatible")
    parser.add_argument("--judge_model", help="its name on the server, or a folder or hub name")
    text = "JSON object of further fields of each request to it"
    parser.add_argument("--judge_extra", default="", metavar="JSON", help=text)
    parser.add_argument("--concurrency", type=positive, default=16, help="calls at a time (16)")
    parser.add_argument("--timeout", type=positive, default=60, help="seconds a call (60)")
    text = "seconds without any answer after which the judge counts as dead (180)"
    parser.add_argument("--patience", type=positive, default=180, help=text)
    text = "of a server's answers; none sends none, where it refuses that (0)"
    parser.add_argument("--temperature", type=temperature, default=0.0, help=text)
    text = "of an answer, a model's thinking included (4096, the official script's)"
    parser.add_argument("--max_tokens", type=positive, default=4096, help=text)
