"""What a run will need, before anything is downloaded: parameters, bytes per rank, passes, calls.

Lasting bytes follow from the configuration and from who holds what (distributed.py); those of a
pass are counted by footprint.py. Assumed: AdamW with float32 states, in its foreach form on a GPU,
which holds one more copy of the trained weights while it steps; FSDP2 gathers a block ahead of the
one at work. Not counted: the CUDA context, cuBLAS and cuDNN workspaces and fragmentation, for which
MARGIN of the GPU is left; torch.compile, which mostly saves; a judge in process (--judge local),
whose size is not known here.

    print(table(make_plan("assets/tiny-flux", Config(size=32), world=2)))
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.base import DECODED_AT_ONCE
from models.flux import Flux
from training import distributed
from training.config import Config, micro_batch_of, parse_rewards
from training.distributed import DTYPES
from training.footprint import (
    FLOAT,
    decode_bytes,
    encode_bytes,
    forward_bytes,
    make_fake,
    meta_model,
    replay_peak,
)
from training.start import calls_of

MARGIN = 0.1  # share of the GPU left for what is not counted
ENCODED_AT_ONCE = 16  # prompts a batch where text is cached before training
# Parameters of the published scorers' models; loaded in float32, and never trained.
SCORERS = {
    "clip": 427_616_513,
    "pickscore": 986_109_441,
    "hpsv2": 986_109_441,
    "aesthetic": 304_900_000,
}


# Bytes on one rank as the table names them, lasting ones first, then those of one kind of moment.
LABELS = {
    "weights": "weights",  # as stored: bf16 base and float32 LoRA, or float32 masters (a shard)
    "frozen": "frozen reference",  # the copy that is the KL reference; none for LoRA
    "optimizer": "optimizer (AdamW)",  # two moments, float32
    "ema": "moving average",
    "vae": "VAE",
    "text_encoders": "text encoders while training",  # 0 with a text cache
    "scorers": "scorers, such as CLIP",  # of rewards that are no judge
    "trajectories": "trajectories of the rank's samples",
    "text": "text embeddings",  # of a step's samples
    "gradients": "gradients",
    # DDP's buckets, or FSDP2's unsharded gradients while micro-batches add up
    "buffers": "gradient buffers of DDP or FSDP2",
    # FSDP2's unsharded root, block at work and the next; or one offloaded block
    "gathered": "weights gathered by FSDP2, or fetched by --offload",
    "activations": "activations, {} checkpointing",  # of one micro-batch, forward and backward
    "activations_other": "  ({} checkpointing)",  # with checkpointing switched the other way
    "forward": "forward without gradient",
    "decode": "VAE decode",
}


class Work(NamedTuple):
    """Passes of one step on one rank, each of one micro-batch, and judge calls of all ranks."""

    forward: int
    recomputed: int  # forward again, by checkpointing
    backward: int
    judge_calls: int


class Plan(NamedTuple):
    model: str
    settings: Config
    world: int
    prompts: int  # a step over all ranks; rounded up to a multiple of the ranks
    micro_batch: int  # samples
    tokens: int  # latent tokens of an image
    counts: dict[str, int]  # parameters, see `count`
    bytes: dict[str, int]  # see LABELS; and "encode", which is in no row
    phases: dict[str, int]  # largest number of bytes alive in each phase
    work: Work

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def numel(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def count(model: Flux) -> dict[str, int]:
    """Parameters of the model's parts."""
    pipe, blocks = model.pipe, distributed.blocks(model.transformer)
    frozen = [p.numel() for block in blocks for p in block.parameters() if not p.requires_grad]
    whole, sizes = numel(model.transformer), [numel(block) for block in blocks]
    return dict(
        transformer=whole,  # the adapter included
        trainable=sum(p.numel() for p in model.trainable()),
        text=numel(pipe.text_encoder) + numel(pipe.text_encoder_2),
        vae=numel(pipe.vae),
        block=max(sizes),  # the largest: one FSDP2 unit
        outside=sum(frozen),  # frozen, within blocks: what may wait in main memory
        # the same as PyTorch pins it, each weight rounded up to a power of two
        pinned=sum(1 << (size - 1).bit_length() for size in frozen),
        root=whole - sum(sizes),  # what lies outside of blocks: FSDP2's root unit
    )


# ----------------------------------------------------------------------------- the plan


