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


def test_lines_after_the_checkpoint_and_torn_ones_are_not_read(tmp_path):
    rows = [{"step": step} for step in range(4)]
    log.write_metrics(tmp_path, rows)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "rew')
    assert log.read_metrics(tmp_path, 2) == rows[:3]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
@pytest.mark.parametrize("made", [MagicMock(), None], ids=["installed", "missing"])
def test_a_logger_gets_every_number_at_its_step_or_is_named(kind, made, tmp_path, monkeypatch):
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, made)
    if not made:
        assert log.make_logger("", tmp_path, {})(ROW) is None
        with pytest.raises(SystemExit, match=f"pip install {kind}"):
            log.make_logger(kind, tmp_path, {})
        return
    log.make_logger(kind, tmp_path, {"lr": 1e-4})(ROW)
    if kind == "wandb":
        (started,) = made.init.call_args_list
        assert started.kwargs["config"] == {"lr": 1e-4} and started.kwargs["name"] == tmp_path.name
        made.log.assert_called_once_with({"reward_mean": 0.5, "failed": 0}, step=3)
    else:
        made.SummaryWriter.assert_called_once_with(str(tmp_path / "tensorboard"))
        calls = made.SummaryWriter.return_value.add_scalar.call_args_list
        assert [call.args for call in calls] == [("reward_mean", 0.5, 3), ("failed", 0, 3)]


@pytest.mark.parametrize("lora", [False, True])
def test_the_code_on_the_card_draws_what_the_run_would(lora, tmp_path, tiny_flux):
    """Run as it stands, with the placeholder filled in, in float32 on the CPU."""
    cfg = Config(model=TINY, size=32, num_steps=2, guidance=2.5, guard=False, reward="clip")
    cfg = replace(cfg, eval_size=40, eval_steps=3, lora_rank=2 if lora else 0)
    judges = dict(eval_judge="openai=http://y", bench_judge="openai=http://z")
    cfg = replace(cfg, base_url="http://x", **judges)
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
    assert {"--recipe shapes", "--reward clip", "--no-guard", "--eval_size 40"} <= {
        *card.splitlines()
    }
    assert "http://" not in card.replace("https://", "") and ("load_lora_weights" in card) == lora
    code = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(final))
    drawn = {}
    exec("import torch; torch.manual_seed(0)\n" + code, drawn)
    torch.manual_seed(0)
    how = dict(height=40, width=40, num_inference_steps=3, max_sequence_length=12)
    same = tiny_flux.pipe("a prompt", **how).images[0]
    assert np.array_equal(np.asarray(drawn["image"]), np.asarray(same))
    assert "dtype=torch.bfloat16)" in card_of(replace(cfg, dtype="bfloat16"))
    assert "guidance_scale=2.5" in code


# ------------------------------------------------------------------------- what a run is of

FILES = {"prompts": "p.txt", "judge_prompt": "t.txt"}


def prepare(cfg):
    log.prepare_run(cfg).close()


@pytest.fixture
def with_files(tmp_path):
    """A run that was started with files and folders, and the place of each."""
    places = {name: tmp_path / file for name, file in FILES.items()}
    places["bench_prompts"] = tmp_path / "bench.csv"
    for folder in ("model", "judge_model", "bench_judge", "scorer"):
        (tmp_path / folder).mkdir()
        places[folder] = tmp_path / folder / "weights.safetensors"
    for place in places.values():
        place.write_text("a\n")
    named = {name: str(tmp_path / FILES.get(name, name)) for name in places if name != "scorer"}
    named |= dict(out=str(tmp_path / "run"), reward=f"clip={tmp_path / 'scorer'}")
    named |= dict(bench_judge=f"local={tmp_path / 'bench_judge'}")
    named |= dict(bench_prompts=f"{tmp_path / 'bench.csv'}:9")
    cfg = Config(**named, lr=1e-4, shard=True, micro_batch=4)
    prepare(cfg)
    return replace(cfg, resume=True), places


def test_a_run_resumes_on_other_hardware_and_by_another_server_but_not_as_another_run(with_files):
    cfg, _ = with_files
    new = dict(max_failed=0.6, judge_tokens=4096, base_url="http://h", patience=9.0)
    prepare(replace(cfg, shard=False, micro_batch=1, **new))
    kept = json.loads((Path(cfg.out) / "config.json").read_text())
    assert {name: kept["config"][name] for name in new} == new and "torch" in kept["versions"]
    with pytest.raises(SystemExit, match=r"lr \(0.0001 -> 0.1\)"):
        prepare(replace(cfg, lr=0.1))


@pytest.mark.parametrize(
    "name", [*FILES, "model", "judge_model", "bench_judge", "bench_prompts", "scorer"]
)
def test_a_run_is_of_what_stood_in_its_files(name, with_files):
    cfg, places = with_files
    prepare(cfg)
    first = log.contents(cfg)
    places[name].write_text("b\n")
    what = "reward clip" if name == "scorer" else name
    with pytest.raises(SystemExit, match=rf"settings: {what} \(what stands in it has changed\);"):
        prepare(cfg)
    with pytest.raises(ValueError, match=f"--{what.split()[0]}: other files"):
        check_shared(cfg, first, None)  # of another node
    places[name].write_text("a\n")
    if name in FILES:  # the same, elsewhere
        prepare(replace(cfg, **{name: str(places[name].rename(places[name].with_name("new")))}))


