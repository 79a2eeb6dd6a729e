"""refusal.py: how long a server asks to wait, and what is wrong with a connection."""

import gzip
import json
import socket
import ssl
import subprocess
import time
from types import SimpleNamespace

import pytest
from fake_server import KEY, PASSWORD, Handler, choice, client, picture, questions, serving, texts

from judges.openai_client import OpenAIMLLM
from judges.refusal import Refusal, told_wait
from rewards import PairwiseReward, join
from training.judging import JudgeError, check_lost

DATE = "Mon, 30 Nov 2026 20:00:00 GMT"  # of the server, whatever this machine's clock says
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (*VARIABLES, "openai_base_url"):  # no cloud stands in for an empty URL
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7200"}, "", 7200),
        ({"Retry-After": "2"}, "try again in 37s", 2),
        ({"Retry-After": "Mon, 30 Nov 2026 20:00:30 GMT", "Date": DATE}, "", 30),
        ({"Retry-After": "Mon Nov 30 20:00:30 2026", "Date": DATE}, "", 30),
        ({"Retry-After": "Mon, 30 Nov 2026 19:59:30 GMT", "Date": DATE}, "", None),
        ({"retry-after-ms": "250", "retry-after": "1"}, "", 0.25),
        ({"retry-after-ms": "-3", "retry-after": "1m30s"}, "", 90),
        *(({"Retry-After": garbage}, "", None) for garbage in ("", "-1", "nan", "1e999", "5 x")),
        ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "6m0s"}, "", 360),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "300"}, "", None),
        ({"X-RateLimit-Reset": "1796068860000", "Date": DATE}, "", 60),
        ({"x-ratelimit-reset-tokens": "6m0s"}, "out of order", None),  # no 429
        ({}, '[{"error": {"details": [{"@type": "RetryInfo", "retryDelay": "37s"}]}}]', 37),
        ({}, "Please retry in 37.5s.", 37.5),
        ({}, "try again in 1m26.4s", 86.4),
        ({}, "Please retry after 60 seconds.", 60),
        ({}, "Try again in 2 hours and 3 minutes", 7380),
        ({}, '{"retry_after": 30}', 30),
        ({}, '{"retryAfterMs": "500"}', 0.5),
        ({}, "limit resets in 30s", 30),
        ({}, "retry_delay {\n  seconds: 37\n}", 37),
        ({"x-ms-retry-after-ms": "1500"}, "", 1.5),
        ({"Retry-After": "2026-11-30T20:01:00Z", "Date": DATE}, "", 60),
        ({"anthropic-ratelimit-tokens-reset": "2026-11-30T20:01:00Z", "Date": DATE}, "", 60),
        ({"Date": DATE}, '{"headers": {"X-RateLimit-Reset": "1796068860000"}}', 60),
        ({}, "try again later: 3 of 60 seconds are left", None),
        ({}, "retry in -5s", None),
    ],
)
def test_a_server_says_how_long_to_wait(headers, body, seconds):
    error = Exception()
    error.response = SimpleNamespace(headers=headers, text=body)
    error.status_code = 503 if body else 429
    assert told_wait(error) == (seconds and pytest.approx(seconds))


WAIT = [
    (429, {}, {"Retry-After": "0.3"}),
    (503, {"error": {"message": "Please try again in 300ms"}}),
    (200, {"error": {"code": 429, "details": [{"retryDelay": "0.3s"}]}}),
]


@pytest.mark.parametrize("told", WAIT, ids=str)
def test_nobody_calls_before_the_time_told_and_it_is_no_retry(told):
    with serving(told, told) as server:
        judge = client(server, max_retries=0, concurrency=1, clock=time.monotonic)
        assert texts(judge.ask(questions(*range(3)))) == ["echo 0", "echo 1", "echo 2"]
    gaps = [after - before for before, after in zip(server.times, server.times[1:])]
    assert len(server.times) == 5 and min(gaps[:2]) > 0.29
    assert judge._slots.falls == 2  # and fewer at once


