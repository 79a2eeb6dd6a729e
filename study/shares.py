"""From which share of right images on is a prompt learned? Groups before and after training.

    python -m study.shares runs/study/full/kinds/all_kinds-*/final   # of study.kinds, one a seed

A group without a right image, or with no other, teaches nothing about it. So training prompts are
drawn as the loop draws them, in groups of 32, by the base and by each model: which share of a
prompt's images is right, all of its testpoints at once, before and after? Some five minutes a model
on one core. Writes shares.csv, a row a prompt, and two tables: prompts by their share in the base,
and by kind. --groups and --out for less, and elsewhere.
"""

import argparse
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


def row_of(mine: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict:
    """Of some prompts: shares before, and after with its interval over models."""
    low, high = over_seeds(after[:, mine, 0].mean(1))
    share = before[mine, 0]
    both = 1 - share**LEARNED_IN - (1 - share) ** LEARNED_IN
    row = {"prompts": int(mine.sum()), "right_before": share.mean()}
    row |= {"right_after": after[:, mine, 0].mean(), "seeds_low": low, "seeds_high": high}
    return row | {"groups_with_both": both.mean()}


def tables(prompts: list, before: np.ndarray, after: np.ndarray) -> dict[str, list[dict]]:
    """By the end of their files' names. before: (prompts, 2), after: (models, prompts, 2)."""
    by_share, by_kind, kinds = [], [], np.array([prompt.kind for prompt in prompts])
    for low, high in zip((-1.0, *ENDS), ENDS):
        mine = (before[:, 0] > low) & (before[:, 0] <= high)
        if mine.any():
            name = f"above {low:g} to {high:g}" if low >= 0 else "none"
            by_share.append({"share": name} | row_of(mine, before, after))
    for kind in sorted(set(kinds)):
        mine = kinds == kind
        # among images in which the others hold: that things are drawn at all is another matter
        sums = [x[..., mine, :].reshape(-1, 2).sum(0) for x in (before, after)]
        named = [right / others if others else None for right, others in sums]
        row = {"kind": kind} | row_of(mine, before, after)
        by_kind.append(row | dict(zip(("named_before", "named_after"), named)))
    return {"_by_share": by_share, "_by_kind": by_kind}


def main(arguments: list[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("models", nargs="+", help="folders of pipelines, trained from the base")
    parser.add_argument("--groups", type=int, default=320, help="prompts (320)")
    parser.add_argument("--out", type=Path, default=RESULTS / "shares")
    args = parser.parse_args(arguments)
    prompts, before = held(parse_config([]).model, args.groups)
    after = np.array([held(folder, args.groups)[1] for folder in args.models])
    head = f"# {args.groups} prompts, {IMAGES} images each; {len(args.models)} models"
    rows = [
        {"kind": p.kind, "prompt": p.text, "base": b} | {f"model {n}": x for n, x in enumerate(a)}
        for p, b, a in zip(prompts, before[:, 0], after[:, :, 0].T)
    ]
    write_csv(args.out.with_name(f"{args.out.name}.csv"), rows, head)
    for end, table in tables(prompts, before, after).items():
        write_rows(table, head, args.out.with_name(args.out.name + end))


if __name__ == "__main__":
    main()
