"""Flow-matching pre-training from nothing: how the tiny FLUX in assets/tiny-flux came to be.

Five stages, all on pictures that `shapes.py` renders, none of a held-out combination:
  1. an AutoencoderKL learns to compress 32x32 pictures to 8x8 latents of 8 channels;
  2. the pictures are encoded once;
  3. a FluxTransformer2DModel and its two text encoders learn velocity = noise - clean on clean data;
  4. they go on, on web-like data: WRONG_CAPTION of the captions have one wrong attribute, WASHED_OUT
     of the pictures are pale. The result knows the world better than it draws it: a base that
     reinforcement learning can improve, as it is after pre-training on web data;
  5. the autoencoder's decoder is sharpened on latents that no longer change.
Every part is the real class, so that `FluxPipeline.from_pretrained` loads the folder.

    python pretrain.py                        # makes assets/tiny-flux again, in about 40 minutes on 2 cores
    python pretrain.py --out runs/tiny --work runs/tiny-work --pictures 500 --vae_steps 40 --flow_steps 20 \\
        --pair_steps 20 --web_steps 10 --decoder_steps 20                               # does it run?
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
from diffusers import (AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline,
                       FluxTransformer2DModel)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import (CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config,
                          T5EncoderModel)

import flux
import scenes
import shapes

WRONG_CAPTION, WASHED_OUT = 0.40, 0.35  # shares of the web-like data
BATCH = 96
MAX_TOKENS = 12  # the longest sentence has 10 words, and one token ends it


# ----------------------------------------------------------------------------- data

def wrong_caption(prompt: shapes.Prompt, rng: np.random.Generator) -> shapes.Prompt:
    """The prompt with one slot changed, still a training combination of this world."""
    pool = shapes.all_prompts("train")[prompt.kind]
    texts = {p.text for p in pool}
    while True:
        name = str(rng.choice(list(prompt.slots)))
        slots = prompt.slots | {name: str(rng.choice(shapes.SLOTS[name]))}
        changed = shapes.make_prompt(prompt.kind, slots)
        if changed.text != prompt.text and changed.text in texts:
            return changed


def make_data(count: int, rng: np.random.Generator, web: bool, pairs: float = 0.0
              ) -> tuple[list[str], np.ndarray]:
    """Captions and pictures (count, 32, 32, 3) uint8, clean or web-like.

    pairs: share of prompts drawn from the kinds with two things, whose colors are slow to learn.
    """
    prompts = shapes.sample_prompts(count, rng)
    two = [p for pool in shapes.all_prompts("train").values() for p in pool if "c2" in p.slots]
    kinds = sorted({p.kind for p in two})
    pools = {kind: [p for p in two if p.kind == kind] for kind in kinds}
    for i in np.flatnonzero(rng.random(count) < pairs):
        pool = pools[kinds[rng.integers(len(kinds))]]
        prompts[i] = pool[rng.integers(len(pool))]
    drawn = [shapes.sample_scene(p, rng) for p in tqdm(prompts, desc="scenes", leave=False)]
    images = np.concatenate([scenes.render(drawn[i:i + 1000]) for i in range(0, count, 1000)])
    if web:
        for i in np.flatnonzero(rng.random(count) < WASHED_OUT):
            ground = np.array(scenes.DARK if drawn[i].dark else scenes.LIGHT)
            images[i] = ground + (images[i] - ground) * rng.uniform(0.3, 0.6)
        wrong = rng.random(count) < WRONG_CAPTION
        prompts = [wrong_caption(p, rng) if w else p for p, w in zip(prompts, wrong)]
    return [p.text for p in prompts], images


def hard_pictures(count: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures that are rare above and hard to compress: nested, outlined, on a dark ground."""
    pools = shapes.all_prompts("train")
    prompts = [pools[kind][rng.integers(len(pools[kind]))]
               for kind in rng.choice(["inclusion", "style", "layout"], count, p=[0.5, 0.3, 0.2])]
    drawn = [shapes.sample_scene(p, rng) for p in tqdm(prompts, desc="scenes", leave=False)]
    drawn = [s._replace(dark=bool(rng.random() < 0.3)) for s in drawn]
    return np.concatenate([scenes.render(drawn[i:i + 1000]) for i in range(0, count, 1000)])


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, 32, 32, 3) -> float (B, 3, 32, 32) in -1 .. 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


# ----------------------------------------------------------------------------- model

def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar; ends each sentence with </s>."""
    words = sorted({word for split in ("train", "heldout")
                    for prompts in shapes.all_prompts(split).values()
                    for p in prompts for word in p.text.split()})
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>", model_max_length=MAX_TOKENS)


def build(seed: int) -> FluxPipeline:
    """The untrained tiny FLUX: 2 double and 4 single blocks, 4 heads of 32."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=MAX_TOKENS, projection_dim=64,
        pad_token_id=0, bos_token_id=2, eos_token_id=1))
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=scenes.SIZE, scaling_factor=1.0, shift_factor=0.0,
        use_quant_conv=False, use_post_quant_conv=False)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=32, num_layers=2, num_single_layers=4, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=128, pooled_projection_dim=64,
        guidance_embeds=False, axes_dims_rope=(8, 12, 12))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return FluxPipeline(scheduler, vae, clip, tokenizer, t5, word_tokenizer(), transformer)


# ----------------------------------------------------------------------------- training

