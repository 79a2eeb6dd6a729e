"""Balanced drafts; prompts that are complete, checked, unlike each other, never written twice."""

import itertools
import json
import re
from collections import Counter

import pytest

import bench
from judges.answers import parse_scores
from judges.mllm import Answer
from shapes.server import ClassroomMLLM, served
from unigenbench import construct as C
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt, load_prompts


class Writer:
    """Writes a prompt of words that no other has, and approves of everything; `say` may differ."""

    name = "fake writer"

    def __init__(self, say=None):
        self.say, self.written, self.checked = say, 0, 0

    def ask(self, queries):
        return [Answer(self.answer(query.text)) for query in queries]

    def answer(self, text):
        count = len(re.findall(r"^Testpoint \d+: ", text, re.MULTILINE))
        if "Write one prompt" in text:
            self.written += 1
            n = self.written
            default = {"prompt": f"thing{n} beside other{n}", "descriptions": [f"d{n}"] * count}
        else:
            self.checked += 1
            default = f"<score>{[1] * count}</score>"
        said = self.say(text, default) if self.say else default
        return said if isinstance(said, str) else json.dumps(said)


def test_plans_are_balanced_and_fit_their_subjects():
    drafts = C.make_drafts(200, seed=0)
    places = Counter((p.theme, p.subtheme) for p in drafts)
    assert len(places) == 20 and set(places.values()) == {10}
    assert set(Counter(p.subject for p in drafts).values()) == {40}
    assert {len(p.subs) for p in drafts} == {1, 2, 3, 4, 5}
    subs = Counter(sub for p in drafts for sub in p.subs)
    assert set(subs) == set(SUBS) and max(subs.values()) - min(subs.values()) <= 5
    for p in drafts:
        assert len(set(p.subs)) == len(p.subs)
        assert all(p.subject in DIMENSIONS[sub].subjects.split("; ") for sub in p.subs)
    assert C.make_drafts(50, seed=0) == drafts[:50] != C.make_drafts(50, seed=1)


def test_every_prompt_is_written_and_checked_once_and_resumed(tmp_path, capsys):
    writer = Writer()
    prompts, given_up = C.construct(writer, 30, tmp_path / "j.jsonl")
    assert (len(prompts), given_up, writer.written, writer.checked) == (30, [], 30, 30)
    assert "60 to 240 calls" in capsys.readouterr().out  # the cost comes first
    for prompt, draft in zip(prompts, C.make_drafts(30, seed=0)):
        assert prompt.index == draft.index
        assert tuple(sub for sub, _ in prompt.testpoints) == draft.subs
    journal = tmp_path / "j.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    again = Writer()
    again.written = 100  # so that it repeats none
    resumed, _ = C.construct(again, 31, journal)
    assert again.written == 102 and resumed[:29] == prompts[:29]
    with pytest.raises(ValueError, match="begun for"):
        C.construct(again, 31, journal, seed=1)


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        '{"prompt": "", "descriptions": ["a"]}',
        '{"prompt": "a", "descriptions": [" "]}',
        '{"prompt": "a", "descriptions": ["..."]}',
        '<think>{"prompt": "a", "descriptions": ["a"]}',
        '{"prompt": "%s", "descriptions": ["a"]}' % ("word " * 61),
    ],
)
def test_incomplete_answers_are_refused(answer):
    draft = C.Draft(0, "Art", "Other", "Scene", ("Style",))
    assert C.read_written(answer, draft) is C.read_written(C.writing_question(draft, 0), draft)
    assert C.read_written(answer, draft) is None
    prompt = Prompt(0, "a", [("Style", "a")], "Art", "Other", "en")
    assert parse_scores(C.checking_question(prompt), 1) is None  # a question is no answer
    assert C.read_written('Here: {"prompt": "a\\nb", "descriptions": ["c"]}', draft).text == "a b"


