"""What passes of a pipeline allocate, counted without weights and without memory.

Passes go through the real modules as fake tensors: PyTorch computes shapes and storages but no
values, and every storage is counted from the operation that makes it until it is freed, LoRA's
casts to float32 and the recomputation of checkpointing included. Attention is fused (probabilities
are never stored), as PyTorch picks it on the CPU and on recent GPUs. What is counted is what a CPU
does: with a float32 LoRA over bfloat16 somewhat more than a GPU (see promoted_bytes).

    model = meta_model("black-forest-labs/FLUX.1-dev", 720, torch.bfloat16)
    with faked(model) as text:                          # of one prompt
        forward_bytes(model, batch=1, text=text)
"""

import collections
import contextlib
import functools
import json
import math
import sys
import weakref
from pathlib import Path

import diffusers
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BatchEncoding

import grpo
import sampler
from models.base import Model, families, loading

FLOAT = 4  # bytes of a float32
PARTS = "transformer", "vae", "text_encoder", "tokenizer"  # how the names of what is planned begin

# The files beside this one are the recipes' base models. FLUX.1-dev's are its published ones, which
# its hub hands out only to accounts that accepted its licence: transformer 11.90 B parameters,
# T5-XXL encoder 4.76 B, CLIP-L text encoder 0.12 B. Where FLUX.2-klein's are from: docs/flux.md.


def tensors_in(values) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def promoted_bytes(args) -> int:
    """Bytes of the copies that a pointwise operation on a CPU makes of less precise operands.

    A bfloat16 layer's result plus a float32 LoRA's is one. A GPU casts as it computes: no copy.
    """
    operands = [x for x in tensors_in(args) if x.ndim and x.dtype.is_floating_point]
    common = functools.reduce(torch.promote_types, (x.dtype for x in operands), torch.bool)
    return sum(x.numel() * common.itemsize for x in operands if x.dtype != common)


class Alive(TorchDispatchMode):
    """Counts bytes of storages made inside of it while they live: `now`, and the most yet, `peak`.

    What exists before (weights, inputs) and its views are not counted. Real and fake tensors.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {id(x.untyped_storage()) for x in tensors_in((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for x in tensors_in(out):
            storage = x.untyped_storage()
            if id(storage) not in before and id(storage) not in self._seen:
                self._count(storage)
        if torch.Tag.pointwise in func.tags:
            self.peak = max(self.peak, self.now + promoted_bytes(args))
        return out

    def _count(self, storage) -> None:
        size, key = storage.nbytes(), id(storage)

        def freed(_):
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


# --------------------------------------------------------------------- the model, without weights


class Blank:
    """In the place of a tokenizer: of any text the most tokens that are asked for."""

    def __init__(self, model_max_length: int):
        self.model_max_length = model_max_length

    tokenize = lambda self, text: []
    apply_chat_template = lambda self, *_, **__: ""

    def __call__(self, texts, padding, max_length=1, **_) -> BatchEncoding:
        rows = 1 if isinstance(texts, str) else len(texts)
        shape = rows, max_length if padding == "max_length" else 1
        ids = torch.zeros(shape, dtype=torch.long)
        return BatchEncoding(dict(input_ids=ids, attention_mask=torch.ones_like(ids)))


def configurations(name: str) -> dict[str, dict]:
    """A pipeline's index ("model_index") and the configurations of its parts: those in a local
    folder, or what ships here for a hub name. Raises ValueError for any other name."""
    folder, shipped = Path(name), Path(__file__).with_name(f"{Path(name).name or '-'}.json")
    if not (folder / "model_index.json").is_file():
        if not shipped.is_file():
            raise ValueError(
                f"no configuration of '{name}' for a dry run: give a local pipeline folder, or one "
                f"of {', '.join(sorted(file.stem for file in shipped.parent.glob('*.json')))}"
            )
        return json.loads(shipped.read_text())

    read = lambda file: json.loads((folder / file).read_text())
    found = {"model_index": read("model_index.json")}
    for part, kind in found["model_index"].items():
        if part.startswith(PARTS) and kind != [None, None]:
            tokens = "tokenizer_" if part.startswith("tokenizer") else ""
            found[part] = read(f"{part}/{tokens}config.json")
    return found


def make_part(part: str, library: str, kind: str, config: dict):
    """A part of a pipeline, frozen; a network on the device that new tensors are made on."""
    if part.startswith("tokenizer"):
        return Blank(config.get("model_max_length", sys.maxsize))
    if library == "diffusers":
        network = getattr(diffusers, kind).from_config(config)
    else:
        made = getattr(transformers, kind)
        network = made(made.config_class.from_dict(config))
    return network.requires_grad_(False).eval()


def meta_model(name: str, size: int, dtype: torch.dtype, guidance: float = 3.5) -> Model:
    """The model on the meta device, frozen, and with blank tokenizers. Raises ValueError for a
    pipeline that the loop does not know, or has no `configurations`."""
    with loading(name):
        configs = configurations(name)
        index, known = configs["model_index"], families()
        family = known.get(index["_class_name"])
        if family is None:
            raise ValueError(f"it is a {index['_class_name']}: known are {', '.join(known)}")
        parts = dict(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
        with torch.device("meta"):
            for part, kind in index.items():
                if part.startswith(PARTS):
                    parts[part] = make_part(part, *kind, configs[part]) if kind[0] else None
    for network in networks_of(parts).values():
        # as loaded; network.to(dtype) would warn of modules to be kept in float32
        for tensor in network.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    said = {"is_distilled": index["is_distilled"]} if "is_distilled" in index else {}
    return family(family.pipeline(**parts, **said), size, guidance)


def networks_of(parts: dict) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


@contextlib.contextmanager
def faked(model: Model):
    """Fake CPU tensors in the place of the meta ones; yields the Text of one prompt."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks_of(model.pipe.components).values():
            network.to_empty(device="cpu")
        yield model.text_of([""])


