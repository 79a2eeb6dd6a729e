"""A multimodal LLM is a function from (images, text) to text: a server, or a model in process.

Everything that judges or writes goes through `ask`: pairwise comparisons, testpoints, scores.

    judge = Cached(OpenAIMLLM("http://localhost:8000/v1", "UnifiedReward-Think"), "runs/judged")
    judge.ask([Query((first, second), "Which is better?")])      # [Answer(text=..., error=None)]
"""

import asyncio
import base64
import hashlib
import io
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import torch
from PIL import Image


class Query(NamedTuple):
    images: tuple[Image.Image, ...]
    text: str


class Answer(NamedTuple):
    """Exactly one of the two is not None."""

    text: str | None = None
    error: str | None = None


class MLLM(Protocol):
    name: str  # for people, and for the cache: the model and every setting that changes its answers

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer for each query, in order. A query that fails is an Answer with an error."""

    # and, where answers come one by one, as_answered(queries) -> Iterator of (index, Answer)


def _in_order(answered: Iterator[tuple[int, Answer]]) -> list[Answer]:
    return [answer for _, answer in sorted(answered, key=lambda pair: pair[0])]


# ---- a server ----

# Our own source of jitter: drawing from the global one would change what a seeded training draws.
_jitter = random.Random()


def _data_uri(image: Image.Image) -> str:
    """The image as a PNG data URI: lossless, at the fastest compression level."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _reply_text(reply) -> str:
    """The text of a chat completion; ValueError where there is none."""
    try:  # a server may send any JSON, and the client does not check it
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"not a chat completion: {str(reply)[:80]!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"empty answer (finish_reason: {reason})")
    return text


def _worth_retrying(error: Exception) -> bool:
    """True for busy or broken servers, timeouts, lost connections and garbled bodies."""
    if getattr(error, "code", None) == "insufficient_quota":  # a 429 that no waiting mends
        return False
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 409, 429) or not 400 <= status < 500


def _retry_delay(error: Exception, attempt: int) -> float:
    """Seconds to wait: what Retry-After says, otherwise exponential backoff with jitter."""
    with suppress(AttributeError, KeyError, ValueError):  # no response, no header, or a date
        return min(max(0.0, float(error.response.headers["retry-after"])), 60.0)  # NaN: 0
    return min(0.5 * 2**attempt, 30.0) * _jitter.uniform(0.5, 1.0)


