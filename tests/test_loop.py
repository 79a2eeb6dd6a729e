"""The loop's arithmetic on a policy of one number: what an update does, and where it stops."""

import contextlib
import math
import types
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from real_runs import ALONE, together

import grpo
import sampler
import train
from rewards import Rewards
from training.config import Config
from training.data import Batch
from training.judging import Judging


class Slope(torch.nn.Module):
    """velocity = weight * latents: a policy of one number."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, latents, sigma):
        return self.weight * latents


class Rows(NamedTuple):
    embeds: torch.Tensor

    def rows(self, rows):
        return Rows(self.embeds[rows])


class Toy:
    """A base model of one number, as the loop sees it; of prompt "q" its velocity is twice that of
    prompt "p"."""

    def __init__(self, weight=0.0):
        self.transformer, self.frozen = Slope(weight), Slope()
        self.policy = self.transformer

    def encode(self, prompts, group_size):
        times = torch.tensor([1.0 + ord(prompt) - ord("p") for prompt in prompts])
        return Rows(times.repeat_interleave(group_size).view(-1, 1, 1))

    def noise(self, seeds):
        noise = [torch.randn(4, 3, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise)

    def velocity(self, text, transformer=None):
        network = transformer or self.transformer
        return lambda latents, sigma: text.embeds * network(latents, sigma)

    def decode(self, clean):
        return list(clean)

    def base(self):
        return contextlib.nullcontext(self.frozen)

    def trainable(self):
        return [self.transformer.weight]

    def schedule_shift(self, steps):
        return TOY.shift


SHAPE = dict(num_steps=4, shift=3.0, group_size=2, prompts_per_step=2)
EXPLORING = dict(noise_level=0.5, sde_kind="dance")
LEARNING = dict(guard=False, max_grad_norm=1e9, clip_range=10.0, lr=1e-3)
TOY = Config(**SHAPE, **EXPLORING, **LEARNING)
SIGMAS = sampler.sigma_schedule(TOY.num_steps, TOY.shift)
BATCH = Batch(["p", "q"], [0, 1, 2, 3], [100, 101, 102, 103], [0, 1, 2])
PAIR = Batch(["p"], [0, 1], [100, 101], [0, 1, 2])


@pytest.fixture(autouse=True)
def plain_descent(monkeypatch):
    """Gradient descent in AdamW's place: what moves the weight is the gradient."""
    descent = lambda weights, lr, **_: torch.optim.SGD(weights, lr)
    monkeypatch.setattr(torch.optim, "AdamW", descent)


def sampled(model, batch=PAIR, micro_batch=4):
    how = dict(noise_level=TOY.noise_level, kind=TOY.sde_kind, micro_batch=micro_batch)
    return train.sample(model, batch, SIGMAS, **how)


def slope_of(model, rollout, advantages, steps=(1,), rows=None, **settings):
    """Of the loss of these steps and samples, their mean."""
    how = dict(clip_range=10.0, guard=False, kl_coef=0.0) | settings
    rows = slice(0, len(advantages)) if rows is None else rows
    losses = [train.objective(model, rollout, advantages, k, rows, **how).loss for k in steps]
    model.transformer.weight.grad = None
    (sum(losses) / len(losses)).backward()
    return model.transformer.weight.grad.item()


BETTER_AND_WORSE = torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("guard, k", [(True, 0), (False, 2)])
def test_one_update_makes_the_better_image_likelier_and_the_worse_less_so(guard, k):
    model = Toy()
    weight = model.transformer.weight
    rollout = sampled(model)
    now = lambda: sampler.replay(model.transformer, rollout.trajectory, k).log_prob.detach()
    before = now()
    slope = slope_of(model, rollout, BETTER_AND_WORSE, [k], guard=guard)
    weight.data -= 1e-3 * math.copysign(1, slope)
    assert ((now() - before) * BETTER_AND_WORSE).sum() > 0


def test_the_guards_gradient_is_scaled_and_divided_by_the_step():
    """At the rollout's own weights: its ratio is step_std times the plain one, its loss is divided
    by -dsigma."""
    model = Toy()
    rollout = sampled(model)
    plain, guarded = (
        slope_of(model, rollout, BETTER_AND_WORSE, guard=guard) for guard in (False, True)
    )
    std = rollout.trajectory.stds[1, 0].item()
    assert guarded == pytest.approx(plain * std / (SIGMAS[1] - SIGMAS[2]).item(), rel=1e-4)


@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_the_kl_pulls_towards_the_base_and_nothing_else_does(weight):
    model, nothing = Toy(weight), torch.zeros(2)
    rollout = sampled(model)
    assert slope_of(model, rollout, nothing, kl_coef=1.0) * weight > 0  # descending it: nearer to 0
    assert slope_of(model, rollout, nothing) == 0


class Bigger:
    """A reward: of two images, the one with the larger sum wins."""

    name = "bigger"

    def __call__(self, prompts, images):
        sums = [[image.sum().item() for image in group] for group in images]
        values = [[float(s == max(group)) for s in group] for group in sums]
        return Rewards(torch.tensor(values), Counter(wanted=len(prompts) * 2, comparisons=2))


