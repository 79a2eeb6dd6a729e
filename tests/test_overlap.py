"""overlap.py, and training by a served judge: hidden judging, faults, a server that dies and
returns."""

import http.client
import json
import sys
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from support.overlap import covered, in_background, roll_out_and_judge

import rewards
import train
from judges import server as judge_server
from judges.mllm import Answer, Query
from shapes import verifier
from shapes.server import Faults, JudgeServer
from support import judging

SMALL = dict(
    model=str(ROOT / "assets" / "tiny-flux"),
    prompts_per_step=2,
    group_size=3,
    num_steps=3,
    heldout=4,
    eval_every=2,
    checkpoint_every=10,
    judge="openai",
    call_timeout=20.0,
)


@pytest.fixture(autouse=True)
def no_waiting_and_no_pictures(monkeypatch):
    """Backoff without its seconds, and runs without what only people look at."""
    monkeypatch.setattr(judge_server, "retry_delay", lambda error, attempt, backoff: 0.01)
    monkeypatch.setattr(train.Heldout, "GRID_ROWS", 1)
    monkeypatch.setattr(train.Heldout, "GRID_COLUMNS", 1)
    monkeypatch.setattr(train.pictures, "sample_grid", lambda *args: None)
    monkeypatch.setattr(train.pictures, "training_curves", lambda *args: None)


# ---- overlap.py alone ----


def test_covered_counts_no_second_twice():
    spans = [(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (5.0, 5.5)]
    assert covered(spans) == 5.0
    assert covered(spans, until=4.5) == 3.5
    assert covered(spans, until=-1.0) == covered([]) == 0.0


class Recorder:
    """A reward that waits for `gate` and tells what it was given."""

    def __init__(self):
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)

    def judge(self, prompts, images):
        self.begun.release()
        assert self.gate.wait(20)
        if "bad" in prompts:
            raise ZeroDivisionError("of the judge")
        return prompts, images

    def result(self, parts):
        return parts


def test_each_chunk_is_judged_while_the_next_ones_roll_out():
    reward = Recorder()

    def roll_out(prompts, seeds):
        if prompts != ["a"]:
            assert reward.begun.acquire(timeout=20)  # the chunk before is being judged by now
        if prompts == ["c"]:
            reward.gate.set()
        return SimpleNamespace(images=[f"image {seed}" for seed in seeds])

    chunks = [(["a"], [1]), (["b"], [2]), (["c"], [3])]
    rollouts, parts, seconds = roll_out_and_judge(roll_out, reward, chunks)
    assert [r.images for r in rollouts] == [["image 1"], ["image 2"], ["image 3"]]
    assert list(parts) == [(["a"], ["image 1"]), (["b"], ["image 2"]), (["c"], ["image 3"])]
    assert 0 < seconds["seconds_judge_hidden"] <= seconds["seconds_judge"]
    assert seconds["seconds_judge_hidden"] <= seconds["seconds_rollout"]


def test_what_fails_in_the_background_is_raised_in_front():
    reward = Recorder()
    reward.gate.set()
    roll_out = lambda prompts, seeds: SimpleNamespace(images=[])
    with pytest.raises(ZeroDivisionError, match="of the judge"):
        roll_out_and_judge(roll_out, reward, [(["good"], [1]), (["bad"], [2])])
    with pytest.raises(KeyError):
        in_background({}.__getitem__, "x").result(20)


# ---- training by a served judge ----


class Mortal(verifier.ShapesMLLM):
    """The verifier, whose server is gone for good after so many calls."""

    left, server = float("inf"), None

    def ask(self, queries):
        self.left -= 1
        if self.left < 0:
            if self.left == -1:
                self.server.shutdown()
                self.server.server_close()  # from now on connections are refused
            raise ConnectionAbortedError
        return super().ask(queries)


class Server(JudgeServer):
    def handle_error(self, request, address):
        """Quiet: the tests make the connections fail."""