class OpenAIMLLM:
    """Any OpenAI-compatible server: vLLM, SGLang, a cloud API.

    base_url, api_key: by default from the environment, OPENAI_BASE_URL and OPENAI_API_KEY. The key
        stands in no name, repr or error.
    model: by default the first one that the server lists.
    concurrency: calls in flight; N calls of latency L take ceil(N / concurrency) * L.
    timeout: seconds for one call from end to end. max_retries: further calls for one query.
    patience: seconds of calls without any success after which queries fail without being tried, but
        for one of each batch, which finds out whether the server is back. So a dead server costs
        patience + timeout, and a timeout for each later batch: not queries * retries * timeout.
    seed: None for servers that refuse it.
    max_calls: cap on calls over the life of the object, retries included.
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
        patience: float = 180.0,
        temperature: float = 0.0,
        seed: int | None = 0,
        max_tokens: int = 2048,
        max_calls: int | None = None,
    ):
        import openai
        from openai.types.chat import ChatCompletion

        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if concurrency < 1 or timeout <= 0:
            raise ValueError(f"concurrency and timeout must be positive: {concurrency}, {timeout}")
        # A server of one's own asks for no key, but the client insists on one; and no header takes
        # the line break at the end of a key that was read from a file.
        key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.netloc:  # not quoted: may hold a password
            raise ValueError("the judge's base URL must begin with http:// or https:// and a host")
        self._secrets = [secret for secret in (key, url.password) if secret and secret != "none"]
        self._where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # no credentials
        # One retry policy and one deadline, ours: the client's deadline is for each read of a call.
        options = {"base_url": base_url, "api_key": key, "max_retries": 0}
        # The last two are what the client lets through of a garbled body.
        self._errors = (openai.APIError, TimeoutError, ValueError, RecursionError)
        if model is None:
            try:
                model = openai.OpenAI(**options, timeout=timeout).models.list().data[0].id
            except (*self._errors, AttributeError, IndexError, TypeError) as error:
                said = f"{self._where} lists no model, name one: {error}"
                raise ValueError(self._scrubbed(said)) from None
        self.model, self.timeout, self.max_retries = model, timeout, max_retries
        self.patience, self.max_calls, self.calls = patience, max_calls, 0
        self._batches, self._idle_since = 0, time.monotonic()  # asked at present; without any since
        self._last_success, self._last_failure = self._idle_since, "none"
        self._request = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        if seed is not None:
            self._request["seed"] = seed
        settings = f"temperature {temperature}, seed {seed}, max_tokens {max_tokens}"
        self.name = f"{model} at {self._where} ({settings})"

        # One event loop in one daemon thread, for life: connections are reused from batch to batch,
        # an interrupt cancels every call in flight, and nothing keeps the process from ending.
        self._client = openai.AsyncOpenAI(**options, timeout=None)
        self._reply_type = ChatCompletion
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="mllm", daemon=True).start()

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        return _in_order(self.as_answered(queries))

    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) of each query as they come; several threads may ask at once."""
        come = queue.SimpleQueue()
        future = asyncio.run_coroutine_threadsafe(self._ask_all(queries, come.put), self._loop)
        future.add_done_callback(lambda _: come.put(None))
        try:
            while (item := come.get()) is not None:
                yield item
            future.result()
        finally:
            future.cancel()  # only matters on KeyboardInterrupt

    async def _ask_all(self, queries: Sequence[Query], done) -> None:
        if not self._batches:  # time in which nothing was asked is no silence of the server
            self._last_success += time.monotonic() - self._idle_since
        self._batches += 1
        # Each image is encoded once, while the first calls run.
        images = {id(image): image for query in queries for image in query.images}
        uris = {k: asyncio.create_task(asyncio.to_thread(_data_uri, i)) for k, i in images.items()}

        async def answer(index: int, query: Query) -> None:
            done((index, await self._answer(query, uris, probe=index == 0)))

        try:
            await asyncio.gather(*(answer(k, query) for k, query in enumerate(queries)))
        finally:
            self._batches -= 1
            self._idle_since = time.monotonic()

    async def _answer(self, query: Query, uris: dict[int, asyncio.Future], probe: bool) -> Answer:
        """The first good answer within the retries, or the last error.

        probe: this query is tried once even when the server has been silent for too long.
        """
        urls = [await uris[id(image)] for image in query.images]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": query.text})
        for attempt in range(self.max_retries + 1):
            async with self._slots:
                silent = time.monotonic() - self._last_success > self.patience
                if silent and (attempt or not probe):
                    message = f"no call was answered for {self.patience:g} s"
                    return Answer(error=f"{message} (last: {self._last_failure})")
                if self.max_calls is not None and self.calls >= self.max_calls:
                    return Answer(error=f"the cap of {self.max_calls} calls is reached")
                self.calls += 1
                try:
                    return Answer(text=await self._call(content))
                except self._errors as error:
                    failure = error
            message = f"{type(failure).__name__}: {failure}"
            if isinstance(failure, TimeoutError):  # it has no text of its own
                message = f"no answer within {self.timeout:g} s"
            self._last_failure = message = self._scrubbed(message)
            if attempt == self.max_retries or not _worth_retrying(failure):
                break
            await asyncio.sleep(_retry_delay(failure, attempt))
        return Answer(error=message)

    async def _call(self, content: list[dict]) -> str:
        body = {"messages": [{"role": "user", "content": content}], **self._request}
        # Not chat.completions.create: it rewrites the request key by key, a third of a call's time.
        call = self._client.post("/chat/completions", cast_to=self._reply_type, body=body)
        text = _reply_text(await asyncio.wait_for(call, self.timeout))
        self._last_success = time.monotonic()
        return text

    def _scrubbed(self, message: str) -> str:
        """The message in one line of at most 300 characters, without key and URL's password."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return " ".join(message.split())[:300]


# ---- a model in process ----


def _load_processor(folder: str, config):
    """The model's processor, with or without torchvision."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(folder)

    # Without torchvision, transformers cannot make the video processor that Qwen's processors
    # insist on. We show no videos: accept None in its place, and take images through PIL.
    class ImageProcessorOnly(PROCESSOR_MAPPING[type(config)]):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument is not None:
                return super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return ImageProcessorOnly(images, tokenizer, None, chat_template=tokenizer.chat_template)


