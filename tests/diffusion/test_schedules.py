"""Tables equal diffusers', noised data has the moments it should have, targets and their conversions agree."""

import diffusers
import pytest
import torch

from tests.diffusion.in_float64 import in_float64  # noqa: F401
from zoo.diffusion import (
    DDPMSchedule,
    FlowMatching,
    cosine_betas,
    linear_betas,
    make_schedule,
    min_snr_weight,
    prediction_target,
    scaled_linear_betas,
    to_x0_eps,
    zero_terminal_snr,
)

THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTION_TYPES = ["epsilon", "v_prediction", "flow_prediction"]


def theirs(name: str, **kwargs):
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
    return diffusers.DDIMScheduler(beta_schedule=THEIRS[name], **ends, **kwargs)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_tables_equal_diffusers(name, zero_snr, in_float64):  # noqa: F811
    ours, other = make_schedule(name, 1000, zero_snr), theirs(name, rescale_betas_zero_snr=zero_snr)
    assert other.betas.dtype == torch.float64
    assert (ours.betas - other.betas).abs().max() < 1e-12
    assert (ours.alphas_cumprod - other.alphas_cumprod).abs().max() < 1e-12
    assert (ours.alphas_cumprod[-1] == 0) == zero_snr


@pytest.mark.parametrize("name", THEIRS)
def test_tables_equal_diffusers_as_they_are_to_its_rounding(name):
    assert torch.allclose(make_schedule(name).alphas_cumprod.float(), theirs(name).alphas_cumprod, atol=2e-6, rtol=0)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [7, 20, 33, 50, 1000])
