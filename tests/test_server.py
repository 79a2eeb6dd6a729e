"""server.py: the real client against a server that fails in every way we know of."""

import base64
import email.message
import io
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from judges.mllm import Answer, Query
from judges.server import OpenAIMLLM, retry_delay
from judges.verdicts import Verdict, ask, parse_verdict

KEY, PASSWORD = "sk-secret-0123456789", "pa55word"
HANG = 120.0  # seconds after which a test that waits for what never happens is given up


def picture(color: str, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def completion(text, reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": reason, "message": message}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(reply | {"choices": [choice]}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status: int, body: bytes, kind="application/json", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, json.dumps({"object": "list", "data": [{"id": "listed"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, text = self.server, body["messages"][0]["content"][-1]["text"]
        with server.lock:
            server.requests.append((body, self.headers))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            fault = server.faults.pop(0) if server.faults else "ok"
            fault = server.refuse(body) or fault if server.refuse else fault
        if server.together:  # nobody is answered before so many calls are in flight
            server.together.wait(HANG)
        if text.startswith("hold") or fault == "hold":
            server.held.release()
            server.gate.wait(HANG)
        with server.lock:  # before the reply, after which the client may already send the next call
            server.active -= 1
        server.clock.now += 1
        self.reply(fault, body)

    def reply(self, fault, body):
        error = json.dumps({"error": {"message": f"fault {fault}: {KEY}, {PASSWORD}"}}).encode()
        if fault == "ok":
            self.send(200, completion("echo " + body["messages"][0]["content"][-1]["text"]))
        elif fault == "429":
            self.send(429, error, Retry_After="0")
        elif fault == "quota":
            quota = {"error": {"message": "no credit", "code": "insufficient_quota"}}
            self.send(429, json.dumps(quota).encode(), Retry_After="0")
        elif isinstance(fault, dict):
            self.send(200, json.dumps(fault).encode())
        elif isinstance(fault, tuple):
            self.send(fault[0], json.dumps(fault[1]).encode())
        elif isinstance(fault, int):
            self.send(fault, error)
        elif fault == "garbage":
            self.send(200, b"<html>not json")
        elif fault == "html":
            self.send(200, b"<html>a proxy</html>", kind="text/html")
        elif fault == "no choices":
            self.send(200, b'{"choices": []}')
        elif fault == "deep":
            self.send(200, b"[" * 100_000)
        elif fault == "null":
            self.send(200, b"null")
        elif fault == "truncated":
            self.send(200, completion("x")[:40], length=4000)
            self.close_connection = True
        elif fault == "drop" or fault == "hold":
            self.close_connection = True
        elif fault == "lines":
            message = f"Bad gateway:\r\n  line 1, {KEY}\n"
            self.send(400, json.dumps({"error": {"message": message}}).encode())
        elif fault == "empty":
            self.send(200, completion("", "length"))
        else:
            raise AssertionError(fault)


class Clock:
    """Seconds that a test sets; one passes with each call to the server."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(*faults, together: int = 0):
    """A server; its first calls meet the faults, one each, and the others are echoed.

    together: how many calls have to be in flight before they are answered.
    Calls whose text begins with "hold" wait for `gate`; `held` counts them.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.faults, server.lock, server.clock = list(faults), threading.Lock(), Clock()
    server.requests, server.active, server.most_active = [], 0, 0
    server.refuse = None  # a function of the request: (status, body) or None
    server.together = threading.Barrier(together) if together else None
    server.gate, server.held = threading.Event(), threading.Semaphore(0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()


def client(server, **settings) -> OpenAIMLLM:
    """A client without the seconds of backoff, and with the server's clock."""
    usual = {"api_key": KEY, "timeout": HANG, "backoff": 0.0, "clock": server.clock}
    return OpenAIMLLM(server.url, "judge", **usual | settings)


def texts(answers) -> list[str | None]:
    return [answer.text for answer in answers]


def test_request_is_what_the_protocol_says():
    image, other = picture("red"), picture("blue")
    with serving() as server:
        judge = client(server, temperature=0.0, seed=7, max_tokens=99)
        answers = judge.ask([Query((image, other), "which?")])
    assert answers == [Answer("echo which?", None, "m")]  # m: who the server says it was
    body, headers = server.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    sent = {key: body[key] for key in ("model", "temperature", "seed", "max_tokens")}
    assert sent == {"model": "judge", "temperature": 0, "seed": 7, "max_tokens": 99}
    *images, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "which?"}
    for sent, original in zip(images, (image, other), strict=True):
        head, _, data = sent["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        assert decoded.tobytes() == original.tobytes()


def test_answers_come_in_order_and_calls_run_concurrently():
    with serving(together=4) as server:
        answers = client(server, concurrency=4).ask([Query((), f"q{k}") for k in range(12)])
    assert texts(answers) == [f"echo q{k}" for k in range(12)]
    assert server.most_active == 4


@pytest.mark.parametrize(
    "fault",
    [500, 503, 408, "429", "garbage", "html", "no choices", "null", "deep", "truncated", "drop"],
)
def test_passing_faults_are_retried(fault):
    with serving(fault, fault) as server:
        answers = client(server).ask([Query((), "again")])
    assert texts(answers) == ["echo again"]
    assert len(server.requests) == 3


def test_a_hanging_server_times_out_and_is_retried():
    with serving("hold") as server:  # until the end of the block
        answers = client(server, timeout=1.0, max_retries=50).ask([Query((), "again")])
    assert texts(answers) == ["echo again"] and len(server.requests) >= 2


def test_the_error_of_a_hanging_server_says_how_long_it_was_waited_for():
    with serving("hold") as server:
        (answer,) = client(server, timeout=0.1, max_retries=0).ask([Query((), "x")])
    assert answer == Answer(error="no answer within 0.1 s")


@pytest.mark.parametrize("fault", [400, 401, 403, 404, "quota"])
def test_lasting_faults_are_not_retried(fault):
    with serving(fault) as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert answer.text is None and len(server.requests) == 1
    assert ("no credit" if fault == "quota" else f"fault {fault}") in answer.error


def test_retries_end():
    with serving(*[500] * 10) as server:
        (bad,) = client(server, max_retries=2).ask([Query((), "x")])
    assert "fault 500" in bad.error and len(server.requests) == 3


def test_an_error_is_one_line():
    with serving("lines") as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert answer.error == "BadRequestError: Error code: 400 - Bad gateway: line 1, ***"


def test_one_failure_leaves_the_others_alone():
    with serving(401) as server:
        answers = client(server, concurrency=1).ask([Query((), "a"), Query((), "b")])
    assert answers[0].error and texts(answers) == [None, "echo b"]


def test_empty_content_is_an_error():
    with serving("empty") as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert "empty answer (finish_reason: length)" in answer.error
    assert len(server.requests) == 1  # at temperature 0 it would say the same again


@pytest.mark.parametrize(
    ("reason", "tokens", "said"),
    [
        ("stop", 9, None),  # just so long
        (None, 5, None),
        ("eos_token", 5, None),
        ("STOP", None, None),
        ("length", 5, "cut off at 9 tokens.*--judge_tokens"),
        ("MAX_TOKENS", None, "cut off at 9 tokens"),
        (None, 9, "cut off at 9 tokens"),
        ("content_filter", 5, "stopped by the server .content_filter."),
    ],
)
def test_an_answer_that_the_model_did_not_end_is_told_apart(reason, tokens, said):
    usage = {"completion_tokens": tokens, "prompt_tokens": 1, "total_tokens": 1}
    body = json.loads(completion("a draft", reason)) | ({"usage": usage} if tokens else {})
    with serving(body) as server:
        (answer,) = client(server, max_tokens=9).ask([Query((), "x")])
    assert answer.text == "a draft"
    assert re.match(said, answer.unfinished) if said else answer.unfinished is None


# What servers say of a parameter that they do not take: (status, body) by its name.
REFUSALS = {
    "OpenAI": lambda name: (
        400,
        {
            "error": {
                "message": f"Unsupported parameter: '{name}' is not supported with this model."
                + " Use 'max_completion_tokens' instead." * (name == "max_tokens"),
                "type": "invalid_request_error",
                "param": name,
                "code": "unsupported_parameter",
            }
        },
    ),
    "a value": lambda name: (
        400,
        {
            "error": {
                "message": f"Unsupported value: '{name}' does not support 0 with this model. "
                "Only the default (1) value is supported.",
                "param": name,
                "code": "unsupported_value",
            }
        },
    ),
    "Azure": lambda name: (
        400,
        {"error": {"message": f"Unrecognized request argument supplied: {name}"}},
    ),
    "FastAPI": lambda name: (
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", name],
                    "msg": "Extra inputs are not permitted",
                }
            ]
        },
    ),
    "Gemini": lambda name: (
        400,
        {"error": {"message": f'Unknown name "{name}": Cannot find field.', "code": 400}},
    ),
    "LiteLLM": lambda name: (
        400,
        {"error": {"message": f"UnsupportedParamsError: no support for parameters: ['{name}']"}},
    ),
    "param alone": lambda name: (400, {"error": {"message": "bad request", "param": name}}),
    "with HTTP 200": lambda name: (
        200,
        {"error": {"message": f"{name} is not supported", "code": 400}},
    ),
}
SETTINGS = ("temperature", "seed", "max_tokens", "max_completion_tokens")


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize(
    "refused",
    [
        ("seed",),
        ("temperature",),
        ("max_tokens",),
        ("temperature", "max_tokens"),
        ("max_tokens", "max_completion_tokens"),
        SETTINGS,
    ],
)
def test_what_a_server_refuses_is_left_out_from_the_first_answer_on(kind, refused, caplog):
    with serving() as server:

        def refuse(body):
            return next((REFUSALS[kind](name) for name in refused if name in body), None)

        server.refuse = refuse
        judge = client(server, max_tokens=9, seed=7, concurrency=1)
        name = judge.name
        with caplog.at_level(logging.WARNING):
            answers = judge.ask([Query((), str(k)) for k in range(3)])
        assert texts(answers) == ["echo 0", "echo 1", "echo 2"]
        calls = len(server.requests)
        assert texts(judge.ask([Query((), "x")])) == ["echo x"]
    first, last = server.requests[0][0], server.requests[-1][0]
    assert {name: first[name] for name in SETTINGS[:3]} == {
        "temperature": 0,
        "seed": 7,
        "max_tokens": 9,
    }
    kept = {"temperature": 0, "seed": 7, "max_tokens": 9}
    if "max_tokens" in refused:
        kept["max_completion_tokens"] = kept.pop("max_tokens")
    kept = {name: value for name, value in kept.items() if name not in refused}
    assert {name: last[name] for name in SETTINGS if name in last} == kept
    assert calls == 3 + len(refused) and len(server.requests) == calls + 1  # found out once
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(name in line for name in refused if name != "max_completion_tokens")
    assert KEY not in line and PASSWORD not in line
    assert judge.name == name  # what a journal was begun for stays the same


