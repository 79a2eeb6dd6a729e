"""What the verifier accepts, rejects and costs, on images whose ground truth is known.

    python -m measure.verifier                   # about two minutes
    python -m measure.verifier --images 300

Scenes that satisfy a caption are read as rendered, and again after the shipped autoencoder has
encoded and decoded them: a person accepts both. Then each scene is held against a caption with one
attribute wrong, whose testpoints of it must be rejected. What people say is in measure/eye.py.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from shapes.grammar import KINDS, SLOTS, SUMS, Caption, make_prompt
from shapes.prompts import all_prompts, sample_scene
from shapes.read import Reading
from shapes.read import read as read_images
from shapes.render import render
from shapes.verifier import satisfied

MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-flux"
PAIRS = (("to the left of", "to the right of"), ("above", "below"))
OPPOSITE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
HEADS = "  rendered   decoded  rendered   decoded"


def draw(count: int, rng: np.random.Generator) -> tuple[list[Caption], np.ndarray]:
    """Captions of both splits, each kind equally often, and an image that satisfies each."""
    both = [all_prompts(split) for split in ("train", "heldout")]
    pools = [both[0][kind] + both[1][kind] for kind in KINDS]
    prompts = [pool[rng.integers(len(pool))] for _, pool in zip(range(count), pools * count)]
    return prompts, render([sample_scene(p, rng) for p in prompts])


@torch.no_grad()
def autoencode(pixels: np.ndarray, model: Path, batch: int = 100) -> np.ndarray:
    """Images (n, 32, 32, 3) uint8 through the model's encoder and decoder."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    decoded = []
    for i in range(0, len(pixels), batch):
        x = torch.from_numpy(pixels[i : i + batch]).permute(0, 3, 1, 2) / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        decoded.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(decoded)


def read(pixels: np.ndarray, batch: int = 96) -> list[Reading]:
    images = [Image.fromarray(p) for p in pixels]
    return [r for i in range(0, len(images), batch) for r in read_images(images[i : i + batch])]


def accepted(prompts: list[Caption], readings: list[Reading]) -> dict[str, list[bool]]:
    """Verdicts by sub dimension."""
    verdicts = defaultdict(list)
    for prompt, reading in zip(prompts, readings):
        for (sub, _), met in zip(prompt.testpoints, satisfied(prompt, reading)):
            verdicts[sub].append(met)
    return verdicts


def one_wrong(prompt: Caption, rng: np.random.Generator) -> tuple[Caption, str]:
    """The caption with one attribute changed so that its image contradicts it; which slot."""
    # what else stands beside a thing without a certain shape is left to chance
    names = [n for n in prompt.slots if not (prompt.kind == "negation" and n[0] == "s")]
    while True:
        name = str(rng.choice(names))
        value = OPPOSITE.get(prompt.slots[name]) or str(rng.choice(SLOTS[name]))
        slots = prompt.slots | {name: value}
        same = value == prompt.slots[name] or slots["s1"] == slots.get("s2")
        alike = slots.get("c1") == slots.get("c2", 0)
        if not (same or alike or name == "sum" and SUMS[value] == SUMS[prompt.slots[name]]):
            return make_prompt(prompt.kind, slots), name


def rejected(prompts, wrong, readings) -> dict[str, list[bool]]:
    """By sub dimension, whether testpoints that name what was changed do not hold."""
    verdicts = defaultdict(list)
    for prompt, (changed, name), reading in zip(prompts, wrong, readings):
        for (sub, demand), met in zip(KINDS[prompt.kind][1], satisfied(changed, reading)):
            if f"{{{name}}}" in demand:
                verdicts[sub].append(not met)
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    prompts, pixels = draw(args.images, rng)
    start = time.process_time()
    readings = read(pixels)
    seconds = time.process_time() - start
    decoded = read(autoencode(pixels, args.model))
    wrong = [one_wrong(p, rng) for p in prompts]
    columns = [accepted(prompts, readings), accepted(prompts, decoded)]
    columns += [rejected(prompts, wrong, shown) for shown in (readings, decoded)]
    print(f"{'':38} accepted if right   rejected if wrong\n{'sub dimension':38}" + HEADS)
    for sub in [*columns[0], None]:
        rows = [sum(c.values(), []) if sub is None else c[sub] for c in columns]
        cells = [f"{np.mean(row):9.4f}" if row else "        -" for row in rows]
        print(f"{sub or 'all':38}", *cells)
    render_error = [np.mean([r.render_error for r in shown]) for shown in (readings, decoded)]
    print(f"render error {render_error[0]:.2f} and {render_error[1]:.2f} gray levels")
    print(f"{len(pixels) / seconds:.0f} images a second on one core")


if __name__ == "__main__":
    main()
