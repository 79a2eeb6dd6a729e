"""Flow-matching pre-training from nothing: how the tiny FLUX in assets/tiny-flux came to be.

Four stages, all on sentences and pictures of shapes/prompts.py, none of them held out:
  1. an AutoencoderKL learns to compress 32x32 pictures to 8x8 latents of 8 channels, half of them
     of things in any color, as FLUX's own had seen more than its prompts say; its decoder learns
     longest;
  2. the two text encoders learn to read the grammar: FLUX's own knew language before they met
     pictures, and without it the model learns late which of two colors belongs to which shape;
  3. a FluxTransformer2DModel, and the text encoders along with it, learn velocity = noise - clean;
  4. they go on, on web-like data: WRONG_CAPTION of the captions have one wrong attribute,
     WASHED_OUT of the pictures are pale. A short while at a low rate: the result still knows the
     world better than it draws it, a base that reinforcement learning can improve, as after
     pre-training on web data.
Every part is the real class, of the sizes that the folder's config.json files say, so that
`FluxPipeline.from_pretrained` loads what comes out.

    python -m shapes.pretrain        # makes assets/tiny-flux again, in about an hour on 2 cores
    python -m shapes.pretrain --out runs/tiny --work runs/tiny-work --pictures 500 --vae_steps 40 \\
        --decoder_steps 20 --text_steps 20 --flow_steps 20 --web_steps 10          # does it run?
"""

import argparse
import copy
import math
import os
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import sampler
from models.flux import Flux
from shapes.grammar import KINDS, RADII, SLOTS, Caption, make_prompt
from shapes.prompts import all_prompts, heldout_prompts, place, sample_prompts, sample_scene
from shapes.read import read
from shapes.render import DARK, LIGHT, SHAPES, Scene, Thing, render
from shapes.verifier import satisfied

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "tiny-flux"
WRONG_CAPTION, WASHED_OUT = 0.40, 0.35  # shares of the web-like data
CONTRAST = (0.4, 0.8)  # what washed-out pictures keep of theirs
MAX_TOKENS = 12  # the longest sentence has 10 words, and one token ends it


# ----------------------------------------------------------------------------- data


def wrong_caption(prompt: Caption, rng: np.random.Generator) -> Caption:
    """The prompt with one slot changed, still a training combination of this world."""
    pool = all_prompts("train")[prompt.kind]
    texts = {p.text for p in pool}
    while True:
        name = str(rng.choice(list(prompt.slots)))
        slots = prompt.slots | {name: str(rng.choice(SLOTS[name]))}
        changed = make_prompt(prompt.kind, slots)
        if changed.text != prompt.text and changed.text in texts:
            return changed


def render_all(drawn: list[Scene]) -> np.ndarray:
    return np.concatenate([render(drawn[i : i + 1000]) for i in range(0, len(drawn), 1000)])


def make_data(count: int, rng: np.random.Generator, web: bool, pairs: float = 0.0):
    """Captions, and pictures (count, 32, 32, 3) uint8, clean or web-like.

    pairs: share of prompts drawn from the kinds with two things, whose colors are slow to learn.
    """
    prompts = sample_prompts(count, rng)
    two = [pool for _, pool in sorted(all_prompts("train").items()) if "c2" in pool[0].slots]
    for i in np.flatnonzero(rng.random(count) < pairs):
        pool = two[rng.integers(len(two))]
        prompts[i] = pool[rng.integers(len(pool))]
    drawn = [sample_scene(p, rng) for p in tqdm(prompts, desc="scenes", leave=False)]
    images = render_all(drawn)
    if web:
        for i in np.flatnonzero(rng.random(count) < WASHED_OUT):
            ground = np.array(DARK if drawn[i].dark else LIGHT)
            images[i] = ground + (images[i] - ground) * rng.uniform(*CONTRAST)
        wrong = rng.random(count) < WRONG_CAPTION
        prompts = [wrong_caption(p, rng) if w else p for p, w in zip(prompts, wrong)]
    return [p.text for p in prompts], images


