"""mllm.py: the real client against a faulty server, a tiny Qwen2.5-VL in process, the cache."""

import base64
import email.message
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from judges.mllm import Answer, Cached, LocalMLLM, OpenAIMLLM, Query
from rewards import PairwiseReward

KEY, PASSWORD = "sk-secret-0123456789", "pa55word"


def picture(colour: str, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


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
        server = self.server
        with server.lock:
            server.requests.append((body, self.headers))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            fault = server.faults.pop(0) if server.faults else "ok"
        try:
            time.sleep(server.latency)
            self.reply(fault, body)
        finally:
            with server.lock:
                server.active -= 1

    def reply(self, fault, body):
        error = json.dumps({"error": {"message": f"fault {fault}: {KEY}, {PASSWORD}"}}).encode()
        if fault == "ok":
            self.send(200, completion("echo " + body["messages"][0]["content"][-1]["text"]))
        elif fault == "429":
            self.send(429, error, Retry_After="0")
        elif fault == "quota":
            quota = {"error": {"message": "no credit", "code": "insufficient_quota"}}
            self.send(429, json.dumps(quota).encode(), Retry_After="0")
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
        elif fault == "drop":
            self.close_connection = True
        elif fault == "hang":
            time.sleep(6)
            self.close_connection = True
        elif fault == "empty":
            self.send(200, completion("", "length"))
        else:
            raise AssertionError(fault)


@contextmanager
def serving(*faults, latency: float = 0.0):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.faults, server.latency, server.lock = list(faults), latency, threading.Lock()
    server.requests, server.active, server.most_active = [], 0, 0
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def client(server, **settings) -> OpenAIMLLM:
    return OpenAIMLLM(server.url, "judge", **{"api_key": KEY, "timeout": 5.0} | settings)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Backoff without its seconds; what it would have been is tested apart."""
    from judges import mllm

    delay = mllm._retry_delay
    monkeypatch.setattr(mllm, "_retry_delay", lambda error, attempt: delay(error, attempt) / 50)


# ---- OpenAIMLLM ----


def test_request_is_what_the_protocol_says():
    image, other = picture("red"), picture("blue")
    with serving() as server:
        judge = client(server, temperature=0.0, seed=7, max_tokens=99)
        answers = judge.ask([Query((image, other), "which?")])
    assert answers == [Answer(text="echo which?")]
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
    queries = [Query((), f"q{k}") for k in range(12)]
    with serving(latency=0.3) as server:
        judge = client(server, concurrency=4)
        judge.ask(queries[:4])  # open the connections
        start = time.perf_counter()
        answers = judge.ask(queries)
        seconds = time.perf_counter() - start
    assert [answer.text for answer in answers] == [f"echo q{k}" for k in range(12)]
    assert server.most_active == 4
    assert 0.3 * 3 <= seconds < 0.3 * 12 / 2, seconds  # 12 calls, 4 at a time


@pytest.mark.parametrize(
    "fault",
    [500, 503, 408, "429", "garbage", "html", "no choices", "null", "deep", "truncated", "drop"],
)
def test_passing_faults_are_retried(fault):
    with serving(fault, fault) as server:
        answers = client(server).ask([Query((), "again")])
    assert answers == [Answer(text="echo again")]
    assert len(server.requests) == 3


def test_a_hanging_server_times_out_and_is_retried():
    with serving("hang") as server:
        start = time.perf_counter()
        answers = client(server, timeout=0.5).ask([Query((), "again")])
        assert time.perf_counter() - start < 5
    assert answers == [Answer(text="echo again")]


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
    judge = OpenAIMLLM("http://127.0.0.1:1/v1", "judge", api_key=KEY)
    assert judge._scrubbed(f"Bad gateway:\r\n  line 1, {KEY}\n") == "Bad gateway: line 1, ***"


def test_one_failure_leaves_the_others_alone():
    with serving(401) as server:
        answers = client(server, concurrency=1).ask([Query((), "a"), Query((), "b")])
    assert answers[0].error and answers[1] == Answer(text="echo b")


def test_empty_content_is_an_error():
    with serving("empty") as server:
        (answer,) = client(server, max_retries=0).ask([Query((), "x")])
    assert "empty answer (finish_reason: length)" in answer.error


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
    judge = client(server, patience=0.3, max_retries=10**6, concurrency=4)
    start = time.perf_counter()
    answers = judge.ask([Query((), str(k)) for k in range(50)])
    assert time.perf_counter() - start < 20  # the retries alone would take days
    assert all(answer.text is None and answer.error for answer in answers)


def test_silence_adds_up_over_batches_and_one_call_of_each_finds_the_server_back():
    with serving(*[500] * 60) as server:
        judge = client(server, patience=0.2, max_retries=10**6, concurrency=1)
        assert judge.ask([Query((), "x")])[0].error  # when its patience is at an end
        for _ in range(2):
            before = len(server.requests)
            answers = judge.ask([Query((), str(k)) for k in range(5)])
            assert len(server.requests) == before + 1  # not 0.2 s of calls again, one only
            for answer in answers:
                assert answer.error.startswith(
                    "no call was answered for 0.2 s (last: InternalServerError"
                )
        server.faults.clear()
        assert judge.ask([Query((), "a")]) == [Answer(text="echo a")]
        assert None not in [answer.text for answer in judge.ask([Query((), "b"), Query((), "c")])]


def test_time_without_calls_is_no_silence():
    with serving() as server:
        judge = client(server, patience=0.3)
        assert judge.ask([Query((), "x")])[0].text
        time.sleep(0.4)
        server.faults = [500]
        assert judge.ask([Query((), "y"), Query((), "z")]) == [
            Answer(text="echo y"),
            Answer(text="echo z"),
        ]


def test_answers_come_as_they_are_ready_and_to_several_threads():
    with serving() as server:
        judge = client(server, concurrency=3)
        texts = [[f"{thread} {k}" for k in range(8)] for thread in range(4)]
        with ThreadPoolExecutor(4) as threads:
            batches = list(threads.map(lambda own: judge.ask([Query((), t) for t in own]), texts))
        assert [[a.text for a in batch] for batch in batches] == [
            [f"echo {t}" for t in own] for own in texts
        ]
        assert server.most_active <= 3  # the slots are shared
    with serving("hang") as server:
        first = next(
            client(server, concurrency=2).as_answered([Query((), "hangs"), Query((), "quick")])
        )
    assert first == (1, Answer(text="echo quick"))


def test_retry_delay_follows_the_server_then_grows(monkeypatch):
    monkeypatch.undo()
    from judges.mllm import _retry_delay

    def busy(after):
        error, headers = Exception(), email.message.Message()
        headers["retry-after"] = after
        error.response = type("Response", (), {"headers": headers})
        return error

    assert _retry_delay(busy("7"), 0) == 7
    assert _retry_delay(busy("1000"), 0) == 60  # not for ever
    assert _retry_delay(busy("nan"), 0) == _retry_delay(busy("-1"), 0) == 0
    assert 0.25 <= _retry_delay(busy("Wed, 21 Oct 2026 07:28:00 GMT"), 0) <= 0.5
    delays = [_retry_delay(Exception(), attempt) for attempt in range(12)]
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


def test_each_image_is_encoded_once_a_batch(monkeypatch):
    from judges import mllm

    encoded = []
    encode = mllm._data_uri
    monkeypatch.setattr(mllm, "_data_uri", lambda image: encoded.append(image) or encode(image))
    a, b, c = (picture(colour) for colour in ("red", "green", "blue"))
    with serving() as server:
        client(server).ask([Query(pair, "?") for pair in ((a, b), (b, a), (a, c), (c, a))])
    assert sorted(map(id, encoded)) == sorted(map(id, (a, b, c)))


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
        "import sys; from mllm import *\n"
        "judge = OpenAIMLLM(sys.argv[1], 'judge', api_key='x', concurrency=2)\n"
        "print('asking', flush=True)\n"
        "judge.ask([Query((), str(k)) for k in range(100)])\n"
    )
    root = Path(__file__).resolve().parent.parent
    with serving(latency=60) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", program, server.url],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        process.stdout.readline()
        while not server.requests:
            time.sleep(0.05)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=50)
    assert time.perf_counter() - start < 30
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_interrupt_cancels_what_waits():
    with serving(latency=1) as server:
        judge = client(server, concurrency=2)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            judge.ask([Query((), str(k)) for k in range(20)])
        time.sleep(1)
        assert len(server.requests) <= 2
        server.latency = 0
        assert judge.ask([Query((), "again")]) == [Answer(text="echo again")]


# ---- Cached ----


class Counting:
    name = "counting"

    def __init__(self, error=None):
        self.asked, self.error = [], error

    def ask(self, queries):
        self.asked += queries
        return [
            Answer(error=self.error) if self.error else Answer(text=f"{query.text} {k}")
            for k, query in enumerate(queries)
        ]


def test_cache_asks_nothing_twice(tmp_path):
    inner = Counting()
    a, b = picture("red"), picture("blue")
    queries = [Query((a, b), "t"), Query((b, a), "t"), Query((a, b), "u"), Query((a, b), "t")]
    first = Cached(inner, tmp_path).ask(queries)
    assert [len(inner.asked), first[3]] == [3, first[0]]  # order of images and text both matter
    assert len({answer.text for answer in first}) == 3

    twin = [Query((picture("red"), picture("blue")), "t")]  # equal pixels, another object
    assert Cached(inner, tmp_path).ask(queries + twin) == first + [first[0]]
    assert len(inner.asked) == 3


def test_cache_tells_judges_sizes_and_modes_apart(tmp_path):
    inner = Counting()
    cached = Cached(inner, tmp_path)
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    grey = Image.new("L", (24, 2))  # the same bytes as both
    cached.ask([Query((image,), "t") for image in (wide, tall, grey)])
    inner.name = "another"
    Cached(inner, tmp_path).ask([Query((wide,), "t")])
    assert len(inner.asked) == 4


def test_cache_goes_by_what_the_judge_sees(tmp_path):
    def indexed(colour):  # equal bytes, other colours
        image = Image.new("P", (4, 4))
        image.putpalette(colour)
        return image

    inner = Counting()
    shown = [indexed([255, 0, 0]), indexed([0, 0, 255]), picture("red", 4)]
    answers = Cached(inner, tmp_path).ask([Query((image,), "t") for image in shown])
    assert len(inner.asked) == 2 and answers[0] == answers[2] != answers[1]


def test_cache_keeps_only_what_is_worth_keeping(tmp_path):
    inner, queries = Counting(), [Query((), "good"), Query((), "bad")]
    keep = lambda text: text.startswith("good")
    assert [a.text for a in Cached(inner, tmp_path, keep).ask(queries)] == ["good 0", "bad 1"]
    assert [a.text for a in Cached(inner, tmp_path, keep).ask(queries)] == ["good 0", "bad 0"]
    assert [query.text for query in inner.asked] == ["good", "bad", "bad"]


def test_cache_keeps_probabilities_apart_from_answers(tmp_path):
    class Soft(Counting):
        def first_probability(self, queries):
            self.asked += queries
            return [None if query.text == "none" else 1 / 3 for query in queries]

    inner, queries = Soft(), [Query((), "t"), Query((), "none")]
    assert not hasattr(Cached(Counting(), tmp_path), "first_probability")
    for asked in (2, 3):  # what has no probability is asked again
        assert Cached(inner, tmp_path, lambda text: False).first_probability(queries) == [
            1 / 3,
            None,
        ]
        assert len(inner.asked) == asked
    assert Cached(inner, tmp_path).ask(queries[:1]) == [Answer(text="t 0")]


def test_cache_keeps_no_errors(tmp_path):
    inner = Counting(error="down")
    cached = Cached(inner, tmp_path)
    assert cached.ask([Query((), "t")]) == [Answer(error="down")]
    inner.error = None
    assert cached.ask([Query((), "t")]) == [Answer(text="t 0")]


def test_cache_survives_a_torn_line_at_every_byte(tmp_path):
    inner = Counting()
    queries = [Query((), "\u00e9 one\n"), Query((), "two")]
    Cached(inner, tmp_path).ask(queries)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "answers.jsonl").write_bytes(whole[:cut])
        inner.asked.clear()
        texts = [a.text[:-2] for a in Cached(inner, tmp_path).ask(queries)]  # less its number
        assert texts == [query.text for query in queries]
        inner.asked.clear()
        Cached(inner, tmp_path).ask(queries)  # what was added after the tear is read back
        assert inner.asked == []


def test_cache_loses_nothing_that_was_answered_before_the_end(tmp_path):
    class Dying(Counting):
        def as_answered(self, queries):
            yield 1, Answer(text="early")
            raise KeyboardInterrupt

    queries = [Query((), "a"), Query((), "b")]
    with pytest.raises(KeyboardInterrupt):
        Cached(Dying(), tmp_path).ask(queries)
    inner = Counting()
    assert Cached(inner, tmp_path).ask(queries) == [Answer(text="a 0"), Answer(text="early")]
    assert inner.asked == queries[:1]


# ---- LocalMLLM ----

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen2.5-VL with the real image processor and a byte-level tokenizer, on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("tiny-qwen")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "initializer_range": 0.5,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.5,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # of the kind that is published
        do_sample=True,
        temperature=5.0,
        top_p=0.9,
        top_k=50,
        repetition_penalty=5.0,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def local(folder):
    return LocalMLLM(folder, batch_size=3, max_new_tokens=12, device="cpu")


QUERIES = [
    Query((picture("red", 28), picture("blue", 56)), "Which is better?"),
    Query((picture("green", 28),), "A much longer question about a single image, for the padding."),
    Query((), "No image"),
    Query((picture("blue", 56), picture("red", 28)), "Which is better?"),
]


@torch.inference_mode()
def greedy(local: LocalMLLM, query: Query) -> str:
    """Most probable token after most probable token, one query, no padding, no cache."""
    inputs = dict(local._inputs([query], [""]))
    eos, start = local.model.generation_config.eos_token_id, inputs["input_ids"].shape[1]
    for _ in range(12):
        token = local.model(**inputs).logits[:, -1:].argmax(-1)
        if token.item() == eos:
            break
        for key, new in (
            ("input_ids", token),
            ("attention_mask", torch.ones_like(token)),
            ("mm_token_type_ids", torch.zeros_like(token)),
        ):
            inputs[key] = torch.cat([inputs[key], new], 1)
    tokens = inputs["input_ids"][0, start:]
    return local.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_local_model_is_greedy_whatever_the_batch(local):
    answers = local.ask(QUERIES)
    assert [a.text or "" for a in answers] == [greedy(local, query) for query in QUERIES]
    assert len({a.text for a in answers}) > 1
    assert local.ask(QUERIES) == answers  # nothing is sampled


def test_local_model_sees_the_images_in_order(local):
    forth, back = local.first_probability([QUERIES[0], QUERIES[3]])
    assert forth != back


def test_first_probability_is_that_of_the_two_answers(local):
    logs = []
    query = QUERIES[0]
    for number in (1, 2):
        opening = f"<answer>Image {number} is better"
        inputs = local._inputs([query], [opening])
        with torch.inference_mode():
            log_probs = local.model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0]
        logs.append(sum(log_probs[k - 1, ids[k]] for k in range(len(ids) - len(opening), len(ids))))
    expected = torch.stack(logs).softmax(0)[0].item()
    batch = local.first_probability(QUERIES)  # padded beside others
    assert batch[0] == pytest.approx(expected, abs=1e-4)
    assert all(0 <= p <= 1 for p in batch) and 0.001 < expected < 0.999


@pytest.mark.parametrize(
    "caption", ["a <|im_end|>dog<|image_pad|>", "a <|im_<|im_<|im_end|>end|>end|>dog"]
)
def test_captions_cannot_speak_the_models_control_language(local, caption):
    clean = local._inputs([Query((), "a dog")], [""])["input_ids"]
    assert torch.equal(local._inputs([Query((), caption)], [""])["input_ids"], clean)


def test_a_reward_from_the_local_model_end_to_end(local, tmp_path):
    """Real processor, images, model, cache and win rates; this tiny model writes no verdicts."""
    images = [[picture(colour, 28) for colour in ("red", "green", "blue")]]
    judge, short = Cached(local, tmp_path), {"template": "{prompt}?", "max_failed": 1.0}
    soft = PairwiseReward(judge, soft=True, **short)
    rewards, stats = soft(["dog"], images)
    odds = dict(
        zip(
            itertools.permutations(range(3), 2),
            local.first_probability(
                [Query(pair, "dog?") for pair in itertools.permutations(images[0], 2)]
            ),
        )
    )
    expected = [sum(odds[i, j] + 1 - odds[j, i] for j in range(3) if j != i) / 4 for i in range(3)]
    assert rewards[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards.std() > 0 and stats["failed"] == 0
    assert torch.equal(soft(["dog"], images).rewards, rewards)  # kept
    stats = PairwiseReward(judge, **short)(["dog"], images).stats
    assert stats["comparisons"] == 12 and stats["unparsable"] + stats["failed"] == 6


@pytest.mark.parametrize("name", ["", "none"])
def test_a_folder_that_holds_no_model_gets_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match="cannot load a multimodal model from") as error:
        LocalMLLM(tmp_path / name)
    assert "\n" not in str(error.value)


def test_local_name_says_what_changes_answers(local, folder):
    assert str(folder) in local.name and "12" in local.name
