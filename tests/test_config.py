"""Settings and what they name: the rewards of --reward and the advantages of a mixture, the
template, the calls to the judge; and what cannot work."""

import dataclasses
import math
import re
import runpy
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import ROOT

import grpo
import train
from judges.scorers import MLLMScorer
from judges.templates import PAIRWISE_TEMPLATE
from rewards import PairwiseReward, PointwiseReward, Rewards
from sampler import DIFFUSIONS
from shapes.verifier import ShapesMLLM
from training.checks import check_config, check_numbers, faults
from training.config import GROUPS, RECIPES, Config, Part, parse_config, parse_rewards
from training.distributed import DTYPES
from training.start import call_budget, comparison_of, rewards_of

CLIP = ROOT / "assets" / "tiny-clip"


def refused(world=1, **settings) -> str:
    with pytest.raises(SystemExit) as stop:
        check_config(Config(**settings), world)
    assert "\n" not in str(stop.value)
    return str(stop.value)


# ---- --reward, and advantages ----


def test_parts_of_a_reward():
    text = "pickscore=someone/name , pairwise:0.4,clip:6e-1"
    parts = dict(pickscore=Part("someone/name", 1.0), pairwise=Part("", 0.4), clip=Part("", 0.6))
    assert list(parse_rewards(text).items()) == list(parts.items())  # as they were given
    check_config(parse_config(["--reward", text]), 1)


WRONG = "|clip:|elo:1|pairwise:0.4,|clip:0.4,clip=x:0.6|pairwise=x:1|clip=:1|clip:much|clip:0"


@pytest.mark.parametrize("text", [*WRONG.split("|"), "clip:inf"])
def test_a_wrong_reward_gets_one_sentence(text):
    said = refused(reward=text)
    assert said.startswith("--reward: '") and f"in '{text}' is no NAME" in said


def test_the_rewards_that_are_named_are_made():
    judge = ShapesMLLM()
    cfg = Config(reward=f"clip={CLIP}:0.6,pointwise,pairwise:0.4", opponents=4, both_orders=False)
    made = rewards_of(cfg, judge, "cpu")
    assert list(made) == ["clip", "pointwise", "pairwise"]
    assert isinstance(made["clip"], PointwiseReward) and made["clip"].name == "clip"
    assert isinstance(made["pointwise"].scorer, MLLMScorer)
    pairwise = made["pairwise"]
    assert isinstance(pairwise, PairwiseReward) and pairwise.mllm is judge
    assert (pairwise.opponents, pairwise.both_orders, pairwise.soft) == (4, False, False)
    assert pairwise.template == PAIRWISE_TEMPLATE
    # what progress is measured with is no matter of what the reward saves
    for plain in (comparison_of(cfg, judge), *rewards_of(Config(), judge, "cpu").values()):
        assert (plain.opponents, plain.both_orders) == (None, True)


def normalized(scored, weights, std_floor):
    rewards = {name: Rewards(values, Counter(), None, []) for name, values in scored.items()}
    return train.normalize(rewards, weights, std_floor, 5.0)


def test_one_reward_is_normalized_within_each_group_and_several_are_combined():
    pairwise, clip = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    alone, share = normalized({"clip": clip}, {"clip": 0.3}, 0.05)
    assert torch.equal(alone, grpo.group_advantages(clip, 0.05, 5.0)) and share == 0
    scored, weights = {"pairwise": pairwise, "clip": 30 * clip}, {"pairwise": 0.4, "clip": 0.6}
    mixed, share = normalized(scored, weights, 0.05)
    assert torch.equal(mixed, grpo.combine_advantages(scored, weights, 0.05, 5.0)) and share == 0


def test_the_share_at_the_floor_is_counted_in_each_rewards_own_units():
    pairwise = torch.tensor([[0.0, 0.02], [0.0, 1.0]])
    advantages, share = normalized({"pairwise": pairwise}, {"pairwise": 1.0}, 0.05)
    torch.testing.assert_close(advantages, torch.tensor([[-0.2, 0.2], [-1.0, 1.0]]))
    assert share == 0.5
    hpsv2 = torch.tensor([[0.0, 1e-6], [0.005, 0.009]])  # of them one is flat
    scored = {"pairwise": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "hpsv2": hpsv2}
    weights = dict.fromkeys(scored, 1.0)
    assert normalized(scored, weights, Config().std_floor)[1] == 0.25
    assert normalized(scored, weights, 0.05)[1] == 0.5  # one that is given is for all


# ---- the command line, the template, the calls ----