def any_pictures(count: int, rng: np.random.Generator, nested: float = 0.3) -> np.ndarray:
    """Pictures (count, 32, 32, 3) uint8 that no sentence describes: any color, ground and outline.

    For the autoencoder alone: one that meets only the training combinations keeps those alone, and
    repaints others (a pink square in outline) as what it knows. nested: share of things in things.
    """

    def thing(x, y, r, outline=False) -> Thing:
        color = tuple(rng.integers(256, size=3))
        return Thing(str(rng.choice(SHAPES)), color, x, y, r, outline)

    def scene() -> Scene:
        dark, inside, large = (rng.random(3) < (0.35, nested, 0.6)).tolist()
        if inside:
            outer, inner = RADII["outer"], RADII["inner"]
            xy = place(np.array([outer]), rng)[0]
            return Scene((thing(*xy, outer), thing(*xy, inner)), dark)
        smalls = rng.integers(0, 3) if large else rng.integers(1, 5)
        radii = np.array([RADII["large"]] * large + [RADII["small"]] * smalls)
        placed = zip(place(radii, rng), radii)
        things = (thing(*xy, r, r > 5 and rng.random() < 0.4) for xy, r in placed)
        return Scene(tuple(things), dark)

    return render_all([scene() for _ in tqdm(range(count), desc="scenes", leave=False)])


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, 32, 32, 3) -> float (B, 3, 32, 32) in -1 .. 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


# ----------------------------------------------------------------------------- model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar; ends each sentence with </s>."""
    every = [
        p for split in ("train", "heldout") for pool in all_prompts(split).values() for p in pool
    ]
    words = {word for prompt in every for word in prompt.text.split()}
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **special
    )


def build(seed: int) -> FluxPipeline:
    """The untrained tiny FLUX, of the sizes that the shipped one's config.json files say."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    words = {"vocab_size": len(tokenizer)}
    clip = CLIPTextModel(CLIPTextConfig.from_pretrained(SHIPPED / "text_encoder", **words))
    t5 = T5EncoderModel(T5Config.from_pretrained(SHIPPED / "text_encoder_2", **words))
    config = AutoencoderKL.load_config(SHIPPED / "vae")
    vae = AutoencoderKL.from_config(config, scaling_factor=1.0, shift_factor=0.0)  # not yet known
    config = FluxTransformer2DModel.load_config(SHIPPED / "transformer")
    transformer = FluxTransformer2DModel.from_config(config)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(SHIPPED / "scheduler")
    return FluxPipeline(scheduler, vae, clip, tokenizer, t5, word_tokenizer(), transformer)


# ----------------------------------------------------------------------------- training


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a twentieth of the steps, then a half cosine to a hundredth of peak."""
    warm_up = max(1, steps // 20)
    fall = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warm_up) * max(0.01, fall)


