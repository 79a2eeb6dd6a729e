"""Training by a served judge: hidden judging, faults, a server that dies and returns."""

import http.client
import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch
from conftest import ROOT
from PIL import Image

import train
from judges.mllm import Answer, Query
from judges.server import OpenAIMLLM
from rewards import JudgeError, PairwiseReward, check_lost, join
from shapes.server import Faults, JudgeServer
from shapes.verifier import ShapesMLLM
from support.config import Config, check_config
from support.processes import Processes
from support.run import call_budget, comparison_of, judge_of, rewards_of, start_run

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


class Mortal(ShapesMLLM):
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


def config(server_port, out, **settings) -> Config:
    url = f"http://127.0.0.1:{server_port}/v1"
    return Config(**(SMALL | {"out": str(out), "base_url": url} | settings))


def prepared(cfg: Config):
    check_config(cfg, 1)
    return start_run(cfg, Processes(0, 1, torch.device("cpu")))


def run(cfg: Config) -> None:
    started = prepared(cfg)
    train.train(cfg, started.procs, started)
    started.finish()


def log_of(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def flags_of(cfg: Config) -> list[str]:
    given = [(f.name, getattr(cfg, f.name)) for f in fields(cfg)]
    return [t for k, v in given if not isinstance(v, bool) and v != "" for t in (f"--{k}", str(v))]


def test_a_run_survives_a_server_that_dies_twice(tmp_path, monkeypatch):
    """Once within an evaluation, once within a step: one sentence each, then as if undisturbed."""
    whole, out = tmp_path / "whole", tmp_path / "disturbed"
    with served() as server:
        port = server.server_port
        run(config(port, whole, steps=3))
        calls = server.calls
    assert calls <= 3 * 12 + 3 * 8  # what the call budget says

    says = []
    flags = [*flags_of(config(port, out, steps=3)), "--patience", "5", "--call_timeout", "5"]
    for extra, left in (([], 4 + 2 * 12 + 2), (["--resume"], 10)):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *extra])
        with served(port, left), pytest.raises(SystemExit) as stop:
            train.main()
        says.append(stop.value.code)  # a text: exit status 1
    for said, of in zip(says, (8, 12), strict=True):
        assert "\n" not in said and f"127.0.0.1:{port}" in said
        assert f" of {of} judgements lost" in said and "last error: " in said
        assert f"the state after step 2 is saved in '{out}'" in said
        assert said.endswith("repeat the command with --resume")
    assert [row["step"] for row in log_of(out)] == [0, 1, 2]
    with served(port):
        run(config(port, out, steps=3, resume=True))
    assert log_of(out) == log_of(whole)
    weights = "final/transformer/diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


class Noted:
    """A reward that notes what it was asked about, and waits for `gate`."""

    def __init__(self, reward, gate=None):
        self.reward, self.gate, self.name, self.calls = reward, gate, reward.name, reward.calls
        self.seen = []

    def __call__(self, prompts, images):
        self.seen.append((prompts, images))
        if self.gate:
            assert self.gate.wait(20)
        return self.reward(prompts, images)


@pytest.mark.parametrize(("micro_batch", "groups"), [(0, [1, 1, 1]), (6, [2, 1]), (2, [2, 1])])
def test_groups_are_judged_apart_and_rewards_are_those_of_all(micro_batch, groups, tmp_path):
    with served() as server:
        cfg = config(server.server_port, tmp_path, micro_batch=micro_batch, prompts_per_step=3)
        started = prepared(Config(**(vars(cfg) | {"steps": 1})))
        noted = started.rewards["pairwise"] = Noted(started.rewards["pairwise"])
        train.train(started.cfg, started.procs, started)
    seen = sorted(noted.seen, key=lambda part: started.batches[1][0].prompts != part[0])
    assert sorted(len(prompts) for prompts, _ in noted.seen) == sorted(groups)
    prompts = [p for part, _ in seen for p in part]
    alone = PairwiseReward(ShapesMLLM())(prompts, [g for _, images in seen for g in images])
    row = started.metrics[1]
    assert row["reward_std"] == pytest.approx(alone.values.std(1, correction=0).mean().item())
    assert row["ratio_min"] == row["ratio_max"] == 1.0  # replay sees the batches of the rollout
    assert row["comparisons"] == alone.counts["comparisons"]


