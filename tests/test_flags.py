"""Every flag is read, used, and changes something: those of train.py in what they name, those of
bench.py in what their command calls. A new flag fails here until it is put to one of the tests."""

import argparse
import dataclasses
import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from real_runs import ALONE
from test_loop import TOY, one_toy_step

import bench
from shapes.verifier import ShapesMLLM
from training import start
from training.config import Config
from training.data import Prompts, make_batch


def said_of(mock) -> list[str]:
    """All that was called, without the addresses of objects."""
    return [re.sub(r" id='\d+'| at 0x\w+", "", str(call)) for call in mock.mock_calls]


def drawn(cfg, *_):
    prompts = Prompts([f"prompt {n}" for n in range(50)], []) if cfg.prompts else None
    return make_batch(cfg, prompts, 3)


def stepped_toy(cfg, *_):
    """The weight, and its moving average."""
    moved, run = one_toy_step(cfg, lr=cfg.lr, micro_batch=1, weight=0.5)
    return moved, [mean.item() for mean in run.average.mean.values()]


def loaded(cfg, _, patch):
    made = MagicMock()
    made.processes.blocks.return_value = [made.block]
    made.pipe.components = {}
    made.load.return_value.pipe = made.pipe
    patch.setattr(start, "distributed", made.processes)
    patch.setattr(start.base, "load", made.load)
    patch.setattr(start.copy, "deepcopy", made.copied)
    start.load_model(cfg, ALONE)
    return said_of(made), torch.initial_seed()


def judged(cfg, _, patch):
    made = MagicMock()
    patch.setattr("judges.openai_client.OpenAIMLLM", made.server)
    patch.setattr("judges.local.LocalMLLM", made.local)
    start.judge_of(cfg, 2)
    return said_of(made)


def rewarded(cfg, folder, patch):
    (folder / "file").write_text("{prompt}")
    patch.chdir(folder)
    (reward,) = start.rewards_of(cfg, ShapesMLLM(), "cpu").values()
    names = ("both_orders", "opponents", "soft", "template")
    return type(reward), [getattr(reward, name, None) for name in names]


def tried(cfg, folder, patch):
    (folder / "file").write_text("{prompt}")
    patch.chdir(folder)
    patch.setattr(start, "check_sight", lambda *settings: settings[1:])
    return start.try_judge(cfg, ShapesMLLM())


def test_a_judge_is_made_with_its_share_of_the_calls_and_a_key_of_its_own(monkeypatch):
    monkeypatch.setattr(start, "make_judge", made := MagicMock())
    monkeypatch.setenv("EVAL_API_KEY", "of the other")
    cfg = Config(judge="openai", base_url="http://h/v1", judge_seed=-1, concurrency=9)
    cfg = dataclasses.replace(cfg, eval_judge="openai=m@http://y/v1")
    start.judge_of(cfg, 4), start.judge_of(cfg, 20, "eval_judge")
    own, other = (call.kwargs for call in made.call_args_list)
    assert own["seed"] is None and own["concurrency"] == 2 and "api_key" not in own
    assert other["api_key"] == "of the other" and other["concurrency"] == 1


