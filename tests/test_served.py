"""Training by a judge server: judging behind the rollout, faults, a server that dies and
returns."""

import gc
import http.client
import itertools
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from fakes import FakeMLLM
from PIL import Image
from real_runs import ALONE, few_steps, log_of, shallow, stepped, whole_run

import train
from judges.mllm import Answer, Query
from judges.openai_client import OpenAIMLLM
from rewards import PairwiseReward, join
from shapes.server import Faults, JudgeServer, served
from shapes.verifier import ShapesMLLM
from training.checks import check_config
from training.config import Config
from training.distributed import Processes
from training.judging import JudgeError, in_background
from training.session import start_run
from training.start import judge_of, try_judge

WAIT = 60  # seconds after which a test fails that waits for another thread
SMALL = dict(prompts_per_step=2, group_size=3, num_steps=3, heldout=1, judge="openai")
SMALL |= dict(steps=9, eval_every=9, checkpoint_every=9)


@contextmanager
def dying(port, calls):
    """A server of the verifier that is gone for good after so many calls."""
    left, verifier = itertools.count(calls, -1), ShapesMLLM()

    def answer(query):
        if (n := next(left)) > 0:
            return verifier.ask([query])[0]
        if n == 0:
            server.shutdown()
            server.server_close()  # from now on connections are refused
        raise ConnectionAbortedError

    with served(FakeMLLM(answer, verifier.name), port) as server:
        yield server


def config(server, out, **settings) -> Config:
    more = dict(out=str(out), base_url=server.url, model=shallow())
    return Config(**(SMALL | more | settings))


class Recorder:
    """A reward that keeps what it was asked and answers, and may wait before it does."""

    def __init__(self, reward, before=lambda number: None):
        self.reward, self.name, self.before = reward, reward.name, before
        self.numbers, self.made = itertools.count(), []

    def __call__(self, prompts, images):
        self.before(next(self.numbers))
        result = self.reward(prompts, images)
        self.made.append((prompts, images, result))
        return result


def recorded(cfg, *before):
    """A run that is begun, and the recorder of its reward."""
    check_config(cfg, 1)
    run = start_run(cfg, ALONE)
    run.judging.rewards["pairwise"] = Recorder(run.judging.rewards["pairwise"], *before)
    return run, run.judging.rewards["pairwise"]


# ----------------------------------------------------------------------------- behind the rollout


def test_what_is_started_in_the_background_runs_at_once_and_fails_in_front():
    begun, gate = threading.Event(), threading.Event()

    def work(number):
        begun.set()
        assert gate.wait(WAIT)
        return number + 1

    wait_for = in_background(work, 1)
    assert begun.wait(WAIT)  # before anybody asks for the result
    gate.set()
    assert wait_for() == wait_for() == 2
    with pytest.raises(KeyError):
        in_background({}.__getitem__, "x")()


def test_each_group_is_judged_while_the_next_one_is_sampled(tmp_path):
    judging, sampling = [threading.Event() for _ in range(4)], threading.Semaphore(0)

    def begin_to_judge(number):
        judging[number].set()
        if number < 2:  # answers no sooner than the next group is begun
            assert sampling.acquire(timeout=WAIT)

    with served() as server:
        run, _ = recorded(config(server, tmp_path, prompts_per_step=3), begin_to_judge)
        begun, text_of = [], run.model.text_of

        def encode(prompts):
            if 0 < len(begun) < 3:  # is begun no sooner than the group before is being judged
                assert judging[len(begun) - 1].wait(WAIT)
                sampling.release()
            begun.append(prompts)
            return text_of(prompts)

        run.model.text_of = encode
        few_steps(run)
    assert begun[:3] == [part.prompts for part in run.parts(1)]
    assert [len(prompts) for prompts in begun[:3]] == [1, 1, 1]


def test_a_judge_in_process_is_asked_once_a_step_when_all_is_sampled(tmp_path):
    run, recorder = recorded(Config(**SMALL | {"judge": "shapes", "out": str(tmp_path)}))
    run.judging.submit(["a large red circle"], [[Image.new("RGB", (32, 32))] * 2])
    assert not recorder.made
    run.judging.collect()
    few_steps(run)
    assert [len(prompts) for prompts, _, _ in recorder.made] == [1, 2]