def test_flags_go_before_the_recipe():
    arguments = ["--recipe", "flux-lora", "--prompts", "p.txt", "--lr", "0.5", "--no-same_noise"]
    cfg = parse_config(arguments)
    assert (cfg.lr, cfg.same_noise, cfg.prompts) == (0.5, False, "p.txt")
    assert cfg.lora_rank == RECIPES["flux-lora"]["lora_rank"] and cfg.judge == "openai"
    assert parse_config([]) == Config()


def test_words_are_chosen_from_what_there_is(capsys):
    chosen = {f.name: f.metadata["choices"] for f in dataclasses.fields(Config)}
    chosen = {name: choices for name, choices in chosen.items() if choices}
    assert set(chosen) == {"recipe", "export", "sde_kind", "judge", "dtype", "logger"}
    assert set(chosen["recipe"]) == set(RECIPES) and set(chosen["sde_kind"]) == set(DIFFUSIONS)
    assert set(chosen["dtype"]) <= set(DTYPES)
    for name, choices in chosen.items():
        with pytest.raises(SystemExit, match="2"):
            parse_config([f"--{name}", "odd"])
        said = capsys.readouterr().err
        assert f"--{name}" in said and "odd" in said and said.count("\n") == 1
        assert all(choice in said for choice in choices)


def test_a_template_is_taken_word_for_word(tmp_path):
    file, text = tmp_path / "template.txt", "Bild \u201e{prompt}\u201c {{x}} %s \\1\r\n<answer>"
    file.write_bytes(text.encode("utf-8-sig"))  # as some editors save it
    cfg = Config(judge_prompt=str(file))
    assert rewards_of(cfg, ShapesMLLM(), "cpu")["pairwise"].template == text
    file.write_bytes(b"\xff{prompt}")
    for said in ("template.txt' is not UTF-8 text", "template.txt': No such file"):
        with pytest.raises(ValueError, match=f"--judge_prompt '.*{said}"):
            comparison_of(cfg, ShapesMLLM())
        file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"steps": 23, "opponents": 4, "prompts_per_step": 2}, (16 * 2 * 2 * 23, 2 * 314 * 2)),
        ({"opponents": 3, "both_orders": False}, (12 * 16 * 110, 2 * 314 * 5)),
        ({"reward": f"pointwise,clip={CLIP}", "heldout": 10}, (8 * 16 * 110, 2 * 10 * 5)),
    ],
)
def test_the_call_budget_of_every_flag(settings, calls):
    cfg = Config(**({"steps": 110, "eval_every": 22} | settings))
    said = call_budget(cfg, cfg.heldout or 314)
    assert [f"= {n:,}" in said for n in calls] == [True, True] and f"{sum(calls):,} in all" in said
    assert "--eval_judge" not in said
    more = call_budget(dataclasses.replace(cfg, eval_judge="shapes"), cfg.heldout or 314)
    assert more == f"{said}; {calls[1]:,} more to --eval_judge"


def test_help_shows_every_setting_in_its_group_and_loads_no_library():
    def said(*command) -> str:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        return done.stdout

    program = "import sys, training.config; print('torch' in sys.modules)"
    assert said("-c", program) == "False\n"  # so that --help answers at once
    shown = said("train.py", "--help")
    assert all(f"{title}:" in shown for title in GROUPS.values())
    assert all(f"--{f.name}" in shown for f in dataclasses.fields(Config))
    marks = {mark for f in dataclasses.fields(Config) for mark in "PCT" if f"({mark}" in str(f)}
    assert all(re.search(rf"\({mark}\) (is|what)", shown) for mark in marks)


@pytest.mark.parametrize("file", ["train.py", "bench.py", "tests/conftest.py"])
def test_an_older_python_ends_in_one_sentence(file, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match=r"^Python 3.11 or newer is needed, this is [\d.]+$"):
        runpy.run_path(str(ROOT / file))
    assert 'is-needed ; python_version < "3.11"' in (ROOT / "requirements.txt").read_text()


# ---- updates ----


@pytest.mark.parametrize("samples", [(1, 2), (3, 9), (16, 8)])
@pytest.mark.parametrize("size", [0, 3, 8])
def test_updates_that_do_not_divide_are_refused_with_what_works(samples, size):
    p, g = samples
    for updates in range(2, 12):
        how = dict(prompts_per_step=p, group_size=g, micro_batch=size, updates=updates)
        if math.ceil(p * g / (size or p * g)) % updates == 0:
            check_config(Config(**how), 1)
            continue
        said = refused(**how)
        assert said.startswith(f"--updates {updates} ")
        work, _, other = said.partition("choose from ")[2].partition("; with --micro_batch ")
        for number in work.split(", "):
            check_config(Config(**how | {"updates": int(number)}), 1)
        if other:
            check_config(Config(**how | {"micro_batch": int(other.split()[0])}), 1)


