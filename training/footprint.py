"""What passes of a FLUX pipeline allocate, counted without weights and without memory.

The model is built from its configuration on the meta device, and passes go through the real modules
as fake tensors: PyTorch computes shapes and storages but no values, and every storage is counted
from the operation that makes it until it is freed. So activations are not a formula of ours but the
modules' own, LoRA's casts to float32 and the recomputation of checkpointing included. Attention is
fused (flash or memory-efficient: probabilities are never stored), as PyTorch picks it on the CPU
and on recent GPUs. What is counted is what a CPU does: with a float32 LoRA over bfloat16 somewhat
more than a GPU (see promoted_bytes).

    pipe, tokens = meta_pipeline("black-forest-labs/FLUX.1-dev", torch.bfloat16)
    with FakeTensorMode():
        make_fake(pipe.transformer)
        forward_bytes(pipe, size=720, batch=1, tokens=tokens)
"""

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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import grpo
import sampler
from models.flux import Flux, Text

FLOAT = 4  # bytes of a float32

# FLUX.1-dev's published configuration files, which its hub hands out only to accounts that accepted
# its licence. Transformer 11.90 B parameters, T5-XXL encoder 4.76 B, CLIP-L text encoder 0.12 B.
FLUX_DEV = {
    "transformer": dict(
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        in_channels=64,
        patch_size=1,
        axes_dims_rope=(16, 56, 56),
    ),
    "vae": dict(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=32,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "text_encoder": dict(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
    ),
    "text_encoder_2": dict(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    ),
}


def promoted_bytes(args) -> int:
    """Bytes of the copies that a pointwise operation on a CPU makes of less precise operands.

    A bfloat16 layer's result plus a float32 LoRA's is one. A GPU casts as it computes: no copy.
    """
    operands = [
        x
        for x in tree_leaves(args)
        if isinstance(x, torch.Tensor) and x.ndim and x.dtype.is_floating_point
    ]
    dtypes = [x.dtype for x in operands]
    common = functools.reduce(torch.promote_types, dtypes) if dtypes else None
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
        before = {
            id(x.untyped_storage())
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = id(storage)
                if key not in before and key not in self._seen:
                    self._count(storage, key)
        if torch.Tag.pointwise in func.tags:
            self.peak = max(self.peak, self.now + promoted_bytes(args))
        return out

    def _count(self, storage, key: int) -> None:
        size = storage.nbytes()

        def freed(_):
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)


# --------------------------------------------------------------------- the model, without weights


def meta_pipeline(model: str, dtype: torch.dtype):
    """(FluxPipeline on the meta device, text tokens a prompt) from configuration files, frozen.

    model: a local folder in diffusers' layout, or FLUX.1-dev by its hub name.
    Raises ValueError for any other name or pipeline.
    """
    folder, tokens = Path(model), 512
    if (folder / "model_index.json").is_file():
        found = json.loads((folder / "model_index.json").read_text()).get("_class_name")
        if found != FluxPipeline.__name__:
            raise ValueError(f"'{model}' is a {found}: a dry run knows FLUX pipelines only")
        configs = {
            name: json.loads((folder / name / "config.json").read_text()) for name in FLUX_DEV
        }
        tokenizer = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())
        tokens = min(tokens, tokenizer.get("model_max_length", tokens))
    elif model.rstrip("/").endswith("FLUX.1-dev"):
        configs = FLUX_DEV
    else:
        raise ValueError(
            f"no configuration of '{model}' for a dry run: give a local pipeline "
            "folder, or black-forest-labs/FLUX.1-dev, whose configuration is known"
        )
    with torch.device("meta"):
        parts = {
            "transformer": FluxTransformer2DModel.from_config(configs["transformer"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "text_encoder_2": T5EncoderModel(T5Config(**configs["text_encoder_2"])),
        }
    for part in parts.values():
        part.requires_grad_(False).eval()
        for parameter in part.parameters():  # part.to() would warn of modules to be kept in float32
            parameter.data = parameter.data.to(dtype)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return FluxPipeline(scheduler, tokenizer=None, tokenizer_2=None, **parts), tokens


def make_fake(module: torch.nn.Module) -> None:
    """Puts fake CPU tensors, made under the present FakeTensorMode, in the place of meta ones."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is not None:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    trained = isinstance(old, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(new, old.requires_grad) if trained else new


# ----------------------------------------------------------------------------- what passes allocate


def micro_batch_input(pipe, size: int, batch: int, tokens: int):
    """(velocity function, latents, next latents, sigmas) of a micro-batch; values do not matter."""
    config, dtype = pipe.transformer.config, next(pipe.vae.parameters()).dtype
    text = Text(
        torch.zeros(batch, tokens, config.joint_attention_dim, dtype=dtype),
        torch.zeros(batch, config.pooled_projection_dim, dtype=dtype),
    )
    model = Flux(pipe, size)
    latents = torch.zeros(2, batch, model.tokens, config.in_channels)
    return model.velocity(text), latents[0], latents[1], torch.linspace(1, 0, 4)


def replay_bytes(pipe, size: int, batch: int, tokens: int, descend: bool = True) -> tuple[int, int]:
    """Bytes alive (after the forward, at most) while one micro-batch is replayed and descended.

    descend: False leaves the backward pass out, and the most that is alive is the forward's.
    Gradients of weights exist beforehand, as from the second micro-batch on: they do not count.
    """
    for parameter in Flux(pipe).trainable():
        parameter.grad = torch.zeros_like(parameter)
    velocity, latents, next_latents, sigmas = micro_batch_input(pipe, size, batch, tokens)
    latents.requires_grad_()  # as in all blocks after the first: a lone block may hold no adapter
    advantages = torch.ones(batch)
    with Alive() as alive:
        step = sampler.sde_step(
            latents,
            velocity(latents, sigmas[1].expand(batch)),
            sigmas,
            1,
            0.7,
            next_latents=next_latents,
        )
        loss = grpo.clipped_loss(step.log_prob - advantages, advantages, 1e-4).loss
        saved = alive.now
        if descend:
            loss.backward()
    for parameter in Flux(pipe).trainable():
        parameter.grad = None
    return saved, alive.peak


class Joined(torch.nn.Module):
    """In the place of the single blocks: joins text and image tokens and parts them again, as they
    do, so that both branches of the double blocks before it lead to the loss."""

    def forward(self, hidden_states, encoder_hidden_states, *_, **__):
        tokens = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], 1)
        return both[:, :tokens], both[:, tokens:]


def stacks_of(network: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """The lists of repeated blocks by name, in the order in which they run."""
    return {
        name: part
        for name, part in network.named_children()
        if isinstance(part, torch.nn.ModuleList)
    }


def replay_peak(pipe, size: int, batch: int, tokens: int) -> int:
    """Bytes alive at most in a replay of the whole depth, from one and two blocks of each kind.

    What each further block leaves alive adds up in order; on top comes what the backward pass of a
    block needs beyond that: without checkpointing temporaries, with it a whole block's activations.
    """
    network, alive, peak = pipe.transformer, None, 0
    stacks = stacks_of(network)
    for kept, blocks in stacks.items():
        runs = []
        for depth in (1, 2):
            for name, part in stacks.items():
                rest = [Joined()] if alive is None else []  # behind the doubles, which come first
                shown = [part[0]] * depth if name == kept else rest
                setattr(network, name, torch.nn.ModuleList(shown))
            runs.append(replay_bytes(pipe, size, batch, tokens, descend=depth == 1))
        (saved, most), (saved_by_two, _) = runs
        each = saved_by_two - saved
        alive = (saved - each if alive is None else alive) + len(blocks) * each
        peak = max(peak, alive + most - saved)
    for name, blocks in stacks.items():
        setattr(network, name, blocks)
    return peak


@torch.no_grad()
def forward_bytes(pipe, size: int, batch: int, tokens: int) -> int:
    """Bytes alive at most in a pass without gradient: one block of a kind, depth adds nothing."""
    velocity, latents, _, sigmas = micro_batch_input(pipe, size, batch, tokens)
    network = pipe.transformer
    stacks = stacks_of(network)
    for name, blocks in stacks.items():
        setattr(network, name, blocks[:1])
    with Alive() as alive:
        velocity(latents, sigmas[1].expand(batch))
    for name, blocks in stacks.items():
        setattr(network, name, blocks)
    return alive.peak


@torch.no_grad()
def decode_bytes(pipe, size: int, images: int, slicing: bool) -> int:
    """Bytes alive at most in Model.decode: the VAE's, and pixels in its precision and float32."""
    vae, shape = pipe.vae, Flux(pipe, size).latent_shape
    dtype = next(vae.parameters()).dtype
    latents = torch.zeros(1 if slicing else images, *shape, dtype=dtype)
    with Alive() as alive:
        vae.decode(latents, return_dict=False)
    pixels = images * 3 * size * size
    return alive.peak + pixels * (2 * FLOAT + (2 * dtype.itemsize if slicing else 0))


@torch.no_grad()
def encode_bytes(pipe, prompts: int, tokens: int) -> int:
    """Bytes alive at most in the T5 encoder, any depth; CLIP's 77 tokens are few beside it."""
    layers = pipe.text_encoder_2.encoder.block
    pipe.text_encoder_2.encoder.block = layers[:2]  # depth adds nothing without gradient
    ids = torch.zeros(prompts, tokens, dtype=torch.long)
    with Alive() as alive:
        pipe.text_encoder_2(ids)
    pipe.text_encoder_2.encoder.block = layers
    return alive.peak
