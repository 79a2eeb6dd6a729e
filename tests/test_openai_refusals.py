"""refusal.py: parameters that a server does not take are left out; nothing else is changed."""

import logging

import pytest
from fake_server import KEY, PASSWORD, client, serving, texts

from judges.mllm import Query

# What servers say of a parameter that they do not take: (status, body) by its name.
REFUSALS = {
    "OpenAI": lambda name: (400, {"error": {
        "message": f"Unsupported parameter: '{name}' is not supported with this model."
        + " Use 'max_completion_tokens' instead." * (name == "max_tokens"),
        "param": name, "code": "unsupported_parameter"}}),
    "a value": lambda name: (400, {"error": {
        "message": f"Unsupported value: '{name}' does not support 0 with this model. Only the "
        "default (1) value is supported.", "param": name, "code": "unsupported_value"}}),
    "Azure": lambda name: (400, {"error": {
        "message": f"Unrecognized request argument supplied: {name}"}}),
    "FastAPI": lambda name: (422, {"detail": [{
        "type": "extra_forbidden", "loc": ["body", name],
        "msg": "Extra inputs are not permitted"}]}),
    "Gemini": lambda name: (400, {"error": {
        "message": f'Unknown name "{name}": Cannot find field.', "code": 400}}),
    "LiteLLM": lambda name: (400, {"error": {
        "message": f"UnsupportedParamsError: no support for parameters: ['{name}']"}}),
    "param alone": lambda name: (400, {"error": {"message": "bad request", "param": name}}),
    "with HTTP 200": lambda name: (200, {"error": {
        "message": f"{name} is not supported", "code": 400}}),
}  # fmt: skip
SENT = {"temperature": 0, "seed": 7, "max_tokens": 9}
ALL = (*SENT, "max_completion_tokens")
CASES = [*((kind, ALL) for kind in REFUSALS), ("OpenAI", ("seed",)), ("OpenAI", ("max_tokens",))]


@pytest.mark.parametrize(("kind", "refused"), CASES)
def test_what_a_server_refuses_is_left_out_from_the_first_answer_on(kind, refused, caplog):
    with serving() as server:
        server.refuse = lambda body: next(
            (REFUSALS[kind](name) for name in refused if name in body), None
        )
        judge = client(server, max_tokens=9, seed=7, concurrency=1)
        name = judge.name
        with caplog.at_level(logging.WARNING):
            answers = judge.ask([Query((), str(k)) for k in range(3)])
        assert texts(answers) == ["echo 0", "echo 1", "echo 2"]
        calls = len(server.requests)
        assert texts(judge.ask([Query((), "x")])) == ["echo x"]
    first, last = server.requests[0][0], server.requests[-1][0]
    assert {name: first[name] for name in SENT} == SENT
    kept = dict(SENT)
    if "max_tokens" in refused:
        kept["max_completion_tokens"] = kept.pop("max_tokens")
    kept = {name: value for name, value in kept.items() if name not in refused}
    assert {name: last[name] for name in ALL if name in last} == kept
    assert calls == 3 + len(refused) and len(server.requests) == calls + 1  # found out once
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(name in line for name in refused if name != "max_completion_tokens")
    assert KEY not in line and PASSWORD not in line
    assert judge.name == name  # what a journal was begun for stays the same


def test_calls_side_by_side_find_it_out_together(caplog):
    with serving(together=4) as server:
        server.refuse = lambda body: REFUSALS["OpenAI"]("seed") if "seed" in body else None
        with caplog.at_level(logging.WARNING):
            answers = client(server, concurrency=4).ask([Query((), str(k)) for k in range(4)])
    assert texts(answers) == [f"echo {k}" for k in range(4)]
    assert len(server.requests) == 8 and len(caplog.records) == 1


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 1024 tokens",
        "The image is broken",
        None,  # every error quotes the whole request
    ],
)
def test_a_request_that_is_wrong_otherwise_is_told_and_not_changed_for_good(message):
    with serving() as server:
        quoted = lambda body: (422, {"detail": [{"msg": "no image", "input": body}]})
        told = lambda body: (400, {"error": {"message": message}})
        server.refuse = told if message else quoted
        judge = client(server)
        (answer,) = judge.ask([Query((), "x")])
        assert (message or "no image")[:60] in answer.error
        assert not message or len(server.requests) == 1
        server.refuse = None
        assert judge.ask([Query((), "x")])[0].text
    assert server.requests[0][0] == server.requests[-1][0]
