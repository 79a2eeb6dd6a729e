"""Pre-training: its data, new models, resumption; and all its stages once, too small to learn."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from judges.scorers import CLIPScorer
from models import base
from shapes import pretrain, pretrain_clip
from shapes.grammar import parse_prompt
from shapes.prompts import all_prompts, sample_prompts
from shapes.read import read
from shapes.render import LIGHT, SIZE
from shapes.verifier import satisfied

HELDOUT = {p.text for pool in all_prompts("heldout").values() for p in pool}
CLIP = ROOT / "assets" / "tiny-clip"


def right(texts, images):
    return [all(satisfied(parse_prompt(t), r)) for t, r in zip(texts, read(images), strict=True)]


def shapes_in(folder):
    (file,) = folder.glob("*.safetensors")
    return {key: value.shape for key, value in load_file(file).items()}


# ----------------------------------------------------------------------------- data


def test_wrong_captions_have_one_wrong_slot_and_are_no_held_out_ones():
    rng = np.random.default_rng(0)
    for prompt in sample_prompts(200, rng):
        wrong = pretrain.wrong_caption(prompt, rng)
        assert wrong.kind == prompt.kind and wrong.text not in HELDOUT
        assert sum(wrong.slots[name] != value for name, value in prompt.slots.items()) == 1


def test_web_like_data_is_wrong_and_pale_as_often_as_it_says():
    captions, images = pretrain.make_data(400, np.random.default_rng(0), web=True)
    clean, _ = pretrain.make_data(30, np.random.default_rng(0), web=False)
    assert not HELDOUT & {*captions, *clean}
    # right are those with a right caption whose color is not washed out beyond reading
    most = 1 - pretrain.WRONG_CAPTION
    share = np.mean(right(captions, list(map(Image.fromarray, images))))
    assert most * (1 - pretrain.WASHED_OUT) - 0.04 <= share <= most + 0.04
    strongest = np.abs(images - np.array(LIGHT)).max((1, 2, 3))
    assert (strongest < 100).mean() > 0.1  # no color of the palette is that close to the ground


# ----------------------------------------------------------------------------- the tiny FLUX


def test_a_stage_that_was_stopped_goes_on_as_if_it_was_not(tmp_path):
    def stage(name, stop=10**6):
        """The weights, and how many steps it took."""
        torch.manual_seed(0)
        module, calls = torch.nn.Linear(3, 1), []

        def loss_of(generator):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(1)
            return module(torch.randn(8, 3, generator=generator)).square().mean(), ""

        (tmp_path / name).mkdir(exist_ok=True)
        pretrain.descend(module, loss_of, 230, 0.01, tmp_path / name / "stage.pt")
        return [p.tolist() for p in module.parameters()], len(calls)

    weights, _ = stage("whole")
    with pytest.raises(KeyboardInterrupt):
        stage("parts", stop=150)
    assert stage("parts") == (weights, 130)  # from step 100 on
    assert stage("parts") == (weights, 0)  # a finished one is not trained


def test_all_stages_run_and_give_what_the_loader_takes(tmp_path, capsys):
    steps = [f"--{stage}_steps=2" for stage in ("vae", "decoder", "text", "flow", "web")]
    folders = [f"--out={tmp_path / 'tiny'}", f"--work={tmp_path / 'work'}"]
    pretrain.main([*folders, *steps, "--pictures=40", "--batch=4", "--heldout=1"])
    assert "after web-like data: held-out accuracy" in capsys.readouterr().out
    pipe = base.load(str(tmp_path / "tiny")).pipe
    assert isinstance(pipe, FluxPipeline) and pipe.vae.config.scaling_factor != 1
    for part in ("text_encoder", "text_encoder_2", "vae", "transformer"):
        assert shapes_in(tmp_path / "tiny" / part) == shapes_in(pretrain.SHIPPED / part)


# ----------------------------------------------------------------------------- the learned scorer


@pytest.fixture(scope="module")
def pairs():
    return pretrain_clip.one_attribute_pairs(100, np.random.default_rng(5))


def test_without_hard_captions_the_loss_is_clips_own():
    model, processor = pretrain_clip.build(seed=1)
    texts = ["a large red circle", "two green squares", "a small blue triangle"]
    ids = processor.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    own = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    none = ids[:, None].repeat(1, 2, 1)  # hard captions that are the caption itself do not count
    loss = pretrain_clip.contrastive_loss(model, pixels, ids, none)
    assert loss.item() == pytest.approx(own.item(), abs=1e-5)
    hard = ids.roll(1, 0)[:, None]
    assert pretrain_clip.contrastive_loss(model, pixels, ids, hard) > own + 0.1
    # The same picture and caption twice: no negatives of one another, so nothing is left to tell.
    twice = torch.tensor([0, 0])
    alone = pretrain_clip.contrastive_loss(model, pixels[twice], ids[twice], none[twice])
    assert alone.item() == pytest.approx(0, abs=1e-6)


def test_pairs_have_one_answer(pairs):
    assert set(pairs["right"]) <= HELDOUT and len(pairs["right"]) > 75
    for picture, yes, no in (("picture", "right", "wrong"), ("other", "wrong", "right")):
        assert all(right(pairs[yes], pairs[picture]))
        assert not any(right(pairs[no], pairs[picture]))


def test_the_shipped_scorer_is_good_and_fallible(pairs):
    scorer = CLIPScorer(str(CLIP), batch_size=100)
    for name, won in pretrain_clip.accuracy(scorer, pairs).items():
        assert 0.8 <= won.mean() < 1, name  # 0.89 on 1,879 pairs


def test_training_writes_what_the_scorer_loads(tmp_path, capsys):
    out = tmp_path / "clip"
    pretrain_clip.main(["--pictures=40", "--steps=1", "--pairs=10", f"--out={out}"])
    assert CLIPScorer(str(out)).model.logit_scale.exp() <= 100 and shapes_in(out) == shapes_in(CLIP)
    assert capsys.readouterr().out.count("one-attribute pairs") == 2
