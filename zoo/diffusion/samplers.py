"""Samplers (DDPM: Ho et al. 2020, https://arxiv.org/abs/2006.11239; DDIM: Song et al. 2021, https://arxiv.org/abs/2010.02502).

Samplers do not depend on the network: they call any function of samples and times. All of them keep samples as
``alpha x0 + sigma eps``, also where a paper divides them by ``alpha``: the steps are the same, and are also defined
where ``alpha`` is 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.diffusion.prediction import PredictionType, to_x0_eps
from zoo.diffusion.schedules import NoiseSchedule, Spacing

Predict = Callable[[Tensor, Tensor], Tensor]
"""Maps samples ``(b, ...)`` and their times ``(b,)`` to the prediction of the network ``(b, ...)``."""
NoiseSource = Callable[[Tensor], Tensor]
"""Returns standard normal noise of the shape, dtype and device of a tensor."""

# Below this number of steps, the last step of DPM-Solver++ (2M) is of first order, as in the reference implementation.
FEW_STEPS = 15


class Timestep(NamedTuple):
    """A time of the sampler, with the coefficients of data and noise at that time."""

    t: float
    alpha: float
    sigma: float


class Sampler(ABC):
    """Sampler: transforms noise to data in a number of steps.

    Args:
        schedule: noise schedule that the network was trained with.
        prediction_type: prediction type of the network.
        steps: number of steps.
        spacing: spacing of the timesteps: ``trailing`` includes the last training timestep, that of pure noise (Lin et
            al. 2024), ``leading`` the first, and ``linspace`` both.
        offset: added to the timesteps of ``leading``; 1 for Stable Diffusion.
        final: noise level after the last step: ``zero``, or ``min``, the lowest one of training.
        clip: clip predictions of the data to [-clip, clip]; None for no clipping.

    Raises:
        ValueError: the number of steps does not suit the schedule, or the prediction type does not determine the data
            at the first timestep.
    """

    # Whether the timesteps of linspace are rounded to integers.
    integer_timesteps: ClassVar[bool] = True
    # Timesteps that are spaced beyond those of the steps, and dropped.
    extra_timesteps: ClassVar[int] = 0
    # Order of convergence.
    order: ClassVar[int] = 1

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        steps: int = 20,
        spacing: Spacing = "trailing",
        offset: int = 0,
        final: Literal["zero", "min"] = "zero",
        clip: float | None = None,
    ) -> None:
        self.schedule = schedule
        self.steps = steps
        self.clip = clip
        self.prediction_type: PredictionType = prediction_type
        times = schedule.timesteps(steps, spacing, offset, self.integer_timesteps, self.extra_timesteps)
        alphas, sigmas = schedule.alpha_sigma(times)
        self.timesteps = []
        for t, alpha, sigma in zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True):
            self.timesteps.append(Timestep(t, alpha, sigma))
        if final == "zero":
            self.timesteps.append(Timestep(0.0, alpha=1.0, sigma=0.0))
        else:
            alpha, sigma = schedule.alpha_sigma(torch.zeros(1, dtype=torch.long))
            self.timesteps.append(Timestep(0.0, float(alpha), float(sigma)))
        if prediction_type == "epsilon" and self.timesteps[0].alpha == 0:
            raise ValueError("prediction_type epsilon does not go with zero_snr: use v_prediction")

    def __call__(
        self,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        noise: NoiseSource = torch.randn_like,
        done: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Transform noise to data.

        Args:
            predict: the network, as a function of samples and times.
            x: standard normal noise.
            noise: source of the noise that stochastic samplers add.
            done: called after each step with its number, counted from 1.
        """
        memory: list[Tensor] = []
        for i in range(self.steps):
            x = self.step(i, predict, x, noise, memory)
            if done is not None:
                done(i + 1)
        return x

    @abstractmethod
    def step(
        self,
        i: int,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        noise: NoiseSource,
        memory: list[Tensor],
    ) -> Float[Tensor, "b ..."]:
        """Return the samples at timestep ``i + 1``, given those at timestep ``i``.

        Args:
            i: index of the step, from 0.
            predict: the network, as a function of samples and times.
            x: samples at timestep ``i``.
            noise: source of new noise.
            memory: state of a multistep sampler, which it changes in place; empty at the first step.
        """

    def predict_x0_eps(
        self,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        at: Timestep,
    ) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """Return the data and noise that the network predicts for samples at a timestep."""
        dtype = torch.long
        if at.t % 1:
            dtype = torch.float64
        t = torch.full((len(x),), at.t, dtype=dtype, device=x.device)
        x0, eps = to_x0_eps(self.prediction_type, x, predict(x, t), at.alpha, at.sigma)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
            eps = (x - at.alpha * x0) / at.sigma
        return x0, eps


