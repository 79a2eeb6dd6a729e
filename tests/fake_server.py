"""A server that speaks the protocol and fails in every way we know of, and a client for it."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from judges.openai_client import OpenAIMLLM

KEY, PASSWORD = "sk-secret-0123456789", "pa55word"
HANG = 120.0  # seconds after which a test that waits for what never happens is given up


def picture(color: str, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def completion(text, reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": reason, "message": message}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(reply | {"choices": [choice]}).encode()


def choice(content, **others):
    body = json.loads(completion("x", others.pop("reason", "stop")))
    body["choices"][0]["message"] = {"role": "assistant", "content": content, **others}
    return body


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
            server.times.append(time.monotonic())
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
            status, said, *headers = fault
            self.send(status, json.dumps(said).encode(), **dict(*headers))
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
        else:
            raise AssertionError(fault)


class Clock:
    """Seconds that a test sets; one passes with each call to the server."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(*faults, together: int = 0, tls=None):
    """A server; its first calls meet the faults, one each, and the others are echoed.

    tls: the SSLContext of a server that speaks TLS.
    together: how many calls have to be in flight before they are answered.
    Calls whose text begins with "hold" wait for `gate`; `held` counts them.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.handle_error = True, lambda *_: None  # tells of no broken calls
    if tls:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.faults, server.lock, server.clock = list(faults), threading.Lock(), Clock()
    server.requests, server.active, server.most_active = [], 0, 0
    server.times = []  # when each request came
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
