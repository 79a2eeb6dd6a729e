"""A multimodal LLM is a function from (images, text) to text.

Everything that judges or writes goes through `ask`: pairwise comparisons, testpoints, ratings.
Whose answers they are: server.py a server's, local.py a model's in this process, shapes/verifier.py
the verifier's; record.py writes down what another one says.

    judge = OpenAIMLLM("http://localhost:8000/v1", "UnifiedReward-Think")
    judge.ask([Query((first, second), "Which is better?")])      # [Answer(text=..., error=None)]
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    # Why the model did not end its answer, None if it did. It was heard: with an error beside this
    # it said nothing, or only thought, and would do so again.
    unfinished: str | None = None


def cut_off(tokens: int) -> str:
    """Why an answer is unfinished that was stopped at the longest that was asked for."""
    return f"cut off at {tokens} tokens, the limit of --judge_tokens (of bench.py: --max_tokens)"


class MLLM(Protocol):
    name: str  # for people and journals: the model and every setting that changes its answers

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer for each query, in order. A query that fails is an Answer with an error."""


def in_order(answered: Iterable[tuple[int, Answer]]) -> list[Answer]:
    """The answers of (index, answer) pairs, by index."""
    return [answer for _, answer in sorted(answered, key=lambda pair: pair[0])]


# ----------------------------------------------------------------------------- reading answers

_NAMES = "think|thinking|thought|reasoning"
_THOUGHT_BEGINS = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|◁think▷")
_THOUGHT_ENDS = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷")


def final_part(text: str, unfinished: object = None) -> str:
    """What stands after a model's thinking, in which no answer is final however it sounds.

    The tag that opens the thought may stand in the prompt, and so be missing here. Therefore an
    unfinished text in which no thought ends may be one thought, and nothing of it is final.
    """
    *thoughts, rest = _THOUGHT_ENDS.split(text)
    if unfinished and not thoughts:
        return ""
    return _THOUGHT_BEGINS.split(rest, maxsplit=1)[0].strip()


def open_thought(prompt: str) -> str:
    """What closes the thought that a prompt opens at its end; "" where it opens none."""
    *_, tag = ["", *_THOUGHT_BEGINS.findall(prompt)]
    return f"{tag[0]}/{tag[1:]}" if tag and prompt.rstrip().endswith(tag) else ""


def without_echo(text: str, question: str) -> str:
    """The text without repetitions of the whole question, whose example is nobody's answer."""
    words = question.split()
    if not words or " ".join(words) not in " ".join(text.split()):
        return text
    return re.sub(r"\s+".join(map(re.escape, words)), "\n", text)


def ask_again(ask: Callable, queries: Sequence[Query], again: Callable, retries: int = 1) -> list:
    """All that is said of each query, a list each; the last counts. ask: queries -> one a query.

    again(query, said): the text with which a query is asked once more; None where what was said
    will do. It should differ from the first if the judge was heard: a greedy model that is asked
    the very same text says the very same.
    """
    heard = [[said] for said in ask(queries)]
    for _ in range(retries):
        texts = {k: again(queries[k], said[-1]) for k, said in enumerate(heard)}
        lost = [k for k, text in texts.items() if text is not None]
        repeats = ask([queries[k]._replace(text=texts[k]) for k in lost]) if lost else []
        for k, said in zip(lost, repeats):
            heard[k].append(said)
    return heard


class StreamingMLLM(ABC):
    """An MLLM that gives each answer as soon as it is there, to be written down at once."""

    name: str

    @abstractmethod
    def as_answered(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) of each query, in the order in which the answers come."""

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        return in_order(self.as_answered(queries))

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better") for each query with two images; None where there is none.

        Raises ValueError if this MLLM gives no probabilities: only LocalMLLM does.
        """
        raise ValueError(f"{self.name} gives no probabilities; only a local model does")