def test_times_equal_diffusers(n, spacing, rounded, in_float64):  # noqa: F811
    kind = diffusers.DDIMScheduler if rounded else diffusers.EulerDiscreteScheduler
    other = kind(timestep_spacing=spacing, **({} if spacing == "linspace" else {"steps_offset": 1 * (n < 1000)}))
    other.set_timesteps(n)
    offset = 0 if spacing == "linspace" or n == 1000 else 1
    ours = DDPMSchedule(linear_betas()).timesteps(n, spacing, offset, rounded)
    assert torch.allclose(ours, other.timesteps.double()[: len(ours)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [6, 20, 999])
def test_times_of_dpm_solver_equal_diffusers(n, spacing):
    other = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing)
    other.set_timesteps(n)
    assert torch.equal(
        DDPMSchedule(linear_betas()).timesteps(n, spacing, extra_timesteps=1).long(), other.timesteps[:n]
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_straight_times_equal_diffusers(shift, in_float64):  # noqa: F811
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    other.set_shift(shift)
    schedule = FlowMatching(1000, shift)
    other.set_timesteps(20)
    assert torch.allclose(schedule.model_time(schedule.timesteps(20, "linspace")), other.timesteps, atol=1e-9, rtol=0)
    other.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])  # as Flux asks for them
    assert torch.allclose(schedule.model_time(schedule.timesteps(20, "trailing")), other.timesteps, atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", [make_schedule(name) for name in [*THEIRS, "flow"]])
def test_noised_data_has_the_moments_it_should_have(schedule):
    torch.manual_seed(0)
    n = 200_000
    u = torch.full((n,), 0.3)
    x0 = torch.where(torch.rand(n) < 0.25, 1.5, -0.5).unsqueeze(1)
    t = schedule.training_timesteps(u)
    alpha, sigma = (float(level[0]) for level in schedule.alpha_sigma(t[:1]))
    x = schedule.add_noise(x0, torch.randn(n, 1), t)
    variance = alpha**2 * float(x0.var()) + sigma**2
    assert abs(float(x.mean()) - alpha * float(x0.mean())) < 4 * (variance / n) ** 0.5
    assert abs(float(x.var()) / variance - 1) < 4 * (2 / n) ** 0.5


def test_one_step_of_betas_after_another_is_the_schedule():
    torch.manual_seed(0)
    schedule, x0, n = make_schedule("linear", 50), 2.0, 100_000
    x = torch.full((n, 1), x0)
    for beta in schedule.betas.tolist():
        x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(n, 1)
    alpha, sigma = (float(level) for level in schedule.alpha_sigma(torch.tensor([49])))
    assert abs(float(x.mean()) - alpha * x0) < 4 * sigma / n**0.5
    assert abs(float(x.std()) / sigma - 1) < 4 / (2 * n) ** 0.5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", [*THEIRS, "flow"])
def test_data_and_noise_are_recovered_from_every_prediction_type(name, prediction_type):
    torch.manual_seed(0)
    schedule = make_schedule(name)
    x0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    for u in (0.1, 0.5, 0.9):
        t = schedule.training_timesteps(torch.full((3,), u, dtype=torch.float64))
        alpha, sigma = schedule.alpha_sigma(t)
        noisy = schedule.add_noise(x0, eps, t)
        prediction = prediction_target(prediction_type, x0, eps, alpha, sigma)
        found = to_x0_eps(prediction_type, noisy, prediction, float(alpha[0]), float(sigma[0]))
        assert torch.allclose(found[0], x0, atol=1e-10)
        assert torch.allclose(found[1], eps, atol=1e-10)


def test_v_is_diffusers_velocity(in_float64):  # noqa: F811
    torch.manual_seed(0)
    other = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    x0, eps = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    t = torch.tensor([0, 10, 500, 999])
    schedule = DDPMSchedule(cosine_betas())
    ours = prediction_target("v_prediction", x0, eps, *schedule.alpha_sigma(t))
    assert torch.allclose(ours, other.get_velocity(x0, eps, t), atol=1e-12)
    assert torch.allclose(schedule.add_noise(x0, eps, t), other.add_noise(x0, eps, t), atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_the_error_of_x0_alike(prediction_type):
    """Whatever the network says, the weighted error is that of the data times min(SNR, gamma)."""
    torch.manual_seed(0)
    schedule = make_schedule("flow" if prediction_type == "flow_prediction" else "cosine")
    t = schedule.training_timesteps(torch.tensor([0.02, 0.2, 0.6, 0.95]))
    alpha, sigma = schedule.alpha_sigma(t)
    x0, eps, wrong = torch.randn(3, 4, 1, 5, 5, dtype=torch.float64)
    prediction = prediction_target(prediction_type, x0, eps, alpha, sigma) + wrong
    x = schedule.add_noise(x0, eps, t)
    for i, weight in enumerate(min_snr_weight(prediction_type, alpha, sigma, 5.0)):
        data, _ = to_x0_eps(prediction_type, x[i], prediction[i], float(alpha[i]), float(sigma[i]))
        ratio = min(5.0, float((alpha[i] / sigma[i]) ** 2))
        assert float(weight * wrong[i].square().mean()) == pytest.approx(
            ratio * float((data - x0[i]).square().mean()), rel=1e-9
        )


def test_min_snr_weight_is_finite_at_zero_snr():
    alpha, sigma = DDPMSchedule(zero_terminal_snr(scaled_linear_betas())).alpha_sigma(torch.tensor([999]))
    assert float(alpha) == 0
    assert float(min_snr_weight("epsilon", alpha, sigma)) == 1
    assert float(min_snr_weight("v_prediction", alpha, sigma)) == 0


def test_levels_between_steps_interpolate_the_ratio():
    schedule = make_schedule("scaled_linear")
    alpha, sigma = schedule.alpha_sigma(torch.tensor([99.0, 99.25, 100.0]))
    ratio = sigma / alpha
    assert float(ratio[1]) == pytest.approx(float(0.75 * ratio[0] + 0.25 * ratio[2]), rel=1e-12)
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_schedule("quadratic"),
            "schedule must be one of linear, cosine, scaled_linear, flow, got quadratic",
        ),
        (lambda: make_schedule("cosine", beta_start=0.1), "beta_start and beta_end are for .*, got schedule cosine"),
        (lambda: linear_betas(10, 0.5, 0.1), "betas must rise within"),
        (lambda: make_schedule("linear").timesteps(1001, "trailing"), "steps must be 1 to 1000, .* got 1001"),
        (
            lambda: FlowMatching().timesteps(10, "leading"),
            "spacing must be trailing or linspace with schedule flow, got leading",
        ),
        (lambda: FlowMatching(shift=0), "shift must be above 0"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