# whole groups and whole micro-batches: 4 samples at a time do so with 4 groups of 3
@pytest.mark.parametrize("micro_batch, chunks", [(1, [1] * 5), (4, [4, 1])])
def test_parts_change_neither_rewards_nor_ratio(micro_batch, chunks, tmp_path):
    with served() as server:
        cfg = config(server, tmp_path, micro_batch=micro_batch, prompts_per_step=5)
        run, recorder = recorded(cfg)
        few_steps(run)
    assert [len(part.prompts) for part in run.parts(1)] == chunks
    prompts, images, results = zip(*recorder.made)
    assert sorted(map(len, prompts)) == sorted(chunks)
    together = PairwiseReward(ShapesMLLM())(sum(prompts, []), sum(images, []))
    assert join(results).values.tolist() == together.values.tolist()
    assert join(results).counts == together.counts
    row = run.metrics[1]
    assert row["reward_std"] == pytest.approx(together.values.std(1, correction=0).mean().item())
    assert row["comparisons"] == together.counts["comparisons"] == 5 * 6
    # rollout and update go through batches of the same shapes
    assert row["ratio_min"] == row["ratio_max"] == 1.0


# ----------------------------------------------------------------------------- faults, and death


def test_a_run_survives_a_server_that_dies_twice(tmp_path, monkeypatch):
    """Once within an evaluation, once within a step: one sentence each, then as if undisturbed."""
    whole, out = tmp_path / "whole", tmp_path / "disturbed"
    with served() as server:
        port = server.server_port
        steps = dict(steps=3, eval_every=2, heldout=4)
        whole_run(config(server, whole, **steps))
        calls = server.calls
        cfg = config(server, out, **steps, patience=2.0, call_timeout=2.0)  # soon taken for dead
    assert calls <= 2 + 3 * 12 + 2 * 8  # one pair to try it, and what the call budget says

    settings = {k: v for k, v in vars(cfg).items() if not isinstance(v, bool) and v != ""}
    flags, says = [f"--{key}={value}" for key, value in settings.items()], []
    for extra, left in (([], 2 + 2 * 12 + 2), (["--resume"], 2 + 10)):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *extra])
        with dying(port, left), pytest.raises(SystemExit) as stop:
            train.main()
        says.append(stop.value.code)  # a text: exit status 1
    for said, of in zip(says, (8, 12), strict=True):
        assert "\n" not in said and f"127.0.0.1:{port}" in said
        assert f" of {of} judgements lost" in said and "last error: " in said
        assert f"the state after step 2 is saved in '{out}'" in said
        assert said.endswith("repeat the command with --resume")
    assert [row["step"] for row in log_of(out)] == [0, 1, 2]
    with served(port=port) as server:
        whole_run(config(server, out, **steps, resume=True))
    assert log_of(out) == log_of(whole)
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_resumed_run_knows_which_model_answered_before(tmp_path):
    steps = dict(steps=3, checkpoint_every=1, eval_every=3)
    with served() as server:
        stepped(config(server, tmp_path, **steps)).held.close()
        assert log_of(tmp_path)[1]["answered_by"] == "shapes"
        lines = (tmp_path / "metrics.jsonl").read_text()
        (tmp_path / "metrics.jsonl").write_text(lines.replace('"shapes"', '"gone-2025"'))
        cfg = config(server, tmp_path, **steps, resume=True)
        with pytest.raises(JudgeError, match="2 models: gone-2025, shapes;.*--accept_judge"):
            stepped(cfg)
        gc.collect()
        stepped(replace(cfg, accept_judge="shapes"))
    assert log_of(tmp_path)[2]["answered_by"] == "gone-2025, shapes"


