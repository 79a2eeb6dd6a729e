"""Prompts into images: the same bytes whatever the number of processes or starts.

    generate(prompts, "images", "black-forest-labs/FLUX.1-dev", steps=30, guidance=3.5)

The official script's seeds and names of files. Departures: a prompt's images are one batch,
noise is drawn on the CPU, and settings.json says how the images were made; what was made otherwise
is never mixed with them.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from common.files import write_atomic
from common.wording import listed
from unigenbench.images import IMAGES, Layout, fingerprint, opens, png_of, read_settings
from unigenbench.testpoints import Prompt

FIRST_SEED = 3407  # of the released code
NAMES = ("model", "lora")  # in settings.json: where the weights were found


def keep_settings(folder: Path, settings: dict) -> None:
    """Write settings.json, or check that images already there were made with the same settings.

    Raises ValueError if they were made with others, or nobody knows with which.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    images = any(folder.glob("*.png"))  # looked for first: another process may be starting as well
    if path.is_file():
        old, new = read_settings(path), json.loads(json.dumps(settings))
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


def seeds_of(images: int) -> tuple[int, ...]:
    """Of the images 0, 1, ... of every prompt."""
    return tuple(range(FIRST_SEED, FIRST_SEED + images))


def load_pipeline(
    model: str, lora: str | None, size: int | None, guidance: float, offload: bool = False
):
    """A text-to-image pipeline of diffusers, and a models.base.Model of it, or None.

    offload: its parts wait in main memory, and only the one that works is on the GPU
    Raises ValueError if there is none in `model`, it cannot be told what the benchmark sets, or the
    LoRA is not wholly for it (diffusers would only warn, and draw with the base).
    """
    import torch

    from models import base

    device, dtype = f"cuda:{os.environ.get('LOCAL_RANK', 0)}", torch.bfloat16
    if not torch.cuda.is_available():
        device, dtype = "cpu", torch.float32
        torch.set_num_threads(1)  # as many as order the sums, whatever the machine
    kind, own = base.load_index(model)["_class_name"], None
    if kind in base.families() and not offload:
        own = base.load(model, size, guidance, device, dtype)
        pipe = own.pipe
    else:
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype)
        pipe = pipe if offload else pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        needs = {"prompt", "num_inference_steps", "guidance_scale", "height", "width", "generator"}
        lacks = needs - inspect.signature(pipe.__call__).parameters.keys()
        if lacks:
            raise ValueError(f"the {kind} in '{model}' takes no {', '.join(sorted(lacks))}")
    if lora:
        from unigenbench.lora import load_lora

        load_lora(pipe, lora, f"the {kind} in '{model}'")
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    return pipe, own


def make_draw(
    pipe, own, steps: int, guidance: float, size: int | None, *, seeds: Sequence[int]
) -> tuple[Callable, dict]:
    """A function from a prompt to its images, one a seed; and, for settings.json, their size and
    the schedule's shift, where they are not the pipeline's own.

    Models that can be trained here are sampled as training does it; others by diffusers itself.
    """
    import torch

    import sampler
    from models import base

    def draw_own(text: str) -> list:
        velocity = own.velocity(own.encode([text], len(seeds)))
        return own.decode(sampler.ode_sample(velocity, noise, sigmas))

    def draw_other(text: str) -> list:
        # Generators of the CPU: a seed means the same noise on every device.
        noises = [torch.Generator().manual_seed(seed) for seed in seeds]
        how = dict(num_inference_steps=steps, guidance_scale=guidance, height=size, width=size)
        return pipe(prompt=[text] * len(seeds), generator=noises, **how).images

    if not own:
        known = type(pipe).__name__ in base.families()  # offloaded, which has one of its own
        size = size or (pipe.vae.config.sample_size if known else None)
        return draw_other, {"size": size, "shift": None}
    noise, shift = own.noise(seeds), own.schedule_shift(steps)
    sigmas = sampler.sigma_schedule(steps, shift).to(noise.device)
    return draw_own, {"size": own.size, "shift": shift}


def sampling_settings(pipe, **given) -> dict:
    """settings.json: all but the prompt that decides an image's bytes, and the names given."""
    import diffusers
    import torch

    from unigenbench.lora import scales_of

    return {
        **{name: given.pop(name) for name in NAMES},
        "pipeline": type(pipe).__name__,
        # No name tells: of a copy, or of one that was trained further.
        "weights": fingerprint(pipe.components),
        "configs": configuration(pipe),
        "lora_scale": scales_of(pipe),
        **given,
        "device": pipe._execution_device.type,  # of an offloaded one, where its parts go
        "dtype": str(pipe.dtype),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


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
    *,
    images=IMAGES,
    offload=False,
) -> None:
    """So many PNG per prompt into `out`; this process makes every `ranks`-th prompt.

    The images of one prompt are one batch, always: its shape decides the order of floating-point
    sums, so no other batch gives the same bytes. For the same reason each process on a CPU uses
    one thread.
    size: pixels; by default what the model was made for (FLUX.1-dev 1024, the tiny one 32)
    """
    import torch

    out, seeds = Path(out), seeds_of(images)
    pipe, own = load_pipeline(model, lora, size, guidance, offload)
    draw, found = make_draw(pipe, own, steps, guidance, size, seeds=seeds)
    given = dict(model=model, lora=lora, steps=steps, guidance=guidance, seeds=seeds)
    keep_settings(out, sampling_settings(pipe, **given, **found))
    for prompt in tqdm(prompts[rank::ranks], desc="generate", disable=rank > 0):
        paths = [out / name for name in Layout(images).names(prompt.index)]
        missing = [i for i, path in enumerate(paths) if not opens(path, prompt.text)]
        with torch.no_grad():
            drawn = draw(prompt.text) if missing else []
        for i in missing:
            write_atomic(paths[i], png_of(drawn[i], prompt.text))


def draw_one(
    text: str, out, model: str, lora=None, steps=30, guidance=3.5, size=None, *, offload=False
) -> None:
    """One PNG of a prompt of one's own, with the seed of a benchmark prompt's first image.

    Raises ValueError if `out` is no name of a PNG file, or is there.
    """
    import torch

    out = Path(out)
    if out.suffix.lower() != ".png" or out.exists():
        why = "is there already" if out.exists() else "is no PNG file's name"
        raise ValueError(f"--out '{out}' {why}: --prompt draws one image, into a new file")
    pipe, own = load_pipeline(model, lora, size, guidance, offload)
    draw, _ = make_draw(pipe, own, steps, guidance, size, seeds=seeds_of(1))
    with torch.no_grad():
        (image,) = draw(text)
    write_atomic(out, png_of(image, text))
