"""From which share of right images on is a prompt learned? Groups before and after training.

    python -m study.shares                      # 20 minutes on one core; after study.kinds

A group without a right image, or with no other, teaches nothing about it. So training prompts are
drawn as the loop draws them, in groups of 32, by the base and by the models that study.kinds left
after training on all kinds: which share of a prompt's images is right, all of its testpoints at
once, before and after?

Writes shares*: a row a prompt, and two tables, prompts by their share in the base, and by kind.
--quick and --smallest as the others have them.
"""

import numpy as np
import torch
from tqdm import tqdm

import sampler
import train
from models import base
from shapes.grammar import parse_prompt
from study import kinds
from study.runs import Study, size_asked_for
from study.summary import over_seeds, write_tables
from training.config import parse_config
from training.data import make_batch
from training.heldout import verify

LEARNED_IN = 8  # images of a group of the run
ENDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the classes of shares
BASE = "base"
FLAGS = dict.fromkeys(("full", "quick"), ("--prompts_per_step=20", "--group_size=32", "--seed=7"))
BATCHES = {"full": 16, "quick": 4, "smallest": 2}


@torch.no_grad()
def drawn(folder: str, flags: tuple[str, ...], batches: int) -> list[dict]:
    """A row a prompt: its kind, the share of its images that are right, and the share in which all
    testpoints hold but the first, which the kind is named for, or that one too."""
    cfg, rows = parse_config(flags), []
    model = base.load(folder, cfg.size, cfg.guidance)
    sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
    how = dict(noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=64)
    for step in tqdm(range(batches), desc=folder):
        rollout = train.sample(model, make_batch(cfg, None, step), sigmas, **how)
        for prompt, images in zip(map(parse_prompt, rollout.prompts), rollout.images):
            met, _ = verify([prompt] * len(images), images)
            right, others = np.mean([(all(m), all(m[1:])) for m in met], axis=0).tolist()
            rows.append({"kind": prompt.kind, "right": right, "others": others})
    return rows


def row_of(shares: np.ndarray) -> dict:
    """Of some prompts, (1 + models, prompts): shares before, and after with its interval over
    models."""
    before, after = shares[0], shares[1:].mean(1)
    low, high = over_seeds(after)
    both = 1 - before**LEARNED_IN - (1 - before) ** LEARNED_IN
    row = {"prompts": len(before), "right_before": before.mean(), "right_after": after.mean()}
    row["over_models"] = "" if low is None else f"{low:.3f} .. {high:.3f}"
    return row | {"groups_with_both": both.mean()}


def tables(study: Study) -> dict[str, list[dict]]:
    """By the end of their files' names."""
    rows = study.lines.rows  # those of the base come first
    named = np.array([row["kind"] for row in rows if row["arm"] == BASE])
    columns = [np.array([float(row[key]) for row in rows]) for key in ("right", "others")]
    right, others = (column.reshape(-1, len(named)) for column in columns)
    by_share, by_kind = [], []
    for low, high in zip((-1.0, *ENDS), ENDS):
        mine = (right[0] > low) & (right[0] <= high)
        if mine.any():
            name = f"above {low:g} to {high:g}" if low >= 0 else "none"
            by_share.append({"share": name} | row_of(right[:, mine]))
    for kind in sorted(set(named)):
        mine, row = named == kind, {"kind": kind}
        row |= row_of(right[:, mine])
        # among images in which the others hold: that things are drawn at all is another matter
        for name, models in (("named_for_before", slice(1)), ("named_for_after", slice(1, None))):
            count = others[models, mine].sum()
            row[name] = right[models, mine].sum() / count if count else None
        by_kind.append(row)
    return {"_by_share": by_share, "_by_kind": by_kind}


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    study, runs = Study("shares", size, FLAGS), Study("kinds", size, kinds.FLAGS)
    trained = {(kinds.ALL, n): runs.run_folder(kinds.ALL, n) / "final" for n in kinds.SEEDS}
    there = {key: str(folder) for key, folder in trained.items() if folder.exists()}
    if not there and not study.lines.seeds(kinds.ALL):
        raise SystemExit("there is no model to hold against the base: python -m study.kinds first")
    for (arm, seed), folder in {(BASE, 0): parse_config([]).model, **there}.items():
        if seed not in study.lines.seeds(arm):
            study.lines.add(arm, seed, drawn(folder, study.flags, BATCHES[size]))
    write_tables(study, tables(study))


if __name__ == "__main__":
    main()