class DDIM(Sampler):
    """DDIM: deterministic steps with the predicted noise, or stochastic ones that replace some of it by new noise.

    With flow matching, and with integer timesteps also with other schedules, this is Euler's method.

    Args:
        eta: amount of new noise: 0 is deterministic, 1 is DDPM.
    """

    def __init__(self, *args, eta: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {eta}")
        self.eta = eta

    def step(
        self,
        i: int,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        noise: NoiseSource,
        memory: list[Tensor],
    ) -> Float[Tensor, "b ..."]:
        now, after = self.timesteps[i : i + 2]
        x0, eps = self.predict_x0_eps(predict, x, now)
        if not self.eta or not after.sigma:
            return after.alpha * x0 + after.sigma * eps
        # Variance of x at the next timestep given x now and x0, relative to sigma^2 of the next timestep.
        variance = 1 - (now.alpha / after.alpha * after.sigma / now.sigma) ** 2
        new = self.eta**2 * max(0.0, variance)
        mixed = (1 - new) ** 0.5 * eps + new**0.5 * noise(x)
        return after.alpha * x0 + after.sigma * mixed


class DDPM(DDIM):
    """DDPM ancestral sampling: each step adds noise with the variance of the posterior."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, eta=1.0, **kwargs)


class Euler(DDIM):
    """Euler's method: first order in sigma / alpha (Karras et al. 2022), or in the time of flow matching."""

    integer_timesteps = False


class Heun(Sampler):
    """Heun's method: a step of Euler's, repeated with the mean of the slopes at both of its ends.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1, deterministic. Evaluates the network twice per
    step.
    """

    integer_timesteps = False
    order = 2

    def step(
        self,
        i: int,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        noise: NoiseSource,
        memory: list[Tensor],
    ) -> Float[Tensor, "b ..."]:
        now, after = self.timesteps[i : i + 2]
        x0, eps = self.predict_x0_eps(predict, x, now)
        euler = after.alpha * x0 + after.sigma * eps
        straight = self.schedule.path == "straight"
        if not after.sigma:
            return euler
        if not now.alpha and not straight:  # sigma / alpha is infinite
            return euler
        x0_after, eps_after = self.predict_x0_eps(predict, euler, after)
        if straight:
            return x + (after.t - now.t) / 2 * (eps - x0 + eps_after - x0_after)
        # d(x / alpha) / d(sigma / alpha) is eps
        slope = (eps + eps_after) / 2
        return after.alpha / now.alpha * x + (after.sigma - after.alpha * now.sigma / now.alpha) * slope


class DPMSolver(Sampler):
    """DPM-Solver++ (2M): x0 is extrapolated linearly from this and the previous prediction, and integrated exactly.

    Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2. Evaluates the network once per step.
    """

    extra_timesteps = 1
    order = 2

    def step(
        self,
        i: int,
        predict: Predict,
        x: Float[Tensor, "b ..."],
        noise: NoiseSource,
        memory: list[Tensor],
    ) -> Float[Tensor, "b ..."]:
        now, after = self.timesteps[i : i + 2]
        x0, _ = self.predict_x0_eps(predict, x, now)
        data = x0
        if memory and self._is_second_order(i):
            h = _log_snr_step(now, after)
            h_before = _log_snr_step(self.timesteps[i - 1], now)
            data = x0 + 0.5 * h / h_before * (x0 - memory[0])
        memory[:] = [x0]
        exp_minus_h = (after.sigma * now.alpha) / (after.alpha * now.sigma)
        return after.sigma / now.sigma * x + after.alpha * (1 - exp_minus_h) * data

    def _is_second_order(self, i: int) -> bool:
        """Return whether a step after the first can use the previous prediction."""
        now, after = self.timesteps[i : i + 2]
        if not after.sigma:  # the step to no noise has infinite length
            return False
        if i == self.steps - 1 and self.steps < FEW_STEPS:  # second order is unstable here
            return False
        # With nearly as many steps as training timesteps, rounding can repeat one: two equal times make no line.
        return self.timesteps[i - 1] != now


def _log_snr_step(start: Timestep, end: Timestep) -> float:
    """Return the step size in log(alpha / sigma)."""
    if not start.alpha:
        return float("inf")
    return math.log(end.alpha / end.sigma) - math.log(start.alpha / start.sigma)


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpm++": DPMSolver}
SamplerName = Literal["ddpm", "ddim", "euler", "heun", "dpm++"]


def make_sampler(name: str, *args, **kwargs) -> Sampler:
    """Return a sampler by name; other arguments are those of ``Sampler``."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    return SAMPLERS[name](*args, **kwargs)


def classifier_free_guidance(predict: Callable[[Tensor, Tensor, Sequence[bool]], Tensor], scale: float) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    Args:
        predict: maps samples, times and a sequence of flags to one prediction of the batch per flag, with (True) or
            without (False) the condition, concatenated to ``(flags * b, ...)``.
        scale: guidance scale: 0 ignores the condition, 1 is without guidance, above 1 strengthens the condition.
    """
    if scale == 1:
        return lambda x, t: predict(x, t, [True])
    if scale == 0:
        return lambda x, t: predict(x, t, [False])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        unconditional, conditional = predict(x, t, [False, True]).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return guided
