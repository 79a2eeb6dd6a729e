"""openai_client.py: the real client against a server that fails in every way we know of."""

import base64
import io
import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_server import HANG, KEY, PASSWORD, Handler, client, picture, questions, serving, texts
from PIL import Image

from common.rgb import to_rgb
from judges.mllm import Answer, Query
from judges.openai_client import OpenAIMLLM, retry_delay


def test_request_is_what_the_protocol_says():
    image, other = picture("red"), picture("blue")
    with serving() as server:
        judge = client(server, temperature=0.0, seed=0, max_tokens=99)
        answers = judge.ask([Query((image, other), "which?")])
    assert answers == [Answer("echo which?", None, "m")]  # m: who the server says it was
    body, headers = server.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    *images, text = body.pop("messages")[0]["content"]
    assert body == {"model": "judge", "temperature": 0, "seed": 0, "max_tokens": 99}
    assert text == {"type": "text", "text": "which?"}
    for sent, original in zip(images, (image, other), strict=True):
        head, _, data = sent["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == original.tobytes()


def test_answers_come_in_order_and_calls_run_concurrently():
    with serving(together=4) as server:
        answers = client(server, concurrency=4).ask(questions(*range(12)))
    assert texts(answers) == [f"echo {k}" for k in range(12)]
    assert server.most_active == 4


WAIT_0 = (429, {}, {"Retry-After": "0"})
PASSING = [500, 408, WAIT_0, "garbage", "html", {"choices": []}, "null", "deep", "truncated"]


@pytest.mark.parametrize("fault", [*PASSING, "drop"], ids=str)
def test_passing_faults_are_retried(fault):
    with serving(fault, fault) as server:
        answers = client(server).ask(questions("again"))
    assert texts(answers) == ["echo again"] and len(server.requests) == 3


def test_a_hanging_server_times_out_and_is_retried():
    with serving("hold") as server:  # until the end of the block
        (answer,) = client(server, timeout=0.1, max_retries=0).ask(questions("x"))
        assert answer == Answer(error="no answer within 0.1 s")
        server.faults = ["hold"]
        judge = client(server, timeout=1.0, max_retries=50)
        answers = judge.ask(questions("again"))
    assert texts(answers) == ["echo again"] and len(server.requests) >= 3
    assert judge._slots.falls and judge._slots.size % 1  # fewer calls, and a part of one more again


@pytest.mark.parametrize(
    ("fault", "said", "calls"),
    [
        (400, "fault 400", 1),
        (404, "fault 404", 1),
        ("quota", "no credit", 1),
        ("lines", "BadRequestError: Error code: 400 - Bad gateway: line 1, ***", 1),
        (500, "fault 500", 3),  # the last retry too
    ],
)
def test_the_error_is_told_in_one_line_and_leaves_others_alone(fault, said, calls):
    with serving(*[fault] * calls) as server:
        judge = client(server, max_retries=2)
        (bad,), (good,) = judge.ask(questions("x")), judge.ask(questions("y"))
    assert bad.text is None and said in bad.error and "\n" not in bad.error
    assert good.text == "echo y" and len(server.requests) == calls + 1 and not bad.unreachable


def test_a_refused_key_is_named_but_stands_nowhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # of a file, which ends its line
    with serving(401, 401) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", f"//user:{PASSWORD}@"))
        judge = OpenAIMLLM(model="judge")
        (answer,) = judge.ask(questions("x"))
        monkeypatch.delenv("OPENAI_API_KEY")
        (without,) = OpenAIMLLM(server.url, "judge").ask(questions("x"))
    assert "refuses the key in OPENAI_API_KEY" in answer.error  # which the server quotes
    assert "asks for a key: set OPENAI_API_KEY" in without.error and "fault 401" in without.error
    assert judge.name.startswith(f"judge at {server.url}")
    for text in (judge.name, repr(judge), answer.error):
        assert KEY not in text and PASSWORD not in text


@pytest.mark.parametrize("fault", [404, 405, "html"])
@pytest.mark.parametrize("path", ["", "/v1", "/v1beta/openai"])
def test_a_missing_v1_is_named(fault, path):
    with serving(fault) as server:
        judge = OpenAIMLLM(server.url.removesuffix("/v1") + path, "judge", max_retries=0)
        (answer,) = judge.ask(questions("x"))
    assert ("does the base URL lack its /v1" in answer.error) == (not path)


def test_the_model_is_the_first_that_the_server_lists(monkeypatch):
    with serving() as server:
        assert OpenAIMLLM(server.url).name.startswith("listed at")
        page = lambda self: self.reply(200, b"<html>welcome</html>", Content_Type="text/html")
        for method in (Handler.do_GET, page):  # by the path a 404, or a page that is no list
            monkeypatch.setattr(Handler, "do_GET", method)
            with pytest.raises(ValueError, match="lists no model.* lack its /v1"):
                OpenAIMLLM(server.url.removesuffix("/v1"))
        hanging = lambda self: self.server.script.gate.wait(HANG)
        monkeypatch.setattr(Handler, "do_GET", hanging)
        with pytest.raises(ValueError, match="lists no model.* no answer within 0.1 s"):
            OpenAIMLLM(server.url, timeout=0.1)


def test_cap_on_calls_counts_retries():
    with serving(500) as server:
        answers = client(server, max_calls=3, concurrency=1).ask(questions(*range(4)))
    assert len(server.requests) == 3 and sum(answer.text is not None for answer in answers) == 2
    assert any("cap of 3 calls" in (answer.error or "") for answer in answers)


def test_a_dead_server_costs_its_patience_not_all_retries():
    with serving() as server:
        pass  # nobody listens at its port any more
    ticks = itertools.count()  # each look at the clock is a second
    patient = {"patience": 300.0, "clock": lambda: float(next(ticks))}
    answers = client(server, max_retries=10**9, concurrency=4, **patient).ask(questions(*range(50)))
    answers += client(server, max_retries=0).ask(questions("x"))  # known without patience too
    assert all(answer.error and answer.unreachable for answer in answers)


def test_silence_adds_up_over_batches_and_one_call_of_each_finds_the_server_back():
    with serving(*[500] * 60) as server:
        judge = client(server, patience=9.5, max_retries=10**6, concurrency=1)
        assert judge.ask(questions("x"))[0].error
        assert len(server.requests) == 10  # calls take a second each
        for batch in (1, 2):
            answers = judge.ask(questions(*range(5)))
            assert len(server.requests) == 10 + batch  # not 10 calls again, one only
            said = "no call was answered for 9.5 s (last: InternalServerError"
            assert all(answer.error.startswith(said) and answer.unreachable for answer in answers)
        server.faults.clear()
        assert texts(judge.ask(questions("a"))) == ["echo a"]
        server.now += 1000  # time without calls is no silence
        server.faults = [500]
        assert texts(judge.ask(questions("b", "c"))) == ["echo b", "echo c"]


def test_several_threads_get_their_own_answers_and_share_the_slots():
    asked = [[f"{thread} {k}" for k in range(8)] for thread in range(4)]
    with serving() as server:
        judge = client(server, concurrency=3)
        with ThreadPoolExecutor(4) as threads:
            batches = list(threads.map(lambda own: judge.ask(questions(*own)), asked))
    assert [texts(batch) for batch in batches] == [[f"echo {t}" for t in own] for own in asked]
    assert server.most_active <= 3


def test_retry_delay_grows():
    delays = [retry_delay(attempt, 0.5) for attempt in range(12)]
    assert all(0.25 * 2**k <= delay <= 0.5 * 2**k for k, delay in enumerate(delays[:6]))
    assert max(delays) <= 30


def test_the_name_holds_every_setting_that_changes_answers_and_others_are_checked():
    settings = [{}, {"temperature": 0.5}, {"seed": 1}, {"seed": None}, {"max_tokens": 9}]
    settings += [{"others": {"top_k": 1}}]
    judges = [OpenAIMLLM("http://127.0.0.1:1/v1", "judge", **s) for s in settings]
    assert len({judge.name for judge in judges}) == 6
    for wrong in ({"concurrency": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            OpenAIMLLM("http://127.0.0.1:1/v1", "judge", **wrong)


def test_each_image_is_encoded_once_a_batch(monkeypatch):
    converted, a, b, c = [], picture("red"), picture("green"), picture("blue")
    counted = lambda image: converted.append(image) or to_rgb(image)
    monkeypatch.setattr("judges.openai_client.to_rgb", counted)
    with serving() as server:
        client(server).ask([Query(pair, "?") for pair in ((a, b), (b, a), (a, c), (c, a))])
    assert len(converted) == 3 and set(map(id, converted)) == {id(a), id(b), id(c)}


def test_interrupt_cancels_what_waits():
    with serving() as server:
        judge = client(server, concurrency=2)

        def interrupt() -> None:
            for _ in range(2):
                server.held.acquire(timeout=HANG)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            judge.ask(questions(*(f"hold {k}" for k in range(20))))
        assert texts(judge.ask(questions("again"))) == ["echo again"]
        assert len(server.requests) == 3  # the two in flight and this one