def test_faults_of_the_server_leave_the_rewards_alone(tmp_path):
    """A quick form of measure/judge_faults.py."""
    from measure.judge_faults import compare_with_faultless

    faults = dict(error_500=0.1, error_429=0.05, truncated=0.05, garbage=0.05)
    with served(**faults, hang=0.02, hang_seconds=3.0) as server:
        cfg = config(server, tmp_path / "run", steps=2, call_timeout=2.0, max_failed=0.3)
        lost, asked, wrong, groups = compare_with_faultless(cfg)
    assert wrong == 0 and groups > 0 and asked == 2 * 12 and lost <= 4
    assert server.calls > asked  # there were faults, and retries


def test_losses_are_weighed_over_the_step_and_all_ranks(tmp_path):
    """What another rank lost ends this one, before its weights change."""

    class Two(Processes):
        def gather(self, items):
            ((rewards, models),) = items
            lost = {
                name: reward._replace(counts=reward.counts + Counter(failed=5))
                for name, reward in rewards.items()
            }
            return [*items, (lost, models)]

    with served() as server:
        run, _ = recorded(config(server, tmp_path, max_failed=0.2))
        run.judging.procs = Two(0, 1, torch.device("cpu"))
        before = [p.clone() for p in run.model.trainable()]
        # of 24 comparisons 5 are lost, more than a fifth, and none of them is ours
        with pytest.raises(JudgeError, match="5 of 24 judgements lost"):
            train.train(run.cfg, run)
    assert all(map(torch.equal, before, run.model.trainable()))


def test_what_is_seen_and_not_rewarded_changes_no_other_number_and_resumes(tmp_path, monkeypatch):
    """On prompts from a file, by two scorers and by a judge of its own, with a key of its own."""
    monkeypatch.setenv("EVAL_API_KEY", "its-key")
    (tmp_path / "p.txt").write_text(
        "".join(f"a large {c} circle\n" for c in ("red", "blue", "green"))
    )
    usual = SMALL | dict(judge="shapes", prompts=str(tmp_path / "p.txt"), steps=2, eval_every=1)
    usual |= dict(checkpoint_every=1, heldout=1, model=shallow())
    clip = ROOT / "assets" / "tiny-clip"
    keys = ["heldout_clip", "heldout_redness", "win_rate_vs_base_eval_judge"]
    with served() as server:
        more = dict(eval_rewards=f"clip={clip},redness", eval_judge=f"openai={server.url}")
        whole, cut, plain = (tmp_path / name for name in ("whole", "cut", "plain"))
        cfg = Config(**usual | more | {"out": str(cut)})
        check_config(cfg, 1)
        assert judge_of(cfg, flag="eval_judge")._client.api_key == "its-key"
        stepped(cfg).held.close()
        asked = server.calls
        whole_run(replace(cfg, resume=True)).held.close()
        whole_run(replace(cfg, out=str(whole)))
        calls = server.calls
        whole_run(Config(**usual | {"out": str(plain)}))
    assert (asked, calls) == (2 + 2, asked + 2 + 2 + 2 + 4)  # the trial, each evaluation; off: none
    rows = log_of(whole)
    assert log_of(cut) == rows and all(key in row for row in rows for key in keys)
    without = [{k: v for k, v in row.items() if k not in keys} for row in rows]
    assert without == log_of(plain) and [*rows[0]][-3:] == keys
    card = (whole / "final" / "README.md").read_text()
    assert all(f"| {key} | " in card for key in keys) and server.url not in card
    assert "--eval_rewards" in card and (whole / "verdicts_eval_judge").is_dir()
    with pytest.raises(SystemExit, match="eval_rewards clip .what stands in it has changed"):
        start_run(replace(cfg, eval_rewards=f"clip={clip / '..'},redness", resume=True), ALONE)


# ----------------------------------------------------------------------------- before all else


