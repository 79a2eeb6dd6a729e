"""The judge that a command line names: one for train.py and bench.py.

judge = make_judge("openai", "http://localhost:8000/v1", max_tokens=2048)
"""

from judges.mllm import MLLM

KINDS = ("shapes", "openai", "local")


def make_judge(
    kind: str,
    base_url: str | None = None,
    model: str | None = None,
    *,
    max_tokens: int,
    seed: int | None = 0,
    concurrency: int = 16,
    timeout: float = 60.0,
    patience: float = 180.0,
    max_calls: int | None = None,
) -> MLLM:
    """The verifier of the shapes world ("shapes"), a server ("openai") or a model in process.

    model: for "local" a folder or hub name, for "openai" by default the first one that the server
        lists. max_tokens: longest answer. The other settings are OpenAIMLLM's, in its units.
    Raises ValueError for an unknown kind, for "local" without a model, for a model that cannot be
    loaded, and for a server that is not there to list its models.
    """
    if kind == "shapes":
        from shapes.verifier import ShapesMLLM

        return ShapesMLLM()
    if kind == "local":
        if not model:
            raise ValueError(
                "--judge local needs --judge_model, the folder or hub name of its model"
            )
        from judges.local import LocalMLLM

        return LocalMLLM(model, max_new_tokens=max_tokens)
    if kind == "openai":
        from judges.openai_client import OpenAIMLLM

        return OpenAIMLLM(
            base_url or None,
            model or None,
            concurrency=concurrency,
            timeout=timeout,
            patience=patience,
            seed=seed,
            max_tokens=max_tokens,
            max_calls=max_calls,
        )
    raise ValueError(f"unknown judge '{kind}': choose from {', '.join(KINDS)}")
