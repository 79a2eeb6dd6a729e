"""Nothing asked twice, nothing lost, nothing taken for another: judging with small fake judges."""

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
from PIL import Image

from common.files import Journal
from judges.mllm import Answer, cut_off
from judges.openai_client import OpenAIMLLM
from unigenbench.asking import Patience, judge_images
from unigenbench.images import open_image, opens
from unigenbench.testpoints import Prompt

ROOT = Path(__file__).parent.parent


def make_prompts(count):
    return [
        Prompt(
            i, f"prompt {i}", [("Style", f"ink {i}"), ("Attribute - Color", "red")], "", "", "en"
        )
        for i in range(count)
    ]


def draw(folder, prompts):
    folder.mkdir()
    (folder / "settings.json").write_text("{}")  # as generate leaves it there
    for p in prompts:
        for i in range(4):
            Image.new("RGB", (8, 8), (p.index, i, 0)).save(folder / f"{p.index}_{i}.png")


class Judge:
    """Says [1, 0] of every image; `say` may answer otherwise. Keeps what it was asked."""

    name = "fake"

    def __init__(self, say=None):
        self.say, self.asked, self.texts, self.sizes = say, [], [], set()

    def ask(self, queries):
        answers = []
        self.sizes.add(len(queries))
        for query in queries:
            ((image,), text) = query
            pixel = image.getpixel((0, 0))[:2]
            self.asked.append(pixel)
            self.texts.append(text)
            said = self.say(pixel, text) if self.say else None
            answers.append(said or Answer('<analysis>["a", "b"]</analysis> <score>[1, 0]</score>'))
        return answers


@pytest.fixture
def place(tmp_path):
    prompts = make_prompts(3)
    draw(tmp_path / "images", prompts)

    def run(mllm, prompts=prompts, **options):
        return judge_images(mllm, prompts, tmp_path / "images", tmp_path / "j.jsonl", **options)

    run.folder, run.prompts, run.journal = tmp_path / "images", prompts, tmp_path / "j.jsonl"
    return run


@pytest.mark.parametrize("workers, batch", [(1, 1), (1, 100), (4, 1), (3, 2)])
def test_each_image_is_asked_about_once_and_never_again(place, workers, batch):
    meet = threading.Barrier(workers, timeout=60)  # as many calls are in flight

    def say(*_):
        meet.wait()

    judge = Judge(say)
    results = place(judge, workers=workers, batch=batch)
    assert judge.sizes == {min(batch, 12)}
    assert Counter(judge.asked) == Counter({(p, i): 1 for p in range(3) for i in range(4)})
    assert [(r.index, Path(r.image).name, r.scores, r.reasons) for r in results] == [
        (p, f"{p}_{i}.png", [1, 0], ["a", "b"]) for p in range(3) for i in range(4)
    ]
    again = Judge()
    assert place(again) == results and again.asked == []


