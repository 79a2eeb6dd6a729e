"""Learned preference scorers of the shapes world, as fallible as published ones are.

PickScore and HPS are CLIP models that were tuned to people's choices between two images of one
prompt. So are these: assets/tiny-clip, tuned to choices between images of the base model, of
which some are wrong, as people's are. Each of the four has its own prompts, images and wrong
choices; the first two are trained on in table1.py, the other two only look on.

    folders = learned(OUT / "scorers", FULL)    # trained where they are missing
    quality(folders, FULL)                      # how often each is right on hard pairs

Loss: cross-entropy of the softmax over the two scores, PickScore's (arXiv 2305.01569, section 4).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

import sampler
import train
from common.files import writing
from common.seeds import seed_of
from judges.answers import Verdict, ask
from judges.mllm import Query
from judges.scorers import CLIPScorer
from judges.templates import PAIRWISE_TEMPLATE
from models import base
from shapes import pretrain
from shapes.prompts import heldout_prompts, sample_prompts
from shapes.verifier import ShapesMLLM
from training.data import Batch

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CLIP, FLUX = str(ASSETS / "tiny-clip"), str(ASSETS / "tiny-flux")
NAMES = ("first", "second", "third", "fourth")  # the last two are never trained on
WRONG = 0.3  # share of choices made by a coin: about one in seven is wrong


class Choices(NamedTuple):
    """Two images of each prompt, and which one was chosen (0 or 1); ties are left out."""

    prompts: list[str]
    images: list[tuple]
    chosen: list[int]


class Budget(NamedTuple):
    prompts: int  # two images each
    steps: int
    hard: int  # held-out prompts to measure on


FULL, SMALLEST = Budget(1200, 150, 314), Budget(6, 1, 6)
BUDGETS = {"full": FULL, "quick": FULL, "smallest": SMALLEST}


# ----------------------------------------------------------------------------- choices


def choices(prompts: list[str], judge: ShapesMLLM, seed: int) -> Choices:
    """Two images of the base model for each prompt, drawn as the loop draws them, and judged."""
    model, count = base.load(FLUX, size=32), 2 * len(prompts)
    noise, steps = ([seed_of(seed, name, n) for n in range(count)] for name in ("noise", "steps"))
    batch = Batch(prompts, noise, steps, [])
    how = dict(noise_level=0.7, kind="flow", micro_batch=64)
    pairs = train.sample(model, batch, sampler.sigma_schedule(6), **how).images
    texts = [PAIRWISE_TEMPLATE.replace("{prompt}", prompt) for prompt in prompts]
    outcomes = ask(judge, [Query(tuple(pair), text) for pair, text in zip(pairs, texts)])
    verdicts = [answers[-1].verdict for answers in outcomes]
    kept = [n for n, verdict in enumerate(verdicts) if verdict in (Verdict.FIRST, Verdict.SECOND)]
    chosen = [int(verdicts[n] is Verdict.SECOND) for n in kept]
    return Choices([prompts[n] for n in kept], [tuple(pairs[n]) for n in kept], chosen)


# ----------------------------------------------------------------------------- training


def tuned(scorer: CLIPScorer, shown: Choices, steps: int, rng: np.random.Generator) -> None:
    """Tunes the scorer's model to the choices, in place."""
    images = [image for pair in shown.images for image in pair]
    pixels = scorer.processor.image_processor(images=images, return_tensors="pt").pixel_values
    pixels = pixels.unflatten(0, (-1, 2))  # (n, 2, 3, H, W)
    texts = scorer.processor.tokenizer(shown.prompts, padding="max_length", return_tensors="pt")
    tokens = texts.input_ids  # (n, T)
    chosen, count = torch.tensor(shown.chosen), len(shown.chosen)
    model = scorer.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.02)
    for _ in tqdm(range(steps), desc=f"scorer '{scorer.name}'", leave=False):
        rows = torch.from_numpy(rng.integers(count, size=64))
        image = model.get_image_features(pixels[rows].flatten(0, 1)).pooler_output  # (2b, D)
        text = model.get_text_features(tokens[rows]).pooler_output  # (b, D)
        image, text = normalize(image, dim=-1).unflatten(0, (-1, 2)), normalize(text, dim=-1)
        scores = model.logit_scale.exp() * (image * text[:, None]).sum(-1)  # (b, 2)
        optimizer.zero_grad()
        cross_entropy(scores, chosen[rows]).backward()
        optimizer.step()
    model.requires_grad_(False)


def learned(root: Path, budget: Budget) -> dict[str, Path]:
    """The folder of each scorer, by name; one that is missing is trained first."""
    folders = {name: root / name for name in NAMES}
    for name, folder in folders.items():
        if (folder / "model.safetensors").exists():
            continue
        rng = np.random.default_rng(seed_of("scorer", name))
        prompts = [prompt.text for prompt in sample_prompts(budget.prompts, rng)]
        shown = choices(prompts, ShapesMLLM(error_rate=WRONG), seed_of("scorer", name))
        scorer = CLIPScorer(CLIP, name=name)
        torch.manual_seed(0)
        tuned(scorer, shown, budget.steps, rng)
        with writing(folder):
            scorer.processor.save_pretrained(folder)
            pretrain.save_half(scorer.model, folder)  # last: with it the folder is whole
    return folders


# ----------------------------------------------------------------------------- how good they are


def hard_pairs(count: int) -> Choices:
    """What is right about two images of the base model for each of so many held-out prompts, twice,
    by the exact judge."""
    prompts = [prompt.text for prompt in heldout_prompts()[:count]] * 2
    return choices(prompts, ShapesMLLM(), seed_of("hard pairs"))


def quality(folders: dict[str, Path], budget: Budget) -> list[dict]:
    """For each scorer, and for tiny-clip as it was, the share of hard pairs on which it names the
    exact judge's winner; and how often it agrees with the scorer named first."""
    shown, picked, rows = hard_pairs(budget.hard), {}, []
    for name, folder in {"untuned": CLIP, **folders}.items():
        scorer = CLIPScorer(str(folder), name=name, batch_size=256)
        one, two = (scorer.score(shown.prompts, images) for images in zip(*shown.images))
        picked[name] = np.array(two) > np.array(one)
    for name, second in picked.items():
        right = float((second == np.array(shown.chosen)).mean())
        same = float((second == picked[NAMES[0]]).mean())
        rows.append({"scorer": name, "pairs": len(second), "right": right, "as_first": same})
    return rows