# ---- what cannot work ----

NUMBERS = [f for f in dataclasses.fields(Config) if f.type in (int, float)]
# The first numbers outside of what a field takes; 0 where that is its own default.
OUTSIDE = dict.fromkeys((f.name for f in NUMBERS if f.type is float), [0.0, -1e-9])
OUTSIDE |= dict.fromkeys(("guidance", "max_grad_norm", "kl_coef", "shift", "price"), [-1e-9])
OUTSIDE |= dict.fromkeys(("max_failed", "weight_decay"), [-1e-9, 1.01])
OUTSIDE |= dict.fromkeys(("lr", "clip_range", "timestep_fraction"), [0.0, 1.01])
OUTSIDE |= dict(ema=[-1e-9, 1.0], std_floor=[-0.5, -1.01])
OUTSIDE |= dict(size=[7], group_size=[1], num_steps=[1], judge_seed=[-2], steps=[0, 10**6], seed=[])
POSITIVE = "prompts_per_step concurrency updates eval_every checkpoint_every"
OUTSIDE |= dict.fromkeys(POSITIVE.split(), [0])


@pytest.mark.parametrize("f", NUMBERS, ids=lambda f: f.name)
def test_every_number_is_finite_and_in_its_range(f):
    for value in [*OUTSIDE.get(f.name, [-1]), math.nan, math.inf, -math.inf]:
        assert refused(dry_run=True, **{f.name: value}).startswith(f"--{f.name} {value}: ")
    for settings in RECIPES.values():  # and what ships lies within
        check_numbers(Config(**settings))


def test_what_another_setting_leaves_without_effect_is_refused():
    """By default each of these settings is off."""
    odd = {str: "1:4", int: 77, float: 77.0, bool: True}
    with_needs = [f for f in dataclasses.fields(Config) if f.metadata["needs"]]
    for f in with_needs:
        name, *_ = f.metadata["needs"].split()
        assert refused(**{f.name: odd[f.type]}).startswith(f"--{f.name} needs --{name}")
    assert len(with_needs) > 12
    said = refused(judge="local", judge_model="m", call_timeout=3.0)
    assert "--call_timeout needs --judge openai" in said


