"""Nothing asked twice, nothing lost, nothing taken for another: judging with small fake judges."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from fakes import FakeMLLM
from PIL import Image

from common.files import Journal, write_atomic
from judges.mllm import Answer, cut_off
from unigenbench.asking import Patience, judge_images
from unigenbench.images import fingerprint, open_image, opens
from unigenbench.testpoints import Prompt

GOOD = '<analysis>["a", "b"]</analysis> <score>[1, 0]</score>'
DOWN = Answer(error="503")
EVERY = [(p, i) for p in range(3) for i in range(4)]


def make_prompts(count):
    points = [("Style", "ink"), ("Attribute - Color", "red")]
    return [Prompt(i, f"prompt {i}", points, "", "", "en") for i in range(count)]


def draw(folder, count):
    folder.mkdir()
    (folder / "settings.json").write_text("{}")  # as generate leaves it there
    for p, i in itertools.product(range(count), range(4)):
        Image.new("RGB", (8, 8), (p, i, 0)).save(folder / f"{p}_{i}.png")


def pixel(query):
    return query.images[0].getpixel((0, 0))[:2]


def judge(answers=None):
    """Of an image, by its pixel, what answers has; GOOD of all others."""
    return FakeMLLM(lambda query: (answers or {}).get(pixel(query), GOOD))


def asked(mllm):
    return Counter(map(pixel, mllm.asked))


@pytest.fixture
def place(tmp_path):
    """A function that judges images of a few prompts, and where they and the journal are."""

    def run(mllm, prompts=None, **options):
        where = (prompts or run.prompts, run.folder, run.journal)
        return judge_images(mllm, *where, **options)

    run.folder, run.prompts, run.journal = tmp_path / "images", make_prompts(3), tmp_path / "j"
    draw(run.folder, 3)
    return run


@pytest.mark.parametrize("workers, batch", [(1, 100), (4, 1), (3, 2)])
def test_each_image_is_asked_about_once_and_gets_its_own_answer(place, workers, batch):
    meet = threading.Barrier(workers, timeout=60)  # as many calls are in flight
    firsts = EVERY[: workers * batch : batch]

    def say(query):
        if pixel(query) in firsts:
            meet.wait()
        p, i = pixel(query)
        return f'<analysis>["a", "{p}"]</analysis> <score>[{(p + i) % 2}, {i // 2}]</score>'

    mllm = FakeMLLM(say)
    results = place(mllm, workers=workers, batch=batch)
    assert mllm.sizes == {min(batch, 12)} and asked(mllm) == Counter(EVERY)
    assert [(r.index, Path(r.image).name, r.scores, r.reasons) for r in results] == [
        (p, f"{p}_{i}.png", [(p + i) % 2, i // 2], ["a", str(p)]) for p, i in EVERY
    ]
    again = judge()
    assert place(again) == results and again.asked == []


TEMPLATE = "{prompt} {testpoint} Like <score>[1, 0]</score>."


def test_what_is_lost_is_told_apart_and_asked_for_again_at_the_next_start(place, caplog):
    draft = Answer("maybe <score>[1, 1]</score>", unfinished=cut_off(9))
    first = {(0, 0): DOWN, (0, 1): draft, (1, 1): "I like it", (2, 3): "yes and no"}

    def say(query):
        if pixel(query) == (1, 2):
            return "echo " + query.text  # in which a score stands
        if "one list of 2 scores" in query.text:  # the reminder
            return {(1, 1): DOWN, (0, 1): draft}.get(pixel(query), GOOD)
        return first.get(pixel(query), GOOD)

    caplog.set_level(logging.INFO, "bench")
    mllm = FakeMLLM(say)
    results = {Path(r.image).name: r for r in place(mllm, template=TEMPLATE)}
    assert "definitions in the template are this repository's; --official has" in caplog.text
    states = {name: r.state for name, r in results.items() if r.state != "judged"}
    unparsable = dict.fromkeys(["0_1.png", "1_1.png", "1_2.png"], "unparsable")
    assert states == {"0_0.png": "failed"} | unparsable
    assert results["0_1.png"].output == draft.text and results["1_1.png"].output == "I like it"
    again = Counter([(0, 1), (1, 1), (1, 2), (2, 3)])  # with a reminder, since the judge responded
    assert asked(mllm) == Counter(EVERY) + again
    assert "4 images were not judged: " in caplog.text and "1 x cut off at 9 tokens" in caplog.text
    later = judge()
    assert {r.state for r in place(later, template=TEMPLATE)} == {"judged"}
    assert sorted(asked(later)) == [(0, 0), (0, 1), (1, 1), (1, 2)]


def test_an_answer_counts_for_its_image_and_its_question_only(place):
    place(judge())
    Image.new("RGB", (8, 8), (9, 9, 9)).save(place.folder / "1_2.png")
    other = [("Style", "oil"), ("Attribute - Color", "red")]
    again = judge()
    place(again, [*place.prompts[:2], place.prompts[2]._replace(testpoints=other)])
    assert sorted(asked(again)) == [(2, 0), (2, 1), (2, 2), (2, 3), (9, 9)]


def test_broken_missing_and_foreign_files_are_named_and_never_judged(place, caplog):
    whole = (place.folder / "0_0.png").read_bytes()
    (place.folder / "0_1.png").write_bytes(whole[: len(whole) - 20])
    (place.folder / "0_2.png").write_bytes(b"no image")
    (place.folder / "0_3.png").unlink()
    for name in ("0_4.png", "00_0.png", "1_0.PNG.txt", *(f"x{n}.txt" for n in range(9))):
        (place.folder / name).write_bytes(whole)
    mllm = judge()
    results = place(mllm)
    assert asked(mllm) == Counter([(0, 0), *EVERY[4:]])
    assert [r.state for r in results][:5] == ["judged", "failed", "failed", "failed", "judged"]
    odd, broken = (record.getMessage() for record in caplog.records)
    assert odd.startswith("12 files") and "00_0.png, 0_4.png, 1_0.PNG.txt" in odd
    assert odd.endswith(" and 7 more") and "settings" not in odd
    assert "3 images cannot be judged" in broken
    assert all(name in broken for name in ("0_1.png", "0_2.png", "0_3.png: missing"))


def test_no_cut_off_image_opens(tmp_path):
    Image.effect_noise((16, 16), 50).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert opens(tmp_path / "a.png") and open_image(tmp_path / "a.png")[1] == data
    for length in range(0, data.index(b"IEND") - 8, 7):
        (tmp_path / "b.png").write_bytes(data[:length])
        assert not opens(tmp_path / "b.png"), length


def test_a_journal_is_whole_and_of_one_process_and_one_judge_at_a_time(place):
    place(judge())
    whole = place.journal.read_bytes()
    place.journal.write_bytes(whole[:-30])  # a torn last line
    again = judge()
    assert {r.state for r in place(again)} == {"judged"} and len(again.asked) == 1
    assert place.journal.read_bytes() == whole
    again.name = "other"
    with pytest.raises(ValueError, match="begun for .*fake.*, not for .*other"):
        place(again)
    pytest.importorskip("fcntl")
    first = Journal(place.journal, {"judge": "fake"})
    with pytest.raises(ValueError, match=f"another process is writing {place.journal}"):
        place(judge())
    first.file.close()
    lines = whole.splitlines(keepends=True)
    for odd in (lines[1][:9], b'"\xff"', b"5"):
        place.journal.write_bytes(b"".join([lines[0], odd + b"\n", *lines[2:]]))
        with pytest.raises(ValueError, match=f"{place.journal} is damaged"):
            place(judge())


def test_a_disk_that_is_full_is_named_with_the_file_and_what_came_is_kept(place):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write '{place.journal}': File too large"):
            place(judge())
        with pytest.raises(OSError, match="cannot write '.*/folder/x': File too large"):
            write_atomic(place.journal.parent / "folder" / "x", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = judge()
    assert {r.state for r in place(again)} == {"judged"} and 0 < len(again.asked) < 12


def test_a_fault_in_one_call_ends_the_work_and_keeps_what_came(place):
    def say(query):
        if pixel(query) == (1, 0):
            raise RuntimeError("out of memory")
        time.sleep(0.02)
        return GOOD

    with pytest.raises(RuntimeError, match="out of memory"):
        place(FakeMLLM(say), workers=2, batch=1)
    kept = len(Journal(place.journal, {"judge": "fake"}).lines)
    again = judge()
    place(again)
    assert 4 <= kept <= 6 and len(again.asked) == 12 - kept


# ----------------------------------------------------------------------------- a dead judge


@pytest.fixture
def many(tmp_path):
    """As place, of 40 prompts."""
    draw(tmp_path / "images", 40)
    where = (make_prompts(40), tmp_path / "images", tmp_path / "j.jsonl")
    return lambda mllm, workers=4: judge_images(mllm, *where, workers=workers, batch=1)


@pytest.mark.parametrize("answer, calls", [(DOWN, 1), (Answer(error="none", unfinished="no"), 2)])
def test_a_judge_without_answers_ends_the_work_in_one_sentence(many, answer, calls):
    """After 32 in a row and the calls then in flight, not after all 160; and what came is kept."""
    dead = FakeMLLM(lambda query: answer if pixel(query)[0] >= 5 else GOOD)
    with pytest.raises(ValueError, match=rf"the last 3\d calls .* \({answer.error}\)") as told:
        many(dead)
    assert "\n" not in str(told.value)
    # each of the other workers may be late with a good answer, which sets the count back, once
    assert 20 + 32 * calls <= len(dead.asked) <= 20 + 4 * 32 * calls
    again = [(pixel(query), query.text) for query in dead.asked]
    assert len(set(again)) == len(again)  # never the same twice
    whole = judge()
    assert {r.state for r in many(whole)} == {"judged"} and len(whole.asked) == 140


def test_a_model_is_known_by_weights_from_all_over_each_matrix():
    model = torch.nn.Linear(200, 1, bias=False)
    before = fingerprint({"model": model, "tokenizer": object()})
    model.weight.data[0, 150] += 1
    assert before != fingerprint({"model": model})


def test_patience_counts_failures_in_a_row_and_the_time_without_an_answer():
    patience = Patience(180)
    for _ in range(3):
        for _ in range(31):
            patience.check(["503"])
        patience.check(["503", None])
    patience.check(["503"] * 31)
    with pytest.raises(ValueError, match="last 32 calls"):
        patience.check(["503"])
    impatient = Patience(seconds=-1)  # so that any time is too long
    impatient.check([None])
    with pytest.raises(ValueError, match="last 1 calls"):
        impatient.check(["503"])


SCRIPT = """
import sys, time
from pathlib import Path
from test_asking import GOOD, FakeMLLM, make_prompts
from unigenbench.asking import judge_images
folder = Path(sys.argv[1])
judge = FakeMLLM(lambda query: time.sleep(0.005) or GOOD, "M at http://one:1/v1 (seed 0)")
judge_images(judge, make_prompts(40), folder / "images", folder / "j.jsonl", workers=16, batch=1)
"""


def test_killed_and_started_again_elsewhere_ends_with_each_judgment_once(tmp_path, many):
    journal = tmp_path / "j.jsonl"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 40):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    elsewhere = judge()
    elsewhere.name = "M at https://two.org/v1 (seed 0)"
    results = many(elsewhere)
    assert len(results) == 160 and {r.state for r in results} == {"judged"}
    names = [json.loads(line)["image"] for line in journal.read_text().splitlines()[1:]]
    assert Counter(names) == Counter({f"{p}_{i}.png": 1 for p in range(40) for i in range(4)})
