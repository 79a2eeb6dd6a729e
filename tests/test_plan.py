"""The memory plan against real allocations of small models of the real classes; what it says."""

import functools
import gc
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_models import MAX_TOKENS
from torch.profiler import ProfilerActivity, profile

import sampler
import train
from models import base
from training import checks, config, distributed, footprint, plan
from training.data import Batch

TINY = str(ROOT / "assets" / "tiny-flux")


def settings_of(**settings) -> config.Config:
    usual = dict(model=TINY, size=64, num_steps=4, prompts_per_step=2, group_size=2, micro_batch=2)
    return config.Config(**(usual | dict(judge="openai", ema=0.0) | settings))


def planned(**settings) -> dict[str, int]:
    return plan.make_plan(settings_of(**settings)).bytes


def allocator_peak(function) -> int:
    """Most bytes that PyTorch's own CPU allocator had out at once beyond those at the start."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def small_model(heads=4, double=1, single=1, lora=0, dtype=torch.float32, size=64):
    """A FLUX model with a transformer of the given width and depth, on meta."""
    model = footprint.meta_model(TINY, size, dtype)
    sizes = dict(num_attention_heads=heads, num_layers=double, num_single_layers=single)
    with torch.device("meta"):
        network = type(model.transformer).from_config(dict(model.transformer.config) | sizes)
    model.pipe.transformer = network.to(dtype).requires_grad_(not lora)
    if lora:
        model.add_lora(lora)
    return model


def real(model):
    for part in footprint.networks_of(model.pipe.components).values():
        for parameter in part.to_empty(device="cpu").parameters():
            parameter.data.fill_(0.01)
    for parameter in model.trainable():
        parameter.grad = torch.zeros_like(parameter)
    return model


@pytest.mark.parametrize("lora", [0, 4])
def test_lasting_bytes_are_those_of_the_real_tensors(lora, tiny_flux, uncounted):
    held = planned(lora_rank=lora, ema=0.9)
    model = real(small_model(double=2, single=4, lora=lora))
    optimizer = torch.optim.AdamW(model.trainable())
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]

    def size(tensors):
        return sum(x.untyped_storage().nbytes() for x in tensors)

    assert held["weights"] == size(model.transformer.parameters())
    assert held["gradients"] == held["ema"] == size(p.grad for p in model.trainable())
    assert held["optimizer"] == size(moments)
    assert held["frozen"] == (0 if lora else held["weights"])
    assert held["vae"] == size(tiny_flux.pipe.vae.parameters())


@pytest.fixture(scope="session")
def folders(klein_folder, sd3_folders):
    return dict(flux=TINY, klein=klein_folder, sd3=sd3_folders[True])


@pytest.mark.parametrize("family", ["flux", "klein", "sd3"])
def test_trajectories_and_text_are_those_of_a_real_rollout(family, folders, uncounted):
    batch = Batch(["a red circle", "a blue square"], [0, 1, 2, 3], [4, 5, 6, 7], [0])
    how = dict(noise_level=0.7, kind="flow", micro_batch=4)
    model = base.load(folders[family], 32)
    rollout = train.sample(model, batch, sampler.sigma_schedule(3), **how)
    held = planned(model=folders[family], size=32, num_steps=3)
    pipe = model.pipe.components
    encoders = [part for name, part in pipe.items() if part and name.startswith("text_encoder")]
    assert held["text_encoders"] == plan.weight_bytes(*encoders)
    assert held["weights"] == plan.weight_bytes(model.transformer)
    assert held["trajectories"] == sum(x.nbytes for x in rollout.trajectory[:4])
    samples = sum(x.nbytes for x in rollout.text)
    assert held["text"] == samples * 3 // 2  # the two prompts' rows, and the four samples'


def test_shards_buckets_and_accumulated_gradients():
    counts = dict(trainable=1000, block=100, outside=0, root=20)
    full = settings_of(shard=True, ema=0.9, dtype="bfloat16")
    one, eight = (plan.train_bytes(counts, 2000, full, world, 1) for world in (1, 8))
    for name in ("weights", "frozen", "optimizer", "ema", "gradients"):
        assert one[name] == 8 * eight[name] > 0
    assert one["gathered"] == eight["gathered"] == 2 * (20 + 2 * 100)
    adding_up = plan.train_bytes(counts, 2000, full, 8, 2)
    assert adding_up["buffers"] == 4000 + eight["buffers"]  # whole gradients; a block's
    reduced = plan.train_bytes(counts, 2000, replace(full, reduce_each=True), 8, 2)
    assert reduced == eight
    lora = settings_of(lora_rank=4, dtype="bfloat16")
    alone, replica = (plan.train_bytes(counts, 9000, lora, world, 1) for world in (1, 8))
    assert replica["buffers"] == replica["gradients"] and alone["buffers"] == 0
    assert replica | {"buffers": 0} == alone
    sharded = plan.train_bytes(counts, 9000, replace(lora, shard=True), 8, 2)
    base = dict(weights=4000 + 5000 // 8, gathered=one["gathered"])  # an adapter in float32
    assert sharded == replica | base


def test_eight_gpus_of_80_gb_train_all_of_flux(uncounted):
    whole = config.parse_config(["--recipe", "flux-full"])
    for reduce_each in (False, True):
        need = plan.make_plan(replace(whole, reduce_each=reduce_each), 8).phases
        assert (max(need.values()) < 72e9) is reduce_each


@pytest.mark.parametrize(
    "settings, work",
    [
        (dict(gradient_checkpointing=True), (3 * 6 + 5 + 9, 9, 9, 2 * 6 * 2)),
        (dict(opponents=2), (3 * 6 + 5 + 9, 0, 9, 2 * 4 * 2)),
        (dict(kl_coef=0.1, reward="pointwise"), (3 * 6 + 5 + 2 * 9, 0, 9, 2 * 4)),
        (dict(kl_coef=0.1, window=2, reward="clip"), (3 * 6 + 2 + 2 * 6, 0, 6, 0)),
        (dict(reward="pairwise:0.4,pointwise:0.6"), (3 * 6 + 5 + 9, 0, 9, 2 * (12 + 4))),
    ],
)
def test_work_is_counted(settings, work):
    settings = settings_of(num_steps=6, group_size=4, **settings)
    assert tuple(plan.work_of(settings, prompts=2, batches=3).values()) == work


def test_what_is_not_held_needs_no_memory(uncounted):
    clip = ROOT / "assets" / "tiny-clip"
    whole = dict(ema=0.9, reward="pairwise,clip", text_cache="")
    held = planned(**whole)
    assert held["scorers"] == pytest.approx(1.71e9, rel=0.01)  # as published
    without = dict(ema=0.0, reward="pairwise", text_cache="texts")
    for (flag, value), part in zip(without.items(), ("ema", "scorers", "text_encoders")):
        assert planned(**whole | {flag: value})[part] == 0 < held[part]
    seen = plan.scorer_bytes(settings_of(reward="pairwise", eval_rewards=f"clip={clip},redness"))
    ours = plan.scorer_bytes(settings_of(reward=f"pairwise:0.4,clip={clip}:0.6"))
    assert seen == ours
    assert ours == (clip / "model.safetensors").stat().st_size


def test_micro_batch_0_is_what_train_makes_of_it(uncounted):
    for judge, samples in (("openai", 2), ("shapes", 4)):
        settings = settings_of(micro_batch=0, judge=judge)
        assert plan.make_plan(settings).micro_batch == samples
        assert config.micro_batch_of(settings, 4) == samples


# The released FLUX recipe: what the paper's authors ran, by the names of our flags.
RELEASED = dict(size=720, num_steps=25, shift=3.0, noise_level=0.7, sde_kind="flow", guidance=3.5)
RELEASED |= dict(group_size=8, same_noise=True, timestep_fraction=0.6, clip_range=1e-4, guard=True)
RELEASED |= dict(adv_clip=5.0, weight_decay=1e-4, max_grad_norm=1.0, kl_coef=0.0, judge="openai")
RELEASED |= dict(reward="pairwise:0.4,clip:0.6", dtype="bfloat16", gradient_checkpointing=True)
RELEASED |= dict(model="black-forest-labs/FLUX.1-dev")
LORA_RECIPE = dict(lora_rank=16, shard=False)
FULL_RECIPE = dict(lora_rank=0, shard=True, lr=1e-5, prompts_per_step=64)


@pytest.mark.parametrize("recipe, own", [("flux-lora", LORA_RECIPE), ("flux-full", FULL_RECIPE)])
def test_recipes_are_the_released_settings(recipe, own):
    cfg = config.parse_config(["--recipe", recipe])  # whatever the toy's defaults are
    assert {name: getattr(cfg, name) for name in RELEASED | own} == RELEASED | own
    world = 64 if cfg.shard else 1
    batches = cfg.prompts_per_step // world * cfg.group_size // cfg.micro_batch
    assert batches // cfg.updates == 4  # micro-batches that an update adds up
    assert cfg.group_size % (cfg.updates * cfg.micro_batch) == 0  # of every group, as help says
    checks.check_config(replace(cfg, prompts="prompts.txt", base_url="http://judge/v1"), world)


def test_the_table_and_the_refusal(uncounted):
    wide = plan.make_plan(settings_of(prompts_per_step=3, shard=True, dtype="bfloat16"), world=2)
    text, most = plan.table(wide), max(wide.phases.values())
    assert "4 prompts" in text and "2 rank(s)" in text
    assert f"{wide.counts['transformer']:,}" in text
    assert max(map(len, text.splitlines())) <= 130
    plan.refuse(wide, gpu_memory=most / 0.89e9)
    for settings, held, remedies in (
        (dict(), dict(), ("--lora_rank", "more ranks", "--gpu_memory")),
        (dict(), dict(activations=10**9), ("--micro_batch 1", "in its update phase")),
        (dict(), dict(decode=10**9), ("--vae_slicing", "in its decode phase")),
        (dict(eval_size=128), dict(evaluation=10**9), ("--eval_size", "its evaluation phase")),
        (
            dict(lora_rank=4, shard=False, text_cache="x", offload=True),
            dict(encode=10**12),
            ("a larger GPU", "in its encode phase"),
        ),
    ):
        plan_of = wide._replace(settings=replace(wide.settings, **settings))
        plan_of = plan_of._replace(bytes=wide.bytes | held)
        with pytest.raises(SystemExit) as stop:
            plan.refuse(plan_of, gpu_memory=max(plan_of.phases.values()) / 0.91e9)
        said = str(stop.value)
        assert "\n" not in said and all(part in said for part in remedies)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("someone/model", "no configuration of 'someone/model'"),
        ("other", "cannot load 'other': it is a FooPipeline: known are FluxPipeline, "),
    ],
)
def test_what_cannot_be_planned_is_named(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/model_index.json").write_text('{"_class_name": "FooPipeline"}')
    with pytest.raises(ValueError, match=sentence):
        footprint.meta_model(name, 32, torch.bfloat16)


# ---- what takes seconds

DEEP = dict(double=3, single=4, dtype=torch.bfloat16, size=128)
LORA = dict(double=2, single=2, lora=4, dtype=torch.bfloat16, size=128)
WIDE_LORA = dict(heads=8, double=2, single=3, lora=8, dtype=torch.bfloat16, size=64)


@pytest.mark.parametrize(
    "shape, tokens, checkpointing",
    [
        (dict(size=192), 12, True),
        (WIDE_LORA, 64, True),
        pytest.param(LORA, 64, False, marks=pytest.mark.slow),
        pytest.param(DEEP, 64, False, marks=pytest.mark.slow),
    ],
)
def test_a_micro_batch_allocates_what_is_planned(shape, tokens, checkpointing):
    models = [small_model(**shape), small_model(**shape)]
    for model in models if checkpointing else ():
        model.transformer.enable_gradient_checkpointing()
    assert_replay_is_planned(*models, tokens)


@pytest.mark.parametrize(
    "family, guidance, checkpointing", [("klein", 1.0, False), ("sd3", 4.5, False)]
)
def test_other_families_allocate_what_is_planned(family, guidance, checkpointing, folders):
    """Guidance above 1 is a batch of twice the size."""
    models = []
    for _ in range(2):
        models += [footprint.meta_model(folders[family], 64, torch.float32, guidance)]
        models[-1].add_lora(4)
        if checkpointing:
            models[-1].transformer.enable_gradient_checkpointing()
    assert_replay_is_planned(*models)


def assert_replay_is_planned(model, same, tokens=0):
    """Of two alike models one is counted, the other made real. tokens: of text, if others."""
    with footprint.faked(model) as text:
        if tokens:
            text = text._replace(embeds=text.embeds[:, :1].repeat(1, tokens, 1))
        counted = footprint.replay_peak(model, 2, text)
    velocity, latents, _, sigmas = footprint.micro_batch_input(real(same), 2, text)
    replay = lambda: velocity(latents, sigmas[1].expand(2)).square().mean().backward()
    assert counted == pytest.approx(allocator_peak(replay), rel=0.08)


@pytest.mark.parametrize("family", ["flux", "klein", "sd3"])
def test_decoding_and_encoding_allocate_what_is_planned(family, folders):
    model = footprint.meta_model(folders[family], 64, torch.float32)
    with footprint.faked(model):
        decoded = footprint.decode_bytes(model, 4, False)
        encoded = footprint.encode_bytes(model, 8)
    own = base.load(folders[family], 64)
    latents = torch.zeros(4, *own.latent_shape)
    with torch.no_grad():
        measured = allocator_peak(lambda: own.pipe.vae.decode(latents, return_dict=False))
        assert decoded - 4 * 3 * 64 * 64 * 8 == pytest.approx(measured, rel=0.1)
    prompts = [f"a red circle inside a blue square {i}" for i in range(8)]
    assert encoded == pytest.approx(allocator_peak(lambda: own.text_of(prompts)), rel=0.1)


# ---- what an image costs


def test_evaluation_is_planned_at_its_own_size(monkeypatch):
    monkeypatch.setattr(footprint, "replay_peak", lambda model, *_: model.size)  # takes a second
    monkeypatch.setattr(footprint, "encode_bytes", lambda *_: 0)
    usual = dict(micro_batch=0, vae_slicing=True, group_size=4)  # 64 at once, 4 in a rollout
    same, larger, few = (
        planned(**usual, **more) for more in ({}, {"eval_size": 128}, {"heldout": 4})
    )
    assert 12 < same["evaluation"] / same["forward"] < 20
    assert same["activations"] == larger["activations"] and same["forward"] == larger["forward"]
    assert larger["evaluation"] > 3 * same["evaluation"]
    assert same["evaluation"] > 8 * few["evaluation"]


@functools.cache
def recipe_plan(recipe: str) -> plan.Plan:
    """Its passes are not counted: takes seconds."""
    world = 64 if recipe == "flux-full" else 1
    return plan.make_plan(config.parse_config(["--recipe", recipe]), world)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_image_of_the_fast_recipe_costs_at_most_an_eighth(checkpointing, uncounted):
    slow, fast = map(recipe_plan, ("flux-lora", "flux-fast"))
    assert slow.settings.gradient_checkpointing and fast.settings.gradient_checkpointing
    slow, fast = (
        made._replace(settings=replace(made.settings, gradient_checkpointing=checkpointing))
        for made in (slow, fast)
    )
    each = 3 + checkpointing
    assert slow.token_passes == (25 + 14 * each) * (2025 + 512)
    assert fast.token_passes == (10 + 1 * each) * (1024 + 512)
    assert 8 * fast.token_passes <= slow.token_passes


def test_klein_by_its_hub_name_costs_what_is_known_of_it(uncounted):
    made = recipe_plan("klein-lora")
    whole = made.counts["transformer"] - made.counts["trainable"]
    assert 2 * whole == pytest.approx(7.8e9, rel=0.03)
    assert 2 * made.counts["text"] == pytest.approx(8.1e9, rel=0.03)
    assert made.copies == 2 and made.token_passes == 2 * (25 + 14 * 4) * (1024 + 512)
    assert made.bytes["text_encoders"] == 0  # --text_cache


def test_hours_and_dollars_are_worked_by_hand(uncounted, sd3_folders):
    cfg = settings_of(model=sd3_folders[False], steps=10, guidance=4.5, kl_coef=0.1)
    made = plan.make_plan(replace(cfg, tflops=2.0, price=5.0, lora_rank=2), world=2)
    tokens = 8 * 8 + MAX_TOKENS + 256  # patches; text of CLIP, and zeros for T5's
    assert made.token_passes == (4 + 2 * 4) * 2 * tokens
    assert made.tflop == 2 * made.counts["transformer"] * made.token_passes / 1e12
    assert made.hours == pytest.approx(10 * 4 * made.tflop / (2 * 2) / 3600)
    made = made._replace(counts=made.counts | {"transformer": 10**15})
    said = "\n".join(plan.costs(made))
    dollars = made.hours * 2 * 5
    for part in ("x 2 for guidance", f"{made.hours:,.1f} hours", f"{dollars:,.0f} dollars"):
        assert part in said


def test_what_offload_leaves_on_the_card_is_said_without_a_second_plan(uncounted, tiny_flux):
    cfg = settings_of(lora_rank=4)
    without, offloaded = (plan.make_plan(replace(cfg, offload=way)) for way in (False, True))
    blocks = distributed.blocks(tiny_flux.transformer)
    frozen = [weight.numel() for block in blocks for weight in block.parameters()]
    rounded = [2 ** math.ceil(math.log2(count)) for count in frozen]
    assert sum(rounded) == without.counts["pinned"] > without.counts["outside"] == sum(frozen)
    assert without.offloaded(True).bytes == offloaded.bytes != without.bytes
    assert offloaded.offloaded(False).bytes == without.bytes
    low, high = (max(made.phases.values()) / 0.9e9 for made in (offloaded, without))
    for memory, said in ((low * 0.9, ["too much"] * 2), (high * 1.1, ["fits"] * 2)):
        assert re.findall("fits|too much", plan.fits(without, memory)) == said
    assert re.findall("fits|too much", plan.fits(offloaded, (low + high) / 2)) == [
        "too much",
        "fits",
    ]
    assert "offload" not in plan.fits(plan.make_plan(settings_of()), 1)


def test_the_table_of_the_recipes_is_what_their_dry_runs_say(uncounted):
    page = (ROOT / "docs" / "flux.md").read_text()
    for recipe in config.RECIPES:
        made = recipe_plan(recipe)
        (row,) = re.findall(rf"^\| `{recipe}`(?:, 64 GPUs)? \| [\d,]+ \|.*", page, re.M)
        images, calls = made.prompts * made.settings.group_size, made.work["judge_calls"]
        for value in (
            *(f"{made.token_passes:,}", plan.number(made.tflop), plan.number(images * made.tflop)),
            *(f"{calls:,}", f"{calls * made.settings.steps:,}"),
        ):
            assert f" {value} " in row
