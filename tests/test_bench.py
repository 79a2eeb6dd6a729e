"""The tool from the command line, on small things: judge, score, report, and all of it at once."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from fake_server import HANG
from fakes import FakeMLLM
from PIL import Image

import bench
from judges.mllm import Answer, cut_off
from shapes import prompts as shapes_prompts
from shapes import verifier
from shapes.render import Scene, render
from shapes.server import served
from training import heldout
from unigenbench.asking import judge_images
from unigenbench.construct import PLACES, alike
from unigenbench.interrupt import stopped
from unigenbench.results import Result, read_results, write_results
from unigenbench.testpoints import Prompt, write_prompts


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Three prompts of shapes, drawn as asked except for one image of the second."""
    monkeypatch.chdir(tmp_path)
    rng, chosen = np.random.default_rng(0), shapes_prompts.heldout_prompts()[:3]
    Path("images").mkdir()
    for index, i in np.ndindex(3, 4):
        asked = shapes_prompts.sample_scene(chosen[index], rng)
        scene = Scene(()) if (index, i) == (1, 2) else asked
        Image.fromarray(render([scene])[0]).save(f"images/{index}_{i}.png")
    return chosen


JUDGE = "judge --prompts shapes --limit 3 --images images"


def run(line):
    return bench.run(line.split())


def read_scores(path):
    return [r.scores for r in read_results(path)]


