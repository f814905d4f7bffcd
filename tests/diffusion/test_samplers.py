"""Samplers equal diffusers' steps and trajectories, and reach a distribution whose score is known at their order."""

import math
from collections.abc import Sequence

import diffusers
import pytest
import torch

from tests.diffusion.in_float64 import in_float64  # noqa: F401
from zoo.diffusion import (
    DDPMSchedule,
    FlowMatching,
    Noise,
    classifier_free_guidance,
    make_sampler,
    make_schedule,
    prediction_target,
    scaled_linear_betas,
)
from zoo.diffusion.samplers import SAMPLERS

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
THEIRS = {
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
}
PREDICTION_TYPES = ["epsilon", "v_prediction"]


def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth function of samples and their time, in place of a network."""
    return torch.tanh(1.3 * x + 0.4 * x.flip(-1)) + 0.3 * torch.sin(0.01 * t.to(x)).view(-1, 1, 1, 1) * x


def start() -> torch.Tensor:
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def their_trajectory(name: str, prediction_type: str, spacing: str, steps: int, noises: list[torch.Tensor], **given):
    """Samples after each of diffusers' steps, divided so that their variance is kept as ours is."""
    kind, more = THEIRS[name]
    scheduler = kind(**BETAS, prediction_type=prediction_type, timestep_spacing=spacing, **more, **given)
    scheduler.set_timesteps(steps)
    scaled = name in ("euler", "heun")
    x, found, drawn = start(), [], iter(noises)
    if scaled:
        x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for i, t in enumerate(scheduler.timesteps):
        prediction = answer(scheduler.scale_model_input(x, t), t.view(1))
        if name == "ddpm":
            noise = next(drawn)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)  # noqa: B023
                x = scheduler.step(prediction, t, x).prev_sample
        else:
            x = scheduler.step(prediction, t, x).prev_sample
        ratio = scheduler.sigmas[i + 1] if scaled else 0.0
        found.append(x / (ratio**2 + 1) ** 0.5)
    return found


def our_trajectory(name: str, prediction_type: str, spacing: str, steps: int, noises: list[torch.Tensor], **given):
    sampler = make_sampler(name, DDPMSchedule(scaled_linear_betas()), prediction_type, steps, spacing, **given)
    x, found, drawn, memory = start(), [], iter(noises), []
    for i in range(steps):
        x = sampler.step(i, answer, x, lambda _: next(drawn), memory)
        found.append(x)
    return found


# Where diffusers steps back evenly whatever its times are, times are even here.
CASES = [
    (name, spacing)
    for name in SAMPLERS
    for spacing in ("leading", "trailing", "linspace")
    if not (name in ("ddpm", "ddim") and spacing == "linspace")
]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("name", "spacing"), CASES)
def test_steps_and_trajectories_equal_diffusers(name, spacing, prediction_type, in_float64):  # noqa: F811
    noises = [torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(20)]
    ours, theirs = (f(name, prediction_type, spacing, 20, noises) for f in (our_trajectory, their_trajectory))
    if name == "heun":  # which has two of theirs to one of ours, and a single one at the end
        theirs = [*theirs[1::2], theirs[-1]]
    assert len(ours) == len(theirs) == 20
    assert (ours[0] - theirs[0]).abs().max() < 1e-8
    assert (ours[-1] - theirs[-1]).abs().max() < 1e-6
    assert ours[-1].std() > 0.1


def test_ddim_as_stable_diffusion_ships_it_equals_diffusers(in_float64):  # noqa: F811
    given = {"set_alpha_to_one": False, "steps_offset": 1}
    theirs = their_trajectory("ddim", "epsilon", "leading", 20, [], **given)
    ours = our_trajectory("ddim", "epsilon", "leading", 20, [], offset=1, final="min")
    assert (ours[-1] - theirs[-1]).abs().max() < 1e-6
    assert (ours[-1] - our_trajectory("ddim", "epsilon", "leading", 20, [])[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.6, 0.95])
