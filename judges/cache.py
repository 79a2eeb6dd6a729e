"""Another MLLM's answers, kept on disk, so that nothing is asked twice.

judge = Cached(OpenAIMLLM("http://localhost:8000/v1", "UnifiedReward-Think"), "runs/judged")
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from judges.mllm import Answer, Query, StreamingMLLM, in_order
from support.rgb import to_rgb


def _image_digest(image: Image.Image) -> str:
    """Of what a judge is shown: size and RGB pixels, whatever file or mode they came in."""
    return hashlib.sha256(f"{image.size} ".encode() + to_rgb(image).tobytes()).hexdigest()


class Cached(StreamingMLLM):
    """Another MLLM's answers, kept on disk by (name, images in order, text); errors are not kept.

    keep: a text for which it is false is not kept either, so that another run asks again; nor is an
        unfinished one.
    One line of JSON is appended for each answer when it comes. A process killed at any point leaves
    at worst a torn line, which is skipped. Equal queries of a batch are asked once. Several threads
    and processes may share a folder. Memory holds all of it too.
    """

    def __init__(self, mllm: StreamingMLLM, folder: str | Path, keep: Callable[[str], bool] = bool):
        self.mllm, self.name, self.keep = mllm, mllm.name, keep
        self.path = Path(folder) / "answers.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Answer] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        if content and not content.endswith(b"\n"):  # the last writer was killed within a line
            self._append(b"\n")
        for line in content.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a torn line
                record = json.loads(line)
                self._kept[record["key"]] = Answer(record["text"], model=record.get("model"))

    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) of each query: first the kept ones, then the others as they come."""
        return self._recall(queries, [], self.mllm.as_answered, self.keep)

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """The other MLLM's, kept as its answers are. Raises ValueError if it has none."""

        def as_answered(asked):
            for k, p in enumerate(self.mllm.first_probability(asked)):
                yield k, Answer(error="none") if p is None else Answer(text=repr(p))

        answers = in_order(self._recall(queries, ["first_probability"], as_answered, bool))
        return [None if answer.text is None else float(answer.text) for answer in answers]

    def _recall(
        self, queries: Sequence[Query], kind: list[str], as_answered: Callable, keep: Callable
    ) -> Iterator[tuple[int, Answer]]:
        """(index, answer): the kept ones, then those that as_answered gives for the others.

        kind: what the key holds beside the query, [] for answers.
        """
        places: dict[str, list[int]] = {}  # key -> the queries that are equal
        for k, key in enumerate(self._keys(queries, kind)):
            places.setdefault(key, []).append(k)
        missing = [key for key in places if key not in self._kept]
        new = set(missing)
        for key, indices in places.items():
            if key not in new:
                yield from ((k, self._kept[key]) for k in indices)
        asked = [queries[places[key][0]] for key in missing]
        for n, answer in as_answered(asked) if asked else ():
            key = missing[n]
            if answer.text is not None and not answer.unfinished and keep(answer.text):
                self._kept[key] = answer
                record = {"key": key, "text": answer.text, "model": answer.model}
                self._append(json.dumps(record).encode() + b"\n")
            yield from ((k, answer) for k in places[key])

    def _keys(self, queries: Sequence[Query], kind: list[str]) -> list[str]:
        images = {id(image): image for query in queries for image in query.images}
        digests = {key: _image_digest(image) for key, image in images.items()}
        about = [[self.name, [digests[id(i)] for i in q.images], q.text, *kind] for q in queries]
        return [hashlib.sha256(json.dumps(parts).encode()).hexdigest() for parts in about]

    def _append(self, line: bytes) -> None:
        """In one write, so that the lines of several writers do not mix."""
        with open(self.path, "ab", buffering=0) as file:
            file.write(line)
