"""Balanced drafts; prompts that are complete, checked, unlike each other, never written twice."""

import json
import re
from collections import Counter

import pytest
from fakes import FakeMLLM

import bench
from judges.answers import parse_scores
from judges.mllm import Answer
from shapes.server import ClassroomMLLM, served
from unigenbench import construct as C
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt, load_prompts

CHECK = "Score 1 for a testpoint"
DRAFT = C.Draft(0, "Art", "Other", "Scene", ("Style",))


class Writer(FakeMLLM):
    """Writes a prompt of words that no other has, and approves of everything; `say` may differ."""

    def __init__(self, say=None):
        super().__init__(self.respond, "fake writer")
        self.say, self.written, self.checked = say, 0, 0

    def respond(self, query):
        count = len(re.findall(r"^Testpoint \d+: ", query.text, re.MULTILINE))
        if "Write one prompt" in query.text:
            self.written += 1
            n = self.written
            default = {"prompt": f"thing{n} beside other{n}", "descriptions": [f"d{n}"] * count}
        else:
            self.checked += 1
            default = f"<score>{[1] * count}</score>"
        said = self.say(query.text, default) if self.say else default
        return json.dumps(said) if isinstance(said, dict) else said


def made(writer, count, journal, seed=0):
    return C.construct(writer, C.make_drafts(count, seed), journal, {"seed": seed})


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
    prompts, given_up = made(writer, 30, tmp_path / "j.jsonl")
    assert (len(prompts), given_up, writer.written, writer.checked) == (30, [], 30, 30)
    assert "60 to 240 calls" in capsys.readouterr().out  # the cost comes first
    for prompt, draft in zip(prompts, C.make_drafts(30, seed=0)):
        assert prompt.index == draft.index
        assert tuple(sub for sub, _ in prompt.testpoints) == draft.subs
    journal = tmp_path / "j.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    again = Writer()
    again.written = 100  # so that it repeats none
    resumed, _ = made(again, 31, journal)
    assert again.written == 102 and resumed[:29] == prompts[:29]
    with pytest.raises(ValueError, match="begun for"):
        made(again, 31, journal, seed=1)


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        '{"prompt": "", "descriptions": ["a"]}',
        '{"prompt": "a", "descriptions": [" "]}',
        '{"prompt": "a", "descriptions": ["..."]}',
        '<think>{"prompt": "a", "descriptions": ["a"]}',
    ],
)
def test_incomplete_answers_are_refused(answer):
    assert C.read_written(answer, DRAFT) is None


SHORT = DRAFT._replace(short="four words of it")
CHINESE = DRAFT._replace(language="zh")


@pytest.mark.parametrize(
    "draft, word, fits",
    [
        (DRAFT, "word ", {60: True, 61: False}),
        (DRAFT, "红", {9: False}),
        (SHORT, "word ", {4: False, 5: True, 200: True, 201: False}),
        (CHINESE, "红", {120: True, 121: False}),
        (CHINESE._replace(short="红红"), "红", {2: False, 3: True, 400: True, 401: False}),
        (CHINESE, "word ", {9: False}),
    ],
)
def test_a_prompt_is_of_its_language_and_length(draft, word, fits):
    answer = '{"prompt": "%s", "descriptions": ["a"]}'
    read = {count: C.read_written(answer % (word * count), draft) for count in fits}
    assert {count: prompt is not None for count, prompt in read.items()} == fits


def test_a_question_is_no_answer():
    assert C.read_written(C.writing_question(DRAFT, 0), DRAFT) is None
    prompt = C.read_written('Here: {"prompt": "a\\nb", "descriptions": ["c"]}', DRAFT)
    assert prompt == Prompt(0, "a b", [("Style", "c")], "Art", "Other", "en")
    assert parse_scores(C.checking_question(prompt), 1) is None


def test_what_is_cut_off_is_neither_written_nor_approved(tmp_path, capsys):
    whole = '{"prompt": "a", "descriptions": ["a"]}'
    assert C.read_written(whole, DRAFT, "cut off") is None
    assert C.read_written("</think>" + whole, DRAFT, "cut off").text == "a"

    def say(text, default):
        return Answer(default, unfinished="cut off") if CHECK in text else default

    assert made(Writer(say), 2, tmp_path / "j.jsonl") == ([], C.make_drafts(2, seed=0))
    assert capsys.readouterr().out.count("(cut off)") == 2  # the reason


def test_a_writer_that_cannot_be_read_ends_the_work_as_a_dead_one_does(tmp_path):
    writer = Writer(lambda text, default: "I would rather not.")
    with pytest.raises(ValueError, match="to the last 32 calls .*not what was asked for"):
        made(writer, 100, tmp_path / "j.jsonl")
    assert writer.written == 32


