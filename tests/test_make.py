"""make.py: the judge that the flags name."""

import pytest

from judges.make import make_judge


def test_each_kind_is_made_with_its_settings(monkeypatch):
    assert make_judge("shapes", max_tokens=1, shapes=lambda: "verifier") == "verifier"
    url = "http://127.0.0.1:1/v1"
    settings = {"timeout": 7.0, "patience": 8.0, "max_calls": 9, "concurrency": 3}
    judge = make_judge("openai", url, "judge", max_tokens=5, seed=None, **settings)
    assert judge.name == f"judge at {url} (temperature 0.0, seed None, max_tokens 5)"
    assert (judge.timeout, judge.patience, judge.max_calls) == (7.0, 8.0, 9)
    assert judge._slots.most == 3
    monkeypatch.setattr("judges.local.LocalMLLM", lambda model, **settings: (model, settings))
    assert make_judge("local", model="m", max_tokens=5) == ("m", {"max_new_tokens": 5})


def test_what_cannot_be_made_is_told(tmp_path):
    with pytest.raises(ValueError, match="--judge_model"):
        make_judge("local", max_tokens=5)
    with pytest.raises(ValueError, match=f"cannot load .* from '{tmp_path}'"):
        make_judge("local", model=str(tmp_path), max_tokens=5)
    with pytest.raises(ValueError, match="unknown judge 'oracle': choose from shapes, openai"):
        make_judge("oracle", max_tokens=5)