def test_waits_end_with_patience_and_a_longer_one_ends_all_at_once():
    with serving(*[(429, {}, {"Retry-After": "1"})] * 99) as server:
        judge = client(server, max_retries=0, patience=2.7, clock=time.monotonic)
        (answer,) = judge.ask(questions("x"))
        assert "longer than is left of the 2.7 s of --patience (RateLimitError" in answer.error
        assert len(server.requests) == 3 and answer.unreachable
    with serving((503, {}, {"Retry-After": "7200"})) as server:
        judge = client(server, concurrency=1)
        for answer in (*judge.ask(questions(*range(9))), *judge.ask(questions("x", "y"))):
            assert answer.error.startswith("the server asks for a wait of 7200 s, longer than")
            assert answer.unreachable
        assert len(server.requests) == 1


def test_a_question_that_alone_is_told_to_wait_is_given_up_as_well(monkeypatch):
    """Others are answered meanwhile, so that the server is none that is silent."""
    calls = []

    async def call(content, more):
        calls.append(content)
        judge._last_success = judge._clock()
        refusal = Refusal(ValueError("busy"), judge._address)
        refusal.wait, refusal.crowded, refusal.lasting = 0.02, False, len(calls) > 50
        raise refusal

    with serving() as server:
        judge = client(server, max_retries=0, patience=0.1, clock=time.monotonic)
        monkeypatch.setattr(judge, "_call", call)
        assert judge.ask(questions("x"))[0].error
    assert 5 <= len(calls) <= 7


@pytest.mark.parametrize("fault", [(429, {}, {"Retry-After": "7200"}), "drop", 400])
def test_a_group_is_set_aside_for_what_it_shows_but_not_for_a_judge_that_cannot_be_reached(fault):
    """Of two groups a step one was judged before: training must not go on with the other alone."""
    first, group = choice("<answer>Image 1 is better</answer>"), [picture("red"), picture("blue")]
    with serving(first, first, *[fault] * 99) as server:
        reward = PairwiseReward(client(server, max_retries=0), template="Which? {prompt}")
        rewards = join([reward([prompt], [group]) for prompt in "ab"])
    assert (rewards.counts["failed"], rewards.counts["groups_lost"]) == (2, 1)
    if fault == 400:
        return check_lost("judge", rewards, 0.05)
    with pytest.raises(JudgeError, match="2 of 4 judgements lost") as error:
        check_lost("judge", rewards, 0.05)
    assert fault == "drop" or "the server asks for a wait of 7200 s" in str(error.value)


# ---- connections ----


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A server's side of TLS, with a certificate for "localhost" that nobody has signed: a file."""
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", "-nodes", *kind, *files], check=True, stderr=-3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, str(folder / "certificate.pem")


def told(url, calls) -> str:
    """The error of a question; calls: how often it may be asked of the server."""
    judge = OpenAIMLLM(url, "judge", api_key=KEY, max_retries=2, backoff=0.0)
    (answer,) = judge.ask(questions("x"))
    assert judge.calls == calls and "\n" not in answer.error and PASSWORD not in answer.error
    with pytest.raises(ValueError, match="lists no model, name one: ") as error:
        OpenAIMLLM(url, api_key=KEY)
    listed = str(error.value).partition("name one: ")[2]
    assert listed.split(". ")[0] == answer.error.split(". ")[0]  # the same is said at the start
    return answer.error


def test_a_base_url_that_leads_on_to_another_is_told_with_that():
    """A POST arrives there as a GET."""
    with serving() as there, serving() as here:
        here.refuse = lambda body: (301, {}, {"Location": f"{there.url}/chat/completions"})
        (answer,) = client(here).ask(questions("x"))
        assert f"leads on to another, {there.url}: give that" in answer.error
        assert (len(here.requests), len(there.requests)) == (1, 0)


