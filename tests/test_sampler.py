"""The SDE step against torch.distributions and against flows whose solution is known in closed
form."""

import math

import pytest
import torch

import sampler

KINDS = tuple(sampler.DIFFUSIONS)


def random_step(kind, index, noise_level=0.7, **kwargs):
    generator = torch.Generator().manual_seed(3)
    latents, velocity = torch.randn(2, 4, 6, 5, generator=generator)
    return (
        latents,
        velocity,
        sampler.sde_step(
            latents,
            velocity,
            sampler.sigma_schedule(6),
            index,
            noise_level,
            kind,
            generator=generator,
            **kwargs,
        ),
    )


def test_schedule_is_linear_without_shift_and_matches_the_formula_with_it():
    assert torch.equal(sampler.sigma_schedule(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    assert torch.allclose(sampler.sigma_schedule(2, 3.0), torch.tensor([1, 1.5 / 2, 0]))
    assert sampler.sigma_schedule(25, 3.0).dtype == torch.float32


@pytest.mark.parametrize(
    "steps, shift", [(0, 1.0), (4, 0.0), (4, -1.0), (4, math.nan), (4, math.inf)]
)
def test_schedule_rejects(steps, shift):
    with pytest.raises(ValueError, match="num_steps >= 1 and a finite shift > 0"):
        sampler.sigma_schedule(steps, shift)


@pytest.mark.parametrize("kind", KINDS)
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
        dance = sampler.sde_step(
            latents, velocity, sampler.sigma_schedule(6), index, diffusion, "dance", latents
        )
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
    ],
)
def test_step_std_by_hand(kind, index, std):
    assert random_step(kind, index)[2].std.flatten()[0].item() == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_is_float32_whatever_the_models_dtype(kind):
    latents, velocity, _ = random_step(kind, 2)
    step = sampler.sde_step(
        latents, velocity.bfloat16(), sampler.sigma_schedule(6), 2, 0.7, kind, latents
    )
    exact = sampler.sde_step(
        latents, velocity.bfloat16().float(), sampler.sigma_schedule(6), 2, 0.7, kind, latents
    )
    assert {part.dtype for part in step} == {torch.float32}
    assert torch.equal(step.mean, exact.mean) and torch.equal(step.log_prob, exact.log_prob)


def simulate(kind, noise_level, data_mean, data_std, steps=400, count=5000, corrected=True):
    """Samples of the SDE with the exact velocity of N(m, s^2), and their mean and deviation by
    sigma."""
    generator = torch.Generator().manual_seed(0)
    sigmas = sampler.sigma_schedule(steps)
    latents = torch.randn(count, 1, 1, generator=generator)
    errors = []
    for k in range(steps):
        sigma = sigmas[k]
        mean, var = (1 - sigma) * data_mean, (1 - sigma) ** 2 * data_std**2 + sigma**2
        # E[noise - clean | latents] of two jointly Gaussian variables
        slope = (sigma - (1 - sigma) * data_std**2) / var
        velocity = -data_mean + slope * (latents - mean)
        step = sampler.sde_step(
            latents, velocity, sigmas, k, noise_level, kind, generator=generator
        )
        if corrected:
            latents = step.next_latents
        else:  # the same noise on a plain Euler step
            latents = latents + velocity * (sigmas[k + 1] - sigma) + (step.next_latents - step.mean)
        sigma = sigmas[k + 1]
        true = (1 - sigma) * data_mean, math.sqrt((1 - sigma) ** 2 * data_std**2 + sigma**2)
        errors.append((abs(latents.mean() - true[0]).item(), abs(latents.std() - true[1]).item()))
    return torch.tensor(errors).max(0).values


