"""What a judge was asked and what it said, written down for people, and bounded.

Nothing is read back: a run that goes on asks at most about the step that was interrupted.

verdicts.jsonl    one line an answer: question, answer and how it was read; at SIZE bytes it becomes
                  verdicts.old.jsonl, and a new one begins
pair_00.png, ...  the pictures of the first question of each batch, the last PICTURES of them; the
                  line of that answer names the file

judge = Recorded(OpenAIMLLM("http://localhost:8000/v1"), "runs/served/verdicts")
"""

import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from judges.mllm import Answer, Query, StreamingMLLM, without_echo
from judges.verdicts import parse_ratings, read
from support.pictures import sample_grid

SIZE = 16_000_000  # bytes of one file of lines, of which there are two
PICTURES = 100


def reading(query: Query, answer: Answer) -> str | float | None:
    """How an answer is read: a verdict's name of two images, the mean rating of one."""
    if answer.text and len(query.images) == 1:
        return parse_ratings(without_echo(answer.text, query.text), answer.unfinished)
    return read(query, answer).verdict.value


class Recorded(StreamingMLLM):
    """Another MLLM, whose answers are written down as they come. Several threads may ask."""

    def __init__(self, mllm: StreamingMLLM, folder: str | Path):
        self.mllm, self.name, self.folder = mllm, mllm.name, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.batches, self.lock = itertools.count(), threading.Lock()

    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        shown = self._show(queries)
        for k, answer in self.mllm.as_answered(queries):
            found = reading(queries[k], answer)
            self._write(queries[k], "" if k else shown, found, answer._asdict())
            yield k, answer

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        shown, found = self._show(queries), self.mllm.first_probability(queries)
        for k, (query, probability) in enumerate(zip(queries, found, strict=True)):
            self._write(query, "" if k else shown, probability, {})
        return found

    def _show(self, queries: Sequence[Query]) -> str:
        """The file of the first question's pictures, side by side."""
        if not queries or not queries[0].images:
            return ""
        name = f"pair_{next(self.batches) % PICTURES:02}.png"
        sample_grid([list(queries[0].images)], ["as they were shown"], self.folder / name)
        return name

    def _write(self, query: Query, pictures: str, found, answer: dict) -> None:
        line = {"pictures": pictures, "read_as": found, **answer, "question": query.text}
        path = self.folder / "verdicts.jsonl"
        with self.lock, open(path, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            if file.tell() > SIZE:
                os.replace(path, self.folder / "verdicts.old.jsonl")