def train_bytes(
    counts: dict[str, int], stored: int, s: Config, world: int, backwards: int
) -> dict[str, int]:
    """Bytes on one rank that last (weights, optimizer, average), of gradients and of their buffers.

    stored: bytes of the transformer as loaded, adapter included. backwards: passes an update adds
    up. DDP replicates all of it and keeps buckets of the gradients' size; FSDP2 spreads all of it
    over the ranks as float32 masters, but gathers units to compute, and holds whole gradients in
    float32 while micro-batches add up without a reduction.
    """
    n, itemsize = counts["trainable"], DTYPES[s.dtype].itemsize
    part = math.ceil(n / world) if s.shard else n
    held = dict(
        optimizer=2 * FLOAT * part,
        ema=FLOAT * part if s.ema else 0,
        gradients=FLOAT * part,
    )
    if s.shard:
        return held | dict(
            weights=FLOAT * part,
            frozen=itemsize * part,
            buffers=(FLOAT * n if backwards > 1 else 0) + (FLOAT + itemsize) * counts["block"],
            gathered=itemsize * (counts["root"] + 2 * counts["block"]),
        )
    return held | dict(
        weights=stored - (itemsize * counts["outside"] if s.offload else 0),
        frozen=0 if s.lora_rank else stored,
        buffers=FLOAT * n if world > 1 else 0,
        gathered=itemsize * counts["block"] if s.offload else 0,
    )


def trajectory_bytes(s: Config, samples: int, elements: int) -> int:
    """sampler.Trajectory of a rank's samples: latents, means, log-probs, stds; float32."""
    return FLOAT * samples * ((2 * s.num_steps + 1) * elements + 2 * s.num_steps)


def scorer_bytes(s: Config) -> int:
    """Bytes of the pointwise scorers in --reward: of a folder's files, else as published."""

    def size(name: str, source: str) -> int:
        files = Path(source).glob("*.safetensors") if source else ()
        return sum(file.stat().st_size for file in files) or FLOAT * SCORERS[name]

    parts = parse_rewards(s.reward)
    return sum(size(name, part.source) for name, part in parts.items() if name in SCORERS)


def phase_bytes(b: dict[str, int], cached: bool) -> dict[str, int]:
    """The most bytes alive in each phase of a step, and while text is encoded before all steps."""
    model = b["weights"] + b["frozen"] + b["ema"] + b["vae"]
    lasting = model + b["optimizer"] + b["text_encoders"] + b["scorers"]
    step = lasting + b["trajectories"] + b["text"]
    return {
        "encode": (model if cached else lasting) + b["encode"],
        # twice while parts are put together
        "rollout": step + b["trajectories"] + b["gathered"] + b["forward"],
        "decode": step + b["decode"],
        "update": step + b["gradients"] + b["buffers"] + b["gathered"] + b["activations"],
        "optimizer": step + 2 * b["gradients"],
    }


def replayed_steps(s: Config) -> int:
    return s.window or max(1, round(s.timestep_fraction * (s.num_steps - 1)))


def work_of(s: Config, prompts: int, batches: int) -> Work:
    """Passes of a step: rollout, the KL to the base that is logged, replay of a share of steps."""
    backward = batches * replayed_steps(s)
    reference = backward if s.kl_coef else 0
    forward = batches * s.num_steps + (s.window or s.num_steps - 1) + backward + reference
    calls = prompts * calls_of(s)
    return Work(forward, backward if s.gradient_checkpointing else 0, backward, calls)


def counted_bytes(
    model: Flux, s: Config, length: int, batch: int, samples: int, prompts: int
) -> dict[str, int]:
    """What passes of the network, the VAE and the text encoder allocate: footprint.py counts.

    length: text tokens per prompt.
    """
    network, peaks = model.transformer, {}
    with FakeTensorMode():
        for part in (network, model.pipe.vae, model.pipe.text_encoder_2):
            make_fake(part)
        for checkpointing in (False, True):
            if checkpointing:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()
            peaks[checkpointing] = replay_peak(model, batch, length)
        return dict(
            activations=peaks[s.gradient_checkpointing],
            activations_other=peaks[not s.gradient_checkpointing],
            forward=forward_bytes(model, batch, length),
            decode=decode_bytes(model, min(samples, DECODED_AT_ONCE), s.vae_slicing),
            encode=encode_bytes(model, ENCODED_AT_ONCE if s.text_cache else prompts, length),
        )


