"""Checks of exercise 8, in the order of the work: python -m pytest exercises/test_08_window.py"""

import numpy as np
import torch

from exercises import ex_08_window as ex
from exercises.checks import expect
from support.prompts import seed_of

PLACES = "part 1 of the docstring of draw_window in exercises/ex_08_window.py"
SAME = "part 2 of the docstring of draw_window in exercises/ex_08_window.py"
ROLLOUT = "the docstring of rollout in exercises/ex_08_window.py"
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2, 0.0])


def test_a_window_is_some_steps_in_a_row():
    windows = [list(ex.draw_window(0, step, 2, 9, 3)) for step in range(40)]
    short = "range(a, b) ends before b: width steps end before start + width."
    expect(
        "how many steps a window of width 3 has", len(windows[0]), 3, {2: short, 4: short}, PLACES
    )
    row = all(window == list(range(window[0], window[0] + 3)) for window in windows)
    single = "steps drawn one by one: draw where the window begins, and take those that follow."
    expect("whether its steps follow each other", row, True, {False: single}, PLACES)


def test_the_window_moves():
    steps = {tuple(ex.draw_window(5, step, 0, 60, 3)) for step in range(8)}
    stays = "the same window in every training step: the other steps would never be learned."
    expect("whether 8 training steps have several", len(steps) > 1, True, {False: stays}, SAME)
    seeds = {tuple(ex.draw_window(seed, 1, 0, 60, 3)) for seed in range(8)}
    ignored = "seed ignored: each run should be drawn anew."
    expect("whether 8 seeds have several", len(seeds) > 1, True, {False: ignored}, SAME)


def test_every_place_is_possible():
    starts = {ex.draw_window(0, step, 2, 9, 3)[0] for step in range(200)}
    low = "low ignored: the window lies in low, low + 1, ... high - 1."
    expect("the first place of 200 windows in steps 2 to 8", min(starts), 2, {0: low}, PLACES)
    mistakes = {
        5: "one place too few: rng.integers(a, b) never gives b, and high - width is possible.",
        7: "one place too many: the window would end with high.",
        8: "width forgotten: the window must end before high.",
    }
    expect("the last place of 200 windows in steps 2 to 8", max(starts), 6, mistakes, PLACES)
    begins = [ex.draw_window(0, step, 2, 9, 3)[0] for step in range(400)]
    often = max(begins.count(place) for place in set(begins)) / len(begins)
    piled = "one place more often than others: `min` or `max` moves all that does not fit there."
    what = f"whether none of 5 places holds a third of 400 windows (one holds {often:.2f})"
    expect(what, often < 1 / 3, True, {False: piled}, PLACES)


def test_all_images_of_a_training_step_have_one_window():
    calls = {tuple(ex.draw_window(5, 1, 0, 60, 3)) for _ in range(8)}
    each = "a window per image instead of per group: each call draws anew, so seed the generator."
    mistakes = dict.fromkeys(range(2, 9), each)
    expect("how many windows 8 calls for one training step give", len(calls), 1, mistakes, SAME)


def test_nothing_else_is_seeded():
    shared = "the shared generator seeded anew: other noise would repeat itself with it."
    for library, seed, draw in (
        ("numpy", np.random.seed, lambda: np.random.randint(10**9)),
        ("torch", torch.manual_seed, lambda: torch.randint(10**9, (1,)).item()),
    ):
        seed(0)
        wanted = draw()
        seed(0)
        ex.draw_window(5, 1, 0, 60, 3)
        same = draw() == wanted
        expect(f"whether {library}'s own numbers stay the same", same, True, {False: shared}, SAME)


def test_all_processes_have_one_window():
    """What another process draws, which keeps to the docstring."""
    theirs, mine = [], []
    for step in range(8):
        rng = np.random.default_rng(seed_of(5, step, "window"))
        theirs.append(int(rng.integers(0, 58)))
        mine.append(int(ex.draw_window(5, step, 0, 60, 3)[0]))
    apart = "a window per process: take the generator that all take, and one draw of rng.integers."
    what = f"whether 8 windows begin as another process's do, at {', '.join(map(str, theirs))}"
    expect(what, mine == theirs, True, {False: apart}, SAME)