@pytest.mark.parametrize("refused, left", [("Style", True), ("Testpoint", False)])
def test_what_the_check_refuses_is_written_again_and_in_the_end_given_up(
    tmp_path, capsys, monkeypatch, refused, left
):
    """Each that was given up is named with the reason; the others are written; status 1."""

    def say(text, default):
        if CHECK not in text or refused not in text:
            return default
        labels = re.findall(r"^Testpoint \d+: (.*)$", text, re.MULTILINE)
        return f"<score>{[int(refused not in ('Testpoint', label)) for label in labels]}</score>"

    writer, out = Writer(say), tmp_path / "p.csv"
    monkeypatch.setattr(bench, "make_judge", lambda *_, **__: writer)
    assert bench.run(f"construct --judge shapes --count 40 --out {out}".split()) == 1
    given_up = [d for d in C.make_drafts(40, seed=0) if refused == "Testpoint" or "Style" in d.subs]
    refused_of = lambda draft: draft.subs if refused == "Testpoint" else ["Style"]
    reasons = [", ".join(f"does not ask for {s}" for s in refused_of(d)) for d in given_up]
    shown = capsys.readouterr().out
    said = [line for line in shown.splitlines() if line.startswith("given up")]
    assert said == [f"given up: {d} ({why})" for d, why in zip(given_up, reasons)] and given_up
    assert out.exists() == left
    kept = {prompt.index for prompt in load_prompts(out)} if left else set()
    assert kept == set(range(40)) - {draft.index for draft in given_up}
    assert writer.written == len(kept) + C.ATTEMPTS * len(given_up)
    if left:  # by reason, in words and in the journal, with the check's own words
        times = f"refused {C.ATTEMPTS * len(given_up)} times: does not ask for Style"
        lines = [json.loads(line) for line in out.with_suffix(".journal.jsonl").open()]
        refusals = [line for line in lines if "refused" in line]
        assert times in shown and len(refusals) == C.ATTEMPTS * len(given_up)
        assert all(line["refused"] == ["does not ask for Style"] for line in refusals)
        assert all("<score>" in line["check"] for line in refusals)
        assert bench.run(f"construct --judge shapes --count 40 --out {out}".split()) == 1  # again
        times = f"refused {2 * C.ATTEMPTS * len(given_up)} times: does not ask for Style"
        assert times in capsys.readouterr().out


def test_near_duplicates_are_refused(tmp_path):
    oak = "A red fox sleeps under the old oak tree."

    def say(text, default):
        first = "Write one prompt" in text and "attempt" not in text
        return default | {"prompt": oak} if first else default

    count = C.BATCH + 2  # twins in one batch, and of one before
    prompts, given_up = made(Writer(say), count, tmp_path / "j.jsonl")
    assert len(prompts) == count and not given_up
    assert sum("red fox" in p.text for p in prompts) == 1
    assert C.alike("A red fox sleeps!", "a red fox sleeps") == 1
    assert C.alike("a red fox sleeps", "two blue cars race") == 0
    assert C.alike(oak, oak.replace("oak", "elm")) > C.MOST_ALIKE  # one word is not enough


@pytest.mark.parametrize("language", C.LANGUAGES)
def test_the_server_of_shapes_writes_and_checks_both_stages_over_the_network(language, tmp_path):
    """The command and the real client; started again it asks for nothing."""
    out, long = tmp_path / "p.csv", tmp_path / "long.csv"
    with served(ClassroomMLLM()) as server:
        line = f"construct --judge openai --base_url {server.url} --count 20 --out {out}"
        line += f" --long {long} --language {language}"
        assert bench.run(line.split()) == 0
        prompts, longer, calls = load_prompts(out), load_prompts(long), server.calls
        assert bench.run(line.split()) == 0
        assert (load_prompts(out), load_prompts(long)) == (prompts, longer)
        assert server.calls == calls >= 80
    drafts = C.make_drafts(20, 0, language)
    assert [draft.subs for draft in drafts] == [draft.subs for draft in C.make_drafts(20, 0)]
    assert len(prompts) == len(longer) == 20
    for prompt, more, draft in zip(prompts, longer, drafts):
        subs, every = (tuple(sub for sub, _ in p.testpoints) for p in (prompt, more))
        assert subs == draft.subs == every[: len(subs)] and len(set(every)) == len(every)
        assert 1 <= len(every) - len(subs) <= C.MORE_TESTPOINTS
        assert set(every) <= set(C.fitting(draft.subject))
        assert prompt.text in more.text and prompt.testpoints != more.testpoints[: len(subs)]
        assert prompt.index == more.index and {prompt.language, more.language} == {language}
        assert (prompt.theme, prompt.subtheme) == (draft.theme, draft.subtheme)
        assert C.is_chinese(prompt.theme) == (language == "zh")
        assert all(DIMENSIONS[sub].label(language) in out.read_text() for sub in subs)
        for each in (prompt, more):
            assert all(description in each.text for _, description in each.testpoints)
    assert len({len(q.testpoints) - len(p.testpoints) for p, q in zip(prompts, longer)}) > 2


def test_a_long_form_is_written_again_once_its_short_prompt_is_another(tmp_path):
    """And both stages in one file are refused."""
    drafts, journal = C.make_drafts(2, 0), tmp_path / "j.jsonl"
    longer = [draft._replace(short="s") for draft in drafts]
    first, second = Writer(), Writer()
    second.written = 100  # so that it repeats none
    C.construct(first, longer, journal, {})
    C.construct(second, [longer[0], longer[1]._replace(short="new")], journal, {})
    assert (first.written, second.written) == (2, 101)
    for long in ("p.csv", "./p.long"):
        with pytest.raises(ValueError, match=f"--long {long} is --out, or shares its journal"):
            bench.run(f"construct --judge shapes --count 1 --out p.csv --long {long}".split())