def make_plan(name: str, s: Config, world: int = 1) -> Plan:
    """What one step of training costs on one of `world` ranks; name: of the model.

    Fewer prompts than ranks, or no multiple of them, are planned as the next multiple.
    Raises ValueError for a model whose configuration is not at hand, or a size that does not
    divide.
    """
    per_rank = math.ceil(s.prompts_per_step / world)
    samples = per_rank * s.group_size
    batch = micro_batch_of(s, samples)
    batches = math.ceil(samples / batch)
    model, length = meta_model(name, s.size, DTYPES[s.dtype])
    if s.lora_rank:
        model.add_lora(s.lora_rank, s.lora_alpha)
    else:
        model.transformer.requires_grad_(True)
    counts, stored = count(model), weight_bytes(model.transformer)
    encoders = sum(weight_bytes(x) for x in (model.pipe.text_encoder, model.pipe.text_encoder_2))
    config, itemsize = model.transformer.config, DTYPES[s.dtype].itemsize
    row = itemsize * (length * config.joint_attention_dim + config.pooled_projection_dim)
    held = dict(
        vae=counts["vae"] * itemsize,
        text_encoders=0 if s.text_cache else encoders,
        scorers=scorer_bytes(s),
        trajectories=trajectory_bytes(s, samples, math.prod(model.latent_shape)),
        text=(per_rank + samples) * row,
    )
    held |= train_bytes(
        counts, stored, s, world, math.ceil(batches / s.updates) * replayed_steps(s)
    )
    held |= counted_bytes(model, s, length, batch, samples, per_rank)
    if s.text_cache:
        held["encode"] += encoders
    phases = phase_bytes(held, bool(s.text_cache))
    prompts = per_rank * world
    work = work_of(s, prompts, batches)
    return Plan(name, s, world, prompts, batch, model.tokens, counts, held, phases, work)


# ----------------------------------------------------------------------------- for people


def table(plan: Plan) -> str:
    """The plan as a small table; GB are 1e9 bytes, on one rank."""
    s, counts, w = plan.settings, plan.counts, plan.work
    lines = [
        f"plan for {plan.model}: {plan.world} rank(s), "
        f"{plan.prompts} prompts x {s.group_size} images, {s.num_steps} steps, {s.size} px "
        f"({plan.tokens} tokens), micro-batch {plan.micro_batch}"
    ]
    if plan.prompts != s.prompts_per_step:
        lines.append(
            f"--prompts_per_step {s.prompts_per_step} is no multiple of {plan.world} "
            f"ranks: planned as {plan.prompts}"
        )
    lines.append(
        f"parameters: transformer {counts['transformer']:,} ({counts['trainable']:,} trained), "
        f"text encoders {counts['text']:,}, VAE {counts['vae']:,}"
    )
    on, off = ("with", "without") if s.gradient_checkpointing else ("without", "with")
    word = {"activations": on, "activations_other": off}
    rows = [(label.format(word.get(k)), plan.bytes[k]) for k, label in LABELS.items()]
    for title, part in (("on one rank", rows), ("most alive in each phase", plan.phases.items())):
        lines += ["", f"{title:52}{'GB':>9}"]
        lines += [f"{label:52}{value / 1e9:9.2f}" for label, value in part]
    lines += [
        "",
        f"a step, each rank: {w.forward} forward, {w.recomputed} recomputed and "
        f"{w.backward} backward passes of one micro-batch; {w.judge_calls} judge calls over "
        "all ranks",
    ]
    return "\n".join(lines)


def remedies(plan: Plan) -> list[str]:
    """Flags that shrink what this plan needs, those of its largest phase first."""
    s, phase = plan.settings, max(plan.phases, key=plan.phases.get)
    scorers, trajectories = plan.bytes["scorers"], plan.bytes["trajectories"]
    smaller = (f"--micro_batch {max(1, plan.micro_batch // 2)}", plan.micro_batch > 1)
    options = {
        "update": [("--gradient_checkpointing", not s.gradient_checkpointing), smaller],
        "encode": [("--text_cache FOLDER", not s.text_cache)],
        "decode": [("--vae_slicing", not s.vae_slicing)],
        "rollout": [smaller],
        "optimizer": [],
    }
    lasting = [
        ("--text_cache FOLDER", not s.text_cache),
        ("--lora_rank 16", not s.lora_rank),
        ("--lora_rank 4", s.lora_rank > 4 and phase in ("update", "optimizer")),
        ("--offload", s.lora_rank and not s.offload),
        ("--shard on several ranks", not s.shard and not s.lora_rank),
        ("more ranks", s.shard),
        ("--ema 0", s.ema > 0),
        ("--dtype bfloat16", s.dtype == "float32"),
        ("--reward without a scorer", scorers > 0.05 * plan.peak),
        ("fewer --prompts_per_step or a smaller --size", trajectories > 0.05 * plan.peak),
    ]
    flags = [flag for flag, helps in options[phase] + lasting if helps]
    return list(dict.fromkeys(flags)) or ["a larger GPU"]


def refuse(plan: Plan, gpu_memory: float) -> None:
    """SystemExit in one sentence if the largest phase exceeds gpu_memory (GB) less the margin."""
    room = (1 - MARGIN) * gpu_memory * 1e9
    if plan.peak > room:
        phase = max(plan.phases, key=plan.phases.get)
        raise SystemExit(
            f"this plan needs {plan.peak / 1e9:.1f} GB a rank in its {phase} phase and "
            f"--gpu_memory {gpu_memory:g} leaves {room / 1e9:.1f} ({MARGIN:.0%} kept for what is "
            "not counted); "
            f"what would help: {', '.join(remedies(plan))}"
        )
