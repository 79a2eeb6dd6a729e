"""The run directory: loggers at work, the code on the model card, what a resumption may change."""

import errno
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import ROOT

from common import files
from grpo import Loss
from models import base
from rewards import Rewards
from training import log
from training.config import Config
from training.session import check_shared

TINY = str(ROOT / "assets" / "tiny-flux")
ROW = {"step": 3, "reward_mean": 0.5, "failed": 0, "judge": "shapes"}


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_logger_gets_every_number_at_its_step(kind, tmp_path, monkeypatch):
    made = MagicMock()
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, made)
    log.make_logger(kind, tmp_path, {"lr": 1e-4})(ROW)
    if kind == "wandb":
        (started,) = made.init.call_args_list
        assert started.kwargs["config"] == {"lr": 1e-4} and started.kwargs["name"] == tmp_path.name
        made.log.assert_called_once_with({"reward_mean": 0.5, "failed": 0}, step=3)
    else:
        made.SummaryWriter.assert_called_once_with(str(tmp_path / "tensorboard"))
        calls = made.SummaryWriter.return_value.add_scalar.call_args_list
        assert [call.args for call in calls] == [("reward_mean", 0.5, 3), ("failed", 0, 3)]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(kind, tmp_path, monkeypatch):
    assert log.make_logger("", tmp_path, {})(ROW) is None
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=f"pip install {kind}"):
        log.make_logger(kind, tmp_path, {})


@pytest.mark.parametrize("lora", [False, True])
def test_the_code_on_the_card_draws_what_the_run_would(lora, tmp_path, tiny_flux):
    """Run as it stands, with the placeholder filled in, in float32 on the CPU."""
    cfg = Config(model=TINY, size=40, num_steps=3, guidance=2.5, guard=False, reward="clip")
    cfg = replace(cfg, base_url="http://x", lora_rank=2 if lora else 0)
    final, model = tmp_path / "final", base.load(TINY)
    if lora:
        model.add_lora(2)
    model.save(final)

    def card_of(cfg):
        held = ({"win_rate_vs_base": 0.5}, {"win_rate_vs_base": 0.625})
        log.write_card(final, cfg, "FluxPipeline", "it went well", *held)
        return (final / "README.md").read_text()

    card = card_of(cfg)
    for part in ("it went well", "| win_rate_vs_base | 0.500 | 0.625 |", f"base_model: {TINY}"):
        assert part in card
    assert {"--recipe shapes", "--reward clip", "--no-guard", "--size 40"} <= {*card.splitlines()}
    assert "http://x" not in card and ("load_lora_weights" in card) == lora
    code = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(final))
    drawn = {}
    exec("import torch; torch.manual_seed(0)\n" + code, drawn)
    torch.manual_seed(0)
    how = dict(height=40, width=40, num_inference_steps=3, max_sequence_length=12)
    same = tiny_flux.pipe("a prompt", **how).images[0]
    assert np.array_equal(np.asarray(drawn["image"]), np.asarray(same))
    assert "dtype=torch.bfloat16)" in card_of(replace(cfg, dtype="bfloat16"))
    assert "guidance_scale=2.5" in code


def prepare(cfg):
    log.prepare_run(cfg).close()


def test_a_run_resumes_on_other_hardware_but_not_as_another_run(tmp_path):
    cfg = Config(out=str(tmp_path), lr=1e-4, shard=True, micro_batch=4)
    prepare(cfg)
    (tmp_path / "metrics.jsonl").write_text("")
    prepare(replace(cfg, resume=True, shard=False, micro_batch=1))
    with pytest.raises(SystemExit, match=r"lr \(0.0001 -> 0.1\)"):
        prepare(replace(cfg, resume=True, lr=0.1))


FILES = {"prompts": "p.txt", "judge_prompt": "t.txt"}