@contextmanager
def served(port=0, calls=float("inf"), **faults):
    judge = Mortal()
    judge.left, judge.server = calls, Server(judge, port, Faults(**faults))
    thread = threading.Thread(target=judge.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield judge.server
    finally:
        judge.server.shutdown()
        judge.server.server_close()
        thread.join()


def config(server_port, out, **settings) -> train.Config:
    url = f"http://127.0.0.1:{server_port}/v1"
    return train.Config(**(SMALL | {"out": str(out), "base_url": url} | settings))


def run(cfg: train.Config) -> None:
    train.check_config(cfg, 1)
    train.train(cfg, train.Processes(0, 1, torch.device("cpu")))


def log_of(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_a_run_survives_a_server_that_dies_twice(tmp_path, monkeypatch):
    """Once within an evaluation, once within a step: one sentence each, then as if undisturbed."""
    whole, out = tmp_path / "whole", tmp_path / "disturbed"
    with served() as server:
        port = server.server_port
        run(config(port, whole, steps=3))
        calls = server.calls
    assert calls <= 3 * 12 + 3 * 8  # what the call budget says

    # to save time
    monkeypatch.setattr(judging, "OpenAIMLLM", partial(judge_server.OpenAIMLLM, max_retries=1))
    flags = [
        t
        for k, v in vars(config(port, out, steps=3)).items()
        if not isinstance(v, bool) and v != ""
        for t in (f"--{k}", str(v))
    ]
    says = []
    for extra, left in (([], 4 + 2 * 12 + 2), (["--resume"], 10)):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *extra])
        with served(port, left), pytest.raises(SystemExit) as stop:
            train.main()
        says.append(stop.value.code)  # a text: exit status 1
    for said, done, of in zip(says, (2, 2), (8, 12), strict=True):
        assert (
            "\n" not in said
            and f"127.0.0.1:{port}" in said
            and f" of {of} comparisons lost" in said
        )
        assert "last error: " in said and f"the state after step {done} is saved in '{out}'" in said
        assert said.endswith("repeat the command with --resume")
    assert [row["step"] for row in log_of(out)] == [0, 1, 2]
    with served(port):
        run(config(port, out, steps=3, resume=True))
    assert log_of(out) == log_of(whole)
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_overlap_changes_neither_rewards_nor_ratio(tmp_path):
    seen = []

    class Checked(rewards.PairwiseReward):
        def judge(self, prompts, images):
            seen.append((prompts, images))
            return super().judge(prompts, images)

        def result(self, parts):
            batch = super().result(parts)
            prompts = [p for part, _ in seen for p in part]
            again = rewards.PairwiseReward(verifier.ShapesMLLM())(
                prompts, [g for _, i in seen for g in i]
            )
            assert batch.rewards.tolist() == again.rewards.tolist() and batch.stats == again.stats
            return batch

    procs = train.Processes(0, 1, torch.device("cpu"))
    with served() as server:
        for micro_batch, chunks in ((0, [1, 1, 1]), (6, [2, 1])):
            seen.clear()
            cfg = config(server.server_port, tmp_path, micro_batch=micro_batch, prompts_per_step=3)
            reward = Checked(train.make_judge(cfg, tmp_path / str(micro_batch)))
            row = train.train_step(train.build(cfg, procs, None), cfg, procs, reward, None, 1)
            assert [len(prompts) for prompts, _ in seen] == chunks
            assert row["ratio_min"] == row["ratio_max"] == 1.0 and set(row["delta_log_prob"]) == {
                0.0
            }
            assert row["seconds_judge"] >= row["seconds_judge_hidden"] >= 0


def test_faults_of_the_server_leave_the_rewards_alone(tmp_path):
    """A quick form of measure/judge_faults.py."""
    from measure.judge_faults import compare_with_faultless

    with served(error_500=0.1, garbage=0.05, hang=0.02, hang_seconds=3.0) as server:
        cfg = config(
            server.server_port, tmp_path / "run", steps=2, call_timeout=2.0, max_failed=0.3
        )
        lost, asked, wrong, groups = compare_with_faultless(cfg)
    assert wrong == 0 and groups > 0 and asked == 2 * 12 and lost <= 4
    assert server.calls > asked  # there were faults, and retries


def test_ranks_learn_of_each_others_lost_judge():
    class Two(train.Processes):
        def gather(self, items):
            return [*items, "judge at x: 9 of 9 comparisons lost"]

    with pytest.raises(train.JudgeError, match="9 of 9"):
        Two(0, 2, torch.device("cpu")).together(lambda: "fine here")


