"""The memory plan against real allocations of small models of the real classes; what it says."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import sampler
import train
from training import checks, config, footprint, plan
from training.data import Batch

TINY = str(ROOT / "assets" / "tiny-flux")
FLUX_SIZE = dict(size=720, num_steps=25, prompts_per_step=1, micro_batch=1, dtype="bfloat16")
FLUX_SIZE |= dict(ema=0.0, judge="openai")
SMALL = dict(size=64, num_steps=4, prompts_per_step=2, group_size=2, micro_batch=2)


def settings_of(**settings) -> config.Config:
    """Settings of FLUX.1-dev's size where no others are given."""
    return config.Config(**(FLUX_SIZE | settings))


def allocator_peak(function) -> int:
    """Most bytes that PyTorch's own CPU allocator had out at once beyond those at the start."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = sorted(
        (e.start_ns(), i, e.nbytes())
        for i, e in enumerate(record.profiler.kineto_results.events())
        if e.name() == "[memory]"
    )
    now = peak = 0
    for _, _, size in events:
        now += size
        peak = max(peak, now)
    return peak


def small_model(heads=4, double=1, single=1, lora=0, dtype=torch.float32, size=64, real=True):
    """A FLUX model with a transformer of the given width and depth, real or on meta."""
    model, _ = footprint.meta_model(TINY, size, dtype)
    sizes = dict(num_attention_heads=heads, num_layers=double, num_single_layers=single)
    with torch.device("meta"):
        network = type(model.transformer).from_config(dict(model.transformer.config) | sizes)
    model.pipe.transformer = network.to(dtype)
    model.transformer.requires_grad_(not lora)
    if lora:
        model.add_lora(lora)
    if real:
        for part in (model.transformer, model.pipe.vae, model.pipe.text_encoder_2):
            part.to_empty(device="cpu")
            for parameter in part.parameters():
                parameter.data.fill_(0.01)
    return model


def planned(function, checkpointing=False, **shape):
    """function(model) of a model of fake tensors."""
    model = small_model(**shape, real=False)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    with FakeTensorMode():
        for part in (model.transformer, model.pipe.vae, model.pipe.text_encoder_2):
            footprint.make_fake(part)
        return function(model)


DEEP, LORA = dict(double=3, single=4), dict(double=2, single=2, lora=4)
WIDE_LORA = dict(heads=8, double=2, single=3, lora=8)


@pytest.mark.parametrize(
    "shape, size, tokens, dtype, checkpointing",
    [
        (dict(heads=4), 192, 12, torch.float32, True),
        (WIDE_LORA, 128, 64, torch.bfloat16, True),
        pytest.param(LORA, 128, 64, torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(DEEP, 128, 64, torch.bfloat16, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_micro_batch_allocates_what_is_planned(shape, size, tokens, dtype, checkpointing):
    shape = shape | dict(dtype=dtype, size=size)
    counted = planned(lambda m: footprint.replay_peak(m, 2, tokens), checkpointing, **shape)
    model = small_model(**shape)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    for parameter in model.trainable():
        parameter.grad = torch.zeros_like(parameter)
    velocity, latents, _, sigmas = footprint.micro_batch_input(model, 2, tokens)
    assert counted == pytest.approx(
        allocator_peak(lambda: velocity(latents, sigmas[1].expand(2)).square().mean().backward()),
        rel=0.08,
    )


def test_decoding_and_encoding_allocate_what_is_planned():
    decoded, encoded = planned(
        lambda m: (footprint.decode_bytes(m, 4, False), footprint.encode_bytes(m, 8, 12))
    )
    pipe = small_model().pipe
    latents, ids = torch.zeros(4, 8, 16, 16), torch.zeros(8, 12, dtype=torch.long)
    with torch.no_grad():
        measured = allocator_peak(lambda: pipe.vae.decode(latents, return_dict=False))
        assert decoded - 4 * 3 * 64 * 64 * 8 == pytest.approx(measured, rel=0.1)
        assert encoded == pytest.approx(allocator_peak(lambda: pipe.text_encoder_2(ids)), rel=0.1)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_lasting_bytes_are_those_of_the_real_tensors(lora_rank, tiny_flux, uncounted):
    settings = settings_of(**SMALL, lora_rank=lora_rank, dtype="float32", ema=0.9)
    planned = plan.make_plan(TINY, settings).bytes
    model = small_model(heads=4, double=2, single=4, lora=lora_rank)
    for parameter in model.trainable():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.trainable())
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]

    def size(tensors):
        return sum(x.untyped_storage().nbytes() for x in tensors)

    assert planned["weights"] == size(model.transformer.parameters())
    assert planned["gradients"] == planned["ema"] == size(p.grad for p in model.trainable())
    assert planned["optimizer"] == size(moments)
    assert planned["frozen"] == (0 if lora_rank else planned["weights"])
    assert planned["vae"] == size(tiny_flux.pipe.vae.parameters())


def test_trajectories_and_text_are_those_of_a_real_rollout(tiny_flux, uncounted):
    batch = Batch(["a red circle", "a blue square"], [0, 1, 2, 3], [4, 5, 6, 7], [0])
    how = dict(noise_level=0.7, kind="flow", micro_batch=4)
    rollout = train.sample(tiny_flux, batch, sampler.sigma_schedule(3), **how)
    real = sum(x.untyped_storage().nbytes() for x in rollout.trajectory[:4])
    settings = settings_of(**SMALL | {"size": 32, "num_steps": 3, "dtype": "float32"})
    planned = plan.make_plan(TINY, settings).bytes
    assert planned["trajectories"] == real
    samples = sum(x.untyped_storage().nbytes() for x in rollout.text)
    assert planned["text"] == samples * 3 // 2  # the two prompts' rows, and the four samples'


def test_shards_buckets_and_accumulated_gradients():
    counts = dict(trainable=1000, block=100, outside=0, root=20)
    full = settings_of(shard=True, ema=0.9)
    one, eight = (plan.train_bytes(counts, 2000, full, world, 1) for world in (1, 8))
    for name in ("weights", "frozen", "optimizer", "ema", "gradients"):
        assert one[name] == 8 * eight[name] > 0
    assert one["gathered"] == eight["gathered"] == 2 * (20 + 2 * 100)
    adding_up = plan.train_bytes(counts, 2000, full, 8, 2)
    assert adding_up["buffers"] == 4000 + eight["buffers"]  # whole gradients; a block's
    lora = settings_of(lora_rank=4)
    alone, replica = (plan.train_bytes(counts, 2000, lora, world, 1) for world in (1, 8))
    assert replica["buffers"] == replica["gradients"] and alone["buffers"] == 0
    assert replica | {"buffers": 0} == alone


def test_work_is_counted():
    settings = settings_of(
        num_steps=6, timestep_fraction=0.6, group_size=4, gradient_checkpointing=True
    )
    assert plan.work_of(settings, 2, 3) == plan.Work(3 * 6 + 5 + 3 * 3, 9, 9, 2 * 6 * 2)
    assert plan.work_of(replace(settings, opponents=2), 2, 3).judge_calls == 2 * 4 * 2
    settings = replace(settings, kl_coef=0.1, reward="pointwise", gradient_checkpointing=False)
    assert plan.work_of(settings, 2, 3) == plan.Work(3 * 6 + 5 + 2 * 3 * 3, 0, 9, 2 * 4)
    window = plan.work_of(replace(settings, window=2), 2, 3)
    assert window.backward == 3 * 2 and window.forward == 3 * 6 + 2 + 2 * 3 * 2
    for reward, calls in (("pairwise:0.4,clip:0.6", 12), ("pairwise,pointwise", 16), ("clip", 0)):
        assert plan.work_of(replace(settings, reward=reward), 1, 1).judge_calls == calls


def test_what_is_not_held_needs_no_memory(uncounted):
    clip = ROOT / "assets" / "tiny-clip"
    whole = dict(ema=0.9, reward="pairwise,clip", text_cache="")
    held = plan.make_plan(TINY, settings_of(**SMALL | whole)).bytes
    assert held["scorers"] == pytest.approx(1.71e9, rel=0.01)  # as published
    without = dict(ema=0.0, reward="pairwise", text_cache="texts")
    for (flag, value), part in zip(without.items(), ("ema", "scorers", "text_encoders")):
        less = plan.make_plan(TINY, settings_of(**SMALL | whole | {flag: value})).bytes
        assert less[part] == 0 < held[part]
    ours = plan.scorer_bytes(settings_of(reward=f"pairwise:0.4,clip={clip}:0.6"))
    assert ours == (clip / "model.safetensors").stat().st_size


def test_micro_batch_0_is_what_train_makes_of_it(uncounted):
    settings = settings_of(**SMALL | {"micro_batch": 0})
    for judge, samples in (("openai", 2), ("shapes", 4)):
        assert plan.make_plan(TINY, replace(settings, judge=judge)).micro_batch == samples
        assert config.micro_batch_of(replace(settings, judge=judge), 4) == samples


# The released FLUX recipe: what the paper's authors ran, by the names of our flags.
RELEASED = dict(size=720, num_steps=25, shift=3.0, noise_level=0.7, sde_kind="flow", guidance=3.5)
RELEASED |= dict(group_size=8, same_noise=True, timestep_fraction=0.6, clip_range=1e-4, guard=True)
RELEASED |= dict(adv_clip=5.0, weight_decay=1e-4, max_grad_norm=1.0, kl_coef=0.0, judge="openai")
RELEASED |= dict(reward="pairwise:0.4,clip:0.6", dtype="bfloat16", gradient_checkpointing=True)
RELEASED |= dict(model="black-forest-labs/FLUX.1-dev")


@pytest.mark.parametrize(
    "recipe, own",
    [
        ("flux-lora", dict(lora_rank=16, shard=False)),
        ("flux-full", dict(lora_rank=0, shard=True, lr=1e-5, prompts_per_step=64)),
    ],
)
def test_recipes_are_the_released_settings(recipe, own):
    cfg = config.parse_config(["--recipe", recipe])  # whatever the toy's defaults are
    assert {name: getattr(cfg, name) for name in RELEASED | own} == RELEASED | own
    world = 64 if cfg.shard else 1
    batches = cfg.prompts_per_step // world * cfg.group_size // cfg.micro_batch
    assert batches // cfg.updates == 4  # micro-batches that an update adds up
    checks.check_config(replace(cfg, prompts="prompts.txt", base_url="http://judge/v1"), world)


def test_the_lora_recipe_fits_80_and_48_GB_and_24_only_with_offload():
    """That it fits 24 then is test_dry_run.py's."""
    cfg = config.parse_config(["--recipe", "flux-lora"])
    made = plan.make_plan(cfg.model, cfg)
    said = plan.table(made)
    for part in ("11,935,028,288 (33,619,968 trained)", "4,885,371,136, VAE 83,819,683"):
        assert part in said
    assert made.bytes["activations"] < made.bytes["activations_other"] / 5  # checkpointing
    plan.refuse(made, 80)
    plan.refuse(made, 48)
    with pytest.raises(SystemExit, match="--offload"):
        plan.refuse(made, 24)
    offloaded = plan.train_bytes(
        made.counts, made.bytes["weights"], replace(cfg, offload=True), 1, 1
    )
    assert offloaded["weights"] < 0.6e9 < offloaded["gathered"]