def test_what_is_wrong_with_tls_is_told_and_not_tried_again(tls, monkeypatch):
    context, certificate = tls
    with serving(tls=context) as server:
        https = server.url.replace("http://127.0.0.1", "https://localhost")
        said = told(https, 1)
        assert said.startswith("the server's certificate is not trusted: SSL_CERT_FILE")
        assert "self-signed certificate" in said
        assert "speaks TLS: its address begins with https://" in told(server.url, 1)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert told(server.url.replace("http:", "https:"), 1).startswith(
            "the server's certificate is for another host than the base URL's. "
        )
        monkeypatch.delenv("SSL_CERT_FILE")
    with serving() as server:
        said = told(server.url.replace("http:", "https:"), 1)
    assert "does not speak TLS: does its address begin with http://?" in said


@pytest.mark.parametrize(
    ("number", "calls", "said"),
    [(socket.EAI_NONAME, 1, "the host of judge:80 is not known"), (socket.EAI_AGAIN, 3, "API")],
)
def test_a_host_that_is_not_known_is_final_unless_the_resolver_is_down(
    number, calls, said, monkeypatch
):
    def unknown(*_, **__):
        raise socket.gaierror(number, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = told("http://judge/v1", calls)
    assert error.startswith(said) and "no such name" in error


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_named_without_its_password(scheme, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("all_proxy", f"http://user:{PASSWORD}@{address}")
    said = f"nothing listens at {address} (connection refused). (through the proxy {address};"
    assert told(f"{scheme}://judge.invalid/v1", 3).startswith(said)
    for method in ("do_GET", "do_POST", "do_CONNECT"):
        monkeypatch.setattr(Handler, method, lambda self: self.reply(407, b""), raising=False)
    with serving() as server:
        monkeypatch.setenv("all_proxy", server.url.removesuffix("/v1"))
        error = told(f"{scheme}://judge.invalid/v1", 1)
        assert "407" in error and "through the proxy 127.0.0.1:" in error


def test_a_reply_that_is_not_compressed_as_it_says_is_told(monkeypatch):
    body = choice("x")
    reply = lambda self: self.reply(200, body, Content_Encoding="gzip")
    monkeypatch.setattr(Handler, "do_GET", reply)
    monkeypatch.setattr(Handler, "do_POST", reply)
    with serving() as server:
        assert told(server.url, 3).startswith("the reply is not compressed as its Content-Encoding")
        body = gzip.compress(json.dumps(choice("packed")).encode())
        assert texts(client(server).ask(questions("x"))) == ["packed"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("base_url", "", "must begin with http"),
        ("base_url", f"user:{PASSWORD}@host/v1", "must begin with http"),
        ("base_url", "ftp://h/v1", "must begin with http"),
        ("base_url", "http://:80/v1", "must begin with http"),
        ("base_url", f"http://user:{PASSWORD}/x@host/v1", "its port is a number"),
        ("base_url", "http://127.0.0.1:99999/v1", "its port is a number"),
        ("base_url", "http://[::1/v1", "cannot be read"),
        ("base_url", "http://a host/v1", "it holds no spaces"),
        ("base_url", "http://999.1.1.1/v1", "no judge can be asked: Invalid IPv4"),
        ("base_url", "http://127.0.0.1:1/v1?api-version=1", "no request takes what follows the ?"),
        ("base_url", "http://127.0.0.1:1/v1/chat/completions", "must end before /chat/completions"),
        ("all_proxy", "socks5://127.0.0.1:1", "socksio.* .the environment sets ALL_PROXY"),
        ("HTTP_PROXY", f"http://u:{PASSWORD}@127.0.0.1:99999", "proxy 127.0.0.1:99999 .HTTP_PROXY"),
        ("SSL_CERT_FILE", "/no/such/file", "sets SSL_CERT_FILE"),
        ("OPENAI_API_KEY", "sk-k\N{LATIN SMALL LETTER E WITH ACUTE}y", "OPENAI_API_KEY holds"),
    ],
)
def test_what_cannot_be_asked_is_told_at_the_start_and_not_quoted(
    variable, value, said, monkeypatch
):
    url = value if variable == "base_url" else "http://127.0.0.1:9/v1"
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=said) as error:
        OpenAIMLLM(url, "judge")
    assert PASSWORD not in str(error.value) and "\n" not in str(error.value)
