"""What a server sent for an answer: any JSON, which the client library does not check.

answer = answer_of(reply, max_tokens)       # reply: the client's ChatCompletion
"""

import json

from judges.mllm import Answer, cut_off

# What servers say of an answer that the model ended itself, lower case. Some say nothing.
ENDED = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "finished")


class ReportedError(ValueError):
    """An error that a server reports in a reply of HTTP 200."""

    def __init__(self, said, code=None):
        said = said if isinstance(said, dict) else {"message": said}
        super().__init__(f"the server says: {said.get('message') or said}")
        self.reported = json.dumps(said, default=str)
        self.code = said.get("code", code)
        known = str(self.code).isdecimal() and 400 <= int(self.code) < 600
        self.status_code = int(self.code) if known else None


def encodable(text: str) -> str:
    """The text with "?" for half a surrogate pair, such as a cut emoji: no file could hold that."""
    return text.encode(errors="replace").decode()


def text_of(content) -> str:
    """The text of a message, which may come as a list of parts; its thoughts are left out."""
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        texts = [p.get("text") for p in parts if p.get("type") in (None, "text", "output_text")]
        content = "".join(text for text in texts if isinstance(text, str))
    return encodable(content) if isinstance(content, str) else ""


def why_unfinished(reason, tokens, max_tokens: int) -> str | None:
    """Why an answer is not whole, by the reason given, else by its length; None if it is."""
    reason = reason.lower() if isinstance(reason, str) else ""
    full = isinstance(tokens, int) and tokens >= max_tokens
    if reason in ("length", "max_tokens") or not reason and full:
        return cut_off(max_tokens)
    return None if reason in ENDED else f"stopped by the server ({reason})"


def tokens_of(choice) -> tuple:
    """The tokens of an answer with their likeliest alternatives, as Answer has them; () without."""
    try:
        return tuple(
            (str(x.token), {str(y.token): float(y.logprob) for y in (x, *x.top_logprobs)})
            for x in choice.logprobs.content
        )
    except (AttributeError, TypeError, ValueError):
        return ()


def answer_of(reply, max_tokens: int) -> Answer:
    """The answer in a chat completion.

    Raises ValueError where it is none, ReportedError where it is an error.
    """
    choices = getattr(reply, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    for place, name in ((choice, "error"), (reply, "error"), (reply, "detail"), (reply, "message")):
        if said := getattr(place, name, None):
            raise ReportedError(said, getattr(reply, "code", None))
    try:
        message, reason = choice.message, choice.finish_reason
        text = text_of(message.content)
    except AttributeError:
        raise ValueError(f"not a chat completion: {str(reply)[:80]!r}") from None
    usage = getattr(reply, "usage", None)
    usage = tuple(getattr(usage, f"{of}_tokens", None) for of in ("prompt", "completion"))
    unfinished = why_unfinished(reason, usage[1], max_tokens)
    if not text.strip():
        refusal = getattr(message, "refusal", None)
        empty = f"refused: {encodable(str(refusal))}" if refusal else None
        empty = empty or f"empty answer (finish_reason: {reason})"
        unfinished = f"{empty}: {unfinished}" if unfinished else empty
        return Answer(error=unfinished, unfinished=unfinished)
    model = getattr(reply, "model", None)
    thoughts = [getattr(message, name, None) for name in ("reasoning", "reasoning_content")]
    if unfinished and any(thoughts):
        text = "</think>" + text  # the thinking, which came by itself, has ended
    counted = usage if all(isinstance(tokens, int) for tokens in usage) else None
    model = model if isinstance(model, str) else None
    return Answer(text, None, model, unfinished, usage=counted, tokens=tokens_of(choice))