NEAR = dict(lora_rank=2, gradient_checkpointing=True)
SERVER = dict(judge="openai", base_url="http://h/v1")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(opponents=8), ("--opponents 8 with --group_size 8: ", "from 1 to 7")),
        (dict(opponents=1), ("at least 2, or 0",)),
        (dict(opponents=2, reward="pointwise"), ("--opponents 2", "a pairwise reward")),
        (dict(both_orders=False, reward="clip"), ("both_orders are for a pairwise reward",)),
        (dict(judge_prompt="t.txt", reward="clip"), ("--judge_prompt", "a pairwise reward")),
        (dict(offload=True, gradient_checkpointing=True), ("--offload is for a LoRA",)),
        (dict(offload=True, lora_rank=2), ("with --gradient_checkpointing",)),
        (dict(offload=True, compile=True, **NEAR), ("without --compile",)),
        (dict(shard=True, reduce_each=True, lora_rank=2), ("--reduce_each", "--shard")),
        (dict(shard=True, offload=True, **NEAR), ("--offload", "--shard")),
        (dict(dtype="bfloat16"), ("--dtype bfloat16 needs --lora_rank, or --shard",)),
        (dict(window=6), ("must fit into --window_range 0:5",)),  # the last of 6 is an ODE step
        (dict(window=3, window_range="1:3"), ("must fit into --window_range 1:3",)),
        (dict(window=1, window_range="5:6"), ("and that into 0:5",)),
        (dict(window=1, window_range="-1:3"), ("two step numbers",)),
        (dict(window=1, window_range="3"), ("two step numbers",)),
        (dict(window=2, timestep_fraction=0.5), ("replayed whole",)),
        (dict(sde_kind="cps"), ("--sde_kind cps needs --no-guard", "dsigma")),
        (dict(sde_kind="cps", guard=False, noise_level=1.1), ("--noise_level 1.1", "at most 1")),
        (dict(prompts="p.txt", heldout=1, eval_size=4), ("--eval_size 4", "at least 8")),
        (dict(prompts="p.txt"), ("--heldout N",)),
        (dict(recipe="flux-lora"), ("--prompts FILE",)),
        (dict(judge="local"), ("--judge_model",)),
        (SERVER | dict(judge_prompt="flex:t.py", soft=True), ("--soft", "flex:")),
        (
            SERVER | dict(judge_extra="{top_k: 1}"),
            ("--judge_extra '{top_k: 1}' is no JSON object",),
        ),
        (SERVER | dict(judge_extra="[1]"), ("is no JSON object",)),
        (SERVER | dict(judge_extra='{"x": NaN}'), ("is no JSON",)),
        (SERVER | dict(judge_extra='{"messages": []}'), ("cannot set 'messages'",)),
        (SERVER | dict(judge_extra='{"a": 1, "model": "m"}'), ("cannot set 'model'", "_model")),
        (dict(judge="openai"), ("--base_url URL or OPENAI_BASE_URL",)),
        (dict(eval_rewards="clip,elo"), ("--eval_rewards: 'elo'", "aesthetic")),
        (dict(eval_rewards="clip,pairwise"), ("--eval_rewards: 'pairwise'", "one of clip")),
        (dict(eval_rewards="clip:0.5"), ("--eval_rewards: 'clip:0.5'", "[=SOURCE]: ")),
        (dict(eval_rewards="clip=a", reward="pairwise,clip=a"), ("clip is in --reward too",)),
        (dict(eval_judge="oracle"), ("--eval_judge is none of shapes, local=FOLDER",)),
        (dict(eval_judge="openai=m@"), ("--eval_judge is none",)),
        (dict(eval_judge="openai=http://me:secret@h/v1"), ("with no password",)),
        (dict(eval_judge="shapes"), ("--eval_judge is --judge, by which",)),
        (dict(bench_every=8), ("--bench_prompts, such as en:60", "--bench_judge")),
        (dict(bench_prompts="en"), ("--bench_prompts needs --bench_every",)),
        (dict(bench_every=12, bench_prompts="en", bench_judge="local=m"), ("12", "--eval_every 8")),
        (dict(bench_every=8, bench_prompts="en", bench_judge="x"), ("--bench_judge is none of",)),
        (dict(eval_judge="local=m", patience=90.0), ("--patience needs --judge openai",)),
        (SERVER | dict(eval_judge="openai=http://h/v1/"), ("--eval_judge is --judge, by which",)),
        (
            SERVER | dict(base_url="http://h/v1/", eval_judge="openai=http://h/v1"),
            ("--eval_judge is --judge, by which",),
        ),
        (SERVER | dict(base_url="http://me:secret@h/v1"), ("--base_url", "OPENAI_BASE_URL")),
        (SERVER | dict(patience=9.0), ("--patience 9.0", "--call_timeout 60.0")),
        (SERVER | dict(concurrency=1, world=2), ("--concurrency 1", "2 processes")),
        (dict(prompts_per_step=3, world=2), ("--prompts_per_step 3", "never spans ranks")),
        (
            dict(prompts_per_step=4, micro_batch=16, updates=2, world=2),  # one process: 2 of 16
            ("--updates 2", "1 of --micro_batch 16", "with --micro_batch 8"),
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_get_one_sentence(settings, named, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    said = refused(**settings)
    assert all(part in said for part in named) and "secret" not in said


@pytest.mark.parametrize(
    "settings",
    [
        dict(opponents=1, group_size=2),
        dict(opponents=7, window=5),
        dict(sde_kind="cps", guard=False, noise_level=1.0),
        dict(shift=0.0, eval_steps=3),
        dict(window=2, window_range="3:5", lora_rank=4, lora_alpha=8),
        dict(judge="openai", eval_judge="openai=m@http://h/v1"),
        dict(reward="clip=a", eval_rewards="clip=b, redness", eval_judge="local=m", judge_tokens=9),
        dict(eval_judge="openai=http://h/v1", concurrency=2, patience=90.0),
        dict(bench_every=16, bench_prompts="en:9", bench_judge="openai=http://h/v1", concurrency=2),
        dict(offload=True, dtype="bfloat16", **NEAR),
        SERVER | dict(patience=60.0, soft=True, judge_extra='{"top_k": 1}'),
    ],
    ids=str,
)
def test_settings_at_the_edge_that_work(settings, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://h/v1")
    assert [*faults(Config(**settings), 1)] == []


def test_what_only_says_where_a_run_happens_is_free_to_change():
    free = {f.name for f in dataclasses.fields(Config) if f.metadata["free"]}
    assert {"out", "steps", "device", "micro_batch", "shard"} <= free
    assert {"base_url", "judge_tokens", "judge_seed", "max_failed", "patience"} <= free
    assert (
        not {
            "judge_extra",
            "lr",
            "seed",
            "reward",
            "group_size",
            "judge",
            "heldout",
            "prompts_per_step",
        }
        & free
    )
