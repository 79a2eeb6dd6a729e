"""Checks of exercise 8, in the order of the work: python -m pytest exercises/test_08_window.py"""

import random

import numpy as np
import torch

from common.seeds import seed_of
from exercises import ex_08_window as ex
from exercises.checks import expect, expect_as_ours, expect_draws, expect_walk

PLACES = "part 1 of the docstring of draw_window in exercises/ex_08_window.py"
SAME = "part 2 of the docstring of draw_window in exercises/ex_08_window.py"
ROLLOUT = "the docstring of rollout in exercises/ex_08_window.py"
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2, 0.1, 0.0])


def test_a_window_is_some_steps_in_a_row():
    windows = [list(ex.draw_window(0, step, 2, 9, 3)) for step in range(40)]
    expect("how many steps a window of width 3 has", len(windows[0]), 3, PLACES)
    ascending = all(window == sorted(window) for window in windows)
    expect("whether the first of its steps comes first", ascending, True, PLACES)
    row = all(window == list(range(window[0], window[0] + 3)) for window in windows)
    expect("whether its steps follow each other", row, True, PLACES)


def test_the_window_moves():
    steps = {tuple(ex.draw_window(5, step, 0, 60, 3)) for step in range(8)}
    expect("whether 8 training steps have several", len(steps) > 1, True, SAME)
    seeds = {tuple(ex.draw_window(seed, 1, 0, 60, 3)) for seed in range(8)}
    expect("whether 8 seeds have several", len(seeds) > 1, True, SAME)


def test_every_place_is_possible():
    begins = [ex.draw_window(0, step, 4, 11, 3)[0] for step in range(400)]
    what = "the first place of 400 windows in steps 4 to 10"
    expect(what, min(begins), 4, PLACES)
    expect("the last place of 400 windows in steps 4 to 10", max(begins), 8, PLACES)
    often = max(begins.count(place) for place in set(begins)) / len(begins)
    what = f"whether none of 5 places holds a third of 400 windows (one holds {often:.2f})"
    expect(what, often < 1 / 3, True, PLACES)


def test_all_images_of_a_training_step_have_one_window():
    calls = {tuple(ex.draw_window(5, 1, 0, 60, 3)) for _ in range(8)}
    expect("how many windows 8 calls for one training step give", len(calls), 1, SAME)


def test_nothing_else_is_seeded():
    for library, seed, draw in (
        ("numpy", np.random.seed, lambda: np.random.randint(10**9)),
        ("torch", torch.manual_seed, lambda: torch.randint(10**9, (1,)).item()),
        ("Python", random.seed, lambda: random.randrange(10**9)),
    ):
        seed(0)
        wanted = draw()
        seed(0)
        ex.draw_window(5, 1, 0, 60, 3)
        same = draw() == wanted
        expect(f"whether {library}'s own numbers stay the same", same, True, SAME)


def test_all_processes_have_one_window():
    """What another process draws, which keeps to the docstring."""
    theirs, mine = [], []
    for step in range(8):
        rng = np.random.default_rng(seed_of(5, step, "window"))
        theirs.append(int(rng.integers(0, 58)))
        mine.append(int(ex.draw_window(5, step, 0, 60, 3)[0]))
    apart = "a window per process: take the generator that all take, and one draw of rng.integers."
    what = f"whether 8 windows begin as another process's do, at {', '.join(map(str, theirs))}"
    expect(what, mine == theirs, True, SAME, {False: apart})


def walk(sde_steps, size=3, asked=None):
    """Six steps of three images from the same noise, 1 everywhere; the velocity is always -0.5.

    asked: a list for what the network is asked.
    """

    def velocity(latents, sigma):
        if asked is not None:
            asked.append((latents, sigma))
        return torch.full_like(latents, -0.5)

    generator, noise = torch.Generator().manual_seed(0), torch.ones(size, 2, 4)
    return ex.rollout(velocity, noise, SIGMAS, 0.7, sde_steps=sde_steps, generator=generator)


