"""server.py: the real client against a server that fails in every way we know of."""

import base64
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_server import (
    HANG,
    KEY,
    PASSWORD,
    Handler,
    client,
    picture,
    serving,
    texts,
)
from PIL import Image

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
    sent = {key: body[key] for key in ("model", "temperature", "seed", "max_tokens")}
    assert sent == {"model": "judge", "temperature": 0, "seed": 0, "max_tokens": 99}
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
        judge = client(server, timeout=1.0, max_retries=50)
        answers = judge.ask([Query((), "again")])
    assert texts(answers) == ["echo again"] and len(server.requests) >= 2
    assert judge._slots.falls and judge._slots.size % 1  # fewer calls, and a part of one more again


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


def test_retry_delay_grows():
    delays = [retry_delay(attempt, 0.5) for attempt in range(12)]
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


@pytest.fixture
def sigint():
    """Ctrl-C is heard, also by processes begun here: where a script runs the tests in the
    background, its shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_interrupt_ends_a_waiting_process():
    program = (
        "import sys\n"
        "from judges.mllm import Query\n"
        "from judges.openai_client import OpenAIMLLM\n"
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


@pytest.mark.usefixtures("sigint")
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