@pytest.mark.parametrize("kind", KINDS)
def test_sde_keeps_the_marginals_of_the_ode(kind):
    # Sampling error of 5,000 draws is about 0.014; Flow-SDE's first step adds noise of 0.7 however
    # many steps there are, and its Euler drift leaves a deviation of 1.03 there instead of 1.
    mean_error, std_error = simulate(kind, 0.7, data_mean=1.5, data_std=0.5)
    assert mean_error < 0.05 and std_error < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_score_correction_the_marginals_are_lost(kind):
    _, std_error = simulate(kind, 0.7, data_mean=1.5, data_std=0.5, corrected=False)
    assert std_error > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_noise_level_zero_is_the_euler_step(kind):
    latents, velocity, step = random_step(kind, 2, noise_level=0.0)
    assert torch.allclose(step.next_latents, latents - velocity / 6, atol=1e-6)
    assert (step.log_prob == 0).all() and (step.std == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_is_the_predicted_clean_latents(kind):
    latents, velocity, step = random_step(kind, 5)
    assert torch.allclose(step.next_latents, latents - velocity / 6, atol=1e-6)
    assert (step.log_prob == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_at_sigma_one_is_finite(kind):
    _, _, step = random_step(kind, 0)
    assert all(torch.isfinite(part).all() for part in step)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_mix_steps(kind):
    latents, velocity, _ = random_step(kind, 0)
    next_latents = latents + 0.1
    sigmas = sampler.sigma_schedule(6)
    mixed = sampler.sde_step(
        latents, velocity, sigmas, torch.tensor([0, 3, 5, 2]), 0.7, kind, next_latents
    )
    for row, index in enumerate([0, 3, 5, 2]):
        one = sampler.sde_step(
            latents[row : row + 1],
            velocity[row : row + 1],
            sigmas,
            index,
            0.7,
            kind,
            next_latents[row : row + 1],
        )
        assert torch.allclose(mixed.log_prob[row], one.log_prob[0])
        assert torch.allclose(mixed.mean[row], one.mean[0])


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown SDE kind 'heun'"):
        random_step("heun", 0)


def linear_velocity(latents, sigma):
    return 0.3 * latents + sigma[:, None, None]


def test_rollout_without_noise_is_the_ode_and_its_inputs_stay():
    noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    kept, sigmas = noise.clone(), sampler.sigma_schedule(5)
    trajectory = sampler.rollout(linear_velocity, noise, sigmas, noise_level=0.7, sde_steps=())
    assert torch.equal(trajectory.clean, sampler.ode_sample(linear_velocity, noise, sigmas))
    assert torch.equal(noise, kept) and torch.equal(trajectory.latents[0], noise)


def test_window_makes_only_its_steps_stochastic():
    noise = torch.randn(3, 4, 5)
    trajectory = sampler.rollout(
        linear_velocity, noise, sampler.sigma_schedule(5), 0.7, sde_steps=[1, 2]
    )
    assert trajectory.sde_steps == (1, 2)
    assert [(s > 0).all().item() for s in trajectory.stds] == [False, True, True, False, False]
    with pytest.raises(ValueError, match="not stochastic"):
        sampler.replay(linear_velocity, trajectory, 3)


@pytest.mark.parametrize("steps", [[4], [-1], [0, 7]])
def test_the_last_step_cannot_be_stochastic(steps):
    with pytest.raises(ValueError, match="always an ODE step"):
        sampler.rollout(
            linear_velocity, torch.randn(1, 2, 2), sampler.sigma_schedule(5), 0.7, sde_steps=steps
        )


def test_a_samples_noise_does_not_depend_on_its_batch():
    noise, sigmas = torch.randn(4, 3, 2), sampler.sigma_schedule(5)
    generators = lambda rows: [torch.Generator().manual_seed(r) for r in rows]
    whole = sampler.rollout(linear_velocity, noise, sigmas, 0.7, generator=generators(range(4)))
    half = sampler.rollout(linear_velocity, noise[2:], sigmas, 0.7, generator=generators([2, 3]))
    assert torch.equal(whole.latents[:, 2:], half.latents)
    joined = sampler.concatenate(
        [
            sampler.rollout(
                linear_velocity, noise[r], sigmas, 0.7, generator=generators(range(4)[r])
            )
            for r in (slice(0, 2), slice(2, 4))
        ]
    )
    assert torch.equal(joined.latents, whole.latents) and torch.equal(
        joined.log_probs, whole.log_probs
    )


@pytest.mark.parametrize("kind", KINDS)
def test_replay_on_the_shipped_model_gives_ratio_exactly_one(tiny_flux, kind):
    prompts = ["a red circle inside a blue square", "three green triangles"] * 4
    text = tiny_flux.encode(prompts)
    noise = tiny_flux.noise(range(8))
    velocity = tiny_flux.velocity(text)
    trajectory = sampler.rollout(velocity, noise, sampler.sigma_schedule(6), 0.7, kind)
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


def test_replay_carries_gradient_and_takes_one_index_a_row(tiny_flux):
    scale = torch.ones((), requires_grad=True)
    velocity = lambda latents, sigma: scale * linear_velocity(latents, sigma)
    sigmas = sampler.sigma_schedule(5, 3.0)
    trajectory = sampler.rollout(velocity, torch.randn(4, 3, 2), sigmas, 0.4)
    assert torch.equal(trajectory.step(2, [1]).next_latents, trajectory.latents[3, [1]])
    index = torch.tensor([0, 1, 2, 3])
    mixed = sampler.replay(velocity, trajectory, index)
    stored = trajectory.log_probs[index, torch.arange(4)]
    assert torch.allclose(mixed.log_prob, stored, atol=1e-6)
    mixed.log_prob.sum().backward()
    assert scale.grad.abs() > 0
    some = sampler.replay(velocity, trajectory, torch.tensor([3, 0]), rows=torch.tensor([1, 2]))
    assert torch.allclose(some.log_prob, trajectory.log_probs[[3, 0], [1, 2]], atol=1e-6)
