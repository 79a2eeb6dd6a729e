"""What a run will need, before anything is downloaded: parameters, bytes per rank, passes, hours.

Lasting bytes follow from the configuration and from who holds what (distributed.py); those of a
pass are counted by footprint.py. Assumed: AdamW with float32 states, in its foreach form on a GPU,
which holds one more copy of the trained weights while it steps; FSDP2 gathers a block ahead of the
one at work. Not counted: the CUDA context, workspaces of libraries and fragmentation, for which
MARGIN of the GPU is left; torch.compile, which mostly saves; a judge in process (--judge local).

    print(table(make_plan(Config(model="assets/tiny-flux"), world=2)))
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from models.base import DECODED_AT_ONCE, Model
from training import distributed, footprint, heldout
from training.config import Config, micro_batch_of, sources_of
from training.data import ENCODED_AT_ONCE
from training.distributed import DTYPES
from training.footprint import FLOAT
from training.start import calls_of

MARGIN = 0.1  # share of the GPU left for what is not counted
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
    "activations": "activations of one micro-batch",  # forward and backward
    "forward": "forward without gradient",
    "decode": "VAE decode",
    "evaluation": "evaluation, forward or decode",  # at its own size
}


class Plan(NamedTuple):
    settings: Config
    world: int
    prompts: int  # a step over all ranks; rounded up to a multiple of the ranks
    micro_batch: int  # samples
    tokens: tuple[int, int]  # of an image: latent ones, and of its text
    copies: int  # of them in a pass: 2 where guidance is a second pass
    counts: dict[str, int]  # parameters, see `count`
    bytes: dict[str, int]  # see LABELS; and "encode", which is in no row
    work: dict[str, int]  # passes of a step and judge calls, see `work_of`

    @property
    def phases(self) -> dict[str, int]:
        """The most bytes alive in each phase of a step, and while text is encoded before all."""
        b, cached = self.bytes, self.settings.text_cache
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
            "evaluation": lasting + b["gathered"] + b["evaluation"],
        }

    @property
    def passes(self) -> tuple[int, int, int]:
        """Of an image: of its sampling, its trained steps, and what each of these counts for: a
        forward, a backward (as two), a recomputed forward, one for the KL to the base."""
        s = self.settings
        return s.num_steps, replayed_steps(s), 3 + s.gradient_checkpointing + bool(s.kl_coef)

    @property
    def token_passes(self) -> int:
        """Tokens through the network for one image; evaluation and the logged KL are left out."""
        sampling, trained, each = self.passes
        return (sampling + trained * each) * self.copies * sum(self.tokens)

    @property
    def tflop(self) -> float:
        """Of an image: 2 x parameters x token-passes."""
        return 2 * self.counts["transformer"] * self.token_passes / 1e12

    @property
    def hours(self) -> float:
        """Of the run's steps at --tflops, without waiting for a judge."""
        s = self.settings
        return s.steps * self.prompts * s.group_size * self.tflop / s.tflops / self.world / 3600

    def offloaded(self, offload: bool) -> "Plan":
        """The same plan of a LoRA with or without --offload."""
        s, counts, itemsize = self.settings, self.counts, DTYPES[self.settings.dtype].itemsize
        moved = itemsize * counts["outside"] * (offload - s.offload)
        held = dict(weights=self.bytes["weights"] - moved)
        held["gathered"] = itemsize * counts["block"] if offload else 0
        return self._replace(settings=replace(s, offload=offload), bytes=self.bytes | held)


