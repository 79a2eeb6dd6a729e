"""A vision-language model is a function from (images, text) to text.

Everything that judges or writes goes through `ask`: pairwise comparisons, testpoints, ratings.
Whose answers they are: openai_client.py a server's, local.py a model's in this process,
shapes/verifier.py the verifier's. What an answer says is read in answers.py.

    judge = OpenAIMLLM("http://localhost:8000/v1", "UnifiedReward-Think")
    judge.ask([Query((first, second), "Which is better?")])      # [Answer(text=..., error=None)]
"""

from collections.abc import Callable, Sequence
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
    # Why the model did not end its answer, None if it did. With an error beside this it responded
    # and said nothing, or only thought, and would do so again.
    unfinished: str | None = None
    unreachable: bool = False  # whatever was asked: the server is dead, or wants a longer wait
    usage: tuple[int, int] | None = None  # tokens of question and answer, where they are counted
    # Of the text, where asked for: each token, with {token: log-prob} of it and its alternatives.
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()


def cut_off(tokens: int) -> str:
    """Why an answer is unfinished that was stopped at the longest that was asked for."""
    return f"cut off at {tokens} tokens, the limit of --judge_tokens (of bench.py: --max_tokens)"


class MLLM(Protocol):
    name: str  # for people and journals: the model and every setting that changes its answers

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer for each query, in order. A query that fails is an Answer with an error."""

    def first_probability(self, queries: Sequence[Query]) -> list[float | None]:
        """P("Image 1 is better") for each query with two images; None where there is none."""


def ask_again(
    ask: Callable, queries: Sequence[Query], again: Callable, times: int = 1
) -> list[list]:
    """All that is said of each query; the last counts. ask: queries -> one a query.

    again(query, said): the text with which a query is asked once more; None where what was said
    will do. It should differ from the first if the model responded: a greedy one that is asked the
    very same text says the very same. times: how often at most it is asked again.
    """
    heard = [[said] for said in ask(queries)]
    for _ in range(times):
        texts = {k: again(query, heard[k][-1]) for k, query in enumerate(queries)}
        repeats = {
            k: queries[k]._replace(text=text) for k, text in texts.items() if text is not None
        }
        if not repeats:
            break
        for k, said in zip(repeats, ask(list(repeats.values()))):
            heard[k].append(said)
    return heard
