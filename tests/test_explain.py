"""The pictures that explain: what is drawn in them is what the method makes of a group."""

import itertools

import numpy as np
import pytest

from figures import explain
from shapes.grammar import parse_prompt
from training.config import Config

SMALL = explain.Settings(group_size=3, num_steps=3)
PROMPT = parse_prompt("a pink square to the left of a blue circle")


def test_the_settings_are_a_runs_by_name_and_default():
    assert explain.Settings()._asdict().items() <= vars(Config()).items()


def test_what_is_drawn_of_a_group_is_what_the_method_makes_of_it(tiny_flux):
    group = explain.draw_group(tiny_flux, SMALL, PROMPT, 0)
    for predicted, image in zip(group.frames[-1], group.images, strict=True):
        assert abs(np.asarray(predicted, int) - np.asarray(image, int)).max() <= 1
    for i, j in itertools.permutations(range(3), 2):
        if sum(group.met[i]) > sum(group.met[j]):
            assert group.points[i][j] > 0.5


def test_the_command_draws_all_four(tmp_path, monkeypatch):
    monkeypatch.setattr(explain, "Settings", lambda: SMALL)
    monkeypatch.setattr("sys.argv", ["explain", "--out", str(tmp_path / "pictures")])
    explain.main()
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert names == {"group", "denoising", "advantages", "noise"}


@pytest.mark.parametrize(
    "flags, said", [(["--prompt", "a dog"], "no caption"), (["--model", "nowhere"], "--model")]
)
def test_mistakes_are_named(flags, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["explain", *flags, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        explain.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err