def test_ddim_with_new_noise_clipped_and_without_data_at_the_end_equals_diffusers(eta, in_float64):  # noqa: F811
    other = diffusers.DDIMScheduler(
        **BETAS, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    other.set_timesteps(20)
    schedule = make_schedule("scaled_linear", zero_snr=True)
    sampler = make_sampler("ddim", schedule, "v_prediction", 20, clip=1.0, eta=eta)
    ours = theirs = start()
    for i, t in enumerate(other.timesteps):
        noise = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        ours = sampler.step(i, answer, ours, lambda _: noise, [])  # noqa: B023
        given = {"eta": eta, "variance_noise": noise} if eta else {}
        theirs = other.step(answer(theirs, t.view(1)), t, theirs, use_clipped_model_output=True, **given).prev_sample
        assert (ours - theirs).abs().max() < (1e-8 if i == 0 else 1e-6)


def test_clipped_ddpm_equals_diffusers(in_float64, monkeypatch):  # noqa: F811
    noises = [torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(20)]
    monkeypatch.setitem(THEIRS, "ddpm", (diffusers.DDPMScheduler, {"clip_sample": True}))
    theirs = their_trajectory("ddpm", "epsilon", "leading", 20, noises)
    ours = our_trajectory("ddpm", "epsilon", "leading", 20, noises, clip=1.0)
    assert (ours[-1] - theirs[-1]).abs().max() < 1e-6
    assert ours[-1].abs().max() <= 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_flow_euler_equals_diffusers(name, shift, in_float64):  # noqa: F811
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    other.set_shift(shift)
    other.set_timesteps(20)
    schedule = FlowMatching(1000, shift)
    sampler = make_sampler(name, schedule, "flow_prediction", 20, "linspace")
    ours = theirs = start()
    for i, t in enumerate(other.timesteps):
        ours = sampler.step(i, lambda x, t: answer(x, schedule.model_time(t)), ours, torch.randn_like, [])
        theirs = other.step(answer(theirs, t.view(1)), t, theirs).prev_sample
        assert (ours - theirs).abs().max() < (1e-8 if i == 0 else 1e-6)


# A mixture of two normal distributions, about which everything is known ----------------------------------------------

WEIGHTS, MEANS, STDS = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-0.8, 0.5], [0.2, 0.3]))


def perfect(schedule, prediction_type: str):
    """Return the optimal network: it predicts the conditional mean of the target given a sample."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        a, s = alpha.view(-1, 1), sigma.view(-1, 1)
        variance = (a * STDS).square() + s.square()
        share = (WEIGHTS.log() - variance.log() / 2 - (x - a * MEANS).square() / variance / 2).softmax(1)
        x0 = (share * (MEANS + a * STDS.square() * (x - a * MEANS) / variance)).sum(1, keepdim=True)
        return prediction_target(prediction_type, x0, (x - a * x0) / s, alpha, sigma)

    return predict


def quantiles(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spaced quantiles of the standard normal distribution, and the same ones of the mixture."""
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    low, high = torch.full((2, n), 5.0, dtype=torch.float64) * torch.tensor([[-1.0], [1.0]])
    for _ in range(60):
        middle = (low + high) / 2
        below = (WEIGHTS * torch.special.ndtr((middle.view(-1, 1) - MEANS) / STDS)).sum(1) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.special.ndtri(share).view(-1, 1), low


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    """How far the mass of one distribution has to be moved on average to be the other (Wasserstein)."""
    return float((found.flatten().sort().values - true).abs().mean())


@pytest.mark.parametrize(
    ("name", "schedule", "spacing"),
    [
        ("ddim", "flow", "trailing"),
        ("ddim", "cosine", "trailing"),
        ("euler", "flow", "linspace"),
        ("euler", "cosine", "linspace"),
        ("heun", "flow", "trailing"),
        ("heun", "cosine", "linspace"),
        ("dpm++", "flow", "linspace"),
        ("dpm++", "cosine", "trailing"),
    ],
)
def test_distance_to_a_known_distribution_shrinks_at_the_order(name, schedule, spacing):
    noise_schedule = make_schedule(schedule, zero_snr=True)
    prediction_type = "flow_prediction" if schedule == "flow" else "v_prediction"
    noise, true = quantiles(2001)
    errors = []
    for steps in (10, 160):
        sampler = make_sampler(name, noise_schedule, prediction_type, steps, spacing)
        errors.append(distance(sampler(perfect(noise_schedule, prediction_type), noise), true))
    assert math.log2(errors[0] / errors[1]) / 4 > sampler.order - 0.1
    assert errors[1] < (5e-3 if sampler.order == 1 else 1e-3)


