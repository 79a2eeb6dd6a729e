"""cache.py: what is kept and what is asked again, also after a death in the middle of a line."""

import json

import pytest
from PIL import Image

from judges.cache import Cached
from judges.mllm import Answer, Query, StreamingMLLM


class Counting(StreamingMLLM):
    """Answers each query with its text and its place in the batch, or with an error."""

    def __init__(self, error=None, name="counting"):
        self.asked, self.error, self.name = [], error, name

    def as_answered(self, queries):
        self.asked += queries
        for k, query in enumerate(queries):
            text = None if self.error else f"{query.text} {k}"
            yield k, Answer(text, self.error, "model" if text else None)


def picture(color: str, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def texts(answers) -> list[str | None]:
    return [answer.text for answer in answers]


def test_cache_asks_nothing_twice(tmp_path):
    inner = Counting()
    a, b = picture("red"), picture("blue")
    queries = [Query((a, b), "t"), Query((b, a), "t"), Query((a, b), "u"), Query((a, b), "t")]
    first = Cached(inner, tmp_path).ask(queries)
    assert [len(inner.asked), first[3]] == [3, first[0]]  # order of images and text both matter
    assert len({answer.text for answer in first}) == 3

    twin = [Query((picture("red"), picture("blue")), "t")]  # equal pixels, another object
    assert Cached(inner, tmp_path).ask(queries + twin) == first + [first[0]]
    assert len(inner.asked) == 3


def test_cache_tells_judges_sizes_and_modes_apart(tmp_path):
    inner, another = Counting(), Counting(name="another")
    cached = Cached(inner, tmp_path)
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    gray = Image.new("L", (24, 2))  # the same bytes as both
    cached.ask([Query((image,), "t") for image in (wide, tall, gray)])
    Cached(another, tmp_path).ask([Query((wide,), "t")])
    assert len(inner.asked) == 3 and len(another.asked) == 1


def test_cache_goes_by_what_the_judge_sees(tmp_path):
    def indexed(color):  # equal bytes, other colors
        image = Image.new("P", (4, 4))
        image.putpalette(color)
        return image

    inner = Counting()
    shown = [indexed([255, 0, 0]), indexed([0, 0, 255]), picture("red", 4)]
    answers = Cached(inner, tmp_path).ask([Query((image,), "t") for image in shown])
    assert len(inner.asked) == 2 and answers[0] == answers[2] != answers[1]


def test_cache_keeps_only_what_is_worth_keeping(tmp_path):
    inner, queries = Counting(), [Query((), "good"), Query((), "bad")]
    keep = lambda text: text.startswith("good")
    assert texts(Cached(inner, tmp_path, keep).ask(queries)) == ["good 0", "bad 1"]
    assert texts(Cached(inner, tmp_path, keep).ask(queries)) == ["good 0", "bad 0"]
    assert [query.text for query in inner.asked] == ["good", "bad", "bad"]


def test_cache_keeps_nothing_that_was_cut_off(tmp_path):
    class Cut(Counting):
        def as_answered(self, queries):
            return ((k, a._replace(unfinished="cut off")) for k, a in super().as_answered(queries))

    for _ in range(2):
        assert Cached(inner := Cut(), tmp_path).ask([Query((), "t")])[0].unfinished
        assert len(inner.asked) == 1


def test_cache_keeps_probabilities_apart_from_answers(tmp_path):
    class Soft(Counting):
        def first_probability(self, queries):
            self.asked += queries
            return [None if query.text == "none" else 1 / 3 for query in queries]

    inner, queries = Soft(), [Query((), "t"), Query((), "none")]
    for asked in (2, 3):  # what has no probability is asked again
        cached = Cached(inner, tmp_path, lambda text: False)
        assert cached.first_probability(queries) == [1 / 3, None]
        assert len(inner.asked) == asked
    assert texts(Cached(inner, tmp_path).ask(queries[:1])) == ["t 0"]


def test_cache_gives_no_probabilities_where_the_judge_has_none(tmp_path):
    with pytest.raises(ValueError, match="counting gives no probabilities"):
        Cached(Counting(), tmp_path).first_probability([Query((), "t")])


def test_cache_remembers_which_model_answered(tmp_path):
    for _ in range(2):  # asked, then kept
        (answer,) = Cached(Counting(), tmp_path).ask([Query((), "t")])
        assert answer == Answer("t 0", None, "model")


def test_cache_gives_kept_answers_before_it_asks(tmp_path):
    inner = Counting()
    Cached(inner, tmp_path).ask([Query((), "kept")])
    inner.asked.clear()
    queries = [Query((), "new"), Query((), "kept"), Query((), "new")]
    answered = Cached(inner, tmp_path).as_answered(queries)
    assert next(answered)[0] == 1 and inner.asked == []
    assert [k for k, _ in answered] == [0, 2] and inner.asked == queries[:1]


def test_cache_reads_lines_without_a_model(tmp_path):
    """As earlier versions wrote them."""
    inner = Counting()
    Cached(inner, tmp_path).ask([Query((), "t")])
    record = json.loads((tmp_path / "answers.jsonl").read_text())
    del record["model"]
    (tmp_path / "answers.jsonl").write_text(json.dumps(record) + "\n")
    assert Cached(inner, tmp_path).ask([Query((), "t")]) == [Answer("t 0")]
    assert len(inner.asked) == 1


def test_cache_keeps_no_errors(tmp_path):
    inner = Counting(error="down")
    cached = Cached(inner, tmp_path)
    assert cached.ask([Query((), "t")]) == [Answer(error="down")]
    inner.error = None
    assert texts(cached.ask([Query((), "t")])) == ["t 0"]


def test_cache_survives_a_torn_line_at_every_byte(tmp_path):
    inner = Counting()
    queries = [Query((), "\u00e9 one\n"), Query((), "two")]
    Cached(inner, tmp_path).ask(queries)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "answers.jsonl").write_bytes(whole[:cut])
        inner.asked.clear()
        answers = Cached(inner, tmp_path).ask(queries)
        assert [text[:-2] for text in texts(answers)] == [q.text for q in queries]  # less its place
        inner.asked.clear()
        Cached(inner, tmp_path).ask(queries)  # what was added after the tear is read back
        assert inner.asked == []


def test_cache_loses_nothing_that_was_answered_before_the_end(tmp_path):
    class Dying(Counting):
        def as_answered(self, queries):
            yield 1, Answer(text="early")
            raise KeyboardInterrupt

    queries = [Query((), "a"), Query((), "b")]
    with pytest.raises(KeyboardInterrupt):
        Cached(Dying(), tmp_path).ask(queries)
    inner = Counting()
    assert texts(Cached(inner, tmp_path).ask(queries)) == ["a 0", "early"]
    assert inner.asked == queries[:1]