def test_what_is_not_named_is_no_part_of_a_run(tmp_path, monkeypatch):
    """Above all not the current folder, which the run itself writes into."""
    monkeypatch.chdir(tmp_path)
    before = log.contents(Config())
    (tmp_path / "new").write_text("a file")
    assert log.contents(Config()) == before and before["bench_prompts"] == ""


def test_of_a_file_too_large_to_be_read_the_length_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("training.log.WHOLE", 3)
    file, found = tmp_path / "weights", []
    for text in ("one", "two", "four", "five", "seven"):
        file.write_text(text)
        found.append(log.digest(str(file)))
    assert len(set(found)) == 4 and found[2] == found[3]


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


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EIO"])
def test_where_files_cannot_be_locked_one_warning_says_so(name, tmp_path, monkeypatch, caplog):
    def hold_a_run_and_two_journals():
        prepare(Config(out=str(tmp_path / "run")))
        for name in ("one.jsonl", "two.jsonl"):
            files.Journal(tmp_path / name, {"for": name}).write({"line": 1})

    def flock(*_):
        raise OSError(getattr(errno, name), "so it says")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.warn_of_no_locks.cache_clear()
    if name == "EIO":  # any other error ends it
        with pytest.raises(SystemExit, match="cannot write to --out .*: so it says"):
            hold_a_run_and_two_journals()
    else:
        hold_a_run_and_two_journals()
        assert caplog.text.count("without locks (so it says)") == len(caplog.records) == 1
        assert (tmp_path / "two.jsonl").read_text().endswith('{"line": 1}\n')


def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_first_step(tmp_path):
    # weights, average, two moments in each of four; final/
    assert log.disk_bytes(100, 0.9, 50) == 400 * (4 * 4 + 1)
    assert log.disk_bytes(100, 0.0, 1) == 400 * (3 + 1)
    log.check_disk(tmp_path / "not" / "yet", 10**6)
    with pytest.raises(ValueError, match="take up to 1000000000.00 GB, and .* are free there"):
        log.check_disk(tmp_path, 10**18)


# ------------------------------------------------------------------------- a line of the log


def test_the_log_is_json_whatever_was_measured(tmp_path):
    odd = {"step": 1, "a": math.nan, "b": -math.inf, "c": 0.5, "d": 3}
    log.write_metrics(tmp_path, [odd])
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "a": None, "b": None, "c": 0.5, "d": 3}


def test_the_best_step_is_by_accuracy_where_that_is_measured_and_never_the_base():
    rows = [{"step": 0, "heldout_accuracy": 0.9, "win_rate_vs_base": 0.5}, {"step": 1}]
    assert log.best_step(rows) == 0
    for step, accuracy, win_rate in ((2, 0.6, 0.6), (4, 0.5, 0.7), (6, None, None)):
        rows += [{"step": step, "heldout_accuracy": accuracy, "win_rate_vs_base": win_rate}]
    assert log.best_step(rows) == 2
    for row in rows:
        row.pop("heldout_accuracy", None)
    assert log.best_step(rows) == 4


def test_of_all_ranks_extremes_stay_extremes_and_the_rest_are_means():
    rows = [dict(ratio_min=0.8, ratio_max=1.0, kl=1.0), dict(ratio_min=1.0, ratio_max=1.3, kl=3.0)]
    assert log.over_ranks(rows) == dict(ratio_min=0.8, ratio_max=1.3, kl=2.0)


def test_what_an_update_says_by_hand():
    """loss, mean, least and largest ratio, clip_frac of two passes; the norms of two updates."""
    passes = torch.tensor([[0.0, 1.0, 0.9, 1.1, 0.0], [0.0, 2.0, 0.5, 3.0, 1.0]])
    row = log.learning_of([Loss(*values) for values in passes], [1.0, 3.0])
    wanted = dict(ratio_mean=1.5, ratio_min=0.5, ratio_max=3.0, clip_frac=0.5, grad_norm=2.0)
    assert row == pytest.approx(wanted)


def test_what_a_judge_says_by_hand():
    """Alone, and in a mixture, whose parts have their names and whose counts add up."""
    rates = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    counts = Counter(wanted=12, comparisons=13, failed=1, unparsable=2, first=6, second=2)
    compared = Rewards(rates, counts | Counter(pairs=4, ties=1, agree=3, triples=8, cyclic=1))
    said = dict(comparisons=13, unparsable=2, failed=1, groups_lost=0)
    said |= dict(tie_rate=0.25, first_rate=0.75, order_agreement=0.75, cycle_rate=0.125)
    row = log.judging_of({"pairwise": compared})
    assert row == said | dict(reward_mean=0.5, reward_std=0.25)
    scores = torch.tensor([[20.0, 24.0], [30.0, 30.0]])
    scored = Rewards(scores, Counter(comparisons=3, failed=1))
    row = log.judging_of({"pairwise": compared, "clip": scored})
    parts = dict(pairwise_mean=0.5, pairwise_std=0.25, clip_mean=26.0, clip_std=1.0)
    assert row == said | parts | dict(comparisons=16, failed=2)


def test_rates_where_nothing_was_decided():
    none = dict.fromkeys(("first", "second", "pairs", "ties", "agree", "triples", "cyclic"), 0)
    rates = log.judge_rates(Counter(comparisons=2, failed=2, **none))
    assert (rates["tie_rate"], rates["first_rate"], rates["order_agreement"]) == (0, 0.5, 0)
    assert rates["cycle_rate"] == 0
    scorer = {"comparisons", "unparsable", "failed", "groups_lost"}
    assert set(log.judge_rates(Counter(comparisons=2))) == scorer
