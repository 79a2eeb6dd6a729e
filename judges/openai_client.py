"""Any OpenAI-compatible server: vLLM, SGLang, a cloud API.

OpenAIMLLM("http://localhost:8000/v1").ask([Query((first, second), "Which is better?")])
"""

import asyncio
import base64
import io
import json
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from PIL import Image

from common.rgb import to_rgb
from judges.mllm import MLLM, Answer, Query
from judges.refusal import Address, Refusal
from judges.reply import answer_of
from judges.slots import Slots

log = logging.getLogger(__name__)

# Variables of the environment that have a say in how servers are reached.
ENVIRONMENT = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ALTERNATIVES = 5  # tokens at each place, as many as all servers give that give any
# A source of our own: drawing from the global one would change what a seeded training draws.
_jitter = random.Random()


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_uri(image: Image.Image) -> str:
    """The image as a PNG data URI: lossless, at the fastest compression level."""
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, "PNG", compress_level=1)
    return data_uri("image/png", buffer.getvalue())


def retry_delay(attempt: int, backoff: float) -> float:
    """Seconds to wait where the server does not say: exponential backoff with jitter.

    attempt: how many were retries already; backoff: the longest wait before the first retry.
    """
    return min(backoff * 2.0 ** min(attempt, 60), 30.0) * _jitter.uniform(0.5, 1.0)