@pytest.fixture
def with_files(tmp_path):
    """A run that was started with files and folders, and the place of each."""
    places = {name: tmp_path / file for name, file in FILES.items()}
    for folder in ("model", "judge_model", "scorer"):
        (tmp_path / folder).mkdir()
        places[folder] = tmp_path / folder / "weights.safetensors"
    for place in places.values():
        place.write_text("a\n")
    named = {name: str(tmp_path / FILES.get(name, name)) for name in places if name != "scorer"}
    cfg = Config(**named, out=str(tmp_path / "run"), reward=f"clip={tmp_path / 'scorer'}")
    prepare(cfg)
    return replace(cfg, resume=True), places


@pytest.mark.parametrize("name", [*FILES, "model", "judge_model", "scorer"])
def test_a_run_is_of_what_stood_in_its_files(name, with_files):
    cfg, places = with_files
    prepare(cfg)
    places[name].write_text("b\n")
    what = "reward clip" if name == "scorer" else name
    with pytest.raises(SystemExit, match=rf"settings: {what} \(what stands in it has changed\);"):
        prepare(cfg)
    places[name].write_text("a\n")
    if name in FILES:  # the same, elsewhere
        prepare(replace(cfg, **{name: str(places[name].rename(places[name].with_name("new")))}))


def test_of_a_file_too_large_to_be_read_the_length_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("training.log.WHOLE", 3)
    file, found = tmp_path / "weights", []
    for text in ("one", "two", "four", "five", "seven"):
        file.write_text(text)
        found.append(log.digest(str(file)))
    assert len(set(found)) == 4 and found[2] == found[3]


def test_what_may_be_lost_and_how_a_judge_is_reached_may_change(with_files):
    cfg, _ = with_files
    new = dict(max_failed=0.6, judge_tokens=4096, base_url="http://h", patience=9.0)
    changed = replace(cfg, **new)
    prepare(changed)
    kept = json.loads((Path(changed.out) / "config.json").read_text())
    assert {name: kept["config"][name] for name in new} == new and "torch" in kept["versions"]


def test_the_log_is_json_whatever_was_measured(tmp_path):
    odd = {"step": 1, "a": math.nan, "b": -math.inf, "c": 0.5, "d": 3}
    log.write_metrics(tmp_path, [odd])
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "a": None, "b": None, "c": 0.5, "d": 3}


def test_the_best_step_is_by_accuracy_where_that_is_measured_and_never_the_base():
    rows = [{"step": 0, "heldout_accuracy": 0.9, "win_rate_vs_base": 0.5}, {"step": 1}]
    assert log.best_step(rows) == 0
    rows += [
        {"step": 2, "heldout_accuracy": 0.6, "win_rate_vs_base": 0.6},
        {"step": 4, "heldout_accuracy": 0.5, "win_rate_vs_base": 0.7},
        {"step": 6, "heldout_accuracy": None, "win_rate_vs_base": None},
    ]
    assert log.best_step(rows) == 2
    for row in rows:
        row.pop("heldout_accuracy", None)
    assert log.best_step(rows) == 4


def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_first_step(tmp_path):
    assert log.disk_bytes(100, 0.9, 50) == 400 * (
        4 * 4 + 1
    )  # weights, average, two moments; final/
    assert log.disk_bytes(100, 0.0, 1) == 400 * (3 + 1)
    log.check_disk(tmp_path / "not" / "yet", 10**6)
    with pytest.raises(ValueError, match="take up to 1000000000.00 GB, and .* are free there"):
        log.check_disk(tmp_path, 10**18)


def rank(**values):
    return dict(ratio_mean=1.0, ratio_min=1.0, ratio_max=1.0, kl_to_base=0.0) | values


def test_ranks_are_one_line_extremes_stay_extremes():
    row = log.over_ranks([rank(ratio_min=0.8, kl_to_base=1.0), rank(ratio_max=1.3, kl_to_base=3.0)])
    assert row == rank(ratio_min=0.8, ratio_max=1.3, kl_to_base=2.0)


