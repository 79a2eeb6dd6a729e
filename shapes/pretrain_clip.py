"""A learned scorer of the CLIP kind for the shapes world: how assets/tiny-clip came to be.

A `transformers.CLIPModel`, tiny, learns from web-like data (pretrain.py: wrong attributes, pale
pictures) which caption belongs to which picture. It is as fallible as published scorers are, and so
it can be hacked as they can. judges.scorers.CLIPScorer loads it.

Contrastive learning as in CLIP, with two kinds of hard negatives, since a batch of random captions
rarely asks for more than the shape: each picture also sees HARD captions with one slot changed, and
a batch is made of runs of neighbors in alphabetical order, which differ in a word or two. Equal
sentences in a batch are no negatives of one another: they are masked.

    python -m shapes.pretrain_clip                          # about three minutes of one core's time
    python -m shapes.pretrain_clip --pictures 500 --steps 20 --out runs/tiny-clip   # does it run?
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from judges.scorers import CLIPScorer
from shapes import pretrain
from shapes.grammar import parse_prompt
from shapes.prompts import all_prompts, sample_scene
from shapes.read import read
from shapes.render import SIZE, render
from shapes.verifier import satisfied

HARD = 3  # captions with one slot changed, a picture
RUNS, RUN = 16, 8  # a batch: runs of neighbors in alphabetical order, and their length
PEAK_LR = 2e-3


# ----------------------------------------------------------------------------- model


def build(seed: int) -> tuple[CLIPModel, CLIPProcessor]:
    """The untrained model, of the sizes that the shipped one's config.json says, and processor."""
    torch.manual_seed(seed)
    tokenizer = pretrain.word_tokenizer()
    config = CLIPConfig.from_pretrained(pretrain.SHIPPED.with_name("tiny-clip"))
    config.text_config.vocab_size = len(tokenizer)
    side = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side)
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


# ----------------------------------------------------------------------------- data


def neighbors(texts: list[str]) -> list[np.ndarray]:
    """Two orders of the texts: alphabetical from their first word, and from their last.

    Neighbors in the first differ in the words at the end, in the second in those at the start.
    """
    words = [text.split() for text in texts]
    keys = (lambda i: words[i], lambda i: words[i][::-1])
    return [np.array(sorted(range(len(texts)), key=key)) for key in keys]


def draw_batch(orders: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Rows of RUNS x RUN pictures: runs of neighbors, thinned so that few share a caption."""
    rows = []
    for _ in range(RUNS):
        order = orders[rng.integers(len(orders))]
        start, stride = rng.integers(len(order)), rng.integers(4, 25)
        rows.append(order[(start + stride * np.arange(RUN)) % len(order)])
    return np.concatenate(rows)


# ----------------------------------------------------------------------------- training


def contrastive_loss(model: CLIPModel, pixels, captions, hard) -> torch.Tensor:
    """CLIP's symmetric loss, each picture with its own hard captions besides.

    pixels: (B, 3, H, W); captions: (B, T) token ids; hard: (B, HARD, T) token ids.
    """
    image = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    ids = torch.cat([captions, hard.flatten(0, 1)])
    text = model.get_text_features(ids).pooler_output  # causal: padding at the end changes nothing
    text, hard_text = normalize(text, dim=-1).split([len(captions), hard.shape[:2].numel()])
    scale = model.logit_scale.exp()
    logits = scale * image @ text.T  # (B, B)
    same = (captions[:, None] == captions[None]).all(-1)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    own = scale * torch.einsum("bd,bhd->bh", image, hard_text.view(*hard.shape[:2], -1))
    own = own.masked_fill((hard == captions[:, None]).all(-1), float("-inf"))
    target = torch.arange(len(image))
    of_images = cross_entropy(torch.cat([logits, own], 1), target)
    return (of_images + cross_entropy(logits.T, target)) / 2


def train(model: CLIPModel, processor: CLIPProcessor, data, steps: int, rng) -> None:
    """AdamW with pretrain.py's learning rate on `steps` batches of neighbors, in place.

    data: captions and pictures, as pretrain.make_data gives them. Each caption has HARD others with
    one slot changed; a few happen to be true too.
    """
    texts, images = data
    hard = [pretrain.wrong_caption(parse_prompt(t), rng).text for t in texts for _ in range(HARD)]
    full = dict(padding="max_length", return_tensors="pt")
    captions, hard = (processor.tokenizer(of, **full).input_ids for of in (texts, hard))
    hard = hard.view(len(texts), HARD, -1)
    pixels = processor.image_processor(images=list(images), return_tensors="pt").pixel_values
    orders = neighbors(texts)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    bar = tqdm(range(steps), desc="clip")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = pretrain.learning_rate(step, steps, PEAK_LR)
        rows = draw_batch(orders, rng)
        loss = contrastive_loss(model, pixels[rows], captions[rows], hard[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))  # as CLIP does
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")


# ----------------------------------------------------------------------------- evaluation


def one_attribute_pairs(count: int, rng: np.random.Generator) -> dict[str, list]:
    """Held-out prompts with one slot changed, and a clean picture of each.

    Pairs in which the right picture satisfies the wrong caption too ("one plus two", "two plus
    one"), or the other way round, ask nothing and are left out.
    """
    pool = [p for prompts in all_prompts("heldout").values() for p in prompts]
    right = [pool[i] for i in rng.integers(len(pool), size=count)]
    wrong = [pretrain.wrong_caption(p, rng) for p in right]
    drawn = [[sample_scene(p, rng) for p in of] for of in (right, wrong)]
    pictures = [[Image.fromarray(image) for image in render(of)] for of in drawn]
    shown = zip(right, wrong, *map(read, pictures))
    asks = [not all(satisfied(w, one)) and not all(satisfied(r, two)) for r, w, one, two in shown]
    columns = {
        "kind": [p.kind for p in right],
        "right": [p.text for p in right],
        "wrong": [p.text for p in wrong],
        "picture": pictures[0],
        "other": pictures[1],
    }
    return {name: list(itertools.compress(of, asks)) for name, of in columns.items()}


def accuracy(scorer: CLIPScorer, pairs: dict[str, list]) -> dict[str, np.ndarray]:
    """For each pair whether the scorer prefers the right caption, and whether the right picture."""
    score = lambda text, image: np.array(scorer.score(pairs[text], pairs[image]))
    right = score("right", "picture")
    others = {"caption": score("wrong", "picture"), "picture": score("right", "other")}
    return {name: right > other for name, other in others.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="assets/tiny-clip", help="the folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--pairs", type=int, default=2000, help="one-attribute pairs to measure on")
    args = parser.parse_args(argv)

    start, cpu = time.perf_counter(), time.process_time()
    rng = np.random.default_rng(args.seed)
    model, processor = build(args.seed)
    data = pretrain.make_data(args.pictures, rng, web=True, pairs=0.5)
    train(model, processor, data, args.steps, rng)
    out = Path(args.out)
    pretrain.save_half(model, out)
    processor.save_pretrained(out)
    seconds, of_cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"trained in {seconds:.0f} s, {of_cpu:.0f} s of CPU time")

    pairs = one_attribute_pairs(args.pairs, np.random.default_rng(args.seed + 1))
    right = accuracy(CLIPScorer(str(out), batch_size=256), pairs)
    kinds = np.array(pairs["kind"])
    for name, of in right.items():
        each = ", ".join(f"{kind} {of[kinds == kind].mean():.2f}" for kind in sorted(set(kinds)))
        print(f"right {name} of {len(of)} one-attribute pairs: {of.mean():.3f} ({each})")


if __name__ == "__main__":
    main()