def test_calls_side_by_side_find_it_out_together(caplog):
    with serving(together=4) as server:
        server.refuse = lambda body: REFUSALS["OpenAI"]("seed") if "seed" in body else None
        judge = client(server, concurrency=4)
        with caplog.at_level(logging.WARNING):
            assert texts(judge.ask([Query((), str(k)) for k in range(4)])) == [
                f"echo {k}" for k in range(4)
            ]
    assert len(server.requests) == 8 and len(caplog.records) == 1


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 4096. This model supports at most 2048 completion tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 1024 tokens",
        "The image is broken",
    ],
)
def test_a_request_that_is_wrong_otherwise_is_told_and_changed_in_nothing(message):
    with serving() as server:
        server.refuse = lambda body: (400, {"error": {"message": message}})
        judge = client(server)
        (answer,) = judge.ask([Query((), "x")])
        assert message[:60] in answer.error and len(server.requests) == 1
        server.refuse = None
        assert judge.ask([Query((), "x")])[0].text
    assert server.requests[0][0] == server.requests[1][0]


def test_what_does_not_help_to_leave_out_is_not_left_out():
    """A server that quotes the whole request in every 422, whatever is wrong with it."""
    with serving() as server:
        server.refuse = lambda body: (422, {"detail": [{"msg": "no image", "input": body}]})
        judge = client(server)
        assert "no image" in judge.ask([Query((), "x")])[0].error
        server.refuse = None
        assert judge.ask([Query((), "x")])[0].text
    assert server.requests[-1][0] == server.requests[0][0]