def test_what_an_update_says_by_hand():
    """loss, mean, least and largest ratio, clip_frac of two passes; the norms of two updates."""
    passes = torch.tensor([[0.0, 1.0, 0.9, 1.1, 0.0], [0.0, 2.0, 0.5, 3.0, 1.0]])
    row = log.learning_of([Loss(*values) for values in passes], [1.0, 3.0])
    wanted = dict(ratio_mean=1.5, ratio_min=0.5, ratio_max=3.0, clip_frac=0.5, grad_norm=2.0)
    assert row == pytest.approx(wanted)


RATES = torch.tensor([[0.0, 1.0], [0.5, 0.5]])


def test_what_a_judge_says_by_hand():
    counts = Counter(wanted=12, comparisons=13, failed=1, unparsable=2, first=6, second=2)
    counts |= Counter(pairs=4, ties=1, agree=3)
    row = log.judging_of({"pairwise": Rewards(RATES, counts)})
    wanted = dict(groups_lost=0, reward_mean=0.5, reward_std=0.25, comparisons=13, unparsable=2)
    assert row == wanted | dict(failed=1, tie_rate=0.25, first_rate=0.75, order_agreement=0.75)


def test_the_log_of_a_mixture_names_its_parts_and_adds_counts_up():
    compared = Counter(wanted=4, comparisons=4, failed=0, first=2, second=2, pairs=2, ties=1)
    scores = torch.tensor([[20.0, 24.0], [30.0, 30.0]])
    scored = Rewards(scores, Counter(comparisons=3, failed=1))
    row = log.judging_of({"pairwise": Rewards(RATES, compared), "clip": scored})
    wanted = dict(pairwise_mean=0.5, pairwise_std=0.25, clip_mean=26.0, clip_std=1.0, failed=1)
    wanted |= dict(comparisons=7, unparsable=0, groups_lost=0, tie_rate=0.5, first_rate=0.5)
    assert row == wanted


def test_rates_where_nothing_was_decided():
    nothing = Counter(comparisons=2, failed=2, first=0, second=0, pairs=0, ties=0, agree=0)
    rates = log.judge_rates(nothing)
    assert (rates["tie_rate"], rates["first_rate"], rates["order_agreement"]) == (0, 0.5, 0)
    scorer = {"comparisons", "unparsable", "failed", "groups_lost"}
    assert set(log.judge_rates(Counter(comparisons=2))) == scorer


@pytest.mark.parametrize("lost", ["config.json", "checkpoint/step_000002"])
def test_a_folder_that_is_not_shared_is_told_before_weights_are_loaded(tmp_path, lost):
    """What a node saves that does not see what rank 0 writes is lost."""
    cfg = Config(out=str(tmp_path), prompts_per_step=2)
    prepare(cfg)
    last = tmp_path / "checkpoint" / "step_000002"
    last.mkdir()
    check_shared(cfg, log.contents(cfg), last)
    with pytest.raises(ValueError, match="is at step 2, past --steps 1"):
        check_shared(replace(cfg, steps=1), log.contents(cfg), last)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{lost}.*all nodes share"):
        check_shared(cfg, log.contents(cfg), last)


def test_a_node_with_other_files_is_told_which(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    cfg = Config(out=str(tmp_path / "out"), prompts=str(prompts))
    prepare(cfg)
    of_first = log.contents(cfg)
    prompts.write_text("a blue circle\n")
    with pytest.raises(ValueError, match="--prompts: other files"):
        check_shared(cfg, of_first, None)


def hold_a_run_and_two_journals(folder):
    prepare(Config(out=str(folder / "run")))
    for name in ("one.jsonl", "two.jsonl"):
        files.Journal(folder / name, {"for": name}).write({"line": 1})


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EIO"])
def test_where_files_cannot_be_locked_one_warning_says_so(name, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(getattr(errno, name), "so it says")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.warn_of_no_locks.cache_clear()
    if name == "EIO":  # any other error ends it
        with pytest.raises(SystemExit, match="cannot write to --out .*: so it says"):
            hold_a_run_and_two_journals(tmp_path)
    else:
        hold_a_run_and_two_journals(tmp_path)
        assert caplog.text.count("without locks (so it says)") == len(caplog.records) == 1
        assert (tmp_path / "two.jsonl").read_text().endswith('{"line": 1}\n')
