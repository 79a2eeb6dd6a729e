"""The judge that a command line names: one for train.py and bench.py.

judge = make_judge("openai", "http://localhost:8000/v1", max_tokens=2048)
judge = make_judge("shapes", max_tokens=2048, shapes=ShapesMLLM)
"""

import json
from collections.abc import Callable

from judges.mllm import MLLM

KINDS = ("shapes", "openai", "local")
OURS = ("messages", "model", "stream", "max_tokens", "max_completion_tokens")  # of a request


def parse_extra(text: str) -> dict:
    """The further fields of each request that --judge_extra gives; none of an empty text.

    Raises ValueError where it is no JSON object, or has a field that is set elsewhere.
    """
    try:
        extra = dict(json.loads(text or "{}").items())
        json.dumps(extra, allow_nan=False)
    except (ValueError, RecursionError, AttributeError):
        raise ValueError(f"--judge_extra '{text[:200]}' is no JSON object, as {{\"top_k\": 1}} is")
    if taken := [name for name in OURS if name in extra]:
        raise ValueError(
            f"--judge_extra cannot set '{taken[0]}': --judge_model, --judge_tokens (of bench.py: "
            "--max_tokens), the images and the prompt do"
        )
    return extra


def make_judge(
    kind: str,
    base_url: str | None = None,
    model: str | None = None,
    *,
    max_tokens: int,
    shapes: Callable[[], MLLM] | None = None,
    **server,
) -> MLLM:
    """What `shapes` makes ("shapes"), a server ("openai") or a model in process ("local").

    model: for "local" a folder or hub name, for "openai" by default the first one that the server
        lists. max_tokens: longest answer. server: settings of OpenAIMLLM, which says their units.
    Raises ValueError for an unknown kind, for "local" without a model, for a model that cannot be
    loaded, and for a server that is not there to list its models.
    """
    if kind == "shapes":
        return shapes()
    if kind == "openai":
        from judges.openai_client import OpenAIMLLM

        return OpenAIMLLM(base_url, model, max_tokens=max_tokens, **server)
    if kind != "local":
        raise ValueError(f"unknown judge '{kind}': choose from {', '.join(KINDS)}")
    if not model:
        raise ValueError("--judge local needs --judge_model, the folder or hub name of its model")
    from judges.local import LocalMLLM

    return LocalMLLM(model, max_new_tokens=max_tokens)
