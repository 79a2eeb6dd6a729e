"""The SDE step against torch.distributions and against flows whose solution is known in closed
form."""

import math

import pytest
import torch

import sampler

KINDS = pytest.mark.parametrize("kind", sampler.DIFFUSIONS)
SIX = sampler.sigma_schedule(6)


def random_step(kind, index, noise_level=0.7):
    generator = torch.Generator().manual_seed(3)
    latents, velocity = torch.randn(2, 4, 6, 5, generator=generator)
    how = dict(kind=kind, generator=generator)
    return latents, velocity, sampler.sde_step(latents, velocity, SIX, index, noise_level, **how)


def test_schedule_is_linear_without_shift_and_matches_the_formula_with_it():
    assert torch.equal(sampler.sigma_schedule(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    assert torch.allclose(sampler.sigma_schedule(2, 3.0), torch.tensor([1, 1.5 / 2, 0]))
    assert sampler.sigma_schedule(25, 3.0).dtype == torch.float32
    for steps, shift in ((0, 1.0), (4, 0.0), (4, math.nan), (4, math.inf)):
        with pytest.raises(ValueError, match="num_steps >= 1 and a finite shift > 0"):
            sampler.sigma_schedule(steps, shift)


@KINDS
@pytest.mark.parametrize("index", [0, 2, 4])
def test_log_prob_is_the_mean_of_the_normal_log_density(kind, index):
    _, _, step = random_step(kind, index)
    normal = torch.distributions.Normal(step.mean, step.std)
    assert torch.allclose(step.log_prob, normal.log_prob(step.next_latents).mean((1, 2)), atol=1e-6)


def test_the_two_kinds_are_one_equation_with_two_diffusions():
    """Dance-SDE's noise level is its diffusion: given the flow's, it takes the flow's step."""
    for index in range(1, 5):
        latents, velocity, flow = random_step("flow", index)
        sigma = 1 - index / 6
        diffusion = 0.7 * math.sqrt(sigma / (1 - sigma))
        dance = sampler.sde_step(latents, velocity, SIX, index, diffusion, "dance", latents)
        assert (flow.mean - dance.mean).abs().max() < 1e-6
        assert flow.std[0].item() == pytest.approx(dance.std[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "index", "std"),
    [
        # d sqrt(-dsigma): 0.7 sqrt(sigma / (1 - sigma) / 6), and sigmas[1] below the first fraction
        ("flow", 0, 0.7),
        ("flow", 2, 0.7 * math.sqrt(2 / 6)),
        ("dance", 0, 0.7 / math.sqrt(6)),
        ("dance", 4, 0.7 / math.sqrt(6)),
        ("cps", 0, 5 / 6 * math.sin(0.35 * math.pi)),
        ("cps", 3, 2 / 6 * math.sin(0.35 * math.pi)),
    ],
)
def test_step_std_by_hand(kind, index, std):
    assert random_step(kind, index)[2].std.flatten()[0].item() == pytest.approx(std, rel=1e-5)


@KINDS
def test_arithmetic_is_float32_whatever_the_models_dtype(kind):
    latents, velocity, _ = random_step(kind, 2)
    rounded = velocity.bfloat16()
    step, exact = (
        sampler.sde_step(latents, v, SIX, 2, 0.7, kind, latents) for v in (rounded, rounded.float())
    )
    assert {part.dtype for part in step} == {torch.float32}
    assert torch.equal(step.mean, exact.mean) and torch.equal(step.log_prob, exact.log_prob)


@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_sde_keeps_the_marginals_of_the_ode(kind):
    """5,000 samples of the SDE with the exact velocity of N(m, s^2)."""
    # Their sampling error is about 0.014; Flow-SDE's first step adds noise of 0.7 however many
    # steps there are, and its Euler drift leaves a deviation of 1.03 there instead of 1.
    m, s, steps, generator = 1.5, 0.5, 400, torch.Generator().manual_seed(0)
    sigmas = sampler.sigma_schedule(steps)
    latents = torch.randn(5000, 1, 1, generator=generator)
    marginal = lambda sigma: ((1 - sigma) * m, math.sqrt((1 - sigma) ** 2 * s**2 + sigma**2))
    for k, sigma in enumerate(sigmas[:-1]):
        mean, std = marginal(sigma)
        # E[noise - clean | latents] of two jointly Gaussian variables
        velocity = -m + (sigma - (1 - sigma) * s**2) / std**2 * (latents - mean)
        step = sampler.sde_step(latents, velocity, sigmas, k, 0.7, kind, generator=generator)
        latents, (mean, std) = step.next_latents, marginal(sigmas[k + 1])
        assert abs(latents.mean() - mean) < 0.05 and abs(latents.std() - std) < 0.06, k


@pytest.mark.parametrize("index", range(5))
def test_cps_keeps_the_schedules_noise_in_the_latents_and_the_others_add_to_it(index):
    """Of latents (1 - s) clean + s noise the network knows both parts. What stays of the noise, c,
    and what is new, std, are independent: c² + std² is the variance of the next noise."""
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    sigma, sigma_next = SIX[index], SIX[index + 1].item()

    def stepped(kind, clean, noise):
        latents = (1 - sigma) * clean + sigma * noise
        return sampler.sde_step(latents, noise - clean, SIX, index, 0.7, kind, latents)

    for kind in sampler.DIFFUSIONS:
        step = stepped(kind, zero, one)
        noise = math.hypot(step.mean.item(), step.std.item())
        assert noise > 1.01 * sigma_next if kind != "cps" else abs(noise - sigma_next) < 1e-6
        assert stepped(kind, one, zero).mean.item() == pytest.approx(1 - sigma_next, abs=1e-6)


def test_cps_has_no_more_noise_to_renew_than_there_is():
    latents, velocity, _ = random_step("flow", 2)
    step = sampler.sde_step(latents, velocity, SIX, 2, 1.0, "cps", latents)
    assert step.std[0].item() == pytest.approx(3 / 6)
    with pytest.raises(ValueError, match="noise_level 1.1 is above 1"):
        sampler.sde_step(latents, velocity, SIX, 2, 1.1, "cps", latents)


@KINDS
@pytest.mark.parametrize(("index", "noise_level"), [(2, 0.0), (5, 0.7)])
def test_without_noise_and_in_the_last_step_it_is_the_euler_step(kind, index, noise_level):
    latents, velocity, step = random_step(kind, index, noise_level)
    assert torch.allclose(step.next_latents, latents - velocity / 6, atol=1e-6)
    assert (step.log_prob == 0).all() and (step.std == 0).all()


def linear_velocity(latents, sigma):
    return 0.3 * latents + sigma[:, None, None]


def rolled(noise, velocity=linear_velocity, sigmas=SIX, noise_level=0.7, **settings):
    return sampler.rollout(velocity, noise, sigmas, noise_level, **settings)


def test_rollout_without_noise_is_the_ode_and_its_inputs_stay():
    noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    kept, trajectory = noise.clone(), rolled(noise, sde_steps=())
    assert torch.equal(trajectory.clean, sampler.ode_sample(linear_velocity, noise, SIX))
    assert torch.equal(noise, kept) and torch.equal(trajectory.latents[0], noise)


def test_a_window_makes_only_its_steps_stochastic_and_never_the_last():
    noise = torch.randn(3, 4, 5)
    trajectory = rolled(noise, sde_steps=[1, 2])
    assert trajectory.sde_steps == (1, 2)
    assert [(s > 0).all().item() for s in trajectory.stds] == [k in (1, 2) for k in range(6)]
    with pytest.raises(ValueError, match="not stochastic"):
        sampler.replay(linear_velocity, trajectory, 3)
    for steps in ([5], [-1], [0, 7]):
        with pytest.raises(ValueError, match="always an ODE step"):
            rolled(noise, sde_steps=steps)
    with pytest.raises(ValueError, match="unknown SDE kind 'heun'"):
        rolled(noise, kind="heun")


def test_a_samples_noise_does_not_depend_on_its_batch():
    noise = torch.randn(4, 3, 2)

    def part(*rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return rolled(noise[list(rows)], generator=generators)

    whole, half = part(0, 1, 2, 3), part(2, 3)
    assert torch.equal(whole.latents[:, 2:], half.latents)
    joined = sampler.concatenate([part(0, 1), half])
    assert torch.equal(joined.latents, whole.latents)
    assert torch.equal(joined.log_probs, whole.log_probs)


@KINDS
def test_replay_on_the_shipped_model_gives_ratio_exactly_one(tiny_flux, kind):
    prompts = ["a red circle inside a blue square", "three green triangles"] * 4
    velocity = tiny_flux.velocity(tiny_flux.encode(prompts))
    trajectory = rolled(tiny_flux.noise(range(8)), velocity, kind=kind)
    assert trajectory.sde_steps == (0, 1, 2, 3, 4)
    for k in trajectory.sde_steps:
        step = sampler.replay(velocity, trajectory, k)
        assert torch.equal(torch.exp(step.log_prob - trajectory.log_probs[k]), torch.ones(8))
    with torch.no_grad():  # and it can fail: other weights, another ratio
        weight = tiny_flux.transformer.proj_out.weight
        weight.mul_(1.01)
        moved = sampler.replay(velocity, trajectory, 2).log_prob
        weight.div_(1.01)
    assert not torch.equal(moved, trajectory.log_probs[2])


def test_replay_carries_gradient_and_takes_one_index_a_row():
    scale = torch.ones((), requires_grad=True)
    velocity = lambda latents, sigma: scale * linear_velocity(latents, sigma)
    sigmas = sampler.sigma_schedule(5, 3.0)
    trajectory = rolled(torch.randn(4, 3, 2), velocity, sigmas, 0.4)
    assert torch.equal(trajectory.step(2, [1]).next_latents, trajectory.latents[3, [1]])
    index = torch.tensor([0, 1, 2, 3])
    mixed = sampler.replay(velocity, trajectory, index)
    stored = trajectory.log_probs[index, torch.arange(4)]
    assert torch.allclose(mixed.log_prob, stored, atol=1e-6)
    mixed.log_prob.sum().backward()
    assert scale.grad.abs() > 0
    some = sampler.replay(velocity, trajectory, torch.tensor([3, 0]), rows=torch.tensor([1, 2]))
    assert torch.allclose(some.log_prob, trajectory.log_probs[[3, 0], [1, 2]], atol=1e-6)
