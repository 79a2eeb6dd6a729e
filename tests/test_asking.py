"""Nothing asked twice, nothing lost, nothing taken for another: judging with small fake judges."""

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_server import client, serving
from fakes import FakeMLLM
from PIL import Image

from common.files import Journal
from judges.mllm import Answer, cut_off
from judges.openai_client import OpenAIMLLM
from unigenbench.asking import Patience, judge_images
from unigenbench.images import open_image, opens
from unigenbench.testpoints import Prompt

ROOT = Path(__file__).parent.parent
GOOD = '<analysis>["a", "b"]</analysis> <score>[1, 0]</score>'
DOWN = Answer(error="503")


def make_prompts(count):
    subs = ("Style", "Attribute - Color")
    return [
        Prompt(i, f"prompt {i}", [(sub, f"{sub} {i}") for sub in subs], "", "", "en")
        for i in range(count)
    ]


def draw(folder, prompts):
    folder.mkdir()
    (folder / "settings.json").write_text("{}")  # as generate leaves it there
    for p, i in itertools.product(prompts, range(4)):
        Image.new("RGB", (8, 8), (p.index, i, 0)).save(folder / f"{p.index}_{i}.png")


def pixel(query):
    return query.images[0].getpixel((0, 0))[:2]


def judge(answers=None, otherwise=GOOD):
    """Of an image, by its pixel, what answers has or makes of it; of others `otherwise`."""
    answers = answers or {}
    return FakeMLLM(lambda query: answers.get(pixel(query), otherwise))


def asked(mllm):
    return Counter(map(pixel, mllm.asked))


@pytest.fixture
def place(tmp_path):
    """A function that judges images of a few prompts, and where they and the journal are."""
    prompts = make_prompts(3)
    draw(tmp_path / "images", prompts)

    def run(mllm, prompts=prompts, **options):
        return judge_images(mllm, prompts, tmp_path / "images", tmp_path / "j.jsonl", **options)

    run.folder, run.prompts, run.journal = tmp_path / "images", prompts, tmp_path / "j.jsonl"
    return run


EVERY = [(p, i) for p in range(3) for i in range(4)]


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


def test_failed_and_unparsable_are_told_apart_and_retried_at_the_next_start(place):
    def say(query):
        again = "one list of 2 scores" in query.text  # the reminder
        first = {(0, 0): DOWN, (1, 1): "I like it", (2, 3): "yes and no"}
        second = {(1, 1): DOWN}  # after which what was said before counts
        return (second if again else first).get(pixel(query), GOOD)

    mllm = FakeMLLM(say)
    states = {Path(r.image).name: r.state for r in place(mllm)}
    assert (states.pop("0_0.png"), states.pop("1_1.png")) == ("failed", "unparsable")
    assert set(states.values()) == {"judged"}
    assert asked(mllm) == Counter(EVERY) + Counter([(1, 1), (2, 3)])
    again = judge()
    assert {r.state for r in place(again)} == {"judged"}
    assert sorted(asked(again)) == [(0, 0), (1, 1)]


def test_an_unfinished_draft_is_not_read_now_or_at_the_next_start(place, caplog):
    draft = Answer("maybe <score>[1, 1]</score>", unfinished=cut_off(9))
    with caplog.at_level(logging.WARNING):
        assert place(judge({(0, 0): draft}))[0][4:6] == (None, draft.text)  # scores, output
    assert "1 images were not judged: 1 x cut off at 9 tokens" in caplog.text
    assert "--max_tokens" in caplog.text
    again = judge()
    assert place(again)[0].scores == [1, 0] and asked(again) == {(0, 0): 1}


def test_a_judge_that_repeats_its_question_judges_nothing(place):
    template = "{prompt} {testpoint} {explanation} {test_explanation} Like <score>[1, 0]</score>."
    results = place(FakeMLLM(lambda query: "echo " + query.text), template=template)
    assert {r.state for r in results} == {"unparsable"}


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
    with caplog.at_level(logging.WARNING):
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