def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a half cosine down to a hundredth of the peak."""
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
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
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
            torch.save({"module": module.state_dict(), "average": average.state_dict(),
                        "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
                        "step": step + 1}, state.with_suffix(".tmp"))
            os.replace(state.with_suffix(".tmp"), state)
    module.load_state_dict(average.state_dict())


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Absolute and squared error; what is not ground counts five times, since it is the little area
    that a picture is about. And the mean error in grey levels, for the bar."""
    error = decoded - pixels
    weight = 1 + 4 * ((pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05)
    loss = (weight * (error.abs() + error.square())).mean()
    return loss, f"{127.5 * error.detach().abs().mean():.2f} grey levels"


def train_vae(vae: AutoencoderKL, images: np.ndarray, steps: int, state: Path) -> None:
    """Reconstruction, and a slight KL to keep latents smooth."""
    def loss_of(generator):
        pixels = to_pixels(images[torch.randint(len(images), (64,), generator=generator).numpy()])
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        loss, note = reconstruction_loss(vae.decode(latents, return_dict=False)[0], pixels)
        return loss + 2e-7 * posterior.kl().mean(), note

    descend(vae, loss_of, steps, 3e-3, state)


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Latents (count, 8, 8, 8), as the VAE gives them."""
    chunks = [vae.encode(to_pixels(images[i:i + 256])).latent_dist.mean
              for i in tqdm(range(0, len(images), 256), desc="encoding", leave=False)]
    return torch.cat(chunks)


def flow_loss(pipe: FluxPipeline, texts: list[str], latents: torch.Tensor, generator) -> torch.Tensor:
    """Flow matching: mean squared error of the velocity at a logit-normal sigma, as SD3 draws it, shifted to noise."""
    clean = flux.pack((latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor)
    noise = torch.randn(clean.shape, generator=generator)
    sigma = torch.sigmoid(0.5 + torch.randn(len(clean), generator=generator))
    noisy = (1 - sigma)[:, None, None] * clean + sigma[:, None, None] * noise
    text = flux.encode.__wrapped__(pipe, texts)  # with gradient: the text encoders learn too
    velocity = flux.velocity_fn(pipe, text, scenes.SIZE, scenes.SIZE)(noisy, sigma)
    return (velocity - (noise - clean)).square().mean()


def sharpen_decoder(vae: AutoencoderKL, images: np.ndarray, latents: torch.Tensor, steps: int,
                    state: Path) -> None:
    """Trains the decoder alone on fixed latents: sharper pictures, and the flow's space unchanged."""
    def loss_of(generator):
        rows = torch.randint(len(images), (64,), generator=generator)
        pixels = to_pixels(images[rows.numpy()])
        return reconstruction_loss(vae.decode(latents[rows], return_dict=False)[0], pixels)

    vae.encoder.requires_grad_(False)
    descend(vae, loss_of, steps, 2e-3, state)


def train_flow(pipe: FluxPipeline, texts: list[str], latents: torch.Tensor, steps: int, peak: float,
               state: Path) -> None:
    """Trains the transformer, and the text encoders along with it."""
    def loss_of(generator):
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        loss = flow_loss(pipe, [texts[i] for i in rows], latents[rows], generator)
        return loss, f"loss {loss.detach():.3f}"

    parts = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])
    descend(parts, loss_of, steps, peak, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="assets/tiny-flux", help="the folder of the pipeline")
    parser.add_argument("--work", default="runs/pretrain", help="states of the stages, for resuming")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=20_000, help="of each kind, clean and web")
    parser.add_argument("--vae_steps", type=int, default=700)
    parser.add_argument("--flow_steps", type=int, default=2200, help="on clean data")
    parser.add_argument("--pair_steps", type=int, default=2000, help="on clean data, more of two things")
    parser.add_argument("--web_steps", type=int, default=500, help="then on web-like data")
    parser.add_argument("--decoder_steps", type=int, default=1200, help="last, on fixed latents")
    args = parser.parse_args()

    start = time.perf_counter()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    pipe = build(args.seed)
    texts, images = make_data(args.pictures, rng, web=False)
    pair_texts, pair_images = make_data(args.pictures, rng, web=False, pairs=0.5)
    web_texts, web_images = make_data(args.pictures, rng, web=True, pairs=0.5)
    hard = hard_pictures(args.pictures, rng)
    train_vae(pipe.vae, np.concatenate([images, web_images, hard]), args.vae_steps,
              work / "autoencoder.pt")
    latents, pair_latents, web_latents = (encode_images(pipe.vae, x)
                                          for x in (images, pair_images, web_images))
    pipe.vae.register_to_config(shift_factor=latents.mean().item(),
                                scaling_factor=1 / latents.std().item())
    train_flow(pipe, texts, latents, args.flow_steps, 1.5e-3, work / "clean.pt")
    train_flow(pipe, pair_texts, pair_latents, args.pair_steps, 1.5e-3, work / "clean-pairs.pt")
    pipe.save_pretrained(work / "clean")
    train_flow(pipe, web_texts, web_latents, args.web_steps, 5e-4, work / "web-like.pt")
    sharpen_decoder(pipe.vae, np.concatenate([images, pair_images, web_images, hard]),
                    torch.cat([latents, pair_latents, web_latents, encode_images(pipe.vae, hard)]),
                    args.decoder_steps, work / "decoder.pt")
    pipe.to(torch.float16).save_pretrained(args.out)  # half the size; loaded as float32
    print(f"{args.out} after {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