def descend(module: torch.nn.Module, loss_of, steps: int, peak: float, state: Path) -> None:
    """AdamW on loss_of(generator) -> (loss, note for the bar); the module is left with its average.

    The state file is written every 100 steps and read at the start, so that a run that was
    stopped goes on where it stood, and a finished stage is not trained again.
    """
    average = copy.deepcopy(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-3, betas=(0.9, 0.99))
    generator, start = torch.Generator().manual_seed(zlib.crc32(state.name.encode())), 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        for name, part in dict(module=module, average=average, optimizer=optimizer).items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        start = saved["step"]
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=state.stem)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss, note = loss_of(generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.995, (step + 1) / (step + 10))
            for mean, value in zip(average.parameters(), module.parameters()):
                mean.lerp_(value, 1 - decay)
        bar.set_postfix_str(note)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            parts = dict(module=module, average=average, optimizer=optimizer)
            saved = {name: part.state_dict() for name, part in parts.items()}
            saved |= {"generator": generator.get_state(), "step": step + 1}
            torch.save(saved, state.with_suffix(".tmp"))
            os.replace(state.with_suffix(".tmp"), state)
    module.load_state_dict(average.state_dict())


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Absolute and squared error, and a note for the bar: the mean error in gray levels.

    What is not ground counts five times, since it is the little area that a picture is about.
    """
    error = decoded - pixels
    weight = 1 + 4 * ((pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05)
    loss = (weight * (error.abs() + error.square())).mean()
    return loss, f"{127.5 * error.detach().abs().mean():.2f} gray levels"


def train_vae(vae: AutoencoderKL, images: np.ndarray, decoder_only: bool = False, **how) -> None:
    """Reconstruction, and a slight KL to keep latents smooth. how: of descend.

    decoder_only: the decoder alone goes on, and latents stay as they are.
    """

    def loss_of(generator):
        pixels = to_pixels(images[torch.randint(len(images), (32,), generator=generator).numpy()])
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean + posterior.std * noise
        loss, note = reconstruction_loss(vae.decode(latents).sample, pixels)
        return loss + 2e-7 * posterior.kl().mean(), note

    descend(vae.decoder if decoder_only else vae, loss_of, **how)


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Latents (count, 8, 8, 8), as the VAE gives them."""
    chunks = [
        vae.encode(to_pixels(images[i : i + 256])).latent_dist.mean
        for i in tqdm(range(0, len(images), 256), desc="encoding", leave=False)
    ]
    return torch.cat(chunks)


def train_text(pipe: FluxPipeline, prompts: list[Caption], steps: int, state: Path) -> None:
    """The text encoders learn to understand sentences before they meet pictures, as FLUX's own did.

    From every vector of T5 and from CLIP's pooled one, linear heads read each slot of the grammar
    (which color is the first, is there a second shape, ...); the heads are then thrown away.
    """
    values = {name: ("", *choices) for name, choices in SLOTS.items()}
    sizes = list(map(len, values.values()))
    targets = torch.tensor(
        [[of.index(p.slots.get(name, "")) for name, of in values.items()] for p in prompts]
    )
    heads = [torch.nn.Linear(width, sum(sizes)) for width in (128, 64)]
    parts = torch.nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2, *heads])

    def loss_of(generator):
        rows = torch.randint(len(prompts), (256,), generator=generator)
        text = Flux(pipe).encode_prompts([prompts[i].text for i in rows])
        logits = torch.cat([heads[0](text.embeds), heads[1](text.pooled)[:, None]], 1)
        wanted = targets[rows].repeat_interleave(logits.shape[1], 0)
        parts = logits.flatten(0, 1).split(sizes, -1)
        loss = sum(cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts))
        return loss, f"loss {loss.detach():.3f}"

    descend(parts, loss_of, steps, 3e-3, state)


def train_flow(
    pipe: FluxPipeline, texts: list[str], latents: torch.Tensor, batch: int, **how
) -> None:
    """Flow matching: mean squared error of the velocity, at sigmas drawn logit-normal as in SD3.

    latents: (count, 8, 8, 8), as the VAE gives them. The mean of 0.5 shifts sigma toward noise.
    """
    model, config = Flux(pipe), pipe.vae.config

    def loss_of(generator):
        rows = torch.randint(len(texts), (batch,), generator=generator)
        clean = model.pack((latents[rows] - config.shift_factor) * config.scaling_factor)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.sigmoid(0.5 + torch.randn(len(clean), generator=generator))
        noisy = (1 - sigma)[:, None, None] * clean + sigma[:, None, None] * noise
        text = model.encode_prompts([texts[i] for i in rows])  # the text encoders learn too
        loss = (model.velocity(text)(noisy, sigma) - (noise - clean)).square().mean()
        return loss, f"loss {loss.detach():.3f}"

    parts = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])
    descend(parts, loss_of, **how)