# What is looked at, the settings to begin with, and another value of each flag that it reads.
PARTS = [
    (drawn, {}, dict(same_noise=True, num_steps=5, timestep_fraction=0.2, prompts="a file")),
    (
        drawn,
        dict(window=2, window_range="1:5"),
        dict(seed=1, prompts_per_step=2, group_size=3, window=3, window_range="0:3"),
    ),
    (
        stepped_toy,
        vars(TOY) | dict(updates=2, kl_coef=0.1, lr=0.01),
        dict(shift=1.0, noise_level=0.7, sde_kind="flow", guard=True, clip_range=1e-9)
        | dict(max_grad_norm=1e-3, kl_coef=0.2, updates=1, std_floor=1.0, adv_clip=0.1)
        | dict(lr=1e-3, weight_decay=1.0, ema=0.0),
    ),
    (
        loaded,
        dict(lora_rank=2),
        dict(seed=1, model="m", size=64, guidance=2.0, lora_rank=4, lora_alpha=1, compile=True)
        | dict(dtype="bfloat16", gradient_checkpointing=True, offload=True, shard=True)
        | dict(vae_slicing=True),
    ),
    (
        judged,
        dict(judge="openai", judge_model="m", base_url="http://h/v1"),
        dict(judge="local", judge_model="n", base_url="http://other/v1", judge_tokens=7)
        | dict(
            judge_seed=-1,
            judge_prompt="flex:f.py",
            judge_extra='{"a": 1}',
            max_calls=7,
            concurrency=6,
            call_timeout=7.0,
            patience=200.0,
        ),
    ),
    (
        rewarded,
        {},
        dict(reward="pointwise", opponents=2, both_orders=False, soft=True, judge_prompt="file"),
    ),
    (tried, dict(judge="local"), dict(soft=True, judge_prompt="file")),
]
# Where a run happens, what it writes, what it only plans, and what ends it: tests of their own.
ELSEWHERE = {
    *("recipe", "out", "steps", "resume", "device", "logger", "text_cache", "micro_batch"),
    *("checkpoint_every", "eval_size", "eval_steps", "accept_judge", "export", "tflops", "price"),
    *("max_failed", "reduce_each", "dry_run", "gpu_memory", "ranks", "eval_every", "heldout"),
    *("eval_rewards", "eval_judge", "bench_every", "bench_prompts", "bench_judge"),
}


@pytest.mark.parametrize("look, usual, others", PARTS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_flag_of_training_changes_what_it_names(look, usual, others, tmp_path_factory):
    def seen(cfg):
        with pytest.MonkeyPatch.context() as patch:
            return look(cfg, tmp_path_factory.mktemp("flag"), patch)

    cfg = Config(**usual)
    before = seen(cfg)
    assert before == seen(cfg)  # or everything would change it
    for name, value in others.items():
        assert seen(dataclasses.replace(cfg, **{name: value})) != before, name


def test_every_flag_of_training_is_put_to_the_test():
    tested = {name for *_, others in PARTS for name in others}
    fields = {f.name for f in dataclasses.fields(Config)}
    assert tested | ELSEWHERE == fields and not tested & ELSEWHERE


# ----------------------------------------------------------------------------- bench.py

JUDGE = "--judge openai --base_url http://h/v1 --judge_model m"
COMMANDS = {
    "generate": "--model m --prompts shapes --out o",
    "judge": f"--prompts shapes --images i --out r.csv {JUDGE}",
    "score": "r.csv",
    "report": "r.csv",
    "agree": "r.csv b.csv",
    "board": "r.csv",
    "quality": "r.csv --prompts shapes --scorers clip",
    "construct": f"--count 2 --out p.csv {JUDGE}",
}
CALLED = (
    "check_judges check_same_prompts check_sight complete compare write_sets coverage_of generate "
    "journal_of judged_by question_notes question_record "
    "judge_images make_judge read_models read_results score settings_of tables "
    "write_report write_results write_scores write_settings find_published set_of read_named "
    "judged quality "
    "agreement_table agreement_text write_agreement board_rows board_text nearest radar polygons"
)


def called(line, patch):
    """What a command calls, of which nothing is done, and its exit status."""
    made = MagicMock()
    made.make_judge.return_value.name = "m"
    made.write_sets.return_value = []
    made.check_sight.return_value = ""
    made.quality.return_value = "", True
    for name in CALLED.split():
        patch.setattr(bench, name, getattr(made, name))
    try:
        return bench.run(line.split()), said_of(made)
    except ValueError as error:  # of flags that do not go together
        return str(error), said_of(made)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_bench_changes_what_its_command_calls(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other").write_text("{prompt} {testpoint}")
    line = f"{command} {COMMANDS[command]}"
    (commands,) = bench.make_parser()._subparsers._group_actions
    before = called(line, monkeypatch)
    assert before == called(line, monkeypatch)
    for action in commands.choices[command]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        prompts = action.choices[-1] if action.choices else "own"
        value = {"judge": "local", "prompts": prompts}.get(
            action.dest,
            prompts if action.choices else "7" if action.type else "other" * (action.nargs != 0),
        )
        if action.option_strings:
            changed = f"{line} {action.option_strings[0]} {value}"
        else:
            changed = f"{line} other" if action.nargs else line.replace(" r.csv", " other")
        assert called(changed, monkeypatch) != before, action.dest