def test_judge_score_and_report_from_the_command_line(drawn, capsys):
    assert run(f"{JUDGE} --out r.csv") == 0
    assert [Path(r.image).name for r in read_results("r.csv") if 0 in r.scores] == ["1_2.png"]
    assert run("score r.csv --json s.json") == 0
    out = capsys.readouterr().out
    scores = Path("s.json").read_bytes()
    assert "INCOMPLETE" not in out and "absent" in out and "Overall (mean over" in out
    settings = json.loads(scores)["settings"]
    assert settings["judge"].startswith("shapes") and settings["prompts"] == 3
    run(f"{JUDGE} --out r.csv")
    run("score r.csv --json s.json")
    assert Path("s.json").read_bytes() == scores
    Path("other.csv").write_bytes(Path("r.csv").read_bytes())
    capsys.readouterr()
    assert run("score r.csv other.csv") == 0
    table = capsys.readouterr().out
    assert "+0.00" in table and "+0.00 to +0.00" not in table  # no difference, but no certainty
    assert run("report r.csv other.csv --out out/report.html") == 0
    names = {"report.html", "report.md", "report.radar.png"}
    assert {p.name for p in Path("out").iterdir()} == names
    assert run("report r.csv --out out/v1.1") == run("report r.csv --out out/v1.2") == 0
    assert len([*Path("out").iterdir()]) == 9  # none over another
    assert "'r'" not in Path("out/report.md").read_text()
    assert drawn[1].text in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    "command",
    [
        "report r.csv --out link.csv",
        "report r.csv --out r.settings.json",
        "report r.csv --out 0_0.png",
        "agree r.csv x.md --out 0_0.png",
        "report r.csv x.md --out x.html",  # whose table is x.md
        "score r.csv --json {here}/r.settings.json",
        "score r.csv --prompts p.csv --json p.csv",
        "judge --prompts p.csv --images . --out p.csv --judge shapes",
        "construct --count 2 --out p.csv",
    ],
)
def test_no_command_writes_over_what_it_reads_or_did_not_write(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results([Result(0, "a", ["Style"], "0_0.png", [1])], "r.csv")
    write_prompts([Prompt(0, "a", [("Style", "ink")], "", "", "en")], "p.csv")
    Path("x.md").write_bytes(Path("r.csv").read_bytes())
    Path("r.settings.json").write_text("{}")
    Image.new("RGB", (8, 8)).save("0_0.png")
    Path("link.csv").symlink_to("r.csv")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="choose another (output|--out)"):
        run(command.format(here=tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_same_judge_goes_on_elsewhere_and_with_longer_answers(drawn):
    """A server is asked once an image; then with a journal of an earlier version, in which one
    answer was cut off and two are missing."""
    run(f"{JUDGE} --out here.csv")
    line = f"{JUDGE} --out r.csv --judge openai --concurrency 3"
    with served() as server:
        for _ in range(2):
            assert run(f"{line} --base_url {server.url} --max_tokens 9") == 0
            assert server.calls == 12 + 2  # and whether it sees
    assert read_scores("here.csv") == read_scores("r.csv")
    journal = Path("r.journal.jsonl")
    first, *lines = map(json.loads, journal.read_text().splitlines())
    name = "shapes at http://judge:1/v1 (temperature 0.0, seed 0, max_tokens 9)"
    assert list(first) == ["judge"]
    lines[5] |= {"output": "<analysis>", "unfinished": cut_off(9)}
    old = "".join(json.dumps(x) + "\n" for x in [{"judge": name}, *lines[:10]])
    journal.write_text(old)
    with served() as server:
        assert run(f"{line} --base_url {server.url} --max_tokens 4096") == 0
        assert server.calls == 3
        for other in (name.replace("shapes", "M"), name.replace("seed 0", "seed 1")):
            journal.write_text(old.replace(name, other))
            with pytest.raises(ValueError, match="was begun for .*; choose another --out"):
                run(f"{line} --base_url {server.url}")


def test_a_judge_that_is_another_model_halfway_is_kept_and_named_and_refused_by_score(
    drawn, capsys, caplog
):
    with served() as server:
        line = f"{JUDGE} --out r.csv --judge openai --judge_model pro --base_url {server.url}"
        server.mllm.name = "pro-1"
        assert run(line.replace("--limit 3", "--limit 2")) == run("score r.csv") == 0
        assert not caplog.records
        server.mllm.name = "flash"
        assert run(line) == 0 and server.calls == 2 + 12
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("another model answers than before, flash and not pro-1")
    lines = [json.loads(line) for line in Path("r.journal.jsonl").read_text().splitlines()[1:]]
    assert Counter(line["model"] for line in lines) == {"pro-1": 8, "flash": 4}
    settings = json.loads(Path("r.settings.json").read_text())
    assert settings["models"] == {"pro-1": 8, "flash": 4}
    whole = read_results("r.csv")
    for name, model in (("a", "pro-1"), ("b", "flash"), ("old", None)):
        write_results([r._replace(model=model) for r in whole], f"{name}.csv")
    assert "model" not in Path("old.csv").read_text()  # null there would lose the row
    half, each = r"by pro-1 \(8\), flash \(4\)", r"by pro-1 \(12\).*by flash \(12\)"
    for names, named in [("r.csv", half), ("a.csv b.csv", each)]:
        for command in (f"score {names}", f"report {names} --out x.html"):
            with pytest.raises(ValueError, match=f"of 2 models, .*{named}.*--allow_mixed") as told:
                run(command)
            assert "\n" not in str(told.value) and not Path("x.html").exists()
            assert run(f"{command} --allow_mixed_judges") == 0
        Path("x.html").unlink()
        for said in (capsys.readouterr().out, Path("x.md").read_text()):
            assert re.search(named, said, re.DOTALL)
    assert run("score a.csv old.csv") == run("report a.csv old.csv --out x.html") == 0
    assert run("agree a.csv b.csv") == 0
    said = capsys.readouterr().out
    assert "a: Judged by pro-1 (12)." in said and "b: Judged by flash (12)." in said


@pytest.mark.parametrize("suffix", [".jpg", ".webp", "_a.png"])
def test_folders_are_judged_as_they_are(drawn, suffix, capsys):
    """One image per prompt is complete where it was asked for."""
    write_prompts(bench.find_prompts("shapes")[:3], "p.csv")
    Path("other").mkdir()
    line = "judge --prompts p.csv --judge shapes --images other --out r.csv --images_per_prompt 1"
    with pytest.raises(ValueError, match="no image of .*: expected INDEX_IMAGE.png, from 0_0.png"):
        run(line)
    for n in range(3):
        Image.open(f"images/{n}_0.png").save(f"other/{n}_0{suffix}", quality=95)
    with pytest.raises(ValueError, match=f"follows the number, here {suffix}$") as told:
        run(line)
    assert f"there is 0_0{suffix}, " in str(told.value) and "\n" not in str(told.value)
    assert run(f"{line} --image_suffix {suffix}") == run("score r.csv --prompts p.csv") == 0
    assert [Path(r.image).name for r in read_results("r.csv")] == [
        f"{n}_0{suffix}" for n in (0, 1, 2)
    ]
    assert run("score r.csv --prompts p.csv --images_per_prompt 2") == 1
    expected = 2 * sum(len(p.testpoints) for p in drawn)
    assert f"{expected} expected, {expected // 2} judged" in capsys.readouterr().out


def test_a_judge_that_judged_nothing_says_why_and_one_that_is_blind_is_refused(
    drawn, capsys, caplog, monkeypatch
):
    judge = FakeMLLM(lambda query: Answer("maybe", unfinished=cut_off(9)), "blind")
    monkeypatch.setattr(bench, "make_judge", lambda *_, **__: judge)
    assert run(f"{JUDGE} --out r.csv") == 1 and "0 judged" in capsys.readouterr().out
    said = caplog.records[-1].getMessage()
    assert re.match("12 images were not judged: 12 x cut off at 9 .*--max_tokens.*'maybe'", said)
    judge.answer, judge.asked = lambda query: "<score>[1]</score>", []
    for _ in range(2):  # nor is it taken for checked
        with pytest.raises(ValueError, match="the judge blind does not see its"):
            run(f"{JUDGE} --out x.csv --judge openai")
    assert not Path("x.csv").exists() and len(judge.asked) == 2 * (2 + 2 * 2)


def test_what_is_incomplete_says_so_first_and_exits_non_zero(drawn, capsys, monkeypatch):
    run(f"{JUDGE} --out whole.csv")
    write_results([r for r in read_results("whole.csv") if r.index != 2], "less.csv")
    Path("images/0_1.png").unlink()
    run(f"{JUDGE} --out r.csv")
    capsys.readouterr()
    assert run("score r.csv") == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("r.csv: INCOMPLETE") and f"{len(drawn[0].testpoints)} failed" in first
    assert run("score r.csv --allow_partial") == 0
    assert run("score whole.csv r.csv --json s.json") == 1
    assert json.loads(Path("s.json").read_text())["coverage"]["failed"] == 0  # of the first
    run("report r.csv --out one.html")
    assert "INCOMPLETE" in Path("one.md").read_text() and "Strict" in Path("one.md").read_text()
    # Another evaluator left out all images of one prompt: the file alone looks whole.
    write_prompts(bench.find_prompts("shapes")[:3], "p.csv")
    assert run("score less.csv") == 0
    assert run("score less.csv --prompts p.csv --json s.json") == 1
    scores = json.loads(Path("s.json").read_text())
    assert scores["coverage"]["failed"] == 4 * len(drawn[2].testpoints)
    assert scores["overall_strict"] < scores["overall"]
    statuses = iter([0, 0, 1, 0])  # of the default's four commands
    monkeypatch.setattr(bench, "run", lambda _: next(statuses))
    assert bench.run_default() == 1


def test_what_the_verifier_does_not_know_is_unparsable_and_named(drawn, capsys, caplog):
    """In any number, and beside what it knows; and it is the judge of its own prompts alone."""
    known, own = bench.find_prompts("shapes")[:1], bench.find_prompts("own")[:30]
    write_prompts([*known, *(p._replace(index=1 + p.index) for p in own)], "p.csv")
    for i, p in itertools.product(range(4), range(3, 31)):
        Image.new("RGB", (32, 32)).save(f"images/{p}_{i}.png")
    line = "judge --images images --out r.csv --prompts "
    for prompts in ("p.csv", "own"):
        with pytest.raises(ValueError, match=f"--judge has to be given for --prompts {prompts}: "):
            run(line + prompts)
    with pytest.raises(ValueError, match="--base_url and --judge_model need --judge openai"):
        run(line + "shapes --base_url http://127.0.0.1:9/v1")
    run(line + "p.csv --judge shapes")
    states = Counter(r.state for r in read_results("r.csv"))
    assert states == {"judged": 4, "unparsable": 120}
    assert f"'{own[0].testpoints[0][1]}' cannot be verified" in caplog.text
    assert "INCOMPLETE" in capsys.readouterr().out and run("score r.csv") == 1


def test_a_report_is_of_one_prompt_set(drawn, caplog):
    Image.new("RGB", (32, 32)).save("images/999_0.png")
    run(f"{JUDGE} --out a.csv")
    run("judge --prompts shapes --limit 2 --images images --out b.csv")
    odd = [record.getMessage().split(": ")[1] for record in caplog.records]
    assert odd == ["999_0.png"] * 2  # the other images of the set are not foreign
    with pytest.raises(ValueError, match="^a.csv and b.csv are of different prompts .* index 2"):
        run("report a.csv b.csv --out r.html")
    Path("other").mkdir()
    Path("other/a.csv").write_bytes(Path("a.csv").read_bytes())
    with pytest.raises(ValueError, match="two result files have the same name"):
        run("report a.csv other/a.csv --out r.html")
    assert not Path("r.html").exists()


def test_the_default_run_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    """The commands of `python bench.py`, on its first prompts."""
    monkeypatch.chdir(tmp_path)
    model = os.path.relpath(ROOT / "assets" / "tiny-flux")
    for folder in ("a", "b"):
        for line in bench.DEFAULT:
            limit = " --limit 4" if line.startswith(("generate", "judge")) else ""
            assert run(line.format(model=model, folder=folder) + limit) == 0
    files = {p.relative_to("a") for p in Path("a").rglob("*") if p.is_file()}
    assert {Path("scores.json"), Path("report.html"), Path("images/3_3.png")} <= files
    own = {Path("results.csv")}  # the paths of the images stand in it
    assert {f for f in files if Path("a", f).read_bytes() != Path("b", f).read_bytes()} <= own


def test_the_held_out_score_of_training_is_the_benchmarks(tmp_path):
    """The same images, right and wrong ones, through train.py's measure and through the files."""
    rng, prompts = np.random.default_rng(0), shapes_prompts.heldout_prompts()[:30]
    shown = {}
    for n, i in np.ndindex(30, 4):
        scene = shapes_prompts.sample_scene(prompts[(n + i * (n % 2)) % 30], rng)
        shown[n, i] = Image.fromarray(render([scene])[0])
        shown[n, i].save(tmp_path / f"{n}_{i}.png")
    where = (bench.find_prompts("shapes")[:30], tmp_path, tmp_path / "j.jsonl")
    judged = judge_images(verifier.ShapesMLLM(), *where)
    for i in range(4):
        met, render_error = heldout.verify(prompts, [shown[n, i] for n in range(30)])
        assert met == [list(map(bool, r.scores)) for r in judged[i::4]]
        metrics = heldout.Held(met, render_error, [0.5] * 30).metrics()
        assert metrics["heldout_accuracy"] == bench.score(judged[i::4]).accuracy
        assert (metrics["heldout_accuracy"] == 1) == (i == 0)


@pytest.mark.parametrize(
    "line, said",
    [
        ("score no.csv", "^bench.py: .*no.csv"),
        ("generate --model m --prompts no.csv --out x", "'no.csv'; sets: shapes, own, en"),
        ("generate --model m --prompts own --out x --limit 0", "^2$"),
        ("judge --prompts own --images x --out y --judge local", "local needs --judge_model"),
    ],
)
def test_mistakes_get_one_sentence(line, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *line.split()])
    with pytest.raises(SystemExit, match=said) as told:
        bench.main()
    assert "\n" not in str(told.value)
    assert told.value.code != 2 or "is not a whole number of at least 1" in capsys.readouterr().err


INTERRUPTED = """
import os, runpy, signal, sys
class Finder:  # Ctrl-C while a library loads, or while another thread works
    def find_spec(self, name, *_):
        if name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[0] = "bench.py"
runpy.run_path("bench.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "at, line",
    [
        ("judges.make", ""),
        ("diffusers", "generate --model m --prompts own --out {r}"),
    ],
)
def test_ctrl_c_is_one_sentence(at, line, tmp_path):
    write_results([Result(0, "p", ["Style"], "0_0.png", [1])], tmp_path / "r.csv")
    line = line.format(r=tmp_path / "r.csv").split()
    command = [sys.executable, "-c", INTERRUPTED.format(at=at), *line]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (1, stopped("bench.py").strip())


def test_a_command_says_nothing_but_its_own_sentence(tmp_path):
    """Libraries warn of what is not installed and not needed, unless models.base is first."""
    line = f"generate --model {tmp_path} --prompt circle --out {tmp_path / 'one.png'}"
    command = [sys.executable, "bench.py", *line.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith(
        f"bench.py: no pipeline in '{tmp_path}'"
    )


def test_ctrl_c_waits_for_no_call_and_loses_no_answer(drawn):
    header = {"judge": "shapes at http://x/v1 (temperature 0.0, seed 0)"}
    (lines := Path("r.journal.jsonl")).write_text(json.dumps(header) + "\n")
    with served(hang=1.0, hang_seconds=HANG) as server:
        line = f"{JUDGE} --out r.csv --judge openai --base_url {server.url}"
        command = [sys.executable, str(ROOT / "bench.py"), *line.split()]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while server.calls < 12:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=HANG / 2)[1]
    assert run.returncode == 1 and said.endswith(stopped("bench.py") + "\n")
    assert "Traceback" not in said and len(lines.read_text().splitlines()) == 1


def test_our_own_prompt_set_touches_everything():
    prompts = bench.find_prompts("own")
    subs = Counter(sub for p in prompts for sub, _ in p.testpoints)
    assert len(prompts) >= 100 and len(subs) == 27 and min(subs.values()) >= 5
    assert {(p.theme, p.subtheme) for p in prompts} == {
        (row["theme_en"], row["subtheme_en"]) for row in PLACES
    }
    pairs = itertools.combinations([p.text for p in prompts], 2)
    assert max(alike(*pair) for pair in pairs) <= 0.2
    assert all(1 <= len(p.testpoints) <= 5 for p in prompts)
