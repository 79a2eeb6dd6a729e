"""record.py: what a person can read of a judge, and that it stays bounded."""

import json
import threading

import pytest
from PIL import Image

from judges import record
from judges.mllm import Answer, Query, StreamingMLLM
from judges.record import Recorded


class Judge(StreamingMLLM):
    """Says the query's text; "error" is an error."""

    name = "judge"

    def as_answered(self, queries):
        for k, query in reversed(list(enumerate(queries))):  # as they come, in no order
            said = SAYS.get(query.text, query.text)
            yield k, Answer(error="down") if said == "error" else Answer(said, None, "m")

    def first_probability(self, queries):
        return [None if query.text == "error" else 0.25 for query in queries]


PAIR = tuple(Image.new("RGB", (16, 8), color) for color in ("red", "blue"))
FIRST, RATED = (
    "<answer>Image 1 is better</answer>",
    "\n".join(f"{kind} Score (1-5): 3" for kind in ("Alignment", "Coherence", "Style")),
)


SAYS = {"Which?": FIRST, "Rate it.": RATED}


def lines(folder, name="verdicts.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_each_answer_stands_there_with_its_question_and_how_it_was_read(tmp_path):
    queries = [Query(PAIR, text) for text in ("Which?", "Nice, \u718a.\n", "error")]
    queries.append(Query(PAIR[:1], "Rate it."))
    judge = Recorded(Judge(), tmp_path)
    assert judge.ask(queries) == Judge().ask(queries) and judge.name == "judge"
    found = {line["question"]: line for line in lines(tmp_path)}
    assert {text: line["read_as"] for text, line in found.items()} == {
        "Which?": "first",
        "Nice, \u718a.\n": "unparsable",
        "error": "failed",
        "Rate it.": 3.0,
    }
    assert found["Which?"]["text"] == FIRST and found["Which?"]["model"] == "m"
    assert found["error"]["error"] == "down" and found["error"]["text"] is None
    assert found["Which?"]["pictures"] == "pair_00.png"  # of the first question of the batch
    assert (tmp_path / "pair_00.png").exists() and not found["error"]["pictures"]
    assert judge.first_probability(queries[:3]) == [0.25, 0.25, None]
    assert [line["read_as"] for line in lines(tmp_path)[4:]] == [0.25, 0.25, None]


def test_it_stays_bounded_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SIZE", 5000)
    monkeypatch.setattr(record, "PICTURES", 3)
    for _ in range(2):  # a run, and one that goes on
        judge = Recorded(Judge(), tmp_path)
        for n in range(100):
            judge.ask([Query(PAIR, f"{n} " + 50 * "x")])
    sizes = [file.stat().st_size for file in tmp_path.glob("*.jsonl")]
    assert len(sizes) == 2 and sum(sizes) < 2 * 5500
    assert len(list(tmp_path.glob("*.png"))) == 3
    newest = (
        lines(tmp_path, "verdicts.old.jsonl")
        + (lines(tmp_path) if (tmp_path / "verdicts.jsonl").exists() else [])
    )[-20:]
    assert [int(line["question"].split()[0]) for line in newest] == list(range(80, 100))


def test_lines_of_several_threads_do_not_mix(tmp_path):
    judge = Recorded(Judge(), tmp_path)
    threads = [
        threading.Thread(target=judge.ask, args=([Query((), f"{n} " * 500)] * 20,))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(tmp_path)) == 160


def test_a_judge_without_probabilities_says_so(tmp_path):
    class Plain(StreamingMLLM):
        name = "plain"
        as_answered = None  # it is not asked

    with pytest.raises(ValueError, match="plain gives no probabilities"):
        Recorded(Plain(), tmp_path).first_probability([])