@contextlib.contextmanager
def with_blocks(network: torch.nn.Module, blocks: list[tuple[str, torch.nn.Module]]):
    """Other blocks, each with the name of its list, in the place of the network's own."""
    own = stacks_of(network)
    for name in own:
        setattr(network, name, torch.nn.ModuleList(b for stack, b in blocks if stack == name))
    yield
    for name, stack in own.items():
        setattr(network, name, stack)


def stacks_of(network: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """The lists of repeated blocks by name, in the order in which they run."""
    children = network.named_children()
    return {name: part for name, part in children if isinstance(part, torch.nn.ModuleList)}


def kinds_of(network: torch.nn.Module) -> list[tuple[tuple[str, torch.nn.Module], int]]:
    """((list, block), how many): one block of each kind, by its weights, in the order they run."""
    kinds, counts = {}, collections.Counter()
    for name, stack in stacks_of(network).items():
        for block in stack:
            kind = name, *((part, tuple(p.shape)) for part, p in block.named_parameters())
            kinds.setdefault(kind, (name, block))
            counts[kind] += 1
    return [(kinds[kind], counts[kind]) for kind in kinds]


# ----------------------------------------------------------------------------- what passes allocate


def micro_batch_input(model: Model, batch: int, text):
    """(velocity function, latents, next latents, sigmas) of a micro-batch; values do not matter.

    text: of one prompt, as `faked` yields it, for its shapes."""
    text = type(text)(*(torch.zeros(batch, *x.shape[1:], dtype=x.dtype) for x in text))
    channels = math.prod(model.latent_shape) // model.tokens
    latents = torch.zeros(2, batch, model.tokens, channels)
    return model.velocity(text), latents[0], latents[1], torch.linspace(1, 0, 4)


def replay_bytes(model: Model, batch: int, text, backward: bool) -> tuple[int, int]:
    """Bytes alive (after the forward, at most) while one micro-batch is replayed and trained on.

    backward: False leaves the backward pass out, and the most that is alive is the forward's.
    Gradients of weights exist beforehand, as from the second micro-batch on: they do not count.
    """
    for parameter in model.trainable():
        parameter.grad = torch.zeros_like(parameter)
    velocity, latents, next_latents, sigmas = micro_batch_input(model, batch, text)
    latents.requires_grad_()  # as in all blocks after the first: a lone block may hold no adapter
    advantages = torch.ones(batch)
    with Alive() as alive:
        output = velocity(latents, sigmas[1].expand(batch))
        step = sampler.sde_step(latents, output, sigmas, 1, 0.7, next_latents=next_latents)
        del output
        loss = grpo.clipped_loss(step.log_prob - advantages, advantages, 1e-4).loss
        saved = alive.now
        if backward:
            loss.backward()
    return saved, alive.peak


def replay_peak(model: Model, batch: int, text) -> int:
    """Bytes alive at most in a replay of the whole depth, from one and two blocks of each kind.

    What each further block leaves alive adds up in order; on top comes what the backward pass of a
    block needs beyond that: without checkpointing temporaries, with it a whole block's activations.
    Behind each kind runs a block of the last one, so that what it makes of the text leads to the
    loss; that block's own backward is the peak only where it is so in the whole depth.
    """
    kinds = kinds_of(model.transformer)
    last, _ = kinds[-1]
    before = peak = 0
    for block, count in kinds:
        behind, runs = [last] * (block is not last), []
        for depth in (1, 2) if behind or count > 1 else (1,):
            with with_blocks(model.transformer, [block] * depth + behind):
                runs.append(replay_bytes(model, batch, text, backward=depth == 1))
        each = runs[-1][0] - runs[0][0]
        peak = max(peak, before + (count - 1) * each + runs[0][1])
        before += count * each
    return peak


@torch.no_grad()
def forward_bytes(model: Model, batch: int, text) -> int:
    """Bytes alive at most in a pass without gradient: one block of a kind, depth adds nothing."""
    velocity, latents, _, sigmas = micro_batch_input(model, batch, text)
    blocks = [block for block, _ in kinds_of(model.transformer)]
    with with_blocks(model.transformer, blocks), Alive() as alive:
        velocity(latents, sigmas[1].expand(batch))
    return alive.peak


@torch.no_grad()
def decode_bytes(model: Model, images: int, slicing: bool) -> int:
    """Bytes alive at most in Model.decode: the VAE's, and pixels in its precision and float32."""
    dtype = next(model.pipe.vae.parameters()).dtype
    latents = torch.zeros(1 if slicing else images, *model.latent_shape, dtype=dtype)
    with Alive() as alive:
        model.pipe.vae.decode(latents, return_dict=False)
    pixels = images * 3 * model.size**2
    return alive.peak + pixels * (2 * FLOAT + (2 * dtype.itemsize if slicing else 0))


def encode_bytes(model: Model, prompts: int) -> int:
    """Bytes alive at most while so many prompts are encoded, by all encoders and in all depth:
    FLUX.2-klein's is asked for the states of all its layers, and its logits."""
    with Alive() as alive:
        model.text_of([""] * prompts)
    return alive.peak
