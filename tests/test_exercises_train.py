"""exercises.train and exercises.hack: whose functions the loop runs on, and what is drawn."""

import importlib

import pytest
import torch
from PIL import Image
from real_runs import log_of

import grpo
from exercises import hack, our_hack, train
from exercises.checks import EXERCISES

BRIEFEST = "--steps=1 --heldout=4 --prompts_per_step=1 --group_size=4 --num_steps=3 --micro_batch=2"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a command of exercises/ for a tiny step."""

    def run(module, *flags):
        out = tmp_path / "run"
        monkeypatch.setattr("sys.argv", ["", *BRIEFEST.split(), f"--out={out}", *flags])
        module.main()
        return out

    return run


def hand_in(monkeypatch, name, function):
    """Puts a function in the place of the student's, and ours for the rest of its exercise."""
    exercise, solution = next((ex, names) for ex, names in EXERCISES.items() if name in names)
    for other, module in solution.items():
        ours = getattr(importlib.import_module(module), other)
        monkeypatch.setattr(f"exercises.ex_{exercise}.{other}", function if other == name else ours)


def test_a_students_functions_train_as_ours_do(run, monkeypatch, capsys):
    called, within = set(), {}

    def counting(name, function):
        return lambda *args, **more: called.add(name) or function(*args, **more)

    for name, module in train.PLACES.items():
        hand_in(monkeypatch, name, counting(name, getattr(module, name)))

    def trained(cfg, name, run=train.trained):
        called.clear()  # of the calls by the checks
        done = run(cfg, name)
        within[name] = called.copy()
        return done

    monkeypatch.setattr(train, "trained", trained)
    out, said = run(train), capsys.readouterr().out
    assert all(f"{name}: yours" in said for name in train.PLACES)
    assert within == {"yours": set(train.PLACES), "ours": set()}
    yours, ours = log_of(out / "yours")[-1], log_of(out / "ours")[-1]
    assert yours == pytest.approx(ours, rel=1e-3, abs=1e-5)
    assert ours["clip_frac"] > 0  # one update a step would never clip
    assert Image.open(out / "curves.png").width > 400


@pytest.mark.parametrize("top", [0.6, 1.0, 1.08])
def test_no_curve_is_cut_at_its_top(top, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(train.pictures, "save_figure", lambda figure, path: drawn.append(figure))
    train.draw({"a score": ([0, 1], [0.2, top])}, "a title", tmp_path / "curves.png")
    assert drawn[0].axes[0].get_ylim()[1] >= 1.03 * max(top, 1)


@pytest.mark.parametrize("module", [train, hack])
def test_help_says_first_what_the_command_does(module, run, capsys):
    with pytest.raises(SystemExit) as end:
        run(module, "--help")
    said = capsys.readouterr().out
    assert end.value.code is None and "Trains the tiny model" in said
    assert "python train.py --help" in said and len(said.splitlines()) < 15


def test_what_does_not_pass_is_not_trained_on(run, monkeypatch, capsys):
    hand_in(monkeypatch, "group_advantages", lambda rewards, *args: rewards - rewards.mean())
    with pytest.raises(SystemExit, match="nothing of yours"):
        run(train)
    assert "group_advantages: ours; yours does not pass yet" in capsys.readouterr().out


def test_an_error_leaves_ours_in_the_loop():
    ours = grpo.clipped_loss
    with pytest.raises(TypeError), train.in_place({"clipped_loss": lambda: None}):
        grpo.clipped_loss(torch.zeros(1), torch.zeros(1), 0.2)
    assert grpo.clipped_loss is ours


@pytest.mark.slow
def test_a_score_and_its_cure_are_trained_on(run, monkeypatch, capsys):
    hand_in(monkeypatch, "points", our_hack.points)
    out = run(hack)
    assert "score and points: yours" in capsys.readouterr().out
    score, points = log_of(out / "score")[-1], log_of(out / "points")[-1]
    assert points["reward_mean"] == pytest.approx(0.5)  # win rates; a score has a mean of its own
    assert score["reward_mean"] != pytest.approx(0.5)
    assert "tie_rate" in points and "tie_rate" not in score
    assert Image.open(out / "pictures.png").width > 400