def toy_run(model, procs=ALONE, micro_batch=2, batch=BATCH, groups=2):
    """A run of one step; what comes of it is in run.done."""
    run = types.SimpleNamespace(model=model, procs=procs, micro_batch=micro_batch, done=[])
    run.judging = Judging({"pairwise": Bigger()}, procs, max_failed=0.0)
    run.weights = {"pairwise": 1.0}
    run.timed = lambda what: contextlib.nullcontext()
    run.own = lambda values: values.chunk(procs.world_size)[procs.rank].flatten()
    run.check = lambda step, rollout: None
    run.after = run.done.append

    def batches(optimizer, average):
        run.optimizer, run.average = optimizer, average
        yield 2, batch.split(groups)

    run.batches = batches
    return run


def one_toy_step(cfg=TOY, lr=1e-3, procs=ALONE, weight=0.0, **settings):
    """The weight after it, and the run."""
    run = toy_run(Toy(weight), procs, **settings)
    train.train(replace(cfg, lr=lr), run)
    return run.model.transformer.weight.item(), run


def test_only_a_windows_steps_are_stochastic():
    trajectory = sampled(Toy(0.5), PAIR._replace(replayed=[1, 2], window=[1, 2]), 1).trajectory
    assert trajectory.sde_steps == (1, 2)
    assert [(trajectory.stds[k] > 0).all().item() for k in range(4)] == [False, True, True, False]
    assert torch.equal(trajectory.latents[1], trajectory.means[0])  # the ODE's own


@pytest.mark.parametrize("micro_batch, updates", [(4, 1), (2, 1), (3, 1), (1, 1), (1, 2)])
def test_a_step_is_the_mean_over_samples_and_replayed_steps(micro_batch, updates):
    """Whatever the micro-batch (3: one of three samples, one of one), and however many groups are
    sampled at a time. Several updates: of every group some images, at the weights that the last one
    left."""
    model = Toy(0.5)
    rollout = sampled(model, BATCH, micro_batch)
    advantages = grpo.group_advantages(Bigger()(["p", "q"], rollout.images).values, 0.05).flatten()
    for n in range(updates):
        rows = torch.arange(4)[n::updates]
        model.transformer.weight.data -= 0.1 * slope_of(model, rollout, advantages, (0, 1, 2), rows)
    shape = dict(micro_batch=micro_batch, groups=1 + micro_batch // 2 % 2)
    moved, run = one_toy_step(replace(TOY, updates=updates), lr=0.1, weight=0.5, **shape)
    assert moved - 0.5 == pytest.approx(model.transformer.weight.item() - 0.5, rel=1e-3) != 0
    ((done,), weight) = run.done, run.model.transformer.weight
    assert len(done.norms) == updates and weight.grad is None


def test_a_gradient_is_clipped_to_its_largest_norm():
    moved, run = one_toy_step(replace(TOY, max_grad_norm=1e-6), lr=1.0)
    assert abs(moved) == pytest.approx(1e-6, rel=1e-3) and run.done[0].norms[0] > 1e-6


def test_a_shift_of_0_is_the_pipelines_own():
    assert one_toy_step(replace(TOY, shift=0.0))[0] == one_toy_step()[0] != 0.0


def test_the_moving_average_follows_each_step():
    moved, run = one_toy_step(replace(TOY, ema=0.5))
    (mean,) = run.average.mean.values()
    assert mean.item() == pytest.approx(moved / 2) and moved != 0.0  # half way from 0


def test_each_rank_descends_its_own_advantages():
    """A group's advantages are its own, so each of two ranks moves as it would alone."""
    batches = [Batch([p], [n, n + 1], [n, n + 1], [0, 1, 2]) for p, n in (("p", 0), ("q", 5))]
    of = lambda rank, procs=ALONE: one_toy_step(procs=procs, batch=batches[rank])[0]
    moved, alone = together(lambda procs: of(procs.rank, procs)), [of(0), of(1)]
    assert moved == alone and abs(alone[0] - alone[1]) > 1e-6


@pytest.mark.parametrize("odd", [math.nan, -math.inf])
@pytest.mark.parametrize("what", ["weight", "gradient", "loss", "log-prob"])
def test_what_is_not_finite_stops_the_step_before_the_optimizer(what, odd, monkeypatch):
    model = Toy(odd if what == "weight" else 0.0)
    if what == "gradient":
        model.transformer.weight.register_hook(lambda grad: grad * odd)
    if what == "loss":
        clipped, odds = grpo.clipped_loss, iter([odd])  # of the first alone
        bad = lambda *a: clipped(*a)._replace(loss=clipped(*a).loss * 0 + next(odds, 0.0))
        monkeypatch.setattr(grpo, "clipped_loss", bad)
    if what == "log-prob":
        join_ = sampler.concatenate
        bad = lambda parts: join_(parts)._replace(log_probs=join_(parts).log_probs + odd)
        monkeypatch.setattr(sampler, "concatenate", bad)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("the optimizer's step"))
    run = toy_run(model)
    with pytest.raises(FloatingPointError):
        train.train(TOY, run)
    assert not run.done  # and nothing was logged or saved
