"""What the verifier accepts, rejects and costs, on pictures whose truth is known.

    python -m measure.verifier                   # about two minutes
    python -m measure.verifier --pictures 300

Scenes that satisfy a caption are read as rendered, and again after the shipped autoencoder has
encoded and decoded them: a person accepts both. Then each scene is held against captions with one
attribute wrong, whose changed testpoint must be rejected. What people say is in measure/eye.py.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from shapes import scenes
from shapes.prompts import all_prompts, sample_scene
from shapes.verifier import KINDS, SLOTS, Caption, make_prompt, satisfied

MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-flux"


def draw(count: int, rng: np.random.Generator) -> tuple[list[Caption], np.ndarray]:
    """Captions of both splits, each kind equally often, and a picture that satisfies each."""
    pools = [
        [p for split in ("train", "heldout") for p in all_prompts(split)[kind]] for kind in KINDS
    ]
    prompts = [pool[rng.integers(len(pool))] for _, pool in zip(range(count), pools * count)]
    return prompts, scenes.render([sample_scene(p, rng) for p in prompts])


@torch.no_grad()
def autoencode(pixels: np.ndarray, model: Path, batch: int = 100) -> np.ndarray:
    """Pictures (n, 32, 32, 3) uint8 through the model's encoder and decoder."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    decoded = []
    for i in range(0, len(pixels), batch):
        x = torch.from_numpy(pixels[i : i + batch]).permute(0, 3, 1, 2) / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        decoded.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(decoded)


def read(pixels: np.ndarray, batch: int = 96) -> list[scenes.Reading]:
    images = [Image.fromarray(p) for p in pixels]
    return [r for i in range(0, len(images), batch) for r in scenes.read(images[i : i + batch])]


def accepted(prompts: list[Caption], readings: list[scenes.Reading]) -> dict[str, list[bool]]:
    """Verdicts by sub dimension."""
    verdicts = defaultdict(list)
    for prompt, reading in zip(prompts, readings):
        for (sub, _), met in zip(prompt.testpoints, satisfied(prompt, reading)):
            verdicts[sub].append(met)
    return verdicts


def one_wrong(prompt: Caption, rng: np.random.Generator) -> Caption:
    """The caption with one attribute changed into another that the scene contradicts."""
    while True:
        name = str(rng.choice([n for n in prompt.slots if n != "s2" or prompt.kind != "negation"]))
        slots = prompt.slots | {name: str(rng.choice(SLOTS[name]))}
        same = slots[name] == prompt.slots[name] or slots["s1"] == slots.get("s2")
        alike = slots.get("c1") == slots.get("c2", 0)
        if name == "sum" and not same:  # two plus one is three, as is one plus two
            same = eval_sum(slots[name]) == eval_sum(prompt.slots[name])
        if not same and not alike:
            return make_prompt(prompt.kind, slots)


def eval_sum(text: str) -> int:
    from shapes.verifier import SUMS

    return SUMS[text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    prompts, pixels = draw(args.pictures, rng)
    start = time.process_time()
    readings = read(pixels)
    seconds = time.process_time() - start
    decoded = read(autoencode(pixels, args.model))
    wrong = [one_wrong(p, rng) for p in prompts]
    columns = [accepted(prompts, readings), accepted(prompts, decoded)]
    for shown in (readings, decoded):
        rejected = defaultdict(list)
        for right, prompt, reading in zip(prompts, wrong, shown):
            for old, new, met in zip(
                right.testpoints, prompt.testpoints, satisfied(prompt, reading)
            ):
                if old != new:
                    rejected[new[0]].append(not met)
        columns.append(rejected)
    print(f"{'sub dimension':38} rendered  decoded  wrong: rendered  decoded rejected")
    for sub in [*columns[0], None]:
        rows = [np.concatenate(list(c.values())) if sub is None else c[sub] for c in columns]
        cells = [f"{np.mean(row):8.4f}" if len(row) else "       -" for row in rows]
        print(f"{sub or 'all':38}", " ".join(cells))
    print(
        f"fidelity {np.mean([r.fidelity for r in readings]):.2f} and "
        f"{np.mean([r.fidelity for r in decoded]):.2f}; {len(pixels) / seconds:.0f} images a second a core"
    )


if __name__ == "__main__":
    main()
