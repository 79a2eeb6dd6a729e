"""A run's directory: settings, log, model card. Whatever is killed leaves the last good state.

config.json      every setting, versions, the command
metrics.jsonl    one JSON object a step; step 0 is the base
checkpoint/      the states after the last steps (checkpoint.py)
final/           what plain diffusers loads, with a model card (card.md)
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import shlex
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

from common.files import free_bytes, hold, write_atomic
from common.wording import listed
from judges.released import kind_of
from training.config import parse_bench_prompts, parse_judge, sources_of
from unigenbench.sets import prompt_file

log = logging.getLogger("train")

WHOLE = 64e6  # bytes up to which a file is read for its digest; of larger ones the size must do


def digest(path: str) -> str:
    """What stands in a file or folder, as a short text; the name itself where neither is there."""
    found, known = Path(path), hashlib.sha256()
    if not path or not found.exists():
        return path
    for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
        if file.is_file():
            size = file.stat().st_size
            known.update(f"{file.relative_to(found)} {size} ".encode())
            known.update(file.read_bytes() if size <= WHOLE else b"")
    return known.hexdigest()[:16]


def contents(cfg) -> dict[str, str]:
    """The digest of each file or folder that the settings name: a run is of what stands in it."""
    found = {name: digest(getattr(cfg, name)) for name in ("prompts", "model", "judge_model")}
    kind, path = kind_of(cfg.judge_prompt)
    found["judge_prompt"] = kind + digest(path)
    for flag in ("eval_judge", "bench_judge"):
        kind, _, model = parse_judge(getattr(cfg, flag), flag)
        found[flag] = kind + digest(model)
    bench, _ = parse_bench_prompts(cfg.bench_prompts)
    named = bench and bench != "shapes"  # Path("") is the current folder
    found["bench_prompts"] = digest(str(prompt_file(bench))) if named else bench
    return found | {f"{flag} {name}": digest(source) for flag, name, source in sources_of(cfg)}


def check_run(cfg) -> None:
    """SystemExit in one sentence unless a run with these settings may begin, or go on, in --out."""
    out = Path(cfg.out)
    if not cfg.resume:
        if (out / "metrics.jsonl").exists():
            raise SystemExit(
                f"'{out}' already holds a run: add --resume to continue it, or choose another --out"
            )
        return
    if not (out / "config.json").exists():
        raise SystemExit(
            f"nothing to resume in '{out}': no run was started there; start without --resume"
        )
    record = json.loads((out / "config.json").read_text())
    old, now = record["config"], contents(cfg)
    changed = [
        f"{f.name} ({old.get(f.name, f.default)} -> {getattr(cfg, f.name)})"
        for f in dataclasses.fields(cfg)
        if not f.metadata["free"] and old.get(f.name, f.default) != getattr(cfg, f.name)
    ] + [
        f"{name} (what stands in it has changed)"
        for name, found in record.get("contents", now).items()
        if found != now.get(name, found)
    ]
    if changed:
        raise SystemExit(
            f"'{out}' was started with other settings: {listed(changed, 9)}; "
            "resume with the same, or use another --out"
        )


def prepare_run(cfg) -> contextlib.ExitStack:
    """Makes the run directory with its config.json; holds its lock until what is returned closes.

    SystemExit in one sentence if it cannot be used, or another process trains there.
    """
    out, libraries = Path(cfg.out), ("torch", "numpy", "diffusers", "transformers")
    versions = {"python": sys.version.split()[0]} | {name: version(name) for name in libraries}
    record = {"config": dataclasses.asdict(cfg), "contents": contents(cfg)}
    record |= {"versions": versions, "command": sys.argv}
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(out / ".lock"))
            check_run(cfg)
            for folder in ("checkpoint", "samples"):
                (out / folder).mkdir(exist_ok=True)
            write_atomic(out / "config.json", json.dumps(record, indent=1).encode())
        except BlockingIOError:
            raise SystemExit(f"another process trains in '{out}': wait, or choose another --out")
        except OSError as error:
            raise SystemExit(f"cannot write to --out '{out}': {error.strerror}")
        return held.pop_all()


def disk_bytes(trained: int, ema: float, steps: int) -> int:
    """What a run writes at most: float32 weights, their average and two moments in each checkpoint,
    of which three stay while one is written; and final/. trained: weights."""
    return 4 * trained * (min(4, steps) * (4 if ema else 3) + 1)


def check_disk(out: Path, needed: int) -> None:
    """Raises ValueError if the disk of the run directory has no room for so many bytes."""
    if needed > (free := free_bytes(out)):
        raise ValueError(
            f"--out '{out}': checkpoints and final/ take up to {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} are free there"
        )


def read_metrics(out: Path, up_to: int) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if row["step"] <= up_to]


def write_metrics(out: Path, metrics: list[dict]) -> None:
    """One JSON object a line. JSON has neither NaN nor infinity: null stands in their place."""
    odd = lambda v: isinstance(v, float) and not math.isfinite(v)
    rows = [{k: None if odd(v) else v for k, v in row.items()} for row in metrics]
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_atomic(out / "metrics.jsonl", text.encode())


def best_step(metrics: list[dict]) -> int:
    """The step, after the base, that did best on held-out prompts; 0 if none was evaluated."""
    judged = [row for row in metrics[1:] if "win_rate_vs_base" in row]
    key = "heldout_accuracy" if "heldout_accuracy" in metrics[0] else "win_rate_vs_base"
    known = [row for row in judged if row.get(key) is not None]
    return max(known, key=lambda row: row[key])["step"] if known else 0


def judge_rates(counts: Counter) -> dict[str, float]:
    """What the log says of a judge. first_rate: of decisive answers; 0.5 without position bias."""
    rates = {name: counts[name] for name in ("comparisons", "unparsable", "failed", "groups_lost")}
    if "categories_lost" in counts:
        rates["categories_lost"] = counts["categories_lost"]
    if "pairs" in counts:
        decisive, pairs = counts["first"] + counts["second"], max(counts["pairs"], 1)
        rates["tie_rate"] = counts["ties"] / pairs
        rates["first_rate"] = counts["first"] / decisive if decisive else 0.5
        if "agree" in counts:
            rates["order_agreement"] = counts["agree"] / pairs
        if "triples" in counts:
            rates["cycle_rate"] = counts["cyclic"] / max(counts["triples"], 1)
    return rates


def judging_of(scored: dict) -> dict[str, float]:
    """What the log says of a step's rewards, by name and of all ranks.

    A mixture has no mean of its own, its parts have other units: each stands under its own name.
    """
    row, counts = {}, Counter()
    for name, (values, said, *_) in scored.items():
        prefix = "reward" if len(scored) == 1 else name
        row[f"{prefix}_mean"] = values.mean().item()
        row[f"{prefix}_std"] = values.std(1, correction=0).mean().item()
        counts.update(said)
    return row | judge_rates(counts)


def learning_of(losses, norms: list[float]) -> dict[str, float]:
    """What the log says of one rank's update: losses of each backward pass, a norm an update."""
    _, mean, least, most, clipped = (torch.stack(x) for x in zip(*losses))
    return {
        "ratio_mean": mean.mean().item(),
        "ratio_min": least.min().item(),
        "ratio_max": most.max().item(),
        "clip_frac": clipped.mean().item(),
        "grad_norm": sum(norms) / len(norms),
    }


