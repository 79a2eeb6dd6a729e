"""bench.py quality: means and intervals of published scorers, on tiny models of their classes."""

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import save_aesthetic, save_clip

import bench
from common.bootstrap import mean_interval
from judges import scorers
from unigenbench.quality import mean_rows
from unigenbench.testpoints import Prompt, write_prompts

TEXTS = ["a large red circle", "two green squares", "a blue triangle"]
REDS = {"0_0.png": 200, "0_1.png": 100, "1_0.png": 30, "1_1.png": 60, "2_0.png": 10}  # no 2_1.png


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, in a folder with images and weights; run.asked counts what was scored."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    points = [("Style", "ink")]
    write_prompts([Prompt(i, t, points, "", "", "en") for i, t in enumerate(TEXTS)], "p.csv")
    for name, red in REDS.items():
        Image.new("RGB", (40, 32), (red, 0, 0)).save(f"images/{name}")
    save_aesthetic(save_clip("clip"), "aesthetic")

    def run(names="clip=clip,aesthetic=aesthetic", also="--out q.csv"):
        run.asked = Counter()
        line = f"quality images --prompts p.csv --images_per_prompt 2 {also} --scorers"
        return bench.run([*line.split(), names])

    def score(scorer, prompts, images, real=scorers.CLIPScorer.score):
        run.asked[scorer.name] += len(images)
        return real(scorer, prompts, images)

    monkeypatch.setattr(scorers.CLIPScorer, "score", score)
    return run


def read():
    with open("q.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_single_scores_means_and_intervals(run, capsys, caplog):
    sources = dict(clip="clip", pickscore="clip", hpsv2="clip", aesthetic="aesthetic", redness="")
    Path("images/other.png").touch()
    assert run(",".join(f"{n}={s}" if s else n for n, s in sources.items())) == 1
    assert "1 files are no image of these prompts and are left out: other.png" in caplog.text
    assert "1 images cannot be scored: 1 x 2_1.png: missing" in caplog.text
    *rows, last = read()
    assert [row["image"] for row in rows] == list(REDS)
    missing = dict(index="2", prompt=TEXTS[2], image="2_1.png")
    assert last == missing | dict.fromkeys(sources, "")  # and no survivor stands for it:
    first, _, *table = capsys.readouterr().out.splitlines()
    assert first == "INCOMPLETE. Images: 6 expected, 5 scored, of 3 prompts."
    for (name, source), line in zip(sources.items(), table, strict=True):
        scorer = scorers.load(name, source)
        values = [float(row[name]) for row in rows]
        for row, value in zip(rows, values):
            alone = scorer.score([row["prompt"]], [Image.open(f"images/{row['image']}")])
            assert [value] == pytest.approx(alone, abs=1e-4)
        sums = [values[0] + values[1], values[2] + values[3], values[4]]
        told = [sum(values) / 5, *mean_interval(sums, [2, 2, 1])]
        assert re.split(r"  +| to ", line) == [name, *(f"{v:.4f}" for v in told)]
    Path("images/2_0.png").unlink()  # now a prompt has none: two are left, of 150 and 45
    assert run("redness") == 1
    assert "redness  97.5000  45.0000 to 150.0000" in capsys.readouterr().out
    caplog.clear()
    assert run("redness", "--out l.csv --limit 2") == 0 and "cannot be scored" not in caplog.text


def test_a_prompt_of_more_images_weighs_more():
    """0 once and 10 nine times for each of three. In one resample of twenty three prompts of four
    are the first: 90 of 12 images."""
    ((_, mean, bounds),) = mean_rows(["score"], [[[0.0]], *[[[10.0]] * 9] * 3])
    assert (mean, bounds) == ("9.6429", "7.5000 to 10.0000")


def test_done_work_is_known_by_what_it_was_made_from(run):
    def numbers():
        return [float(row[name] or 0) for row in read() for name in ("clip", "aesthetic")]

    run()
    whole, journal = numbers(), Path("q.journal.jsonl")
    lines = journal.read_bytes()
    for cut in (9, len(lines) // 2, len(lines) - 1, len(lines)):  # a kill can be at any byte
        journal.write_bytes(lines[:cut])
        run()
        assert run.asked.total() == 10 - max(0, lines[:cut].count(b"\n") - 1)
        assert numbers() == pytest.approx(whole, abs=1e-4)

    def rewritten(path, old, new):
        Path(path).write_text(Path(path).read_text().replace(old, new))

    def trained(path, tensor):
        weights = load_file(path)
        save_file(weights | {tensor: weights[tensor] + 1}, path, {"format": "pt"})

    for change, asked in [
        (lambda: shutil.move("clip", "old") and shutil.copytree("old", "clip"), {}),
        (lambda: Image.new("RGB", (8, 8)).save("images/1_1.png"), dict(clip=1, aesthetic=1)),
        (lambda: rewritten("p.csv", "two green", "two red"), dict(clip=2, aesthetic=2)),
        (lambda: trained("clip/model.safetensors", "text_projection.weight"), dict(clip=5)),
        (lambda: trained("aesthetic/model.safetensors", "layers.4.bias"), dict(aesthetic=5)),
        (lambda: rewritten("clip/processor_config.json", "0.48145466", "0.5"), dict(clip=5)),
    ]:
        before = numbers()
        change()
        run()
        assert +run.asked == asked and (numbers() == before) == (not asked)


def test_what_is_of_no_use_gets_one_sentence(run):
    Path("judged.journal.jsonl").write_text('{"judge": "someone"}\n')
    wrong = ["elo", "", "clip,", "clip=", "clip=a,clip=b", "pairwise", "clip:0.5"]
    for given, sentence in [
        *(((names,), f"in '{names}' is no NAME.=SOURCE.: NAME one of clip, ") for names in wrong),
        (["clip=images"], "cannot load a CLIP model from 'images'"),
        (["redness", "--out judged.csv"], "was begun for .'judge': 'someone'"),
        (["redness", "--out p.csv"], "is there, but not its journal"),
        (["redness", "--image_suffix .jpg"], "expected INDEX_IMAGE.jpg"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            run(*given)
    for name in REDS:
        Path("images", name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="'images' has no image of these prompts that can be open"):
        run("redness")
