"""refusal.py: parameters that a server does not take are left out; nothing else is changed."""

import logging

import pytest
from fake_server import KEY, PASSWORD, client, questions, serving, texts


def error(message, status=400, **others):
    return status, {"error": {"message": message, **others}}


# What servers say of a parameter that they do not take: (status, body) by its name.
REFUSALS = {
    "OpenAI": lambda name: error(
        f"Unsupported parameter: '{name}' is not supported with this model."
        + " Use 'max_completion_tokens' instead." * (name == "max_tokens"),
        param=name,
    ),
    "a value": lambda name: error(
        f"Unsupported value: '{name}' does not support 0 with this model. Only the default (1) "
        "value is supported."
    ),
    "Azure": lambda name: error(f"Unrecognized request argument supplied: {name}"),
    "FastAPI": lambda name: (422, {"detail": [{"loc": ["body", name], "msg": "Not permitted"}]}),
    "Gemini": lambda name: error(f'Unknown name "{name}": Cannot find field.', code=400),
    "LiteLLM": lambda name: error(f"UnsupportedParamsError: no support for: ['{name}']"),
    "param alone": lambda name: error("bad request", param=name),
    "with HTTP 200": lambda name: error(f"{name} is not supported", 200, code=400),
}
SENT = {"temperature": 0, "seed": 7, "max_tokens": 9}
ALL = (*SENT, "max_completion_tokens")
CASES = [*((kind, ALL) for kind in REFUSALS), ("OpenAI", ("seed",)), ("OpenAI", ("max_tokens",))]


@pytest.mark.parametrize(("kind", "refused"), CASES)
def test_what_a_server_refuses_is_left_out_from_the_first_answer_on(kind, refused, caplog):
    with serving() as server:
        named = lambda body: [REFUSALS[kind](name) for name in refused if name in body]
        server.refuse = lambda body: next(iter(named(body)), None)
        judge = client(server, max_tokens=9, seed=7, concurrency=1)
        name = judge.name
        assert texts(judge.ask(questions(*range(3)))) == ["echo 0", "echo 1", "echo 2"]
        calls = len(server.requests)
        assert texts(judge.ask(questions("x"))) == ["echo x"]
    first, last = server.requests[0][0], server.requests[-1][0]
    assert {name: first[name] for name in SENT} == SENT
    kept = dict(SENT)
    if "max_tokens" in refused:
        kept["max_completion_tokens"] = kept.pop("max_tokens")
    kept = {name: value for name, value in kept.items() if name not in refused}
    assert {name: last[name] for name in ALL if name in last} == kept
    assert calls == 3 + len(refused) and len(server.requests) == calls + 1  # found out once
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert all(name in line for name in refused if name != "max_completion_tokens")
    assert ("--temperature none" in line) == ("temperature" in refused)
    assert KEY not in line and PASSWORD not in line
    assert judge.name == name  # what a journal was begun for stays the same


def test_calls_side_by_side_find_it_out_together(caplog):
    with serving(together=4) as server:
        server.refuse = lambda body: REFUSALS["OpenAI"]("seed") if "seed" in body else None
        answers = client(server, concurrency=4).ask(questions(*range(4)))
    assert texts(answers) == [f"echo {k}" for k in range(4)]
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(server.requests) == 8 and len(warned) == 1


GONE, SAMPLING = (
    "this model, or never did (HTTP %d): --judge_model",
    "leave it out of --judge_extra (bench.py: --temperature none sends none)",
)


@pytest.mark.parametrize(
    ("status", "message", "said", "calls"),
    [
        (404, "The model `judge` does not exist.", GONE, 1),
        (404, "models/judge is not found for API version v1beta", GONE, 1),
        (503, "No available channel for model judge under group default", GONE, 1),
        (503, "judge is not routed; we route to no other model", GONE, 1),
        (503, "The model is overloaded. Please try again later.", "", 3),
        (503, "upstream connect error: No route to host", "", 3),
        (503, "backend not found, retry later", "", 3),
        (400, "the prompt exceeds the context; temperature was 0", "", 2),
        (404, "404 page not found", "", 1),
        (400, "temperature and top_p are deprecated", SAMPLING, 2),
        (400, "top_p is not supported", SAMPLING, 1),
    ],
)
def test_a_model_that_is_gone_and_a_refused_sampling_are_told_with_the_remedy(
    status, message, said, calls
):
    with serving() as server:
        server.refuse = lambda body: error(message, status)
        (answer,) = client(server, max_retries=2).ask(questions("x"))
    assert message in answer.error and len(server.requests) == calls
    assert said.replace("%d", str(status)) in answer.error and (said or "--" not in answer.error)


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
        server.refuse = (lambda body: error(message)) if message else quoted
        judge = client(server)
        (answer,) = judge.ask(questions("x"))
        assert (message or "no image")[:60] in answer.error
        assert not message or len(server.requests) == 1
        server.refuse = None
        assert judge.ask(questions("x"))[0].text
    assert server.requests[0][0] == server.requests[-1][0]
