"""A run's directory: settings, log, checkpoint. Whatever is killed leaves the last good state.

    config.json      every setting, versions, the command
    metrics.jsonl    one JSON object a step; step 0 is the base
    checkpoint/      trainable weights and optimiser state, in one file
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

# Settings that may differ between a run and its resumption.
FREE = ("resume", "steps", "out", "device", "base_url")


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path), then puts the file in place: a killed run leaves the old one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def save_checkpoint(out: Path, pipe, optimizer, step: int) -> None:
    """Trainable weights and optimiser state, in one file so that they cannot disagree."""
    weights = {n: p.detach() for n, p in pipe.transformer.named_parameters() if p.requires_grad}
    state = {"step": step, "weights": weights, "optimizer": optimizer.state_dict()}
    write_atomically(out / "checkpoint" / "state.pt", lambda path: torch.save(state, path))


def load_checkpoint(out: Path, pipe, optimizer, device) -> int:
    """Puts the checkpoint back and drops the log's lines after it; the step it stood at."""
    state = torch.load(out / "checkpoint" / "state.pt", map_location=device, weights_only=True)
    parameters = dict(pipe.transformer.named_parameters())
    with torch.no_grad():
        for name, value in state["weights"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def read_metrics(out: Path, up_to: int) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if row["step"] <= up_to]


def prepare_run(settings: dict) -> Path:
    """The run directory with its config.json; SystemExit in one sentence if it cannot be used."""
    out = Path(settings["out"])
    try:
        (out / "checkpoint").mkdir(parents=True, exist_ok=True)
        (out / "samples").mkdir(exist_ok=True)
        if settings["resume"]:
            if not (out / "checkpoint" / "state.pt").exists():
                raise SystemExit(f"nothing to resume in '{out}': no checkpoint was written there; "
                                 "start without --resume")
            old = json.loads((out / "config.json").read_text())["config"]
            changed = [f"{k} ({old.get(k)} -> {v})" for k, v in settings.items()
                       if k not in FREE and old.get(k) != v]
            if changed:
                raise SystemExit(f"'{out}' was started with other settings: {', '.join(changed)}; "
                                 "resume with the same, or use another --out")
        elif (out / "metrics.jsonl").exists():
            raise SystemExit(f"'{out}' already holds a run: add --resume to continue it, or choose "
                             "another --out")
        record = {"config": settings, "versions": versions(), "command": sys.argv}
        write_atomically(out / "config.json", lambda p: p.write_text(json.dumps(record, indent=1)))
    except OSError as error:
        raise SystemExit(f"cannot write to --out '{out}': {error.strerror}")
    return out


def versions() -> dict[str, str]:
    import diffusers
    import transformers

    return {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
            "diffusers": diffusers.__version__, "transformers": transformers.__version__}


def write_metrics(out: Path, metrics: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in metrics)
    write_atomically(out / "metrics.jsonl", lambda path: path.write_text(text))