def test_the_right_answer_goes_to_each_image(place):
    def say(pixel, text):
        return Answer(f"<score>[{sum(pixel) % 2}, {pixel[1] // 2}]</score>")

    results = place(Judge(say), workers=3, batch=2)
    assert [r.scores for r in results] == [
        [(p + i) % 2, i // 2] for p in range(3) for i in range(4)
    ]


def test_failed_and_unparsable_are_told_apart_and_retried_at_the_next_start(place):
    def say(pixel, text):
        if pixel == (0, 0):
            return Answer(error="503")
        if pixel == (1, 1):  # and then nothing more
            return Answer(error="503") if "Your last" in text else Answer("I like it")

    judge = Judge(say)
    states = {Path(r.image).name: r.state for r in place(judge)}
    assert states.pop("0_0.png") == "failed" and states.pop("1_1.png") == "unparsable"
    assert set(states.values()) == {"judged"}
    assert judge.asked.count((1, 1)) == 2 and judge.asked.count((0, 0)) == 1
    again = Judge()
    assert {r.state for r in place(again)} == {"judged"}
    assert sorted(again.asked) == [(0, 0), (1, 1)]


def test_an_unparsable_answer_is_asked_for_again_with_a_reminder(place):
    def say(pixel, text):
        if pixel == (2, 3) and "Your last answer" not in text:
            return Answer("yes and no")

    judge = Judge(say)
    assert {r.state for r in place(judge)} == {"judged"}
    assert sum("one list of 2 scores" in text for text in judge.texts) == 1


def test_an_unfinished_draft_is_not_read_now_or_at_the_next_start(place, caplog):
    draft = Answer("maybe <score>[1, 1]</score>", unfinished=cut_off(9))

    def say(pixel, text):
        return draft if pixel == (0, 0) else None

    with caplog.at_level(logging.WARNING):
        assert place(Judge(say))[0][4:6] == (None, draft.text)  # scores, output
    assert "1 images were asked about in vain: 1 x cut off at 9 tokens" in caplog.text
    assert "--max_tokens" in caplog.text
    again = Judge()
    assert place(again)[0].scores == [1, 0] and again.asked == [(0, 0)]


def test_a_judge_that_repeats_its_question_judges_nothing(place):
    template = "{prompt} {testpoint} {explanation} {test_explanation} Like <score>[1, 0]</score>."
    results = place(Judge(lambda pixel, text: Answer("echo " + text)), template=template)
    assert {r.state for r in results} == {"unparsable"}


def test_a_judge_that_cannot_be_read_ends_the_work_as_a_dead_one_does(tmp_path):
    draw(tmp_path / "images", make_prompts(40))
    cut = Answer(error="empty answer", unfinished="empty answer")
    judge = Judge(lambda pixel, text: cut)
    with pytest.raises(ValueError, match=r"to the last 32 calls in .* \(empty answer\)"):
        judge_images(judge, make_prompts(40), tmp_path / "images", tmp_path / "j", batch=1)
    assert len(judge.asked) == 64 and len(set(judge.texts)) == 64 // 4  # never in the same words


def test_an_answer_counts_for_its_image_and_its_question_only(place):
    place(Judge())
    Image.new("RGB", (8, 8), (9, 9, 9)).save(place.folder / "1_2.png")
    other = [("Style", "oil"), ("Attribute - Color", "red")]
    changed = [*place.prompts[:2], place.prompts[2]._replace(testpoints=other)]
    again = Judge()
    place(again, changed)
    assert sorted(again.asked) == [(2, 0), (2, 1), (2, 2), (2, 3), (9, 9)]


def test_broken_missing_and_foreign_files_are_named_and_never_judged(place, caplog):
    whole = (place.folder / "0_0.png").read_bytes()
    (place.folder / "0_1.png").write_bytes(whole[: len(whole) - 20])
    (place.folder / "0_2.png").write_bytes(b"no image")
    (place.folder / "0_3.png").unlink()
    (place.folder / "0_4.png").write_bytes(whole)
    (place.folder / "00_0.png").write_bytes(whole)
    (place.folder / "1_0.PNG.txt").write_bytes(whole)
    judge = Judge()
    with caplog.at_level(logging.WARNING):
        results = place(judge)
    assert Counter(judge.asked) == Counter([(0, 0), *((p, i) for p in (1, 2) for i in range(4))])
    assert [r.state for r in results][:5] == ["judged", "failed", "failed", "failed", "judged"]
    odd, broken = (record.getMessage() for record in caplog.records)
    assert odd.startswith("3 files") and "00_0.png, 0_4.png, 1_0.PNG.txt" in odd
    assert "3 images cannot be judged" in broken
    assert all(name in broken for name in ("0_1.png", "0_2.png", "0_3.png: missing"))


def test_many_of_them_stay_a_sentence(place, caplog):
    for path in place.folder.glob("*.png"):
        path.unlink()
    for n in range(15):
        (place.folder / f"odd{n}.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        assert {r.state for r in place(Judge())} == {"failed"}
    odd, broken = (record.getMessage() for record in caplog.records)
    assert broken == "12 images cannot be judged: 12 such as 0_0.png: missing"
    assert odd.startswith("15 files") and odd.endswith(".txt and 10 more")


def test_no_cut_off_image_opens(tmp_path):
    Image.effect_noise((16, 16), 50).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert opens(tmp_path / "a.png") and open_image(tmp_path / "a.png")[1] == data
    for length in range(0, data.index(b"IEND") - 8, 7):
        (tmp_path / "b.png").write_bytes(data[:length])
        assert not opens(tmp_path / "b.png"), length


def test_a_torn_last_line_is_cut_off(place):
    place(Judge())
    whole = place.journal.read_bytes()
    place.journal.write_bytes(whole[:-30])
    again = Judge()
    assert {r.state for r in place(again)} == {"judged"} and len(again.asked) == 1
    assert place.journal.read_bytes() == whole
    lines = place.journal.read_text().splitlines()
    place.journal.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="is damaged"):
        place(Judge())


def test_two_processes_over_one_journal_do_not_ask_twice(place):
    pytest.importorskip("fcntl")
    first = Journal(place.journal, {"judge": "fake"})
    judge = Judge()
    with pytest.raises(ValueError, match="another process is writing .*j.jsonl"):
        place(judge)
    assert judge.asked == []
    first.file.close()
    assert {r.state for r in place(judge)} == {"judged"}


def test_a_journal_of_another_judge_is_refused(place):
    place(Judge())
    other = Judge()
    other.name = "other"
    with pytest.raises(ValueError, match="begun for .*fake.*, not for .*other"):
        place(other)


def test_a_fault_in_one_lane_stops_the_others_and_keeps_what_was_said(place):
    def say(pixel, text):
        if pixel == (1, 0):
            raise RuntimeError("out of memory")
        time.sleep(0.02)

    with pytest.raises(RuntimeError, match="out of memory"):
        place(Judge(say), workers=2, batch=1)
    kept = len(Journal(place.journal, {"judge": "fake"}).lines)
    again = Judge()
    place(again)
    assert 4 <= kept <= 8 and len(again.asked) == 12 - kept


def test_a_dead_judge_ends_the_work_with_one_sentence(tmp_path):
    """After 32 failures in a row and the calls then in flight, not after all 160."""
    prompts, journal = make_prompts(40), tmp_path / "j.jsonl"
    draw(tmp_path / "images", prompts)
    dead = Judge(lambda pixel, text: Answer(error="503") if pixel[0] >= 5 else None)
    with pytest.raises(ValueError, match=r"^no answer to the last 3\d calls in \d+ s \(503\); w"):
        judge_images(dead, prompts, tmp_path / "images", journal, workers=4, batch=1)
    # each of the other workers may be late with a good answer, which sets the count back, once
    assert 20 + 32 <= len(dead.asked) <= 20 + 4 * 32
    again = Judge()
    results = judge_images(again, prompts, tmp_path / "images", journal, workers=4, batch=1)
    assert {r.state for r in results} == {"judged"} and len(again.asked) == 140


def test_a_server_that_is_not_there_ends_the_work(tmp_path):
    draw(tmp_path / "images", make_prompts(10))
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        mllm = OpenAIMLLM(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", "m", max_retries=0)
        with pytest.raises(ValueError, match="to the last 3[2-9] calls .*Connection error"):
            judge_images(
                mllm, make_prompts(10), tmp_path / "images", tmp_path / "j", workers=8, batch=1
            )


def test_patience_counts_failures_in_a_row_and_the_time_without_an_answer():
    patience, good, bad = Patience(), Answer("yes"), Answer(error="503")
    for _ in range(3):
        for _ in range(31):
            patience.check([bad])
        patience.check([bad, good])
    patience.check([bad] * 31)
    with pytest.raises(ValueError, match="last 32 calls"):
        patience.check([bad])
    impatient = Patience(seconds=-1)  # so that any time is too long
    impatient.check([good])
    with pytest.raises(ValueError, match="last 1 calls"):
        impatient.check([bad])


SCRIPT = """
import sys, time
from pathlib import Path
from test_asking import Judge, make_prompts
from unigenbench.asking import judge_images
folder = Path(sys.argv[1])
judge = Judge(lambda pixel, text: time.sleep(0.005))
judge_images(judge, make_prompts(40), folder / "images", folder / "j.jsonl", workers=16, batch=1)
"""


def test_killed_and_started_again_ends_with_each_judgment_once(tmp_path):
    draw(tmp_path / "images", make_prompts(40))
    journal = tmp_path / "j.jsonl"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    for goal in (20, 90):  # lines in the journal at which the process is killed
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], env=env, stderr=subprocess.DEVNULL
        )
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= goal):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    results = judge_images(Judge(), make_prompts(40), tmp_path / "images", journal)
    assert len(results) == 160 and {r.state for r in results} == {"judged"}
    names = [json.loads(line)["image"] for line in journal.read_text().splitlines()[1:]]
    assert Counter(names) == Counter({f"{p}_{i}.png": 1 for p in range(40) for i in range(4)})