def test_a_torn_last_line_is_cut_off(place):
    place(judge())
    whole = place.journal.read_bytes()
    place.journal.write_bytes(whole[:-30])
    again = judge()
    assert {r.state for r in place(again)} == {"judged"} and len(again.asked) == 1
    assert place.journal.read_bytes() == whole
    lines = place.journal.read_text().splitlines()
    place.journal.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="is damaged"):
        place(judge())


def test_a_journal_is_one_process_and_one_judge_at_a_time(place):
    pytest.importorskip("fcntl")
    first, mllm = Journal(place.journal, {"judge": "fake"}), judge()
    with pytest.raises(ValueError, match="another process is writing .*j.jsonl"):
        place(mllm)
    assert mllm.asked == []
    first.file.close()
    assert {r.state for r in place(mllm)} == {"judged"}
    mllm.name = "other"
    with pytest.raises(ValueError, match="begun for .*fake.*, not for .*other"):
        place(mllm)


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


def unread(text="empty answer"):
    return Answer(error=text, unfinished=text)


@pytest.mark.parametrize("answer, calls", [(DOWN, 1), (unread(), 2)])
def test_a_judge_without_answers_ends_the_work_in_one_sentence(tmp_path, answer, calls):
    """After 32 in a row and the calls then in flight, not after all 160; and what came is kept."""
    prompts, journal = make_prompts(40), tmp_path / "j.jsonl"
    draw(tmp_path / "images", prompts)
    dead = FakeMLLM(lambda query: answer if pixel(query)[0] >= 5 else GOOD)
    where = (prompts, tmp_path / "images", journal)
    with pytest.raises(ValueError, match=rf"the last 3\d calls .* \({answer.error}\)") as told:
        judge_images(dead, *where, workers=4, batch=1)
    assert "\n" not in str(told.value)
    # each of the other workers may be late with a good answer, which sets the count back, once
    assert 20 + 32 * calls <= len(dead.asked) <= 20 + 4 * 32 * calls
    assert max(Counter(query.text for query in dead.asked).values()) == 4  # never the same twice
    again = judge()
    assert {r.state for r in judge_images(again, *where, workers=4, batch=1)} == {"judged"}
    assert len(again.asked) == 140


@pytest.mark.parametrize("kind", ["is not there", "asks for two hours"])
def test_a_server_that_gives_no_answer_ends_the_work(tmp_path, kind):
    draw(tmp_path / "images", make_prompts(10))

    def judged(mllm, why):
        with pytest.raises(ValueError, match=f"to the last 3[2-9] calls .*{why}"):
            judge_images(
                mllm, make_prompts(10), tmp_path / "images", tmp_path / "j", workers=8, batch=1
            )

    if kind == "is not there":
        with socket.socket() as unused:  # bound, but nobody listens
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
            judged(OpenAIMLLM(url, "m", max_retries=0), "Connection error")
    else:
        wait = (429, {"error": {"message": "slow down"}}, {"Retry_After": "7200"})
        with serving(*[wait] * 40) as server:
            judged(client(server), "a wait of 7200 s, longer than is left of the 180 s of --pat")
            assert len(server.requests) <= 8  # of those in flight, and none of those that follow


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
judge = FakeMLLM(lambda query: time.sleep(0.005) or GOOD)
judge_images(judge, make_prompts(40), folder / "images", folder / "j.jsonl", workers=16, batch=1)
"""


def test_killed_and_started_again_ends_with_each_judgment_once(tmp_path):
    draw(tmp_path / "images", make_prompts(40))
    journal = tmp_path / "j.jsonl"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=env, stderr=subprocess.DEVNULL
    )
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 40):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    results = judge_images(judge(), make_prompts(40), tmp_path / "images", journal)
    assert len(results) == 160 and {r.state for r in results} == {"judged"}
    names = [json.loads(line)["image"] for line in journal.read_text().splitlines()[1:]]
    assert Counter(names) == Counter({f"{p}_{i}.png": 1 for p in range(40) for i in range(4)})