def choice(content, **others):
    body = json.loads(completion("x", others.pop("reason", "stop")))
    body["choices"][0]["message"] = {"role": "assistant", "content": content, **others}
    return body


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "one"}], "one"),
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two"),
        ([{"type": "thinking", "thinking": [{"text": "no"}]}, {"type": "text", "text": "x"}], "x"),
        ([{"type": "reasoning", "text": "no"}, {"type": "output_text", "text": "x"}], "x"),
        (["one", {"text": " two"}, {"type": "image_url"}, 5], "one two"),
        ("a cut emoji \ud83d, in one text", "a cut emoji ?, in one text"),  # no file could hold it
    ],
)
def test_content_may_be_a_list_of_parts(content, text):
    with serving(choice(content)) as server:
        assert texts(client(server).ask([Query((), "x")])) == [text]


@pytest.mark.parametrize("content", [None, "", " ", [], [{"type": "thinking", "text": "hm"}], 5])
def test_an_answer_that_holds_nothing_is_asked_for_once(content):
    with serving(choice(content)) as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert answer.error == answer.unfinished == "empty answer (finish_reason: stop)"
    assert len(server.requests) == 1


def test_a_refusal_is_told_in_the_models_words():
    with serving(choice(None, refusal="I cannot help with that")) as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert answer.error == "refused: I cannot help with that"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_that_comes_by_itself_is_no_draft_in_the_answer(name):
    verdict = "<answer>Image 2 is better</answer> and"
    with serving(choice(verdict, reason="length", **{name: "a draft"})) as server:
        (answer,) = client(server).ask([Query((), "x")])
    assert parse_verdict(answer.text, answer.unfinished) is Verdict.SECOND


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ({"error": {"message": "no such model", "code": 404}}, 1),
        ({"error": {"message": "no such model", "code": "insufficient_quota"}}, 1),
        ({"object": "error", "message": "no such model", "code": 400}, 1),
        ({"error": "no such model"}, 3),
        ({"detail": "no such model"}, 3),
        ({"error": {"message": "no such model", "code": 502}}, 3),
        ({"choices": [{"error": {"message": "no such model", "code": 400}, "message": None}]}, 1),
    ],
)
def test_an_error_with_http_200_is_told_in_its_own_words(body, calls):
    with serving(*[body] * 3) as server:
        (answer,) = client(server, max_retries=2).ask([Query((), "x")])
    assert "the server says: no such model" in answer.error and len(server.requests) == calls