def numel(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weight_bytes(*modules: torch.nn.Module) -> int:
    return sum(p.nbytes for module in modules for p in module.parameters())


def encoders_of(model: Model) -> list[torch.nn.Module]:
    networks = footprint.networks_of(model.pipe.components)
    return [part for name, part in networks.items() if name.startswith("text_encoder")]


def count(model: Model) -> dict[str, int]:
    """Parameters of the model's parts."""
    blocks = distributed.blocks(model.transformer)
    frozen = [p.numel() for block in blocks for p in block.parameters() if not p.requires_grad]
    whole, sizes = numel(model.transformer), [numel(block) for block in blocks]
    return dict(
        transformer=whole,  # the adapter included
        trainable=sum(p.numel() for p in model.trainable()),
        text=sum(map(numel, encoders_of(model))),
        vae=numel(model.pipe.vae),
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
    up. DDP replicates all and keeps buckets of the gradients' size; FSDP2 spreads all over the
    ranks as float32 masters, but gathers units to compute, and holds whole gradients in float32
    while micro-batches add up without a reduction. Of a LoRA it spreads the frozen base alone.
    """
    n, itemsize = counts["trainable"], DTYPES[s.dtype].itemsize
    spread = s.shard and not s.lora_rank
    part = math.ceil(n / world) if spread else n
    held = dict(optimizer=2 * FLOAT * part, gradients=FLOAT * part)
    held["ema"] = FLOAT * part if s.ema else 0
    gathered = itemsize * (counts["root"] + 2 * counts["block"])
    if spread:
        adding = FLOAT * n if backwards > 1 and not s.reduce_each else 0
        return held | dict(
            weights=FLOAT * part,
            frozen=itemsize * part,
            buffers=adding + (FLOAT + itemsize) * counts["block"],
            gathered=gathered,
        )
    if s.shard:
        here = dict(weights=FLOAT * n + math.ceil((stored - FLOAT * n) / world), gathered=gathered)
    elif s.offload:
        waiting, block = itemsize * counts["outside"], itemsize * counts["block"]
        here = dict(weights=stored - waiting, gathered=block)
    else:
        here = dict(weights=stored, gathered=0)
    frozen, buffers = 0 if s.lora_rank else stored, FLOAT * n if world > 1 else 0
    return held | here | dict(frozen=frozen, buffers=buffers)


def scorer_bytes(s: Config) -> int:
    """Bytes of all scorers, seen or rewarded: of a folder's files, else as published."""

    def size(name: str, source: str) -> int:
        files = Path(source).glob("*.safetensors") if source else ()
        return sum(file.stat().st_size for file in files) or FLOAT * SCORERS[name]

    return sum(size(name, source) for _, name, source in sources_of(s) if name in SCORERS)


def replayed_steps(s: Config) -> int:
    return s.window or max(1, round(s.timestep_fraction * (s.num_steps - 1)))


def work_of(s: Config, prompts: int, batches: int) -> dict[str, int]:
    """Passes of a step on one rank, each of one micro-batch, and judge calls of all ranks.

    Rollout, the KL to the base that is logged, and the replay of a share of the steps, of which
    checkpointing recomputes the forward.
    """
    backward = batches * replayed_steps(s)
    reference = backward if s.kl_coef else 0
    return dict(
        forward=batches * s.num_steps + (s.window or s.num_steps - 1) + backward + reference,
        recomputed=backward if s.gradient_checkpointing else 0,
        backward=backward,
        judge_calls=prompts * calls_of(s),
    )


def counted_bytes(
    model: Model, s: Config, text, batch: int, samples: int, prompts: int
) -> dict[str, int]:
    """What passes of the network, the VAE and the text encoders allocate. text: of one prompt."""
    if s.gradient_checkpointing:
        model.transformer.enable_gradient_checkpointing()
    rows = s.micro_batch or heldout.BATCH
    drawn = rows if s.bench_every else min(rows, s.heldout or rows)
    seen = model.resized(s.eval_size or s.size), drawn
    return dict(
        evaluation=max(
            footprint.forward_bytes(*seen, text), footprint.decode_bytes(*seen, s.vae_slicing)
        ),
        activations=footprint.replay_peak(model, batch, text),
        forward=footprint.forward_bytes(model, batch, text),
        decode=footprint.decode_bytes(model, min(samples, DECODED_AT_ONCE), s.vae_slicing),
        encode=footprint.encode_bytes(model, ENCODED_AT_ONCE if s.text_cache else prompts),
    )


def make_plan(s: Config, world: int = 1) -> Plan:
    """What one step of training costs on one of `world` ranks.

    Prompts that are no multiple of the ranks are planned as the next multiple. Raises ValueError
    for a model whose configuration is not at hand, or a size that does not divide.
    """
    per_rank, itemsize = math.ceil(s.prompts_per_step / world), DTYPES[s.dtype].itemsize
    samples = per_rank * s.group_size
    batch = micro_batch_of(s, samples)
    batches = math.ceil(samples / batch)
    model = footprint.meta_model(s.model, s.size, DTYPES[s.dtype], s.guidance)
    if s.lora_rank:
        model.add_lora(s.lora_rank, s.lora_alpha)
    else:
        model.transformer.requires_grad_(True)
    counts, stored = count(model), weight_bytes(model.transformer)
    encoders, elements = weight_bytes(*encoders_of(model)), math.prod(model.latent_shape)
    with footprint.faked(model) as text:
        passes = counted_bytes(model, s, text, batch, samples, per_rank)
    backwards = math.ceil(batches / s.updates) * replayed_steps(s)
    held = train_bytes(counts, stored, s, world, backwards) | dict(
        vae=counts["vae"] * itemsize,
        text_encoders=0 if s.text_cache else encoders,
        scorers=scorer_bytes(s),
        # sampler.Trajectory: latents, means, log-probs, stds
        trajectories=FLOAT * samples * ((2 * s.num_steps + 1) * elements + 2 * s.num_steps),
        text=(per_rank + samples) * sum(field.nbytes for field in text),
    )
    held |= passes
    if s.text_cache:
        held["encode"] += encoders
    work = work_of(s, per_rank * world, batches)
    tokens = model.tokens, text.embeds.shape[1]
    return Plan(s, world, per_rank * world, batch, tokens, model.copies, counts, held, work)


# ----------------------------------------------------------------------------- for people


def table(plan: Plan) -> str:
    """The plan as a small table; GB are 1e9 bytes, on one rank."""
    s, counts = plan.settings, plan.counts
    lines = [
        f"plan for {s.model}: {plan.world} rank(s), "
        f"{plan.prompts} prompts x {s.group_size} images, {s.num_steps} steps, {s.size} px "
        f"({plan.tokens[0]} tokens), micro-batch {plan.micro_batch}",
        f"parameters: transformer {counts['transformer']:,} ({counts['trainable']:,} trained), "
        f"text encoders {counts['text']:,}, VAE {counts['vae']:,}",
    ]
    held = {label: plan.bytes[name] for name, label in LABELS.items()}
    for title, part in (("on one rank", held), ("most alive in each phase", plan.phases)):
        lines += ["", f"{title:52}{'GB':>9}"]
        lines += [f"{label:52}{value / 1e9:9.2f}" for label, value in part.items()]
    passes = (
        "a step, each rank: {forward} forward, {recomputed} recomputed and {backward} backward "
        "passes of one micro-batch; {judge_calls} judge calls over all ranks"
    )
    return "\n".join([*lines, "", passes.format(**plan.work), *costs(plan)])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def costs(plan: Plan) -> list[str]:
    """What an image, a step and the run cost, in lines."""
    s, (image, text) = plan.settings, plan.tokens
    guided = " x 2 for guidance" if plan.copies == 2 else ""
    sampling, trained, each = plan.passes
    images, calls = plan.prompts * s.group_size, plan.work["judge_calls"]
    dollars = plan.hours * plan.world * s.price
    return [
        f"an image: ({sampling} sampling passes + {trained} trained steps x {each}){guided} x "
        f"({image} + {text} tokens) = {plan.token_passes:,} token-passes",
        f"TFLOP (2 x parameters x token-passes): {number(plan.tflop)} an image, "
        f"{number(images * plan.tflop)} a step of {images} images",
        f"{s.steps} steps: {calls * s.steps:,} judge calls, {plan.hours:,.1f} hours at "
        f"--tflops {s.tflops:g} on {plan.world} GPU(s), {dollars:,.0f} dollars at --price "
        f"{s.price:g}; no evaluation, no wait",
    ]


def fits(plan: Plan, gpu_memory: float) -> str:
    """Whether the largest phase fits gpu_memory (GB), of a LoRA without and with --offload."""
    plans = {"": plan}
    if plan.settings.lora_rank and not plan.settings.shard:
        plans = {f" {how} --offload": plan.offloaded(how == "with") for how in ("without", "with")}
    room = (1 - MARGIN) * gpu_memory
    needs = {how: max(made.phases.values()) / 1e9 for how, made in plans.items()}
    said = [f"{n:.1f}{how} ({'fits' if n <= room else 'too much'})" for how, n in needs.items()]
    return f"of {gpu_memory:g} GB {room:.1f} are free; needed: {', '.join(said)}"


def remedies(plan: Plan, phase: str) -> list[str]:
    """Flags that shrink what this plan needs, those of its largest phase first."""
    s, notable = plan.settings, 0.05 * plan.phases[phase]
    fewer = plan.micro_batch > 1 and phase in ("update", "rollout", "evaluation")
    helps = {
        "--gradient_checkpointing": phase == "update" and not s.gradient_checkpointing,
        f"--micro_batch {plan.micro_batch // 2}": fewer,
        "--vae_slicing": phase in ("decode", "evaluation") and not s.vae_slicing,
        "a smaller --eval_size": phase == "evaluation" and s.eval_size > s.size,
        "--text_cache FOLDER": not s.text_cache,
        "--lora_rank 16": not s.lora_rank,
        "--lora_rank 4": s.lora_rank > 4 and phase in ("update", "optimizer"),
        "--offload": s.lora_rank and not s.offload and not s.shard,
        "--shard on several ranks": not s.shard and not s.offload,
        "--reduce_each": phase == "update" and s.shard and not s.lora_rank and not s.reduce_each,
        "more ranks": s.shard,
        "--ema 0": s.ema > 0,
        "--dtype bfloat16": s.dtype == "float32",
        "--reward and --eval_rewards without a scorer": plan.bytes["scorers"] > notable,
        "fewer --prompts_per_step or a smaller --size": plan.bytes["trajectories"] > notable,
    }
    return [flag for flag, useful in helps.items() if useful] or ["a larger GPU"]


def refuse(plan: Plan, gpu_memory: float) -> None:
    """SystemExit in one sentence if the largest phase exceeds gpu_memory (GB) less the margin."""
    room = (1 - MARGIN) * gpu_memory * 1e9
    phase, needed = max(plan.phases.items(), key=lambda item: item[1])
    if needed > room:
        raise SystemExit(
            f"this plan needs {needed / 1e9:.1f} GB a rank in its {phase} phase and "
            f"--gpu_memory {gpu_memory:g} leaves {room / 1e9:.1f} ({MARGIN:.0%} kept for what is "
            f"not counted); what would help: {', '.join(remedies(plan, phase))}"
        )