def over_ranks(rows: list[dict]) -> dict[str, float]:
    """The ranks' lines as one: extremes of extremes, means of the rest."""
    how = {"ratio_min": min, "ratio_max": max}
    mean = lambda values: sum(values) / len(values)
    return {key: how.get(key, mean)([row[key] for row in rows]) for key in rows[0]}


def make_logger(kind: str, out: Path, settings: dict):
    """A function of a metrics row that sends its numbers to TensorBoard (out/tensorboard) or W&B.

    kind: "", "tensorboard" or "wandb", imported only then. SystemExit if the package is missing.
    W&B reads its key and mode from its own environment variables.
    """
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out / "tensorboard"))
        elif kind == "wandb":
            import wandb

            wandb.init(project="pref-grpo", name=out.name, dir=str(out), config=settings)
    except ImportError:
        raise SystemExit(f"--logger {kind} needs the package '{kind}': pip install {kind}")

    def write(row: dict) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        if kind == "wandb":
            wandb.log(numbers, step=row["step"])
        elif kind == "tensorboard":
            for key, value in numbers.items():
                writer.add_scalar(key, value, row["step"])
            writer.flush()

    return write


def call_of(cfg, folder: Path) -> dict:
    """How a pipeline loaded from `folder` draws what evaluation drew, but for its own schedule."""
    size, steps = cfg.eval_size or cfg.size, cfg.eval_steps or cfg.num_steps
    call = {"height": size, "width": size}
    call |= {"num_inference_steps": steps, "guidance_scale": cfg.guidance}
    tokenizer = folder / "tokenizer_2" / "tokenizer_config.json"
    if tokenizer.is_file():
        length = json.loads(tokenizer.read_text()).get("model_max_length", 512)
        if length < 512:  # a small text encoder pads to its own length, as encode_prompts does
            call["max_sequence_length"] = length
    return call


def write_card(folder: Path, cfg, pipeline: str, result: str, base: dict, trained: dict) -> None:
    """final/README.md: how the model was trained, what it scored held out, how to load it.

    folder: final/; pipeline: name of its class in diffusers; result: in words; base, trained:
    held-out metrics.
    """
    here, lora, always = "PATH/TO/THIS/FOLDER", bool(cfg.lora_rank), ("recipe", "reward", "judge")
    in_words = lambda value: "not measured" if value is None else f"{value:.3f}"
    scores = [f"| {k} | {in_words(base[k])} | {in_words(now)} |" for k, now in trained.items()]
    flags = []
    for field in dataclasses.fields(cfg):
        name, value = field.name, getattr(cfg, field.name)
        if name in ("base_url", "eval_judge", "bench_judge", "out", "device", "resume", "export"):
            continue
        if value != field.default or name in always:
            switch = f"--{'' if value else 'no-'}{name}"
            flags.append(
                switch if isinstance(value, bool) else f"--{name} {shlex.quote(str(value))}"
            )
    more = f'pipe.load_lora_weights("{here}")\n' if lora else ""
    more += 'pipe.to("cuda")\n' if torch.cuda.is_available() else ""
    call = call_of(cfg, Path(cfg.model) if lora else folder)
    card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    text = card.format(
        model=cfg.model,
        result=result,
        scores="\n".join(scores),
        pipeline=pipeline,
        weights=cfg.model if lora else here,
        dtype=cfg.dtype,
        more=more,
        arguments=", ".join(f"{name}={value}" for name, value in call.items()),
        settings="\n".join(flags),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
