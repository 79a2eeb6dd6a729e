"""What a server sent for an answer: any JSON, which the client library does not check.

answer = Reply(reply, max_tokens).answer    # reply: the client's ChatCompletion
"""

import json

from judges.mllm import Answer, cut_off

# What servers say of an answer that the model ended itself, lower case. Some say nothing.
ENDED = (None, "", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "finished")


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


class Reply:
    """A chat completion, read. Raises ValueError where it is none, ReportedError for an error."""

    def __init__(self, reply, max_tokens: int):
        choices = getattr(reply, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        places = (choice, "error"), (reply, "error"), (reply, "detail"), (reply, "message")
        for place, name in places:
            if said := getattr(place, name, None):
                raise ReportedError(said, getattr(reply, "code", None))
        try:
            self.message, self.reason = choice.message, choice.finish_reason
            self.text = text_of(self.message.content)
        except AttributeError:
            raise ValueError(f"not a chat completion: {str(reply)[:80]!r}") from None
        self.model = getattr(reply, "model", None)
        tokens = getattr(getattr(reply, "usage", None), "completion_tokens", None)
        self.tokens = tokens if isinstance(tokens, int) else 0
        self.max_tokens = max_tokens

    @property
    def unfinished(self) -> str | None:
        """Why the answer is not whole, by the reason given, else by its length; None if it is."""
        reason = self.reason.lower() if isinstance(self.reason, str) else None
        if reason in ("length", "max_tokens") or not reason and self.tokens >= self.max_tokens:
            return cut_off(self.max_tokens)
        return None if reason in ENDED else f"stopped by the server ({reason})"

    @property
    def answer(self) -> Answer:
        unfinished, thoughts = self.unfinished, ("reasoning", "reasoning_content")
        if not self.text.strip():
            refusal = getattr(self.message, "refusal", None)
            empty = f"empty answer (finish_reason: {self.reason})"
            empty = f"refused: {encodable(str(refusal))}" if refusal else empty
            unfinished = f"{empty}: {unfinished}" if unfinished else empty
            return Answer(error=unfinished, unfinished=unfinished)
        text, model = self.text, self.model if isinstance(self.model, str) else None
        if unfinished and any(getattr(self.message, name, None) for name in thoughts):
            text = "</think>" + text  # the thinking, which came by itself, has ended
        return Answer(text, None, model, unfinished)