@pytest.mark.parametrize(
    ("key", "said"),
    [(KEY, "refuses the key in OPENAI_API_KEY"), (None, "asks for a key: set OPENAI_API_KEY")],
)
def test_a_refused_key_is_named_but_not_told(key, said, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(401) as server:
        (answer,) = OpenAIMLLM(server.url, "judge", api_key=key).ask([Query((), "x")])
    assert said in answer.error and "fault 401" in answer.error
    assert key is None or key not in answer.error  # the server quotes it


@pytest.mark.parametrize("fault", [404, 405, "html"])
def test_a_missing_v1_is_named(fault):
    for path, named in (("", True), ("/v1", False), ("/v1beta/openai", False)):
        with serving(fault) as server:
            root = server.url.removesuffix("/v1")
            judge = OpenAIMLLM(root + path, "judge", max_retries=0)
            (answer,) = judge.ask([Query((), "x")])
        assert ("does the base URL lack its /v1" in answer.error) == named


def test_a_missing_v1_is_named_where_models_are_listed(monkeypatch):
    for reply in ((404, b'{"detail": "Not Found"}'), (200, b"<html>welcome</html>")):
        kind = "text/html" if reply[0] == 200 else "application/json"
        monkeypatch.setattr(Handler, "do_GET", lambda self, r=reply, k=kind: self.send(*r, kind=k))
        with serving() as server, pytest.raises(ValueError, match="lack its /v1") as error:
            OpenAIMLLM(server.url.removesuffix("/v1"))
        assert "lists no model" in str(error.value)


def test_the_address_of_a_call_is_no_base_url():
    with pytest.raises(ValueError, match="must end before /chat/completions"):
        OpenAIMLLM("http://127.0.0.1:1/v1/chat/completions", "judge")


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_eight_questions_that_cannot_be_read_cost_no_more_than_one_repeat_each(reason):
    """Of a greedy, seeded judge, which would say the same again; and no two in the same words."""
    for content in ("", "Both are equally nice, I'd say"):
        with serving(*[choice(content, reason=reason)] * 100) as server:
            heard = ask(client(server), [Query((), f"question {k}") for k in range(8)])
        assert {said[-1].verdict for said in heard} == {Verdict.UNPARSABLE}
        asked = [body["messages"][0]["content"][-1]["text"] for body, _ in server.requests]
        assert len(asked) == len(set(asked)) == 16


def test_cap_on_calls_counts_retries():
    with serving(500) as server:
        judge = client(server, max_calls=3, concurrency=1)
        answers = judge.ask([Query((), f"q{k}") for k in range(4)])
        assert len(server.requests) == 3
    assert sum(answer.text is not None for answer in answers) == 2
    assert any("cap of 3 calls" in (answer.error or "") for answer in answers)


def test_a_dead_server_costs_its_patience_not_all_retries():
    with serving() as server:
        pass  # nobody listens at its port any more
    ticks = itertools.count()  # each look at the clock is a second
    patient = {"patience": 300.0, "clock": lambda: float(next(ticks))}
    judge = client(server, max_retries=10**9, concurrency=4, **patient)
    answers = judge.ask([Query((), str(k)) for k in range(50)])  # a billion retries would not end
    assert all(answer.text is None and answer.error for answer in answers)


def test_silence_adds_up_over_batches_and_one_call_of_each_finds_the_server_back():
    with serving(*[500] * 60) as server:
        judge = client(server, patience=9.5, max_retries=10**6, concurrency=1)
        assert judge.ask([Query((), "x")])[0].error
        assert len(server.requests) == 10  # calls take a second each
        for batch in (1, 2):
            answers = judge.ask([Query((), str(k)) for k in range(5)])
            assert len(server.requests) == 10 + batch  # not 10 calls again, one only
            for answer in answers:
                assert answer.error.startswith(
                    "no call was answered for 9.5 s (last: InternalServerError"
                )
        server.faults.clear()
        assert texts(judge.ask([Query((), "a")])) == ["echo a"]
        assert texts(judge.ask([Query((), "b"), Query((), "c")])) == ["echo b", "echo c"]


def test_time_without_calls_is_no_silence():
    with serving() as server:
        judge = client(server, patience=9.5)
        assert judge.ask([Query((), "x")])[0].text
        server.clock.now += 1000
        server.faults = [500]
        answers = judge.ask([Query((), "y"), Query((), "z")])
    assert texts(answers) == ["echo y", "echo z"]


def test_several_threads_get_their_own_answers_and_share_the_slots():
    asked = [[f"{thread} {k}" for k in range(8)] for thread in range(4)]
    with serving() as server:
        judge = client(server, concurrency=3)
        with ThreadPoolExecutor(4) as threads:
            batches = list(threads.map(lambda own: judge.ask([Query((), t) for t in own]), asked))
    assert [texts(batch) for batch in batches] == [[f"echo {t}" for t in own] for own in asked]
    assert server.most_active <= 3


def test_an_answer_is_given_while_others_are_waited_for():
    with serving() as server:
        answered = client(server).as_answered([Query((), "hold this"), Query((), "quick")])
        assert next(answered) == (1, Answer("echo quick", None, "m"))
        server.gate.set()
        assert list(answered) == [(0, Answer("echo hold this", None, "m"))]


def test_retry_delay_follows_the_server_then_grows():
    def busy(after):
        error, headers = Exception(), email.message.Message()
        headers["retry-after"] = after
        error.response = type("Response", (), {"headers": headers})
        return error

    assert retry_delay(busy("7"), 0, 0.5) == 7
    assert retry_delay(busy("1000"), 0, 0.5) == 60  # not for ever
    assert retry_delay(busy("nan"), 0, 0.5) == retry_delay(busy("-1"), 0, 0.5) == 0
    assert 0.25 <= retry_delay(busy("Wed, 21 Oct 2026 07:28:00 GMT"), 0, 0.5) <= 0.5
    delays = [retry_delay(Exception(), attempt, 0.5) for attempt in range(12)]
    assert all(0.25 * 2**k <= delay <= 0.5 * 2**k for k, delay in enumerate(delays[:6]))
    assert max(delays) <= 30


def test_key_stands_nowhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(401) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", f"//user:{PASSWORD}@"))
        judge = OpenAIMLLM(model="judge")
        (answer,) = judge.ask([Query((), "x")])
        assert "fault 401" in answer.error
        assert judge.ask([Query((), "x")])[0].text
    assert judge.name.startswith(f"judge at {server.url}")
    for text in (judge.name, repr(judge), answer.error):
        assert KEY not in text and PASSWORD not in text


def test_a_key_from_a_file_may_end_its_line(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    with serving() as server:
        assert OpenAIMLLM(server.url, "judge").ask([Query((), "x")])[0].text
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "url", [f"user:{PASSWORD}@host/v1", "localhost:8000/v1", "ftp://h/v1", "http:///v1"]
)
def test_a_url_without_its_beginning_is_told_and_not_quoted(url):
    with pytest.raises(ValueError, match="must begin with http") as error:
        OpenAIMLLM(url, "judge")
    assert PASSWORD not in str(error.value)


def test_the_name_holds_every_setting_that_changes_answers():
    settings = [{}, {"temperature": 0.5}, {"seed": 1}, {"seed": None}, {"max_tokens": 9}]
    assert len({OpenAIMLLM("http://127.0.0.1:1/v1", "judge", **s).name for s in settings}) == 5


def test_each_image_is_encoded_once_a_batch():
    converted = []

    def counted(color: str) -> Image.Image:
        image = picture(color)
        convert = image.convert
        image.convert = lambda mode: converted.append(color) or convert(mode)
        return image

    a, b, c = (counted(color) for color in ("red", "green", "blue"))
    with serving() as server:
        client(server).ask([Query(pair, "?") for pair in ((a, b), (b, a), (a, c), (c, a))])
    assert sorted(converted) == ["blue", "green", "red"]


def test_a_server_gives_no_probabilities():
    judge = OpenAIMLLM("http://127.0.0.1:1/v1", "judge")
    with pytest.raises(ValueError, match="judge at .* gives no probabilities"):
        judge.first_probability([Query((), "x")])


def test_model_is_the_one_that_the_server_lists():
    with serving() as server:
        judge = OpenAIMLLM(server.url)
        assert judge.name.startswith("listed at")
    with pytest.raises(ValueError, match="lists no model"):
        OpenAIMLLM(server.url, api_key=KEY)  # closed by now


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"timeout": 0}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must be positive"):
        OpenAIMLLM("http://127.0.0.1:1/v1", "judge", **settings)


def test_interrupt_ends_a_waiting_process():
    program = (
        "import sys\n"
        "from judges.mllm import Query\n"
        "from judges.server import OpenAIMLLM\n"
        "judge = OpenAIMLLM(sys.argv[1], 'judge', api_key='x', concurrency=2)\n"
        "judge.ask([Query((), f'hold {k}') for k in range(100)])\n"
    )
    root = Path(__file__).resolve().parent.parent
    with serving() as server:  # which answers nothing until the end of the block
        process = subprocess.Popen(
            [sys.executable, "-c", program, server.url], cwd=root, stderr=subprocess.PIPE, text=True
        )
        try:
            assert server.held.acquire(timeout=HANG)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=HANG)
        finally:
            process.kill()
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_interrupt_cancels_what_waits():
    with serving() as server:
        judge = client(server, concurrency=2)

        def interrupt() -> None:
            for _ in range(2):
                server.held.acquire(timeout=HANG)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            judge.ask([Query((), f"hold {k}") for k in range(20)])
        assert texts(judge.ask([Query((), "again")])) == ["echo again"]
        assert len(server.requests) == 3  # the two in flight and this one