def walk(sde_steps, size=3, asked=None):
    """Five steps of three images from the same noise, 1 everywhere; the velocity is always -0.5.

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
    trajectory = walk([1, 2], asked=asked)
    steps = "steps outside of the window skipped: they are Euler steps, not nothing."
    expect("how often the network is asked in 5 steps", len(asked), 5, {2: steps}, ROLLOUT)
    shapes = [tuple(sigma.shape) for _, sigma in asked]
    all_alike = "one sigma for all samples: the network wants it B times, sigmas[k].expand(B)."
    expect("the shape of the sigma it is told", shapes[0], (3,), {(): all_alike}, ROLLOUT)
    late = "one level late: the network is told the sigma with which the step begins."
    for k, mistakes in ((1, {0.7: late}), (3, {0.2: late, 0.9: "the window's first sigma."})):
        what = f"the sigma that it is told in step {k}"
        expect(what, asked[k][1][0], SIGMAS[k].item(), mistakes, ROLLOUT)
    seen = all(torch.equal(latents, trajectory.latents[k]) for k, (latents, _) in enumerate(asked))
    stuck = {False: "other latents: the network sees those with which the step begins."}
    expect("whether it sees the latents with which each step begins", seen, True, stuck, ROLLOUT)


def test_noise_comes_in_the_window_only():
    counts = tuple(int((std > 0).sum()) for std in walk([1, 2]).stds)
    mistakes = {
        (3, 3, 3, 3, 0): "window ignored: every step has noise.",
        (3, 0, 0, 3, 0): "inside out: the window is where the noise is.",
        (0, 0, 0, 0, 0): "no noise at all: in the window the level is noise_level.",
        (3, 3, 0, 0, 0): "a step too early: step k begins with sigmas[k].",
        (0, 0, 3, 3, 0): "a step too late: step k begins with sigmas[k].",
        (0, 3, 0, 0, 0): "the window's first step only.",
        (0, 3, 3, 3, 0): "a step too many: the window holds the steps that are named.",
        (0, 1, 2, 2, 0): "a window per image instead of per group: it is the same for all samples.",
    }
    what = "how many of 3 images get noise in each step, window 1, 2"
    expect(what, counts, (0, 3, 3, 0, 0), mistakes, ROLLOUT)


def test_without_a_window_the_way_is_the_odes():
    out = "steps outside of the window left out: they are Euler steps, not nothing."
    clean = walk([]).latents[-1]
    expect("clean latents without a window", clean.mean(), 1.5, {1.0: out}, ROLLOUT)


def test_the_window_is_what_is_trained_on():
    trajectory = walk([1, 2])
    every = "all steps but the last: steps without noise would be replayed."
    got = tuple(trajectory.sde_steps)
    mistakes = {
        (0, 1, 2, 3): every,
        (0, 1, 2, 3, 4): every,
        (1,): "the first step of the window only: all of its steps are replayed.",
        (1, 2, 3): "a step too many: only those of the window are replayed.",
    }
    expect("trajectory.sde_steps", got, (1, 2), mistakes, ROLLOUT)
    outside = "the level outside of the window: replay scores the steps in it."
    expect("trajectory.noise_level", trajectory.noise_level, 0.7, {0.0: outside}, ROLLOUT)


def test_images_part_in_the_window():
    trajectory = walk([1, 2])
    latents = trajectory.latents
    drawn = bool((latents[2] != trajectory.means[1]).any())
    mean = {False: "the mean for the draw: next_latents of the Step go on, not its mean."}
    expect(
        "whether the next latents differ from the mean in the window", drawn, True, mean, ROLLOUT
    )
    apart = [bool((state[0] != state[1]).any()) for state in latents]
    expect("whether two images from the same noise differ before", apart[1], False, {}, ROLLOUT)
    alike = "the same fresh noise for all images: draw it in the shape of the batch."
    expect("whether they differ after", apart[3], True, {False: alike}, ROLLOUT)
