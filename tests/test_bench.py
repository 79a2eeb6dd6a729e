"""The tool end to end on small things: generate, judge, score, report, from the command line."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import bench
from construct import SUBTHEMES, alike
from results import read_results
from testpoints import Prompt, write_prompts

ROOT = Path(__file__).parent.parent
PROMPTS = [Prompt(i, text, [("Attribute - Color", text)], "Art", "Other", "en")
           for i, text in enumerate(("a small red circle", "a large blue square", "two circles"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tiny FLUX: what it draws is noise, but always the same noise."""
    import pretrain

    folder = tmp_path_factory.mktemp("model")
    pretrain.build(seed=0).save_pretrained(folder)
    return str(folder)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("*.png")}


def test_images_do_not_depend_on_the_number_of_processes_or_on_restarts(tmp_path, model):
    bench.generate(PROMPTS, tmp_path / "one", model, steps=3)
    one = digests(tmp_path / "one")
    assert set(one) == {f"{p}_{i}.png" for p in range(3) for i in range(4)}
    assert len(set(one.values())) == 12  # other prompt or other seed, other image
    bench.generate(PROMPTS, tmp_path / "half", model, steps=3, rank=1, ranks=2)
    assert set(digests(tmp_path / "half")) == {f"1_{i}.png" for i in range(4)}
    write_prompts(PROMPTS, tmp_path / "p.csv")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--nproc_per_node=2", str(ROOT / "bench.py"), "generate", "--model", model,
                    "--steps", "3", "--prompts", str(tmp_path / "p.csv"),
                    "--out", str(tmp_path / "two")], check=True)
    assert digests(tmp_path / "two") == one
    (tmp_path / "one" / "1_2.png").write_bytes(b"torn")
    (tmp_path / "one" / "2_0.png").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "one").glob("*.png")}
    bench.generate(PROMPTS, tmp_path / "one", model, steps=3)
    assert digests(tmp_path / "one") == one
    made = {p.name for p in (tmp_path / "one").glob("*.png")
            if p.stat().st_mtime_ns != times.get(p.name)}
    assert made == {"1_2.png", "2_0.png"}


def test_images_of_other_settings_are_not_mixed(tmp_path, model):
    bench.generate(PROMPTS[:1], tmp_path / "a", model, steps=2)
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["steps"] == 2 and settings["size"] == 32 and settings["guidance"] == 3.5
    assert settings["seeds"] == [3407, 3408, 3409, 3410]
    with pytest.raises(ValueError, match="other settings .steps: 2 -> 3"):
        bench.generate(PROMPTS[:1], tmp_path / "a", model, steps=3)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "0_0.png")
    with pytest.raises(ValueError, match="no settings.json"):
        bench.generate(PROMPTS[:1], tmp_path / "b", model, steps=2)


