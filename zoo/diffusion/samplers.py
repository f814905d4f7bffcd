"""Samplers (DDPM: Ho et al. 2020, https://arxiv.org/abs/2006.11239; DDIM: Song et al. 2021, https://arxiv.org/abs/2010.02502).

Samplers know no network: what they call is any function of samples and their time. All of them keep samples as
``alpha x0 + sigma eps``, also where a paper writes them divided by ``alpha``; steps are the same then, and are also
defined where nothing is left of the data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.diffusion.schedules import NoiseSchedule, PredictionType, Spacing, to_x0_eps

Predict = Callable[[Tensor, Tensor], Tensor]
"""From samples ``(b, ...)`` and their time ``(b,)`` to what a network says of them ``(b, ...)``."""
NoiseSource = Callable[[Tensor], Tensor]
"""Standard normal noise like a tensor."""


class Timestep(NamedTuple):
    """A time, and the shares of data and noise then."""

    t: float
    alpha: float
    sigma: float


class Sampler(ABC):
    """From noise to data in a number of steps.

    Args:
        schedule: of the noise that the network was trained on.
        prediction_type: what the network says of a sample.
        steps: how many.
        spacing: which times are looked at: ``trailing`` begins at the last one that was trained (Lin et al. 2024),
            ``leading`` ends at the first, ``linspace`` has both.
        offset: added to the times of ``leading``, 1 for Stable Diffusion.
        final: the noise left at the end: ``zero``, or ``min``, that of the first trained step.
        clip: data is known to be within this of 0; null where it is not.
    """

    integer_timesteps: ClassVar[bool] = True  # whether times of linspace are whole
    extra_timesteps: ClassVar[int] = 0  # times more that are spaced and left out
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
        self.schedule, self.steps, self.clip = schedule, steps, clip
        self.prediction_type: PredictionType = prediction_type
        times = schedule.timesteps(steps, spacing, offset, self.integer_timesteps, self.extra_timesteps)
        alphas, sigmas = schedule.alpha_sigma(times)
        self.timesteps = [Timestep(*row) for row in zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)]
        first = Timestep(0.0, *(float(v) for v in schedule.alpha_sigma(torch.zeros(1, dtype=torch.long))))
        self.timesteps.append(Timestep(0.0, 1.0, 0.0) if final == "zero" else first)
        if prediction_type == "epsilon" and self.timesteps[0].alpha == 0:
            raise ValueError("prediction_type epsilon does not go with zero_snr: take v_prediction")

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        noise: NoiseSource = torch.randn_like,
        done: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Data from noise.

        Args:
            predict: what a network says of samples at a time.
            x: standard normal noise ``(b, ...)``.
            noise: where samplers that draw more take it from.
            done: called after each step with its number, from 1.
        """
        memory: list[Tensor] = []
        for i in range(self.steps):
            x = self.step(i, predict, x, noise, memory)
            if done is not None:
                done(i + 1)
        return x

    @abstractmethod
    def step(self, i: int, predict: Predict, x: Tensor, noise: NoiseSource, memory: list[Tensor]) -> Tensor:
        """From time ``i`` to the next.

        Args:
            i: number of the step, from 0.
            predict: what a network says.
            x: samples at that time.
            noise: to draw more.
            memory: what a sampler keeps from step to step, empty at first.
        """

    def predict_x0_eps(self, predict: Predict, x: Float[Tensor, "b ..."], at: Timestep) -> tuple[Tensor, Tensor]:
        """Data and noise of samples, as the network has them."""
        t = torch.full((len(x),), at.t, dtype=torch.float64 if at.t % 1 else torch.long, device=x.device)
        x0, eps = to_x0_eps(self.prediction_type, x, predict(x, t), at.alpha, at.sigma)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
            eps = (x - at.alpha * x0) / at.sigma
        return x0, eps