def test_the_table_and_the_refusal():
    settings = settings_of(**SMALL | {"prompts_per_step": 3}, shard=True)
    wide = plan.make_plan(TINY, settings, world=2)
    text = plan.table(wide)
    assert (
        "planned as 4" in text and "2 rank(s)" in text and f"{wide.counts['transformer']:,}" in text
    )
    assert max(map(len, text.splitlines())) <= 130
    plan.refuse(wide, gpu_memory=wide.peak / 0.89e9)
    with pytest.raises(SystemExit) as stop:
        plan.refuse(wide, gpu_memory=wide.peak / 0.91e9)
    said = str(stop.value)
    assert "\n" not in said and "--gpu_memory" in said
    assert "--lora_rank" in said and "more ranks" in said
    with pytest.raises(SystemExit, match="--micro_batch 1"):
        plan.refuse(wide._replace(phases={"update": 10**9, "optimizer": 1}), gpu_memory=1)
    plain = replace(wide.settings, lora_rank=4, shard=False, text_cache="x", offload=True)
    with pytest.raises(SystemExit, match="a larger GPU"):
        plan.refuse(wide._replace(settings=plain, phases={"encode": 10**12}), gpu_memory=1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("someone/model", "no configuration of 'someone/model'"),
        ("sd3", "'sd3' is a StableDiffusion3Pipeline"),
    ],
)
def test_what_cannot_be_planned_is_named(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sd3").mkdir()
    Path("sd3/model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(ValueError, match=sentence):
        footprint.meta_model(name, 32, torch.bfloat16)
