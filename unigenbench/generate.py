"""Prompts into images: four per prompt, the same bytes whatever the number of processes or starts.

    generate(prompts, "images", "black-forest-labs/FLUX.1-dev", steps=30, guidance=3.5)

The official script's seeds and names of files. Departures: a prompt's four images are one batch,
noise is drawn on the CPU, and settings.json says how the images were made; what was made otherwise
is never mixed with them.
"""

import hashlib
import inspect
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.files import write_atomic
from common.wording import listed
from unigenbench.images import IMAGES, fingerprint, image_name, opens, png_of
from unigenbench.testpoints import Prompt

FIRST_SEED = 3407  # of the released code: images 0..3 of every prompt have seeds 3407..3410


NAMES = ("model", "lora")  # where the weights were found


class Sampling(NamedTuple):
    """Everything but the prompt that decides an image's bytes, and the names that were given."""

    model: str
    lora: str | None
    pipeline: str  # its class in diffusers
    weights: str  # fingerprint, since no name tells: of a copy, or of one that was trained further
    configs: str  # what else is in its folder
    lora_scale: list[float]
    steps: int  # the official script: 30
    guidance: float  # the official script: 3.5
    size: int | None  # pixels, square; the official script: 1024; None: the pipeline's own
    shift: float | None  # of the noise schedule; None: the pipeline's own
    seeds: tuple[int, ...]  # of a prompt's images
    device: str
    dtype: str
    versions: dict[str, str]


def keep_settings(folder: Path, settings: dict) -> None:
    """Write settings.json, or check that images already there were made with the same settings.

    Raises ValueError if they were made with others, or nobody knows with which.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    images = any(folder.glob("*.png"))  # looked for first: another process may be starting as well
    if path.is_file():
        old, new = json.loads(path.read_text()), json.loads(json.dumps(settings))
        both = [k for k in new if k in old and k not in NAMES]  # earlier versions wrote fewer
        odd = [f"{k}: {old[k]} -> {new[k]}" for k in both if old[k] != new[k]]
        if odd:
            raise ValueError(
                f"{folder} holds images of other settings ({listed(odd, 9, '; ')}); "
                "remove it or choose another --out"
            )
    elif images:
        raise ValueError(
            f"{folder} holds images, but no settings.json says how they were made; "
            "choose another --out"
        )
    else:
        write_atomic(path, json.dumps(settings, indent=2).encode())


def configuration(pipe) -> str:
    """16 hex digits of how the pipeline's parts are set, schedulers and vocabularies included."""
    parts = [{k: v for k, v in pipe.config.items() if k[0] != "_"}]
    for part in pipe.components.values():
        config = getattr(part, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else config
        parts.append({k: v for k, v in config.items() if k[0] != "_"})
        parts.append(part.get_vocab() if hasattr(part, "get_vocab") else None)
    text = json.dumps(parts, sort_keys=True, default=str)
    text = re.sub(r'"(_name_or_path|transformers_version)": [^,}]*', "", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_pipeline(model: str, lora: str | None, size: int | None, guidance: float, device, dtype):
    """A text-to-image pipeline of diffusers, and a models.base.Model of it, or None.

    Raises ValueError if there is none in `model`, it cannot be told what the benchmark sets, or the
    LoRA is not wholly for it (diffusers would only warn, and draw with the base).
    """
    from diffusers import DiffusionPipeline

    from models import base

    kind = base.load_index(model)["_class_name"]
    own = None
    if kind in base.families():
        own = base.load(model, size, guidance, device, dtype)
        pipe = own.pipe
    else:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
        needs = {"prompt", "num_inference_steps", "guidance_scale", "height", "width", "generator"}
        lacks = needs - inspect.signature(pipe.__call__).parameters.keys()
        if lacks:
            raise ValueError(f"the {kind} in '{model}' takes no {', '.join(sorted(lacks))}")
    if lora:
        from unigenbench.lora import load_lora

        load_lora(pipe, lora, f"the {kind} in '{model}'")
    return pipe, own


def make_draw(pipe, own, steps: int, guidance: float, size: int | None, seeds):
    """A function from a prompt to its images, one a seed; and the schedule's shift, if it is ours.

    Models that can be trained here are sampled as training does it; others by diffusers itself.
    """
    import torch

    import sampler

    def draw_own(text: str) -> list:
        velocity = own.velocity(own.encode([text], len(seeds)))
        return own.decode(sampler.ode_sample(velocity, noise, sigmas))

    def draw_other(text: str) -> list:
        # Generators of the CPU: a seed means the same noise on every device.
        noises = [torch.Generator().manual_seed(seed) for seed in seeds]
        how = dict(num_inference_steps=steps, guidance_scale=guidance, height=size, width=size)
        return pipe(prompt=[text] * len(seeds), generator=noises, **how).images

    if not own:
        return draw_other, None
    noise, shift = own.noise(seeds), own.schedule_shift(steps)
    sigmas = sampler.sigma_schedule(steps, shift).to(noise.device)
    return draw_own, shift


def place() -> tuple:
    """Device and dtype of this process; on a CPU it uses one thread."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}", torch.bfloat16
    torch.set_num_threads(1)
    return "cpu", torch.float32


def generate(
    prompts: list[Prompt],
    out,
    model: str,
    lora=None,
    steps=30,
    guidance=3.5,
    size=None,
    rank=0,
    ranks=1,
) -> None:
    """Four PNG per prompt into `out`; this process makes every `ranks`-th prompt.

    The images of one prompt are one batch, always: its shape decides the order of floating-point
    sums, so no other batch gives the same bytes. For the same reason each process on a CPU uses
    one thread.
    size: pixels; by default what the model was made for (FLUX.1-dev 1024, the tiny one 32)
    """
    import diffusers
    import torch

    from unigenbench.lora import scales_of

    device, dtype = place()
    pipe, own = load_pipeline(model, lora, size, guidance, device, dtype)
    size = own.size if own else size
    seeds, out = tuple(range(FIRST_SEED, FIRST_SEED + IMAGES)), Path(out)
    draw, shift = make_draw(pipe, own, steps, guidance, size, seeds)
    keep_settings(
        out,
        Sampling(
            model,
            lora,
            type(pipe).__name__,
            fingerprint(pipe.components),
            configuration(pipe),
            scales_of(pipe),
            steps,
            guidance,
            size,
            shift,
            seeds,
            device.split(":")[0],
            str(pipe.dtype),
            {"torch": torch.__version__, "diffusers": diffusers.__version__},
        )._asdict(),
    )
    for prompt in tqdm(prompts[rank::ranks], desc="generate", disable=rank > 0):
        paths = [out / image_name(prompt.index, i) for i in range(IMAGES)]
        missing = [i for i, path in enumerate(paths) if not opens(path, prompt.text)]
        with torch.no_grad():
            images = draw(prompt.text) if missing else []
        for i in missing:
            write_atomic(paths[i], png_of(images[i], prompt.text))