def test_the_next_groups_are_sampled_while_the_first_is_judged(tmp_path):
    """The judge answers only once the last group has been sampled: a loop that waits for each
    group's answer before it samples the next would stand still for ever."""
    with served() as server:
        started = prepared(config(server.server_port, tmp_path, steps=1))
        gate = threading.Event()
        started.rewards["pairwise"] = Noted(started.rewards["pairwise"], gate)
        noise, sampled = started.model.noise, []

        def noise_and_count(seeds):
            sampled.append(len(seeds))
            if len(sampled) == 2:  # the second of two groups
                gate.set()
            return noise(seeds)

        started.model.noise = noise_and_count
        train.train(started.cfg, started.procs, started)
    assert sampled[:2] == [3, 3]


def test_faults_of_the_server_leave_the_rewards_alone(tmp_path):
    """A quick form of measure/judge_faults.py."""
    from measure.judge_faults import compare_with_faultless

    with served(error_500=0.1, garbage=0.05, hang=0.02, hang_seconds=3.0) as server:
        out = tmp_path / "run"
        cfg = config(server.server_port, out, steps=2, call_timeout=2.0, max_failed=0.3)
        lost, asked, wrong, groups = compare_with_faultless(cfg)
    assert wrong == 0 and groups > 0 and asked == 2 * 12 and lost <= 4
    assert server.calls > asked  # there were faults, and retries


def test_ranks_learn_of_each_others_lost_answers():
    """Losses are a share of the whole step: alone, this rank's one of two would be too many."""
    reward = PairwiseReward(ShapesMLLM())
    image = Image.new("RGB", (32, 32))
    mine = reward(["a large red circle"], [[image, image]])
    mine.counts.update(failed=1)
    with pytest.raises(JudgeError, match="1 of 2"):
        check_lost("judge", mine, 0.05)
    theirs = [reward(["a large red circle"] * 20, [[image, image]] * 20)]
    check_lost("judge", join([mine, *theirs]), 0.05)  # 1 of 42


def test_nonsense_is_not_remembered_for_ever(tmp_path):
    """A judge whose nonsense ended the run is mended: the same step must not quote the nonsense."""
    images = [[Image.new("RGB", (32, 32), color) for color in ("red", "white")]]

    def asked(cfg):
        return rewards_of(cfg, judge_of(cfg, tmp_path), "cpu")["pairwise"](
            ["a large red circle"], images
        )

    with served(garbage=1.0) as server:
        cfg = config(server.server_port, tmp_path)
        assert asked(cfg).counts["unparsable"] == 2
    for faults, calls in (({}, 2), ({"error_500": 1.0}, 0)):  # mended; then nothing is asked twice
        with served(server.server_port, **faults) as server:
            assert asked(cfg).counts["failed"] == 0 and server.calls == calls


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
    (answer,) = OpenAIMLLM(url, max_retries=0).ask([Query((), "x")])
    server.shutdown()
    server.server_close()
    assert "out of memory" in answer.error and "500" in answer.error


# ---- settings ----


def test_a_template_is_taken_word_for_word(tmp_path):
    file, text = tmp_path / "template.txt", "Bild \u201e{prompt}\u201c {{x}} %s \\1\r\n<answer>"
    file.write_bytes(text.encode("utf-8-sig"))  # as some editors save it
    cfg = Config(judge_prompt=str(file))
    assert comparison_of(cfg, ShapesMLLM()).template == text
    file.write_bytes(b"\xff{prompt}")
    with pytest.raises(ValueError, match="template.txt' is not UTF-8 text"):
        comparison_of(cfg, ShapesMLLM())


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
    cfg = Config(**({"steps": 110, "eval_every": 22} | settings))
    said = call_budget(cfg, rewards_of(cfg, ShapesMLLM(), "cpu"), cfg.heldout or 314)
    assert [f"= {n:,}" in said for n in calls] == [True, True] and f"{sum(calls):,} in all" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"opponents": 8}, "--opponents 8 with --group_size 8: .* must be from 1 to 7"),
        ({"opponents": -1}, "from 1 to 7"),
        ({"opponents": 1}, "at least 2, or 0"),
        ({"opponents": 3, "group_size": 9}, "one of the two numbers even"),
        ({"opponents": 2, "reward": "pointwise"}, "a pairwise reward"),
        ({"concurrency": 0}, "must be positive"),
        ({"call_timeout": 0.0}, "must be positive"),
        ({"patience": -1.0}, "must be positive"),
    ],
)
def test_wrong_settings_get_one_sentence(settings, sentence):
    with pytest.raises(SystemExit, match=sentence):
        check_config(Config(**settings), 1)