class DDIM(Sampler):
    """Steps to the next noise level with the noise that the network sees, or with some of it drawn anew.

    On a straight path, and with whole times also elsewhere, this is Euler's step.

    Args:
        eta: share of the noise drawn anew: 0 draws none, 1 is DDPM.
    """

    def __init__(self, *args, eta: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is from 0 to 1, got {eta}")
        self.eta = eta

    def step(self, i: int, predict: Predict, x: Tensor, noise: NoiseSource, memory: list[Tensor]) -> Tensor:
        here, there = self.timesteps[i : i + 2]
        x0, eps = self.predict_x0_eps(predict, x, here)
        if not self.eta or not there.sigma:
            return there.alpha * x0 + there.sigma * eps
        # of the noise at the next level given this one and the data, as a share of it
        variance = 1 - (here.alpha / there.alpha * there.sigma / here.sigma) ** 2
        drawn = self.eta**2 * max(0.0, variance)  # share of the variance
        return there.alpha * x0 + there.sigma * ((1 - drawn) ** 0.5 * eps + drawn**0.5 * noise(x))


class DDPM(DDIM):
    """The reverse of the noising process: each step draws noise of the variance it leaves."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, eta=1.0, **kwargs)


class Euler(DDIM):
    """Euler's method, of the first order, in the ratio of noise to data (Karras et al. 2022) or, straight, in time."""

    integer_timesteps = False


class Heun(Sampler):
    """Heun's method: a step of Euler's, and again with the mean of the slopes at both of its ends.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1 without new noise. Asks the network twice a step.
    """

    integer_timesteps = False
    order = 2

    def step(self, i: int, predict: Predict, x: Tensor, noise: NoiseSource, memory: list[Tensor]) -> Tensor:
        here, there = self.timesteps[i : i + 2]
        x0, eps = self.predict_x0_eps(predict, x, here)
        ahead = there.alpha * x0 + there.sigma * eps
        straight = self.schedule.path == "straight"
        if not there.sigma or not (here.alpha or straight):  # at its ends the path is no function of the ratio
            return ahead
        x0_ahead, eps_ahead = self.predict_x0_eps(predict, ahead, there)
        if straight:
            return x + (there.t - here.t) / 2 * (eps - x0 + eps_ahead - x0_ahead)
        slope = (eps + eps_ahead) / 2
        return there.alpha / here.alpha * x + (there.sigma - there.alpha * here.sigma / here.alpha) * slope


class DPMSolver(Sampler):
    """DPM-Solver++ (2M): the data, drawn as a line through this look and the last, integrated without error.

    Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2. Asks the network once a step.
    """

    extra_timesteps = 1
    order = 2

    def step(self, i: int, predict: Predict, x: Tensor, noise: NoiseSource, memory: list[Tensor]) -> Tensor:
        here, there = self.timesteps[i : i + 2]
        x0, _ = self.predict_x0_eps(predict, x, here)
        # The last step of few is unstable with the second order; the one to no noise at all is infinitely long; and
        # two looks at one time, which rounding brings about where nearly all are looked at, make no line.
        first = (
            not memory or not there.sigma or (i == self.steps - 1 and self.steps < 15) or self.timesteps[i - 1] == here
        )
        data = x0
        if not first:
            now, last = self._length(here, there), self._length(self.timesteps[i - 1], here)
            data = x0 + 0.5 * now / last * (x0 - memory[0])
        memory[:] = [x0]
        left = (there.sigma * here.alpha) / (there.alpha * here.sigma)  # exp(-h)
        return there.sigma / here.sigma * x + there.alpha * (1 - left) * data

    @staticmethod
    def _length(a: Timestep, b: Timestep) -> float:
        """Of a step, in the logarithm of the ratio of data to noise."""
        if not a.alpha:
            return float("inf")
        return math.log(b.alpha / b.sigma) - math.log(a.alpha / a.sigma)


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpm++": DPMSolver}
SamplerName = Literal["ddpm", "ddim", "euler", "heun", "dpm++"]


def make_sampler(name: str, *args, **kwargs) -> Sampler:
    """A sampler by name."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r}: there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name](*args, **kwargs)


def classifier_free_guidance(predict: Callable[[Tensor, Tensor, Sequence[bool]], Tensor], scale: float) -> Predict:
    """Away from what is said without the condition (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    Args:
        predict: what a network says of samples at a time, for each of some flags: of all of them with their condition
            (true) or without (false), one below the other ``(flags * b, ...)``.
        scale: 0 leaves the condition out, 1 is the condition alone, above 1 exaggerates it.
    """
    if scale == 1:
        return lambda x, t: predict(x, t, [True])
    if scale == 0:
        return lambda x, t: predict(x, t, [False])

    def both(x: Tensor, t: Tensor) -> Tensor:
        without, given = predict(x, t, [False, True]).chunk(2)
        return torch.lerp(without, given, scale)

    return both
