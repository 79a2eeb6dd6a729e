"""A judge server for shapes: any MLLM behind the OpenAI chat-completions protocol, with faults.

Standard library only. It lets the network path be exercised for real, with the real client and the
faults that real servers have, on a machine without a GPU.

    python -m shapes.server --port 8000 --latency 0.05 --error_500 0.1
"""

import argparse
import base64
import io
import json
import random
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from common.rgb import to_rgb
from judges.mllm import MLLM, Answer, Query
from shapes import phrasebook
from shapes.read import Reading
from shapes.verifier import ShapesMLLM


class ClassroomMLLM(ShapesMLLM):
    """The verifier; where no image is shown, the phrase book answers construct.py's questions."""

    def answer(self, query: Query, shown: list[Reading]) -> str:
        written = None if shown else phrasebook.answer(query.text)
        return written or super().answer(query, shown)


@dataclass(frozen=True)
class Faults:
    """How long a request takes, and which shares of them, 0 to 1, go wrong in which way."""

    latency: float = 0.0  # seconds
    error_500: float = 0.0
    error_429: float = 0.0
    garbage: float = 0.0  # an answer without a verdict
    truncated: float = 0.0  # a body cut short
    hang: float = 0.0  # no answer for hang_seconds
    hang_seconds: float = 600.0
    seed: int = 0

    SHARES = ("error_500", "error_429", "garbage", "truncated", "hang")  # no annotation: no field

    def __post_init__(self):
        shares = {name: getattr(self, name) for name in self.SHARES}
        if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:  # such as 10 for 10 %
            raise ValueError(f"shares of faults must be from 0 to 1, also in sum: {shares}")


def parse_request(body: dict) -> Query:
    """Images (data URIs) and text of all messages, in order; ValueError for other addresses."""
    images, texts = [], []
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                header, _, data = part["image_url"]["url"].partition(",")
                if not header.startswith("data:image/"):
                    raise ValueError("images must be data URIs; this server fetches nothing")
                images.append(to_rgb(Image.open(io.BytesIO(base64.b64decode(data)))))
    return Query(tuple(images), "\n".join(texts))


def completion(message: dict, model: str, reason: str | None = "stop") -> dict:
    """A reply of the protocol with this message of the assistant."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}
    reply = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": model}
    return reply | {"choices": [choice]}


class JudgeServer(ThreadingHTTPServer):
    """Serves http://host:port/v1; port 0 takes a free one (see .url).

    host: where it listens. No password is asked for: 127.0.0.1 answers this machine alone, 0.0.0.0
    whoever can reach it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, mllm: MLLM, port=0, faults: Faults = Faults(), host="127.0.0.1"):
        super().__init__((host, port), Handler)
        self.mllm, self.faults, self.calls = mllm, faults, 0
        self._random, self._lock = random.Random(faults.seed), threading.Lock()
        self.url = f"http://{host}:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """Quiet where a client went away in the middle, as one that was killed does."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def draw_fault(self) -> str | None:
        """Which fault the next request meets, if any; also counts it."""
        with self._lock:
            self.calls += 1
            point = self._random.random()
        for name in self.faults.SHARES:
            point -= getattr(self.faults, name)
            if point < 0:
                return name
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for an acknowledgement
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *args) -> None:
        """Quiet: a line for each request would drown the terminal."""

    def reply(self, status: int, body: dict | bytes, cut: bool = False, **headers: str) -> None:
        """Sends JSON, or bytes as they are; cut: half of it. headers: names with _ for -."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content_Type": "application/json", "Content_Length": len(data)} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message}})

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            return self.refuse(404, f"no such path: {self.path}")
        model = {"id": self.server.mllm.name, "object": "model"}
        return self.reply(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self.refuse(404, f"no such path: {self.path}")
        faults, fault = self.server.faults, self.server.draw_fault()
        time.sleep(faults.hang_seconds if fault == "hang" else faults.latency)
        if fault in ("error_500", "error_429"):
            return self.refuse(int(fault[-3:]), "a fault on purpose")
        try:
            query = parse_request(json.loads(data))
        except Exception as error:  # whatever a client may send, also an image that PIL chokes on
            return self.refuse(400, f"bad request: {type(error).__name__}: {error}")
        answer = Answer("?!?") if fault == "garbage" else self.server.mllm.ask([query])[0]
        if answer.text is None:
            return self.refuse(500, answer.error)
        reply = completion({"content": answer.text}, self.server.mllm.name)
        return self.reply(200, reply, cut=fault == "truncated")


@contextmanager
def served(mllm: MLLM | None = None, port: int = 0, **faults):
    """Within the block a server of this judge, or of the verifier, runs in a thread: its .url."""
    server = JudgeServer(mllm or ShapesMLLM(), port, Faults(**faults))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    text = "127.0.0.1: this machine alone may ask; 0.0.0.0: whoever can reach it, without password"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    errs = {"error_rate": "share of random verdicts", "first_bias": "share of 'Image 1' regardless"}
    for name in (*errs, "latency", *Faults.SHARES, "hang_seconds"):
        usual = getattr(Faults, name, 0.0)
        parser.add_argument(f"--{name}", type=float, default=usual, help=errs.get(name))
    args = parser.parse_args()
    try:
        faults = Faults(**{k: v for k, v in vars(args).items() if hasattr(Faults, k)})
        mllm = ClassroomMLLM(args.error_rate, args.first_bias)
        server = JudgeServer(mllm, args.port, faults, args.host)
    except (ValueError, OSError) as error:  # a share above 1; a port that is taken
        raise SystemExit(f"cannot serve on port {args.port}: {error}")
    print(f"judging at {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"{server.calls} calls answered")


if __name__ == "__main__":
    main()