def test_schedule_shift_is_the_pipelines_own(model):
    """Our sigmas equal those that diffusers' scheduler sets for FLUX.1-dev at 1024 x 1024."""
    import flux
    import numpy as np
    import sampler
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Pipe:
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0,
            base_image_seq_len=256, max_image_seq_len=4096)

    shift = flux.schedule_shift(Pipe, 4096)
    Pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=1.15)
    assert sampler.sigma_schedule(30, shift).numpy() == pytest.approx(
        Pipe.scheduler.sigmas.numpy(), abs=1e-6)
    Pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert flux.schedule_shift(Pipe, 4096) == 3.0


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Three prompts of the embedded world, drawn as asked except for one image of the second."""
    import numpy as np
    import scenes
    import shapes

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    chosen = shapes.heldout_prompts()[:3]
    (tmp_path / "images").mkdir()
    for index, prompt in enumerate(chosen):
        for i in range(4):
            scene = scenes.Scene(()) if (index, i) == (1, 2) else shapes.sample_scene(prompt, rng)
            image = Image.fromarray(scenes.render([scene])[0])
            image.save(tmp_path / "images" / f"{index}_{i}.png")
    return chosen


def run(line):
    return bench.run(line.split())


def test_judge_score_and_report_from_the_command_line(drawn, capsys):
    assert run("judge --prompts shapes --limit 3 --images images --out r.csv") == 0
    results = read_results("r.csv")
    assert len(results) == 12
    assert [Path(r.image).name for r in results if 0 in r.scores] == ["1_2.png"]
    assert run("score r.csv --json s.json") == 0
    out = capsys.readouterr().out
    scores = Path("s.json").read_bytes()
    assert "INCOMPLETE" not in out and "absent" in out and "Overall (mean over" in out
    assert json.loads(scores)["settings"]["judge"].startswith("shapes")
    run("judge --prompts shapes --limit 3 --images images --out r.csv")
    run("score r.csv --json s.json")
    assert Path("s.json").read_bytes() == scores
    Path("other.csv").write_bytes(Path("r.csv").read_bytes())
    capsys.readouterr()
    assert run("score r.csv other.csv") == 0
    assert "+0.00 to +0.00" in capsys.readouterr().out
    assert run("report r.csv other.csv --out out/report.html") == 0
    assert {p.name for p in Path("out").iterdir()} == {"report.html", "report.md",
                                                       "report.radar.png"}
    assert "'r'" not in Path("out/report.md").read_text()
    assert drawn[1].text in Path("out/report.html").read_text()


def test_an_incomplete_run_says_so_first_and_exits_non_zero(drawn, capsys):
    Path("images/0_1.png").unlink()
    run("judge --prompts shapes --limit 3 --images images --out r.csv")
    capsys.readouterr()
    assert run("score r.csv") == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("r.csv: INCOMPLETE") and f"{len(drawn[0].testpoints)} failed" in first
    assert run("score r.csv --allow_partial") == 0


def test_the_default_run_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    """The commands of `python bench.py`, on its first prompts. (Other processes: see above.)"""
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
    """The same pictures, right and wrong ones, through train.py's measure and through the files."""
    import heldout
    import numpy as np
    import scenes
    import shapes
    from judge import judge_images
    from results import score

    rng, prompts = np.random.default_rng(0), shapes.heldout_prompts()[:30]
    (tmp_path / "images").mkdir()
    shown = [[Image.fromarray(pixels) for pixels in scenes.render(
        [shapes.sample_scene(prompts[(n + i * (n % 2)) % 30], rng) for i in range(4)])]
        for n in range(30)]
    for n, i in np.ndindex(30, 4):
        shown[n][i].save(tmp_path / "images" / f"{n}_{i}.png")
    judged = judge_images(shapes.ShapesMLLM(), bench.find_prompts("shapes")[:30],
                          tmp_path / "images", tmp_path / "j.jsonl")
    for i in range(4):
        results, fidelity = heldout.verify(prompts, [images[i] for images in shown])
        assert [(r.index, r.prompt, r.subs, r.scores) for r in results] == [
            (r.index, r.prompt, r.subs, r.scores) for r in judged[i::4]]
        metrics = heldout.Held(results, fidelity, [0.5] * 30).metrics()
        assert metrics["heldout_accuracy"] == score(judged[i::4]).accuracy
        assert (metrics["heldout_accuracy"] == 1) == (i == 0)


def test_prompt_sets():
    shapes = bench.find_prompts("shapes")
    assert len(shapes) >= 300 and len({p.text for p in shapes}) == len(shapes)
    with pytest.raises(ValueError, match="no prompt file 'nowhere.csv'; sets: shapes, own, en"):
        bench.find_prompts("nowhere.csv")


def test_mistakes_get_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench.py", "score", str(tmp_path / "no.csv")])
    with pytest.raises(SystemExit, match="^bench.py: .*no.csv"):
        bench.main()


def test_our_own_prompt_set_touches_everything():
    prompts = bench.find_prompts("own")
    subs = Counter(sub for p in prompts for sub, _ in p.testpoints)
    assert len(prompts) >= 100 and len(subs) == 27 and min(subs.values()) >= 5
    assert {(p.theme, p.subtheme) for p in prompts} == {
        (theme, sub) for theme, subs in SUBTHEMES.items() for sub in subs}
    texts = [p.text for p in prompts]
    assert max(alike(a, b) for i, a in enumerate(texts) for b in texts[:i]) <= 0.2
    assert all(1 <= len(p.testpoints) <= 5 for p in prompts)