@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_ddpm_samples_from_a_known_distribution(schedule):
    noise_schedule = make_schedule(schedule, zero_snr=True)
    prediction_type = "flow_prediction" if schedule == "flow" else "v_prediction"
    _, true = quantiles(40_001)
    errors, generator = [], torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    for steps in (10, 40, 160):
        x = make_sampler("ddpm", noise_schedule, prediction_type, steps)(
            perfect(noise_schedule, prediction_type), drawn(true.view(-1, 1)), drawn
        )
        errors.append(distance(x, true))
    assert errors[0] > 2.5 * errors[1] > 2.5 * errors[2]
    assert errors[2] < 0.015
    modes = [(x < -0.25).double().mean(), (x > -0.25).double().mean()]
    assert float(modes[0]) == pytest.approx(float((true < -0.25).double().mean()), abs=0.02)


def test_epsilon_prediction_samples_from_a_known_distribution():
    noise_schedule, (noise, true) = make_schedule("linear"), quantiles(2001)
    x = make_sampler("dpm++", noise_schedule, "epsilon", 50)(perfect(noise_schedule, "epsilon"), noise)
    assert distance(x, true) < 0.02


# Seeds, guidance, mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "dpm++"])
def test_samples_are_the_same_in_batches_of_any_size(name):
    sampler = make_sampler(name, make_schedule("cosine"), "v_prediction", 5)

    def drawn(numbers: list[int], seed: int = 3) -> torch.Tensor:
        noise = Noise(seed, numbers)
        return sampler(answer, noise.normal(2, 4, 4), noise)

    together = drawn(list(range(8)))
    assert torch.equal(torch.cat([drawn([i]) for i in range(8)]), together)
    assert torch.equal(drawn([5, 2]), together[[5, 2]])
    assert not torch.isclose(drawn([0], seed=4), together).flatten(1).all(1).any()


def test_classifier_free_guidance():
    asked = []

    def predict(x: torch.Tensor, t: torch.Tensor, conditions: Sequence[bool]) -> torch.Tensor:
        asked.extend(conditions)
        return torch.cat([x + (5.0 if condition else 2.0) for condition in conditions])

    x, t = torch.zeros(2, 1), torch.zeros(2)
    for scale, expected, calls in ((1, 5.0, [True]), (0, 2.0, [False]), (3, 11.0, [False, True])):
        asked.clear()
        assert torch.equal(classifier_free_guidance(predict, scale)(x, t), torch.full((2, 1), expected))
        assert asked == calls


def test_dpm_solver_works_where_rounding_repeats_a_timestep():
    schedule = make_schedule("linear", 20)
    sampler = make_sampler("dpm++", schedule, "v_prediction", 20, "linspace")
    assert len({point.t for point in sampler.timesteps[:-1]}) == 19
    x, _ = quantiles(50)
    once = sampler(perfect(schedule, "v_prediction"), x[:, None])
    sampler.timesteps = [point for i, point in enumerate(sampler.timesteps) if point not in sampler.timesteps[:i]]
    sampler.steps = len(sampler.timesteps) - 1
    assert torch.allclose(once, sampler(perfect(schedule, "v_prediction"), x[:, None]), atol=0.05)


def test_done_is_called_after_each_step():
    calls = []
    make_sampler("ddim", make_schedule("cosine"), "v_prediction", 4)(answer, start(), done=calls.append)
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_sampler("plms", make_schedule("cosine"), "v_prediction"),
            "sampler must be one of ddpm, .* got 'plms'",
        ),
        (
            lambda: make_sampler("ddim", make_schedule("cosine"), "v_prediction", 2000),
            "steps must be 1 to 1000, the number of training timesteps, got 2000",
        ),
        (
            lambda: make_sampler("dpm++", make_schedule("linear"), "v_prediction", 1000, "leading"),
            "steps must be at most 999 for this sampler with spacing leading",
        ),
        (
            lambda: make_sampler("ddim", make_schedule("cosine"), "v_prediction", eta=2.0),
            "eta must be from 0 to 1, got 2.0",
        ),
        (
            lambda: make_sampler("ddim", make_schedule("cosine", zero_snr=True), "epsilon"),
            "prediction_type epsilon does not go with zero_snr",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
