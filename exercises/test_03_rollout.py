"""Checks of exercise 3, in the order of the work: python -m pytest exercises/test_03_rollout.py

The network has one weight: velocity = weight * latents + sigma. What it is asked is written down.
"""

import torch

import sampler
from exercises import ex_03_rollout as ex
from exercises.checks import expect, expect_as_ours, expect_draws, expect_walk

SIGMAS = torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0])
ROLLOUT = "the docstring of rollout in exercises/ex_03_rollout.py"
REPLAY = "the docstring of replay in exercises/ex_03_rollout.py"
RATIO = "the head of exercises/ex_03_rollout.py"


class Network:
    def __init__(self):
        self.weight, self.asked = torch.tensor(-0.5, requires_grad=True), []

    def __call__(self, latents, sigma):
        self.asked.append((latents, sigma))
        return self.weight * latents + sigma.view(-1, 1, 1)


def drawn(network, noise_level=0.7):
    """A rollout of two samples: one begins with 1.2 everywhere, the other with -0.4."""
    noise = torch.tensor([1.2, -0.4])[:, None, None].expand(2, 30, 50)
    generator = torch.Generator().manual_seed(0)
    return ex.rollout(network, noise, SIGMAS, noise_level, generator=generator)


def test_rollout_asks_the_network_once_a_step():
    network = Network()
    drawn(network)
    expect("how often the network is asked in 4 steps", len(network.asked), 4, ROLLOUT)
    latents, sigma = network.asked[1]
    expect("the shape of the sigma it is told", tuple(sigma.shape), (2,), ROLLOUT)
    expect("the sigma of the second step", sigma[0], 0.8, ROLLOUT)
    same = torch.equal(latents, network.asked[0][0])
    expect("whether the second step begins where the first did", same, False, ROLLOUT)


def test_rollout_keeps_every_step():
    trajectory = drawn(Network())
    levels = len(trajectory.latents)
    expect("how many latents 4 steps keep", levels, 5, ROLLOUT)
    spread = trajectory.latents[1, 0].std()
    expect("the spread of the latents after step 0", spread, 0.7, ROLLOUT, tol=0.05)


def test_rollout_draws_with_the_generator():
    trajectory = drawn(Network())
    noise = (trajectory.latents[1:4] - trajectory.means[:3]) / trajectory.stds[:3]
    again = bool((noise[0] - noise[1]).abs().max() < 1e-3)
    expect("whether the second step's noise is the first one's", again, False, ROLLOUT)
    draw = dict(velocity_fn=Network(), noise=torch.ones(2, 5, 4), sigmas=SIGMAS, noise_level=0.7)
    expect_draws(lambda generator: ex.rollout(**draw, generator=generator).latents, ROLLOUT)


def test_replay_asks_about_what_the_rollout_stored():
    network = Network()
    trajectory = drawn(network)
    del network.asked[:]
    ex.replay(network, trajectory, 1)
    expect("how often replay asks the network", len(network.asked), 1, REPLAY)
    latents, sigma = network.asked[0]
    late = "one step late: the network is asked about the latents with which the step began."
    mistakes = {trajectory.latents[2, 0, 0, 0].item(): late}
    stored = trajectory.latents[1, 0, 0, 0].item()
    expect("the first element that it sees in step 1", latents[0, 0, 0], stored, REPLAY, mistakes)
    shape = tuple(sigma.shape)
    expect("the shape of the sigma that it is told", shape, (2,), REPLAY)
    expect("the sigma that it is told in step 1", sigma[0], 0.8, REPLAY)


def test_replay_draws_nothing():
    network = Network()
    trajectory = drawn(network)
    step = ex.replay(network, trajectory, 1)
    expect("what replay returns", type(step).__name__, "Step", REPLAY)
    expect("std of the replayed step 1", step.std[0], 0.626099, REPLAY)
    quiet = drawn(network, noise_level=0.35)
    expect("noise_level of the trajectory", quiet.noise_level, 0.35, ROLLOUT)
    std = ex.replay(network, quiet, 1).std[0]
    expect("std of step 1 at noise_level 0.35", std, 0.313050, REPLAY)
    began = torch.equal(step.next_latents, trajectory.latents[1])
    expect("whether it scores the latents with which the step began", began, False, REPLAY)
    drew = torch.equal(step.next_latents, trajectory.latents[2])
    expect("whether it scores what the rollout drew", drew, True, REPLAY)


def test_the_ratio_is_exactly_1_while_the_weights_stay():
    network = Network()
    trajectory = drawn(network)
    for k in range(3):
        step = ex.replay(network, trajectory, k)
        ratio = (step.log_prob - trajectory.log_probs[k]).exp()
        what = f"whether the ratio of step {k} is exactly 1 (it is {ratio[0]:.6f})"
        expect(what, ratio[0].item() == 1, True, RATIO)


def test_the_ratio_moves_with_the_weights():
    network = Network()
    trajectory = drawn(network)
    log_prob = ex.replay(network, trajectory, 1).log_prob
    expect("whether replay has a gradient", log_prob.requires_grad, True, REPLAY)
    network.weight = torch.tensor(-0.6)
    moved = (ex.replay(network, trajectory, 1).log_prob - trajectory.log_probs[1]).abs()[0] > 1e-4
    expect("whether the ratio moves when the weight does", moved.item(), True, REPLAY)


def test_any_rollout_is_of_our_steps_and_replayed_as_ours():
    """Samples whose tokens and channels differ; also a single one, and a single step."""
    rng = torch.Generator().manual_seed(1)
    for table in ([1, 0.95376, 0.9, 0.72, 0.5, 0.31, 0.1, 0.0208, 0], [1, 0.6, 0], [1, 0]):
        for level in (0.237, 2.7, 0.0):
            size, network = 3 if len(table) > 3 else 1, Network()
            noise, sigmas = torch.randn((size, 8, 6), generator=rng), torch.tensor(table).float()
            inputs = dict(velocity_fn=network, noise=noise, sigmas=sigmas, noise_level=level)
            trajectory = ex.rollout(**inputs | {"noise": noise.clone()}, generator=rng)
            shapes = {tuple(sigma.shape) for _, sigma in network.asked}
            expect(f"the shape of sigma for {size} samples", shapes, {(size,)}, ROLLOUT)
            levels = [level] * (len(table) - 2) + [0.0]
            expect_walk(trajectory, Network(), noise, sigmas, levels, ROLLOUT)
            told = trajectory.noise_level
            expect("noise_level of the trajectory", told, level, ROLLOUT)
            trajectory = sampler.rollout(**inputs, generator=rng)
            for index in range(len(table) - 2):
                what = f"of step {index} of {table}, noise level {level}"
                inputs = dict(velocity_fn=Network(), trajectory=trajectory, index=index)
                expect_as_ours(ex, "replay", what, REPLAY, **inputs)