class LocalMLLM:
    """A transformers image-text-to-text model in process: Qwen2.5-VL, Qwen3-VL and their kin.

    dtype: by default that of the weights on disk. device: by default CUDA where there is one.
    """

    def __init__(
        self,
        folder_or_name: str | Path,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
    ):
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        folder = str(folder_or_name)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        try:
            self.processor = _load_processor(folder, AutoConfig.from_pretrained(folder))
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:  # not there; not of the kind
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"cannot load a multimodal model from '{folder}': {reason}") from None
        self.name = f"{folder} ({self.model.dtype}, max_new_tokens {max_new_tokens})"
        # Padding on the left: generation goes on from the last position of every row.
        self.processor.tokenizer.padding_side = "left"
        added = self.processor.tokenizer.added_tokens_decoder.values()
        self._control = [str(token) for token in added if token.special and str(token)]
        self.model.to(self.device).eval()
        # Published generation configs sample and penalise repetition. Keep only where theirs ends,
        # so that the answer is the most probable token at each place and nothing else.
        eos, pad = self.model.generation_config.eos_token_id, self.processor.tokenizer.pad_token_id
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad
        )

    def _inputs(self, queries: Sequence[Query], openings: Sequence[str]):
        """The batch as tensors; `openings` are the first words of the answers."""
        texts = []
        for query, opening in zip(queries, openings, strict=True):
            text = query.text  # it must not open a turn or announce an image, whatever the caption
            while any(token in text for token in self._control):  # halves may meet: again
                for token in self._control:
                    text = text.replace(token, "")
            content = [{"type": "image"} for _ in query.images] + [{"type": "text", "text": text}]
            turn = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True)
            texts.append(text + opening)
        images = [image.convert("RGB") for query in queries for image in query.images] or None
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        return batch.to(self.device)

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        return _in_order(self.as_answered(queries))

    @torch.inference_mode()
    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        for start in range(0, len(queries), self.batch_size):
            batch = queries[start : start + self.batch_size]
            inputs = self._inputs(batch, [""] * len(batch))
            tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            for k, text in enumerate(texts, start):
                yield k, Answer(text=text) if text.strip() else Answer(error="empty answer")

    @torch.inference_mode()
    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better"), of the two answers, when the model answers without reasoning.

        None where the model gives no finite probability.
        """
        openings = [f"<answer>Image {number} is better" for number in (1, 2)]
        probabilities = []
        size = max(1, self.batch_size // 2)  # each query takes two rows
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            inputs = self._inputs([q for q in batch for _ in openings], openings * len(batch))
            ids = inputs["input_ids"]
            # A query's two texts are equally long; what they share before the digit cancels.
            tail = ids.shape[1] - int((ids[0::2] != ids[1::2]).any(0).int().argmax())
            logits = self.model(**inputs, logits_to_keep=tail + 1).logits[:, :-1].float()
            log_prob = logits.log_softmax(-1).gather(2, ids[:, -tail:, None]).sum((1, 2))
            probabilities += log_prob.view(-1, 2).softmax(1)[:, 0].tolist()
        return [p if p == p else None for p in probabilities]  # NaN differs from itself


# ---- a memory ----


def _image_digest(image: Image.Image) -> str:
    """Of what a judge is shown: size and RGB pixels, whatever file or mode they came in."""
    return hashlib.sha256(f"{image.size} ".encode() + image.convert("RGB").tobytes()).hexdigest()


class Cached:
    """Another MLLM's answers, kept on disk by (name, images in order, text); errors are not kept.

    keep: a text for which it is false is not kept either, so that another run asks again.
    One line of JSON an answer, appended as it comes where the mllm has `as_answered`: a process
    killed at any point leaves at worst a torn line, which is skipped. Equal queries of a batch are
    asked once. Several threads and processes may share a folder. Memory holds all of it too.
    """

    def __init__(self, mllm: MLLM, folder: str | Path, keep: Callable[[str], bool] = bool):
        self.mllm, self.name, self.keep = mllm, mllm.name, keep
        if hasattr(mllm, "first_probability"):  # only then, since its presence is asked for
            self.first_probability = self._first_probability
        self.path = Path(folder) / "answers.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._texts, kept = {}, self.path.read_bytes() if self.path.exists() else b""
        if kept and not kept.endswith(b"\n"):  # the last writer was killed within a line
            self._append(b"\n")
        for line in kept.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a torn line
                record = json.loads(line)
                self._texts[record["key"]] = record["text"]

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        as_answered = getattr(self.mllm, "as_answered", lambda q: enumerate(self.mllm.ask(q)))
        return self._recall(queries, [], as_answered, self.keep)

    def _first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        def as_answered(asked):
            for k, p in enumerate(self.mllm.first_probability(asked)):
                yield k, Answer(error="none") if p is None else Answer(text=repr(p))

        answers = self._recall(queries, ["first_probability"], as_answered, bool)
        return [None if answer.text is None else float(answer.text) for answer in answers]

    def _recall(self, queries, kind: list[str], as_answered, keep) -> list[Answer]:
        """The queries' answers: kept ones, and for the others those of as_answered."""
        images = {id(image): image for query in queries for image in query.images}
        digests = {key: _image_digest(image) for key, image in images.items()}
        about = [[self.name, [digests[id(i)] for i in q.images], q.text, *kind] for q in queries]
        keys = [hashlib.sha256(json.dumps(parts).encode()).hexdigest() for parts in about]
        new = {key: q for key, q in zip(keys, queries, strict=True) if key not in self._texts}
        missing, asked, loose = list(new), list(new.values()), {}
        for k, answer in as_answered(asked) if asked else []:
            if answer.text is None or not keep(answer.text):
                loose[missing[k]] = answer
            else:
                self._texts[missing[k]] = answer.text
                self._append(json.dumps({"key": missing[k], "text": answer.text}).encode() + b"\n")
        return [loose.get(key) or Answer(text=self._texts[key]) for key in keys]

    def _append(self, line: bytes) -> None:
        """In one write, so that the lines of several writers do not mix."""
        with open(self.path, "ab", buffering=0) as file:
            file.write(line)