def test_nonsense_is_not_remembered_for_ever(tmp_path):
    """A judge whose nonsense ended the run is mended: the same step must not quote the nonsense."""
    with served(garbage=1.0) as server:
        cfg = config(server.server_port, tmp_path)
        reward = judging.make_reward(cfg, judging.make_judge(cfg, tmp_path), "cpu")
        images = [[Image.new("RGB", (32, 32), color) for color in ("red", "white")]]
        with pytest.raises(rewards.JudgeError, match="2 of 2 comparisons lost .*2 unparsable"):
            reward(["a large red circle"], images)
    for faults, calls in (({}, 2), ({"error_500": 1.0}, 0)):  # mended; then nothing is asked twice
        with served(server.server_port, **faults) as server:
            judge = judging.make_judge(cfg, tmp_path)
            assert (
                judging.make_reward(cfg, judge, "cpu")(["a large red circle"], images).stats[
                    "failed"
                ]
                == 0
            )
            assert server.calls == calls


# ---- the classroom's server ----


@pytest.mark.parametrize(
    "shares", [{"error_500": 10.0}, {"hang": -0.1}, {"garbage": 0.6, "hang": 0.6}]
)
def test_ten_percent_is_not_ten(shares):
    with pytest.raises(ValueError, match="from 0 to 1, also in sum"):
        Faults(**shares)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"messages": 5}',
        b'{"messages": [{"content": null}]}',
        b"[" * 100_000,
        b'{"messages": [{"content": [{"type": "image_url", "image_url": {"url": 5}}]}]}',
        b'{"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}',
        b'{"messages": [{"content": [{"type": "image_url", "image_url": '
        b'{"url": "data:image/png;base64,AAAA"}}]}]}',
    ],
)
def test_a_bad_request_is_told_so(body):
    with served() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("POST", "/v1/chat/completions", body)
        reply = connection.getresponse()
        assert reply.status == 400 and "bad request" in json.loads(reply.read())["error"]["message"]


def test_a_judge_that_fails_behind_the_server_is_a_500():
    class Broken:
        name = "broken"

        def ask(self, queries):
            return [Answer(error="out of memory") for _ in queries]

    server = Server(Broken())
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    (answer,) = judge_server.OpenAIMLLM(url, max_retries=0).ask([Query((), "x")])
    server.shutdown()
    server.server_close()
    assert "out of memory" in answer.error and "500" in answer.error


# ---- settings ----


def test_a_template_is_taken_word_for_word(tmp_path):
    file, text = tmp_path / "template.txt", "Bild \u201e{prompt}\u201c {{x}} %s \\1\r\n<answer>"
    file.write_bytes(text.encode("utf-8-sig"))  # as some editors save it
    cfg = train.Config(judge_prompt=str(file))
    reward = train.make_reward(cfg, verifier.ShapesMLLM(), "cpu")
    assert reward.template == text
    file.write_bytes(b"\xff{prompt}")
    with pytest.raises(ValueError, match="template.txt' is not UTF-8 text"):
        train.make_reward(cfg, verifier.ShapesMLLM(), "cpu")


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, (28 * 2 * 16 * 110, 2 * 314 * 6)),
        ({"opponents": 3, "both_orders": False}, (12 * 16 * 110, 2 * 314 * 6)),
        ({"steps": 23, "opponents": 4, "prompts_per_step": 2}, (16 * 2 * 2 * 23, 2 * 314 * 3)),
        ({"reward": "pointwise", "heldout": 10}, (8 * 16 * 110, 2 * 10 * 6)),
    ],
)
def test_the_call_budget_of_every_flag(settings, calls):
    cfg = train.Config(**({"steps": 110, "eval_every": 22} | settings))
    said = train.call_budget(
        cfg, train.make_reward(cfg, verifier.ShapesMLLM(), "cpu"), cfg.heldout or 314
    )
    assert [f"= {n:,}" in said for n in calls] == [True, True] and f"{sum(calls):,} in all" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"opponents": 8}, "--opponents 8 with --group_size 8: opponents must be from 1 to 7"),
        ({"opponents": -1}, "from 1 to 7"),
        ({"opponents": 1}, "at least 2, or 0"),
        ({"opponents": 3, "group_size": 9}, "one must be even"),
        ({"opponents": 2, "reward": "pointwise"}, "a pairwise reward"),
        ({"concurrency": 0}, "must be positive"),
        ({"call_timeout": 0.0}, "must be positive"),
        ({"patience": -1.0}, "must be positive"),
    ],
)
def test_wrong_settings_get_one_sentence(settings, sentence):
    with pytest.raises(SystemExit, match=sentence):
        train.check_config(train.Config(**settings), 1)