def test_the_network_is_asked_as_in_exercise_3():
    asked = []
    trajectory = walk([2, 3], asked=asked)
    expect("how often the network is asked in 6 steps", len(asked), 6, ROLLOUT)
    shapes = [tuple(sigma.shape) for _, sigma in asked]
    expect("the shape of the sigma it is told", shapes[0], (3,), ROLLOUT)
    walk([2, 3], size=1, asked=(alone := []))
    expect("its shape for one image alone", tuple(alone[0][1].shape), (1,), ROLLOUT)
    for k in (1, 4):
        told = asked[k][1][0]
        expect(f"the sigma that the network is told in step {k}", told, SIGMAS[k].item(), ROLLOUT)
    seen = all(torch.equal(latents, trajectory.latents[k]) for k, (latents, _) in enumerate(asked))
    expect("whether it sees the latents with which each step begins", seen, True, ROLLOUT)


def test_noise_comes_in_the_window_only():
    counts = tuple(int((std > 0).sum()) for std in walk([2, 3]).stds)
    what = "how many of 3 images get noise in each step, window 2, 3"
    expect(what, counts, (0, 0, 3, 3, 0, 0), ROLLOUT)
    counts = tuple(int((std > 0).sum()) for std in walk([0, 3]).stds)
    between = {(3, 3, 3, 3, 0, 0): "steps in between: noise comes in those that sde_steps names."}
    expect("the same where sde_steps is 0, 3", counts, (3, 0, 0, 3, 0, 0), ROLLOUT, between)


def test_without_a_window_the_way_is_the_odes():
    clean = walk([]).latents[-1]
    expect("clean latents without a window", clean.mean(), 1.5, ROLLOUT)


def test_the_window_is_what_is_trained_on():
    trajectory = walk([2, 3])
    got = tuple(trajectory.sde_steps)
    expect("trajectory.sde_steps", got, (2, 3), ROLLOUT)
    expect("trajectory.noise_level", trajectory.noise_level, 0.7, ROLLOUT)


def test_images_part_in_the_window():
    trajectory = walk([2, 3])
    latents = trajectory.latents
    drawn = bool((latents[3] != trajectory.means[2]).any())
    what = "whether the next latents differ from the mean in the window"
    expect(what, drawn, True, ROLLOUT)
    apart = bool((latents[4, 0] != latents[4, 1]).any())
    what = "whether two images from the same noise differ after the window"
    expect(what, apart, True, ROLLOUT)


def test_any_window():
    fixed = {"3 written for width: it may be any.": {"width": 3}}
    for low, high, width in ((0, 5, 1), (3, 9, 1), (2, 24, 5), (3, 7, 4), (0, 4, 4), (7, 19, 3)):
        for seed, step in ((0, 0), (0, 5), (42, 731), (7, 10**5), (10**6, 3)):
            what = f"of {seed=}, {step=}, {low=}, {high=}, {width=}"
            inputs = dict(seed=seed, step=step, low=low, high=high, width=width)
            expect_as_ours(ex, "draw_window", what, SAME, fixed, **inputs)


def test_any_rollout_with_a_window():
    """Three samples whose tokens and channels differ; also no window at all."""
    rng, weight = torch.Generator().manual_seed(1), torch.linspace(-1, 0.5, 6)

    def network(latents, sigma):
        return weight * latents + sigma.view(-1, 1, 1)

    for table in ([1, 0.95376, 0.72, 0.5, 0.31, 0.1, 0.0208, 0], [1, 0.6, 0], [1, 0]):
        for window in ([0], [1, 2, 3], [4], [0, 2], [0, 1, 2, 3, 4], []):
            if any(k > len(table) - 3 for k in window):
                continue
            noise, sigmas = torch.randn((3, 8, 6), generator=rng), torch.tensor(table).float()
            for level in (0.237, 2.7):
                inputs = dict(
                    noise=noise.clone(), sigmas=sigmas, noise_level=level, sde_steps=window
                )
                trajectory = ex.rollout(network, **inputs, generator=rng)
                levels = [level if k in window else 0.0 for k in range(len(table) - 1)]
                expect_walk(trajectory, network, noise, sigmas, levels, ROLLOUT)
                got = (tuple(trajectory.sde_steps), trajectory.noise_level)
                fixed = {(tuple(window), 0.7): "0.7 written for noise_level: it may be any."}
                what = "sde_steps and noise_level of the trajectory"
                expect(what, got, (tuple(window), level), ROLLOUT, fixed)
    inputs = dict(velocity_fn=network, noise=noise, sigmas=SIGMAS, noise_level=0.7, sde_steps=[1])
    expect_draws(lambda generator: ex.rollout(**inputs, generator=generator).latents, ROLLOUT)