@pytest.mark.parametrize(
    "settings, names",
    [
        ({"judge_model": "m", "base_url": "http://127.0.0.1:9/v1"}, "the judge .* does not answer"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "lists no model"),
        ({"reward": "clip=no/such/folder"}, "cannot load a CLIP model"),
        ({"prompts": "none.txt"}, "No such file"),
        ({"judge_prompt": "t.txt"}, "lacks {prompt}"),
        ({"logger": "wandb"}, "pip install wandb"),
    ],
    ids=str,
)
def test_what_is_outside_is_tried_before_weights_are_loaded(settings, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("no place")
    loaded = lambda *_, **__: pytest.fail("weights were loaded before all else was tried")
    monkeypatch.setattr("training.start.load_model", loaded)
    monkeypatch.setattr("judges.openai_client.retry_delay", lambda *_: 0.0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with served() as server, pytest.raises((ValueError, SystemExit), match=names) as stop:
        recorded(config(server, tmp_path / "run", **settings))
    assert "\n" not in str(stop.value)


def test_a_blind_judge_is_refused_and_one_that_cannot_be_read_is_warned_of(tmp_path):
    def tried(*mllm):
        with served(*mllm) as server:
            cfg = config(server, tmp_path)
            return try_judge(cfg, judge_of(cfg))

    assert tried() == ""
    assert "cannot be told: no " in tried(FakeMLLM(lambda _: "<answer>No.</answer>"))
    with pytest.raises(ValueError, match="does not see its images"):
        tried(FakeMLLM(lambda _: "<answer>Image 1 is better</answer>"))


def test_calls_in_flight_are_the_runs_and_shared_by_its_processes(tmp_path):
    with served() as server:
        cfg = config(server, tmp_path, concurrency=16, prompts_per_step=17)
        assert [judge_of(cfg, world)._slots.most for world in (1, 3, 16)] == [16, 5, 1]
        assert "seed None" in judge_of(replace(cfg, judge_seed=-1)).name
    with pytest.raises(SystemExit, match="--concurrency 16 .* too few for 17 processes"):
        check_config(cfg, 17)


def test_a_run_leaves_a_record_of_its_judge(tmp_path):
    with served() as server:
        whole_run(config(server, tmp_path, steps=1, heldout=2))
        lines = (tmp_path / "verdicts" / "verdicts.jsonl").read_text().splitlines()
        assert len(lines) == server.calls - 2 == 12 + 4  # a step, an evaluation; not the trial


# ----------------------------------------------------------------------------- the server


@pytest.mark.parametrize("given, host", [({}, "127.0.0.1"), ({"host": "0.0.0.0"}, "0.0.0.0")])
def test_the_server_lets_others_in_only_if_it_is_told_to(given, host):
    with JudgeServer(ShapesMLLM(), **given) as server:
        assert server.server_address[0] == host


def test_faults_come_as_often_as_they_are_asked_for_and_by_their_seed():
    def drawn(seed):
        faults = Faults(error_429=0.2, hang=0.5, seed=seed)
        with JudgeServer(ShapesMLLM(), faults=faults) as server:
            return [server.draw_fault() for _ in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    counts = Counter(drawn(1))
    assert counts.keys() == {"error_429", "hang", None}
    assert counts["error_429"] == pytest.approx(200, abs=50)
    assert counts["hang"] == pytest.approx(500, abs=60)


@pytest.mark.parametrize("shares", [{"hang": -0.1}, {"garbage": 0.6, "hang": 0.6}])
def test_ten_percent_is_not_ten(shares):
    with pytest.raises(ValueError, match="from 0 to 1, also in sum"):
        Faults(**shares)


def test_a_bad_request_is_told_so():
    shown = '{"messages": [{"content": [{"type": "x", "image_url": {"url": "%s"}}]}]}'
    urls = ("http://x/y.png", "data:image/png;base64,AAAA")
    with served() as server:
        for body in ("{", "[" * 100_000, '{"messages": [{}]}', *(shown % url for url in urls)):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=WAIT)
            connection.request("POST", "/v1/chat/completions", body)
            reply = connection.getresponse()
            assert reply.status == 400 and b"bad request" in reply.read(), body
            connection.close()


def test_a_judge_that_fails_behind_the_server_is_a_500():
    with served(FakeMLLM(lambda _: Answer(error="out of memory"))) as server:
        (answer,) = OpenAIMLLM(server.url, max_retries=0).ask([Query((), "x")])
    assert "out of memory" in answer.error and "500" in answer.error
