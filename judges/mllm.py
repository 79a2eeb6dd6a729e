"""A multimodal LLM is a function from (images, text) to text.

Everything that judges or writes goes through `ask`: pairwise comparisons, testpoints, ratings.
Whose answers they are: server.py a server's, local.py a model's in this process, shapes/verifier.py
the verifier's; record.py writes down what another one says.

    judge = OpenAIMLLM("http://localhost:8000/v1", "UnifiedReward-Think")
    judge.ask([Query((first, second), "Which is better?")])      # [Answer(text=..., error=None)]
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from PIL import Image


class Query(NamedTuple):
    images: tuple[Image.Image, ...]
    text: str


class Answer(NamedTuple):
    """Exactly one of text and error is not None."""

    text: str | None = None
    error: str | None = None
    model: str | None = None  # the model that the server says answered; None if no server did


class MLLM(Protocol):
    name: str  # for people and journals: the model and every setting that changes its answers

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer for each query, in order. A query that fails is an Answer with an error."""


def in_order(answered: Iterable[tuple[int, Answer]]) -> list[Answer]:
    """The answers of (index, answer) pairs, by index."""
    return [answer for _, answer in sorted(answered, key=lambda pair: pair[0])]


class StreamingMLLM:
    """An MLLM that gives each answer as soon as it is there, to be written down at once."""

    name: str

    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) of each query, in the order in which the answers come."""
        raise NotImplementedError

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        return in_order(self.as_answered(queries))

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better") for each query with two images; None where there is none.

        Raises ValueError if this MLLM gives no probabilities: only LocalMLLM does.
        """
        raise ValueError(f"{self.name} gives no probabilities; only a local model does")