class OpenAIMLLM(MLLM):
    """Any OpenAI-compatible server: vLLM, SGLang, a cloud API.

    base_url, api_key: by default from the environment, OPENAI_BASE_URL and OPENAI_API_KEY. The key
        stands in no name, repr or error. ValueError if there is no URL or nothing can be asked so.
    model: by default the first one that the server lists.
    concurrency: calls in flight; fewer after timeouts and where the server has too many (slots.py).
    timeout: seconds for one call from end to end. max_retries: further calls for one query.
    backoff: the longest wait before the first retry, in seconds. Where the server says how long to
        wait, no call is begun before; that counts as no retry, and against patience.
    patience: seconds of calls without any success after which queries fail without being tried, but
        for one of each batch, which finds out whether the server is back. So a dead server costs
        patience + timeout, and a timeout for each later batch: not queries * retries * timeout.
        Where the server asks for a longer wait than is left of it, all fail at once.
    temperature, seed, max_tokens: what a server refuses of these (with a 400 that names it) is left
        out, or called max_completion_tokens, from the first answer on that it gives without. The
        first two may be None, which is not sent.
    encode, text_first, others: an image's data URI, whether the text stands before the images, and
        what else is sent, as published clients differ in.
    max_calls: cap on calls over the life of the object, retries included.
    clock: tells the seconds that patience counts.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 5,
        backoff: float = 0.5,
        patience: float = 180.0,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        max_tokens: int = 2048,
        encode: Callable[[Image.Image], str] = png_uri,
        text_first: bool = False,
        others: dict | None = None,
        max_calls: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if concurrency < 1 or timeout <= 0:
            raise ValueError(f"concurrency and timeout must be positive: {concurrency}, {timeout}")
        self.timeout, self.max_retries, self.backoff = timeout, max_retries, backoff
        self.patience, self.max_calls, self.max_tokens = patience, max_calls, max_tokens
        self.calls, self._clock = 0, clock
        self._connect(base_url, api_key)
        # One event loop in one daemon thread for as long as the process lives: connections are
        # reused from batch to batch, an interrupt cancels every call in flight, and nothing keeps
        # the process from ending.
        self._loop, self._slots = asyncio.new_event_loop(), Slots(concurrency)
        threading.Thread(target=self._loop.run_forever, name="mllm", daemon=True).start()
        self.model = model or self._first_model()
        self._batches = 0  # how many are being asked now
        self._idle_since = clock()  # when the last of them ended
        self._last_success, self._last_failure = self._idle_since, "none"
        self._opens = self._idle_since  # when the server wants the next call at the earliest
        given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        sent = {key: value for key, value in given.items() if value is not None}
        self._request = {"model": self.model, **sent, **(others or {})}
        self._encode, self._text_first = encode, text_first
        settings = f"temperature {temperature}, seed {seed}, max_tokens {max_tokens}"
        settings += f", {json.dumps(others)}" * bool(others)
        # As asked for, whatever is refused.
        self.name = f"{self.model} at {self._address.where} ({settings})"

    def _connect(self, base_url: str | None, api_key: str | None) -> None:
        import openai
        from openai.types.chat import ChatCompletion

        url = base_url or os.environ.get("OPENAI_BASE_URL") or ""
        self._address = Address(url, api_key or os.environ.get("OPENAI_API_KEY") or "")
        self._reply_type = ChatCompletion
        # The client itself raises the last two for some garbled bodies.
        self._errors = (openai.APIError, TimeoutError, ValueError, RecursionError)
        try:
            self._client = openai.AsyncOpenAI(
                base_url=self._address.url,
                api_key=self._address.key or "none",  # it insists on one
                max_retries=0,  # one retry policy and one deadline, ours:
                timeout=None,  # the client's deadline is for each read of a call
            )
        except Exception as error:  # of many kinds and modules, by the proxy or certificates named
            named = [n for n in ENVIRONMENT if os.environ.get(n) or os.environ.get(n.lower())]
            sets = f" (the environment sets {', '.join(named)})" if named else ""
            raise ValueError(self._address.scrubbed(f"no judge can be asked: {error}{sets}"))

    def _first_model(self) -> str:
        """The name that the server lists first. Raises ValueError if it lists none."""
        listed = self._in_time(self._client.models.list())
        try:
            return asyncio.run_coroutine_threadsafe(listed, self._loop).result().data[0].id
        except (*self._errors, AttributeError, IndexError, TypeError) as error:
            why = Refusal(error, self._address).text
            where = self._address.where
            raise ValueError(f"{where} lists no model, name one: {why}") from None

    async def _in_time(self, call: Awaitable):
        try:
            return await asyncio.wait_for(call, self.timeout)
        except TimeoutError:  # it has no text of its own
            raise TimeoutError(f"no answer within {self.timeout:g} s") from None

    def ask(self, queries: Sequence[Query], **more) -> list[Answer]:
        """One answer for each query, in order; several threads may ask at once.

        more: further fields of these requests.
        """
        future = asyncio.run_coroutine_threadsafe(self._ask_all(queries, more), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # only matters on KeyboardInterrupt

    def ask_with_tokens(self, queries: Sequence[Query]) -> list[Answer]:
        """As `ask`, with each answer's tokens and the likeliest in the place of each."""
        return self.ask(queries, logprobs=True, top_logprobs=ALTERNATIVES)

    async def _ask_all(self, queries: Sequence[Query], more: dict) -> list[Answer]:
        if not self._batches:  # time in which nothing was asked is no silence of the server
            self._last_success += self._clock() - self._idle_since
        self._batches += 1
        # Each image is encoded once, while the first calls run.
        images = {id(image): image for query in queries for image in query.images}
        encoded = {k: asyncio.to_thread(self._encode, image) for k, image in images.items()}
        uris = {k: asyncio.create_task(uri) for k, uri in encoded.items()}
        answers = (self._answer(query, uris, more, k == 0) for k, query in enumerate(queries))
        try:
            return await asyncio.gather(*answers)
        finally:
            self._batches -= 1
            self._idle_since = self._clock()

    async def _answer(
        self, query: Query, uris: dict[int, asyncio.Future], more: dict, probe: bool
    ) -> Answer:
        """The first good answer within the retries, or the last error.

        probe: this query is tried once even when the server has been silent for too long.
        """
        urls = [await uris[id(image)] for image in query.images]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.insert(0 if self._text_first else len(urls), {"type": "text", "text": query.text})
        tries, repeats, waited = 0, 0, 0.0
        while True:
            async with self._slots as number:
                if dead := await self._turn(probe and not repeats):
                    return Answer(error=dead, unreachable=True)
                try:
                    answer = await self._call(content, more)
                    self._slots.answered()
                    return answer
                except Refusal as error:
                    refusal = error
                self._last_failure = refusal.text
                if refusal.crowded:
                    self._slots.timed_out(number)
                if refusal.wait:
                    self._opens = max(self._opens, self._clock() + refusal.wait)
            tries += refusal.wait is None
            waited += refusal.wait or 0.0
            # One query that alone is told to wait, again and again, is given up as well.
            if refusal.lasting or tries > self.max_retries or waited > self.patience:
                dead = await self._turn()
                away = refusal.unreachable or dead is not None
                return Answer(error=dead or refusal.text, unreachable=away)
            if not refusal.wait:
                await asyncio.sleep(retry_delay(repeats, self.backoff))
            repeats += 1

    async def _turn(self, probe: bool = False) -> str | None:
        """Waits as long as the server asks; at once why no call is to be made, if none is."""
        while True:
            now = self._clock()
            if self._opens > now and self._opens - self._last_success > self.patience:
                return (
                    f"the server asks for a wait of {self._opens - now:.0f} s, longer than is left "
                    f"of the {self.patience:g} s of --patience ({self._last_failure})"
                )
            if now - self._last_success > self.patience and not probe:
                message = f"no call was answered for {self.patience:g} s"
                return f"{message} (last: {self._last_failure})"
            if now >= self._opens:
                return None
            await asyncio.sleep(self._opens - now)

    async def _call(self, content: list[dict], more: dict) -> Answer:
        """One answer, in further calls without what the server refuses by name. Raises Refusal."""
        first = request = self._request
        while True:
            if self.max_calls is not None and self.calls >= self.max_calls:
                return Answer(error=f"the cap of {self.max_calls} calls is reached")
            self.calls += 1
            body = {"messages": [{"role": "user", "content": content}], **request, **more}
            # Not chat.completions.create: it rewrites the request key by key, a third of the time.
            call = self._client.post("/chat/completions", cast_to=self._reply_type, body=body)
            try:
                answer = answer_of(await self._in_time(call), self.max_tokens)
                break
            except self._errors as error:
                refusal = await asyncio.to_thread(Refusal, error, self._address)
            if not (less := refusal.less(request)):
                raise refusal
            request = less
        self._last_success = self._clock()
        refused = sorted(self._request.keys() - request.keys())
        if request is not first and refused:  # not found out by a call beside this one
            self._request = request
            named = ", ".join(f"{key} {value}" for key, value in request.items() if key != "model")
            said = "the server refuses %s; now sent: %s"
            if "temperature" in refused:
                said += "; answers may differ each time (bench.py: --temperature none sends none)"
            log.warning(said, " and ".join(refused), named or "none")
        return answer
