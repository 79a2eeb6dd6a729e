"""gallery.py: what a run keeps is what it learned from, and the page shows it."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from browser import needs_browser, seen
from PIL import Image
from real_runs import ALONE, shallow, stepped, whole_run

import train
from figures import gallery
from judges.mllm import Answer
from judges.scorers import MLLMScorer
from rewards import PairwiseReward, PointwiseReward, Rewards
from training.config import Config
from training.data import make_batch
from training.judging import JudgeError
from training.session import ends_well, start_run

HOSTILE = "</script><script>document.title='owned'</script><!-- \" ' & <b>bold</b> @@DATA@@"
PROMPTS = ["up", "down"]
LIGHT = [[10, 20, 30, 40], [80, 70, 60, 50]]


class Judge:
    """Prefers the brighter image, in words that tell images apart; refuses those of brightness 20,
    and gives every pair the probability 0.25. left: after so many calls it is down."""

    name = "brightness"

    def __init__(self, left: int = 1000):
        self.left = left

    def ask(self, queries):
        self.left -= 1
        return [self.answer([image.getpixel((0, 0))[0] for image in q.images]) for q in queries]

    def answer(self, light):
        if 20 in light or self.left < 0:
            return Answer(error="refused")
        if len(light) == 1:
            kinds = ("Alignment", "Coherence", "Style")
            return Answer("\n".join(f"{kind} Score (1-5): {1 + light[0] / 100}" for kind in kinds))
        better = "Image 1 is better" if light[0] > light[1] else "Image 2 is better"
        return Answer(f"{light[0]} and {light[1]} {HOSTILE}\n<answer>{better}</answer>")

    def first_probability(self, queries):
        return [0.25 for _ in queries]


def pairwise(**settings):
    return {"pairwise": PairwiseReward(Judge(), **settings)}


def pointwise():
    return {"pointwise": PointwiseReward(MLLMScorer(Judge()))}


def constant(prompts, images):
    return Rewards(torch.full((len(prompts), len(images[0])), 0.3457), Counter())


def kept(tmp_path, rewards, step=1, prompts=PROMPTS):
    """What is kept of a step on these rewards, by name, and the rewards themselves."""
    groups = [[Image.new("RGB", (8, 8), (v, v, v)) for v in row] for row in LIGHT[: len(prompts)]]
    compared = {name: reward(prompts, groups) for name, reward in rewards.items()}
    rollout, zeros = train.Rollout(prompts, None, None, groups), torch.zeros(len(prompts), 4)
    done = train.TrainStep(step, rollout, compared, compared, zeros, 0.0, [], [])
    gallery.keep(tmp_path, Judge.name, done)
    record = json.loads((tmp_path / "gallery" / f"step_{step:06}.json").read_text())
    return record["groups"], {name: found.values for name, found in compared.items()}


@pytest.mark.parametrize("settings", [{"opponents": 2}, {"both_orders": False}, {"soft": True}])
def test_a_win_rate_is_the_mean_of_its_row_in_the_table(settings, tmp_path):
    groups, found = kept(tmp_path, pairwise(**settings))
    for group, rates in zip(groups, found["pairwise"].tolist(), strict=True):
        assert group["rewards"] == {"win rate": pytest.approx(rates, abs=1e-4)}
        for row, rate in zip(group["points"], rates):
            known = [points for points in row if points is not None]
            assert rate == pytest.approx(sum(known) / len(known) if known else 0.5)


def test_the_words_are_those_that_the_judge_says_of_the_images_as_shown(tmp_path):
    groups, _ = kept(tmp_path, pairwise() | pointwise())
    for group, light in zip(groups, LIGHT, strict=True):
        assert len(group["said"]) == 4 * 3 + 4  # each pair in both orders, each image alone
        for said in group["said"]:
            answer = Judge().answer([light[i] for i in said["shown"]])
            assert said["words"] == (answer.text or "refused")
    read = {tuple(said["shown"]): said["read_as"] for said in groups[0]["said"]}
    assert (read[0, 2], read[2, 0], read[0, 1], read[1,]) == ("second", "first", "failed", "failed")
    assert read[0,] == pytest.approx(1.1)


def test_a_step_keeps_the_groups_that_fit_and_one_at_least(tmp_path, monkeypatch):
    whole, _ = kept(tmp_path, pairwise())
    for room, count in ((1, 1), (len(json.dumps(whole)) + 9, 2), (len(json.dumps(whole[0])), 1)):
        monkeypatch.setattr(gallery, "STEP", room)
        assert kept(tmp_path, pairwise())[0] == whole[:count]


def test_many_steps_are_thinned_evenly(tmp_path, monkeypatch):
    kept(tmp_path, {})
    size = (tmp_path / "gallery" / "step_000001.json").stat().st_size
    monkeypatch.setattr(gallery, "ALL", 9 * (size + 20))
    for step in range(2, 65):
        kept(tmp_path, {}, step)
    steps = [int(file.stem[-6:]) for file in gallery.steps_in(tmp_path)]
    gaps = [after - before for before, after in zip(steps, steps[1:])]
    assert steps[0] == 1 and steps[-1] == 64 and len(steps) >= 8 and max(gaps) <= 16


# ----------------------------------------------------------------------------- a run

SIZES = dict(prompts_per_step=2, group_size=4, heldout=1, num_steps=3)
CFG = Config(**SIZES, steps=3, eval_every=2, checkpoint_every=1)
MIXTURE = replace(CFG, reward="pairwise:0.4,redness:0.6")


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """The folder of a run, and its steps as they are handed to what observes them."""
    out, steps = tmp_path_factory.mktemp("run") / "run", []
    run = start_run(replace(MIXTURE, out=str(out), model=shallow()), ALONE)
    run.observers.append(steps.append)
    with ends_well(run):
        train.train(run.cfg, run)
        run.finish()
    return out, steps


def test_a_run_keeps_what_it_learned_from_at_its_first_step_and_where_it_evaluates(a_run):
    files = gallery.steps_in(a_run[0])
    assert [file.name for file in files] == [f"step_00000{n}.json" for n in (1, 2, 3)]
    for file, step in zip(files, a_run[1], strict=True):
        groups = json.loads(file.read_text())["groups"]
        assert [group["prompt"] for group in groups] == make_batch(CFG, None, step.step).prompts
        for p, group in enumerate(groups):
            assert group["advantages"] == pytest.approx(step.advantages[p].tolist(), abs=1e-4)
            for name, key in (("win rate", "pairwise"), ("redness", "redness")):
                wanted = pytest.approx(step.rewards[key].values[p].tolist(), abs=1e-4)
                assert group["rewards"][name] == wanted
            assert len(group["said"]) == 12  # of the pairs alone: a scorer says nothing
            assert all("Image 1 shows" in said["words"] for said in group["said"])


def test_a_run_that_is_resumed_keeps_the_same_and_the_command_makes_its_page_again(
    a_run, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "run" / "gallery.html"
    cfg = replace(MIXTURE, out=str(page.parent), model=shallow())
    stepped(cfg).held.close()
    whole_run(replace(cfg, resume=True))
    assert page.read_text() == (a_run[0] / "gallery.html").read_text()

    page.unlink()
    monkeypatch.setattr("sys.argv", ["gallery", str(page.parent)])
    gallery.main()
    assert page.read_text() == (a_run[0] / "gallery.html").read_text()
    monkeypatch.setattr("sys.argv", ["gallery", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        gallery.main()
    told = capsys.readouterr()
    assert "gallery.html" in told.out and "keeps no groups" in told.err


def test_a_run_that_ends_early_has_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr("training.start.judge_of", lambda *_: Judge(left=1))
    with pytest.raises(JudgeError, match="the state after step 1 is saved"):
        whole_run(replace(CFG, out=str(tmp_path), model=shallow()))
    assert '"step": 1' in (tmp_path / "gallery.html").read_text()
    assert [file.stem for file in gallery.steps_in(tmp_path)] == ["step_000001"]


# ----------------------------------------------------------------------------- the page


@pytest.fixture
def page(tmp_path):
    """Two steps: of two prompts, of which one is hostile; and of one that was scored alone."""
    texts = [HOSTILE, "down \ud83d"]  # the second ends in half of a pair of surrogates
    kept(tmp_path, pairwise(), 1, texts)
    kept(tmp_path, pointwise() | {"clip": constant}, 32, ["alone"])
    return tmp_path / "gallery.html"


def test_the_page_is_whole_offline_and_holds_hostile_text_as_text(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and "<b>bold" not in text
    assert not re.findall(r"(?:src|href)=", text) and "http" not in text.replace("http-equiv", "")
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    prompts = [g["prompt"] for step in json.loads(data)["steps"] for g in step["groups"]]
    assert prompts == [HOSTILE, "down \ud83d", "alone"]


@needs_browser
def test_the_page_turns_in_a_real_browser(page, tmp_path):
    """A script turns through steps and prompts, chooses pairs and images, and writes down what is
    on the screen."""
    script = """
      const text = id => document.getElementById(id).textContent;
      const signs = () => [...document.querySelectorAll("#table button")].map(b => b.textContent);
      const heard = () => [...document.querySelectorAll("article")].map(a =>
        [a.querySelector(".shown").textContent, a.querySelector("b").textContent]);
      const key = k => document.dispatchEvent(new KeyboardEvent("keydown", {key: k}));
      const cards = n => document.querySelectorAll("#images figure")[n].textContent;
      seen.push(text("caption"), cards(3), signs().join(""), text("chosen"), heard());
      document.querySelectorAll("#table button")[1].click();  // image 1 against image 3
      seen.push(text("chosen"), heard(), document.querySelector("article pre").textContent);
      document.getElementById("prompt-on").click();
      seen.push(text("chosen"), signs().join(""), document.getElementById("prompt-on").disabled);
      document.querySelectorAll("#images button")[3].click();
      seen.push(text("chosen"), heard().length);
      key("l");
      seen.push(text("caption"), text("chosen"), heard(), cards(0));
      seen.push(document.getElementById("pairs").hidden);
      key("h"); key("k");
      seen.push(document.getElementById("step").value, document.title);"""
    both = "image {}, shown as Image 1image {}, shown as Image 2".format
    assert seen(page, script, tmp_path) == [
        HOSTILE,
        "Image 4win rate 1.00advantage 0.00",
        "?LL???W?LW?W",  # every pair of the second image is lost
        "Image 1 against image 2, judged by brightness",
        [[both(1, 2), "No answer"], [both(2, 1), "No answer"]],
        "Image 1 against image 3, judged by brightness",
        [[both(1, 3), "Image 2 is better"], [both(3, 1), "Image 1 is better"]],
        f"10 and 30 {HOSTILE}\n<answer>Image 2 is better</answer>",
        "Image 1 against image 3, judged by brightness",
        "WWWLWWLLWLLL",
        True,
        "Image 4, judged by brightness",
        6,
        "alone",
        "Image 4, judged by brightness",
        [["image 4", "Mean rating: 1.40"]],
        "Image 1score 1.1000clip 0.3457advantage 0.00",
        True,
        "1",
        f"Gallery of {tmp_path.name}",
    ]