@torch.no_grad()
def report_heldout(pipe: FluxPipeline, stage: str, prompts: list[Caption]) -> None:
    """Prints which share of the prompts' testpoints the model draws right, by kind of sentence."""
    model = Flux(pipe)
    velocity = model.velocity(model.encode([p.text for p in prompts]))
    noise = model.noise(range(len(prompts)))
    clean = sampler.ode_sample(velocity, noise, sampler.sigma_schedule(6))
    readings = read(model.decode(clean))
    met = [satisfied(p, r) for p, r in zip(prompts, readings)]
    share = lambda rows: sum(map(sum, rows)) / sum(map(len, rows))
    kinds = {kind: share([m for p, m in zip(prompts, met) if p.kind == kind]) for kind in KINDS}
    whole, error = np.mean(list(map(all, met))), np.mean([r.render_error for r in readings])
    print(
        f"after {stage}: held-out accuracy {share(met):.3f}, all-correct rate {whole:.3f}, render "
        f"error {error:.2f}; " + ", ".join(f"{kind} {value:.2f}" for kind, value in kinds.items()),
        flush=True,
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, usual, text in (
        ("out", "assets/tiny-flux", "the folder of the pipeline"),
        ("work", "runs/pretrain", "states of the stages, for resuming"),
        ("seed", 0, ""),
        ("pictures", 30_000, "of each kind"),
        ("vae_steps", 3000, ""),
        ("decoder_steps", 2000, ""),
        ("text_steps", 500, ""),
        ("flow_steps", 6000, "on clean data"),
        ("web_steps", 60, "then on web-like data"),
        ("batch", 96, "of the transformer's steps"),
        ("heldout", 60, "prompts of a kind to report on"),
    ):
        parser.add_argument(f"--{name}", type=type(usual), default=usual, help=text)
    return parser.parse_args(argv)


def save_half(model, folder) -> None:
    """Weights as float16, half the size; transformers' classes are told to load them as float32, as
    diffusers' do unasked: a plain from_pretrained gives one precision."""
    model.to(torch.float16).save_pretrained(folder)
    for file in Path(folder).rglob("config.json"):
        file.write_text(file.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    pipe = build(args.seed)
    texts, images = make_data(args.pictures, rng, web=False)
    pair_texts, pair_images = make_data(args.pictures, rng, web=False, pairs=0.5)
    web_texts, web_images = make_data(args.pictures, rng, web=True, pairs=0.5)
    any_color = any_pictures(2 * args.pictures, rng)
    seen = np.concatenate([images, web_images, any_color])
    how = dict(steps=args.vae_steps, peak=3e-3, state=work / "autoencoder.pt")
    train_vae(pipe.vae, seen, **how)
    nested = any_pictures(args.pictures, np.random.default_rng(args.seed + 1), nested=0.7)
    how = dict(steps=args.decoder_steps, peak=2e-3, state=work / "decoder.pt")
    train_vae(pipe.vae, np.concatenate([images, nested]), decoder_only=True, **how)
    train_text(pipe, sample_prompts(args.pictures, rng), args.text_steps, work / "text.pt")
    latents = encode_images(pipe.vae, np.concatenate([images, pair_images]))
    factors = dict(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    pipe.vae.register_to_config(**factors)
    heldout = heldout_prompts(args.heldout)
    texts += pair_texts
    how = dict(steps=args.flow_steps, peak=1.5e-3, state=work / "clean.pt")
    train_flow(pipe, texts, latents, args.batch, **how)
    report_heldout(pipe, "clean data", heldout)
    web_latents = encode_images(pipe.vae, web_images)
    how = dict(steps=args.web_steps, peak=5e-5, state=work / "web-like.pt")
    train_flow(pipe, web_texts, web_latents, args.batch, **how)
    report_heldout(pipe, "web-like data", heldout)
    save_half(pipe, args.out)
    print(f"{args.out} after {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
