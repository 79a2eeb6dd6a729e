"""What passes of a FLUX pipeline allocate, counted without weights and without memory.

Passes go through the real modules as fake tensors: PyTorch computes shapes and storages but no
values, and every storage is counted from the operation that makes it until it is freed, LoRA's
casts to float32 and the recomputation of checkpointing included. Attention is fused (probabilities
are never stored), as PyTorch picks it on the CPU and on recent GPUs. What is counted is what a CPU
does: with a float32 LoRA over bfloat16 somewhat more than a GPU (see promoted_bytes).

    model, length = meta_model("black-forest-labs/FLUX.1-dev", 720, torch.bfloat16)
    with faked(model):
        forward_bytes(model, batch=1, length=length)     # length: text tokens per prompt
"""

import contextlib
import functools
import json
import weakref
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import grpo
import sampler
from models.flux import T5_TOKENS, Flux, Text

FLOAT = 4  # bytes of a float32

# FLUX.1-dev's published configuration files, which its hub hands out only to accounts that accepted
# its licence. Transformer 11.90 B parameters, T5-XXL encoder 4.76 B, CLIP-L text encoder 0.12 B.
FLUX_DEV = Path(__file__).with_name("flux_dev.json")


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


def meta_model(name: str, size: int, dtype: torch.dtype) -> tuple[Flux, int]:
    """The model on the meta device, frozen, and the text tokens per prompt.

    name: a local folder in diffusers' layout, or FLUX.1-dev by its hub name.
    Raises ValueError for any other name or pipeline.
    """
    folder, configs, length = Path(name), json.loads(FLUX_DEV.read_text()), T5_TOKENS
    read = lambda file: json.loads((folder / file).read_text())
    if (folder / "model_index.json").is_file():
        found = read("model_index.json").get("_class_name")
        if found != FluxPipeline.__name__:
            raise ValueError(f"'{name}' is a {found}: a dry run knows FLUX pipelines only")
        configs = {part: read(f"{part}/config.json") for part in configs}
        tokenizer = read("tokenizer_2/tokenizer_config.json")
        length = min(length, tokenizer.get("model_max_length", length))
    elif not name.rstrip("/").endswith("FLUX.1-dev"):
        raise ValueError(
            f"no configuration of '{name}' for a dry run: give a local pipeline folder, or "
            "black-forest-labs/FLUX.1-dev, whose configuration is known"
        )
    with torch.device("meta"):
        parts = dict(
            transformer=FluxTransformer2DModel.from_config(configs["transformer"]),
            vae=AutoencoderKL.from_config(configs["vae"]),
            text_encoder=CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            text_encoder_2=T5EncoderModel(T5Config(**configs["text_encoder_2"])),
        )
    for part in parts.values():
        part.requires_grad_(False).eval()
        for parameter in part.parameters():  # part.to() would warn of modules to be kept in float32
            parameter.data = parameter.data.to(dtype)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return Flux(FluxPipeline(scheduler, tokenizer=None, tokenizer_2=None, **parts), size), length


@contextlib.contextmanager
def faked(model: Flux):
    """Fake CPU tensors in the place of the meta ones of all parts whose passes are counted."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in (model.transformer, model.pipe.vae, model.pipe.text_encoder_2):
            part.to_empty(device="cpu")
        yield


@contextlib.contextmanager
def with_blocks(network: torch.nn.Module, lists: dict[str, list]):
    """Other blocks in the place of the network's own, by the name of their list."""
    own = {name: getattr(network, name) for name in lists}
    for name, blocks in lists.items():
        setattr(network, name, torch.nn.ModuleList(blocks))
    yield
    for name, blocks in own.items():
        setattr(network, name, blocks)


