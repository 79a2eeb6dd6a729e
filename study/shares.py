"""From which share of right images on is a prompt learned? Groups before and after training.

    python -m study.shares runs/study/full/kinds/all_kinds-*/final   # of study.kinds, one a seed

A group without a right image, or with no other, teaches nothing about it. So training prompts are
drawn as the loop draws them, in groups of 32, by the base and by each model: which share of a
prompt's images is right, all of its testpoints at once, before and after? Some five minutes a model
on one core, and what the file has is not drawn again. Writes shares.csv, a row a prompt, and two
tables: prompts by their share in the base, and by kind.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import sampler
import train
from models import base
from shapes.grammar import parse_prompt
from study.runs import RESULTS, write_csv
from study.summary import over_seeds, write_rows
from training.config import parse_config
from training.data import make_batch
from training.heldout import verify

IMAGES, AT_ONCE = 32, 20  # images of a prompt, prompts of a batch
LEARNED_IN = 8  # images of a group of the run
WHAT = ("right", "but for the first")  # shares: of images with all testpoints, with all the others
ENDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the classes of shares


@torch.no_grad()
def held(folder: str, groups: int) -> tuple[list, np.ndarray]:
    """The prompts; and (prompts, 2): the share of each one's images that are right, and of those
    in which all testpoints hold but the first, which its kind is named for, or that one too."""
    flags = [f"--prompts_per_step={AT_ONCE}", f"--group_size={IMAGES}", "--seed=7"]
    cfg, prompts, rows = parse_config(flags), [], []
    model = base.load(folder, cfg.size, cfg.guidance)
    sigmas = sampler.sigma_schedule(cfg.num_steps, cfg.shift)
    how = dict(noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=2 * IMAGES)
    for step in tqdm(range(-(-groups // AT_ONCE)), desc=folder):
        drawn = train.sample(model, make_batch(cfg, None, step), sigmas, **how)
        for prompt, images in zip(map(parse_prompt, drawn.prompts), drawn.images):
            met, _ = verify([prompt] * IMAGES, images)
            rows.append(np.mean([(all(m), all(m[1:])) for m in met], axis=0))
            prompts.append(prompt)
    return prompts[:groups], np.array(rows[:groups])


def row_of(mine: np.ndarray, shares: np.ndarray) -> dict:
    """Of some prompts: shares before, and after with its interval over models."""
    after = shares[1:, mine, 0].mean(1)
    low, high = over_seeds(after)
    share = shares[0, mine, 0]
    both = 1 - share**LEARNED_IN - (1 - share) ** LEARNED_IN
    row = {"prompts": int(mine.sum()), "right_before": share.mean(), "right_after": after.mean()}
    row["over_models"] = "" if low is None else f"{low:.3f} .. {high:.3f}"
    return row | {"groups_with_both": both.mean()}


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """By the end of their files' names. rows: of the CSV file."""
    columns = [name for name in rows[0] if name not in ("kind", "prompt")]
    numbers = np.array([[float(row[name]) for name in columns] for row in rows])
    shares = np.moveaxis(numbers.reshape(len(rows), -1, len(WHAT)), 1, 0)  # (1 + models, P, 2)
    by_share, by_kind, kinds = [], [], np.array([row["kind"] for row in rows])
    for low, high in zip((-1.0, *ENDS), ENDS):
        mine = (shares[0, :, 0] > low) & (shares[0, :, 0] <= high)
        if mine.any():
            name = f"above {low:g} to {high:g}" if low >= 0 else "none"
            by_share.append({"share": name} | row_of(mine, shares))
    for kind in sorted(set(kinds)):
        mine = kinds == kind
        # among images in which the others hold: that things are drawn at all is another matter
        sums = [x[:, mine].reshape(-1, 2).sum(0) for x in (shares[:1], shares[1:])]
        named = [right / others if others else None for right, others in sums]
        row = {"kind": kind} | row_of(mine, shares)
        by_kind.append(row | dict(zip(("named_before", "named_after"), named)))
    return {"_by_share": by_share, "_by_kind": by_kind}


def main(arguments: list[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("models", nargs="+", help="folders of pipelines, trained from the base")
    parser.add_argument("--groups", type=int, default=320, help="prompts (320)")
    parser.add_argument("--out", type=Path, default=RESULTS / "shares.csv", help="the CSV file")
    args = parser.parse_args(arguments)
    head, rows = f"# {args.groups} prompts, {IMAGES} images each", [{}] * args.groups
    if args.out.exists():
        first, *lines = args.out.read_text().splitlines()
        rows = list(csv.DictReader(lines)) if first == head else rows
    for name, folder in {"base": parse_config([]).model, **{m: m for m in args.models}}.items():
        keys = [f"{name} {what}" for what in WHAT]
        if keys[0] in rows[0]:
            continue
        prompts, shares = held(folder, args.groups)
        new = [
            {"kind": p.kind, "prompt": p.text} | dict(zip(keys, s)) for p, s in zip(prompts, shares)
        ]
        rows = [row | more for row, more in zip(rows, new)]
        write_csv(args.out, rows, head)
    for end, table in tables(rows).items():
        write_rows(table, head, args.out.with_name(args.out.stem + end))


if __name__ == "__main__":
    main()