def test_what_is_cut_off_is_neither_written_nor_approved(tmp_path, capsys):
    whole = '{"prompt": "a", "descriptions": ["a"]}'
    draft = C.Draft(0, "Art", "Other", "Scene", ("Style",))
    assert C.read_written(whole, draft, "cut off") is None
    assert C.read_written("</think>" + whole, draft, "cut off").text == "a"

    class Drafts(Writer):
        def ask(self, queries):
            answers = super().ask(queries)
            cut = "cut off" if "Score 1 for a testpoint" in queries[0].text else None
            return [answer._replace(unfinished=cut) for answer in answers]

    prompts, given_up = C.construct(Drafts(), 2, tmp_path / "j.jsonl")
    assert len(given_up) == 2 and not prompts
    assert capsys.readouterr().out.count("(cut off)") == 2  # the reason


def test_a_writer_that_cannot_be_read_ends_the_work_as_a_dead_one_does(tmp_path):
    writer = Writer(lambda text, default: "I would rather not.")
    with pytest.raises(ValueError, match="to the last 32 calls .*not what was asked for"):
        C.construct(writer, 100, tmp_path / "j.jsonl")
    assert writer.written == 32


def test_what_the_check_refuses_is_written_again_and_in_the_end_given_up(tmp_path, capsys):
    def say(text, default):
        if "Score 1 for a testpoint" in text and "Style" in text:
            return default.replace("1", "0", 1)
        return default

    writer = Writer(say)
    prompts, given_up = C.construct(writer, 40, tmp_path / "j.jsonl")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("given up: ")]
    assert len(said) == len(given_up) and all("not ask for all" in line for line in said)
    assert given_up and all("Style" in draft.subs for draft in given_up)
    assert not any("Style" in dict(prompt.testpoints) for prompt in prompts)
    assert writer.written == len(prompts) + C.ATTEMPTS * len(given_up)


def test_near_duplicates_are_refused(tmp_path):
    def say(text, default):
        if "Write one prompt" in text and "attempt" not in text:
            return default | {"prompt": "A red fox sleeps under the old oak tree."}
        return default

    count = C.BATCH + 2  # twins in one batch, and of one before
    prompts, given_up = C.construct(Writer(say), count, tmp_path / "j.jsonl")
    assert len(prompts) == count and not given_up
    assert sum("red fox" in p.text for p in prompts) == 1
    assert C.alike("A red fox sleeps under the oak!", "a red fox sleeps under the oak") == 1
    assert C.alike("a red fox sleeps", "two blue cars race") == 0
    oak = "A red fox sleeps under the old oak tree."
    assert C.alike(oak, oak.replace("oak", "elm")) > C.MOST_ALIKE  # one word is not enough


@pytest.fixture
def server():
    with served(ClassroomMLLM()) as server:
        yield server


def test_the_server_of_shapes_writes_and_checks_over_the_network(tmp_path, server, monkeypatch):
    """The command and the real client: a whole file, and after a kill only what is missing."""

    line = f"construct --judge openai --base_url {server.url} --count 20 --out p.csv"
    monkeypatch.chdir(tmp_path)

    def run():
        before = server.calls
        assert bench.run(line.split()) == 0
        return load_prompts("p.csv"), server.calls - before

    prompts, calls = run()
    assert len(prompts) == 20 and calls >= 40
    for prompt, draft in zip(prompts, C.make_drafts(20, seed=0)):
        assert tuple(sub for sub, _ in prompt.testpoints) == draft.subs
        assert all(description in prompt.text for _, description in prompt.testpoints)
    pairs = itertools.combinations([prompt.text for prompt in prompts], 2)
    assert all(C.alike(*pair) <= C.MOST_ALIKE for pair in pairs)
    assert run() == (prompts, 0)
    journal = tmp_path / "p.journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:16]) + lines[16][:30])  # 15 prompts and a torn line
    resumed, calls = run()
    assert len(resumed) == 20 and 10 <= calls <= 14