def stacks_of(network: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """The lists of repeated blocks by name, in the order in which they run."""
    children = network.named_children()
    return {name: part for name, part in children if isinstance(part, torch.nn.ModuleList)}


# ----------------------------------------------------------------------------- what passes allocate


def micro_batch_input(model: Flux, batch: int, length: int):
    """(velocity function, latents, next latents, sigmas) of a micro-batch; values do not matter."""
    config, dtype = model.transformer.config, next(model.pipe.vae.parameters()).dtype
    text = Text(
        torch.zeros(batch, length, config.joint_attention_dim, dtype=dtype),
        torch.zeros(batch, config.pooled_projection_dim, dtype=dtype),
    )
    latents = torch.zeros(2, batch, model.tokens, config.in_channels)
    return model.velocity(text), latents[0], latents[1], torch.linspace(1, 0, 4)


def replay_bytes(model: Flux, batch: int, length: int, backward: bool) -> tuple[int, int]:
    """Bytes alive (after the forward, at most) while one micro-batch is replayed and trained on.

    backward: False leaves the backward pass out, and the most that is alive is the forward's.
    Gradients of weights exist beforehand, as from the second micro-batch on: they do not count.
    """
    for parameter in model.trainable():
        parameter.grad = torch.zeros_like(parameter)
    velocity, latents, next_latents, sigmas = micro_batch_input(model, batch, length)
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


class Joined(torch.nn.Module):
    """In the place of the single blocks: joins text and image tokens and parts them again, as they
    do, so that both branches of the double blocks before it lead to the loss."""

    def forward(self, hidden_states, encoder_hidden_states, *_, **__):
        tokens = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], 1)
        return both[:, :tokens], both[:, tokens:]


def replay_peak(model: Flux, batch: int, length: int) -> int:
    """Bytes alive at most in a replay of the whole depth, from one and two blocks of each kind.

    What each further block leaves alive adds up in order; on top comes what the backward pass of a
    block needs beyond that: without checkpointing temporaries, with it a whole block's activations.
    """
    alive, peak, stacks = None, 0, stacks_of(model.transformer)
    for kept, blocks in stacks.items():
        rest = [Joined()] if alive is None else []  # behind the doubles, which come first
        runs = []
        for depth in (1, 2):
            lists = {name: [blocks[0]] * depth if name == kept else rest for name in stacks}
            with with_blocks(model.transformer, lists):
                runs.append(replay_bytes(model, batch, length, backward=depth == 1))
        (saved, most), (saved_by_two, _) = runs
        each = saved_by_two - saved
        alive = (saved - each if alive is None else alive) + len(blocks) * each
        peak = max(peak, alive + most - saved)
    return peak


@torch.no_grad()
def forward_bytes(model: Flux, batch: int, length: int) -> int:
    """Bytes alive at most in a pass without gradient: one block of a kind, depth adds nothing."""
    velocity, latents, _, sigmas = micro_batch_input(model, batch, length)
    lists = {name: blocks[:1] for name, blocks in stacks_of(model.transformer).items()}
    with with_blocks(model.transformer, lists), Alive() as alive:
        velocity(latents, sigmas[1].expand(batch))
    return alive.peak


@torch.no_grad()
def decode_bytes(model: Flux, images: int, slicing: bool) -> int:
    """Bytes alive at most in Model.decode: the VAE's, and pixels in its precision and float32."""
    dtype = next(model.pipe.vae.parameters()).dtype
    latents = torch.zeros(1 if slicing else images, *model.latent_shape, dtype=dtype)
    with Alive() as alive:
        model.pipe.vae.decode(latents, return_dict=False)
    pixels = images * 3 * model.size**2
    return alive.peak + pixels * (2 * FLOAT + (2 * dtype.itemsize if slicing else 0))


@torch.no_grad()
def encode_bytes(model: Flux, prompts: int, length: int) -> int:
    """Bytes alive at most in two blocks of the T5 encoder: without gradient depth adds nothing, and
    CLIP's 77 tokens are few beside it."""
    ids, stack = torch.zeros(prompts, length, dtype=torch.long), model.pipe.text_encoder_2.encoder
    with with_blocks(stack, {"block": stack.block[:2]}), Alive() as alive:
        model.pipe.text_encoder_2(ids)
    return alive.peak
