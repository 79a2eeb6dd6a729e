"""The judge server of shapes with a script of what each call meets, and a client for it."""

import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

from PIL import Image

from judges.mllm import Query
from judges.openai_client import OpenAIMLLM
from shapes import server as real

KEY, PASSWORD = "sk-secret-0123456789", "pa55word"
HANG = 120.0  # seconds after which a test that waits for what never happens is given up


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (16, 16), color)


def choice(content, reason: str | None = "stop", **others) -> dict:
    """A reply with this content, and others beside it in the message."""
    return real.completion({"content": content, **others}, "m", reason)


# what a call may meet, beside a status, a reply, and (status, body) or (status, body, headers)
FAULTS = {
    "garbage": (200, b"<html>not json"),
    "html": (200, b"<html>a proxy</html>", {"Content_Type": "text/html"}),
    "deep": (200, b"[" * 100_000),
    "null": (200, b"null"),
    "truncated": (200, b'{"id": "x"', {"Content_Length": "4000"}),
    "quota": (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}),
    "lines": (400, {"error": {"message": f"Bad gateway:\r\n  line 1, {KEY}\n"}}),
}


class Handler(real.Handler):
    """Does what the script says, where the real one draws faults; and asks no verifier."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        script, text = self.server.script, next(p["text"] for p in content if p["type"] == "text")
        with script.lock:
            script.requests.append((body, self.headers))
            script.times.append(time.monotonic())
            script.active += 1
            script.most_active = max(script.most_active, script.active)
            fault = script.faults.pop(0) if script.faults else choice("echo " + text)
            fault = script.refuse(body) or fault if script.refuse else fault
        if script.together:  # nobody is answered before so many calls are in flight
            script.together.wait(HANG)
        if text.startswith("hold") or fault == "hold":
            script.held.release()
            script.gate.wait(HANG)
        with script.lock:  # before the reply, after which the client may already send the next call
            script.active -= 1
        script.now += 1
        if fault in ("drop", "hold"):
            self.close_connection = True
        elif isinstance(fault, dict):
            self.reply(200, fault)
        elif isinstance(fault, int):
            self.refuse(fault, f"fault {fault}: {KEY}, {PASSWORD}")
        else:
            status, reply, *headers = FAULTS[fault] if isinstance(fault, str) else fault
            self.close_connection |= fault == "truncated"
            self.reply(status, reply, **dict(*headers))


@contextmanager
def serving(*faults, together: int = 0, tls=None):
    """What the server does and what it saw; its first calls meet the faults, others are echoed.

    together: how many calls have to be in flight before they are answered. tls: an SSLContext.
    Calls whose text begins with "hold" wait for `gate`; `held` counts them.
    refuse: a function of the request, which gives (status, body) or None.
    """
    script = SimpleNamespace(
        faults=list(faults), lock=threading.Lock(), now=0.0, refuse=None,
        requests=[], times=[], active=0, most_active=0,
        together=threading.Barrier(together) if together else None,
        gate=threading.Event(), held=threading.Semaphore(0),
    )  # fmt: skip
    with real.served(SimpleNamespace(name="listed")) as server:
        server.RequestHandlerClass, server.script = Handler, script
        if tls:
            handshake = {"server_side": True, "do_handshake_on_connect": False}
            server.socket = tls.wrap_socket(server.socket, **handshake)
        server.handle_error = lambda *_: None  # tells of no broken calls
        script.url = server.url
        try:
            yield script
        finally:
            script.gate.set()


def client(server, **settings) -> OpenAIMLLM:
    """A client without the seconds of backoff, by whose clock a call takes one second."""
    usual = {"api_key": KEY, "timeout": HANG, "backoff": 0.0, "clock": lambda: server.now}
    return OpenAIMLLM(server.url, "judge", **usual | settings)


def questions(*asked) -> list[Query]:
    return [Query((), str(text)) for text in asked]


def texts(answers) -> list[str | None]:
    return [answer.text for answer in answers]
