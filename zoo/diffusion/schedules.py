"""Noise schedules (Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672).

At every time t a sample is ``x = alpha x0 + sigma eps``: data, and standard normal noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow_prediction"]
Spacing = Literal["trailing", "leading", "linspace"]
ScheduleName = Literal["linear", "cosine", "scaled_linear", "flow"]

# Betas: the share of noise that each step adds -----------------------------------------------------------------------


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Float[Tensor, " t"]:
    """Evenly rising (Ho et al. 2020)."""
    return _linspace_betas(start, end, steps)


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Float[Tensor, " t"]:
    """Evenly rising square roots, as for Stable Diffusion's latents (Rombach et al. 2022)."""
    return _linspace_betas(math.sqrt(start), math.sqrt(end), steps).square()


def cosine_betas(steps: int = 1000, largest: float = 0.999) -> Float[Tensor, " t"]:
    """Such that the signal falls like a cosine (Nichol and Dhariwal 2021)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    left = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - left[1:] / left[:-1]).clamp(max=largest)


def zero_terminal_snr(betas: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Betas shifted and scaled so that nothing is left of the data at the last step (Lin et al. 2024).

    https://arxiv.org/abs/2305.08891, algorithm 1.
    """
    signal = (1 - betas).cumprod(0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    kept = ((signal - last) * (first / (first - last))).square()
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def _linspace_betas(start: float, end: float, n: int) -> Float[Tensor, " n"]:
    if not 0 < start <= end < 1:
        raise ValueError(f"betas rise within (0, 1), got {start:g} to {end:g}")
    return torch.linspace(start, end, n, dtype=torch.float64)


# Schedules: how much data and noise there is at a time ----------------------------------------------------------------


class NoiseSchedule(ABC):
    """How much of a sample at a time is data and how much is noise.

    Args:
        steps: noise levels that are told apart in training; the network is told a time from 0 to ``steps``.
    """

    path: Literal["preserving", "straight"]  # whether alpha^2 + sigma^2 is 1, or alpha + sigma

    def __init__(self, steps: int = 1000) -> None:
        if steps < 1:
            raise ValueError(f"a noise schedule has at least 1 step, got {steps}")
        self.steps = steps

    @abstractmethod
    def alpha_sigma(self, t: Shaped[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """``alpha`` and ``sigma`` at times, in float64."""

    @abstractmethod
    def training_timesteps(self, u: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        """Times of training from numbers in [0, 1), the same number for each level in the mean."""

    @abstractmethod
    def model_time(self, t: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        """What a network is told of a time: a number from 0 to ``steps``."""

    @abstractmethod
    def timesteps(
        self, n: int, spacing: Spacing, offset: int = 0, integer_timesteps: bool = True, extra_timesteps: int = 0
    ) -> Tensor:
        """Times ``(n,)`` at which a sampler looks, from noise to data."""

    def add_noise(self, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], t: Shaped[Tensor, " b"]) -> Tensor:
        """Data with the noise of a time each."""
        alpha, sigma = (_broadcast_over(level, x0) for level in self.alpha_sigma(t))
        return alpha * x0 + sigma * eps


class DDPMSchedule(NoiseSchedule):
    """Steps of noise that keep the variance of data with variance 1.

    Args:
        betas: share of noise that each step adds.
    """

    path = "preserving"

    def __init__(self, betas: Float[Tensor, " t"]) -> None:
        super().__init__(len(betas))
        self.betas = betas.double()
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha_sigma(self, t: Shaped[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        if t.device not in self._tables:
            kept = self.alphas_cumprod.to(t.device)
            self._tables[t.device] = kept.sqrt(), (1 - kept).sqrt()
        alphas, sigmas = self._tables[t.device]
        if not t.is_floating_point():
            return alphas[t], sigmas[t]
        # Between two steps the ratio of noise to data is interpolated, as diffusers' Euler does.
        low = t.floor().long().clamp(0, self.steps - 1)
        high, part = (low + 1).clamp(max=self.steps - 1), t.double() - low
        ratio = sigmas / alphas
        between = torch.where(part > 0, ratio[low] + part * (ratio[high] - ratio[low]), ratio[low])
        alpha = (1 + between.square()).rsqrt()
        return torch.where(part > 0, alpha, alphas[low]), torch.where(part > 0, between * alpha, sigmas[low])

    def training_timesteps(self, u: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return (u * self.steps).long().clamp(max=self.steps - 1)

    def model_time(self, t: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return t

    def timesteps(
        self, n: int, spacing: Spacing, offset: int = 0, integer_timesteps: bool = True, extra_timesteps: int = 0
    ) -> Tensor:
        if not 1 <= n <= self.steps:
            raise ValueError(f"steps={n}: a sampler takes 1 to {self.steps} steps, as many as were trained")
        index = torch.arange(n + extra_timesteps, dtype=torch.float64)
        if spacing == "linspace":
            found = (index * ((self.steps - 1) / max(1, n + extra_timesteps - 1))).flip(0)[:n]
            return found.round() if integer_timesteps else found
        if spacing == "leading":
            if n + extra_timesteps > self.steps:
                raise ValueError(
                    f"steps={n}: with spacing leading this sampler takes at most {self.steps - extra_timesteps}"
                )
            return ((index * (self.steps // (n + extra_timesteps))).flip(0)[:n] + offset).clamp(max=self.steps - 1)
        return (self.steps - index[:n] * (self.steps / n)).round() - 1


class FlowMatching(NoiseSchedule):
    """The straight line from data to noise in times from 0 to 1 (rectified flow).

    Liu et al. 2023, https://arxiv.org/abs/2209.03003; Lipman et al. 2023, https://arxiv.org/abs/2210.02747, with time
    running as in diffusers: 0 is data.

    Args:
        steps: what the network is told instead of time 1.
        shift: above 1, samplers spend more of their steps on high noise, as large images need (Esser et al. 2024).
    """

    path = "straight"

    def __init__(self, steps: int = 1000, shift: float = 1.0) -> None:
        super().__init__(steps)
        if shift <= 0:
            raise ValueError(f"shift must be above 0, got {shift}")
        self.shift = shift

    def alpha_sigma(self, t: Shaped[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        t = t.double()
        return 1 - t, t

    def training_timesteps(self, u: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return u

    def model_time(self, t: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return t * self.steps

    def timesteps(
        self, n: int, spacing: Spacing, offset: int = 0, integer_timesteps: bool = True, extra_timesteps: int = 0
    ) -> Tensor:
        if n < 1:
            raise ValueError(f"steps={n}: a sampler takes at least 1")
        index = torch.arange(n, dtype=torch.float64)
        if spacing == "linspace":
            t = 1 - index * ((1 - 1 / self.steps) / max(1, n - 1))
        elif spacing == "trailing":
            t = 1 - index / n
        else:
            raise ValueError(f"spacing={spacing}: a flow begins at its noise, so trailing or linspace")
        return self.shift * t / (1 + (self.shift - 1) * t)


def make_schedule(
    name: ScheduleName,
    steps: int = 1000,
    zero_snr: bool = False,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> NoiseSchedule:
    """A schedule by name.

    Args:
        name: ``linear``, ``cosine``, ``scaled_linear`` or ``flow``.
        steps: noise levels in training.
        zero_snr: leave nothing of the data at the last step.
        beta_start: first beta of ``linear`` and ``scaled_linear``; null is the paper's.
        beta_end: last beta of these.
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule={name}: there are {', '.join(get_args(ScheduleName))}")
    given = {k: v for k, v in (("start", beta_start), ("end", beta_end)) if v is not None}
    if given and name in ("cosine", "flow"):
        raise ValueError(f"schedule {name} has no beta_start and beta_end; linear and scaled_linear have")
    if name == "flow":
        return FlowMatching(steps)  # which ends in noise alone in any case
    makers = {"linear": linear_betas, "cosine": cosine_betas, "scaled_linear": scaled_linear_betas}
    betas = makers[name](steps, **given)
    return DDPMSchedule(zero_terminal_snr(betas) if zero_snr else betas)


# What a network predicts ----------------------------------------------------------------------------------------------


def prediction_target(prediction_type: PredictionType, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network should say of ``alpha x0 + sigma eps``.

    Args:
        prediction_type: ``epsilon``; ``v_prediction`` (Salimans and Ho 2022); ``flow_prediction``, noise minus data.
        x0: data ``(b, ...)``.
        eps: noise ``(b, ...)``.
        alpha: share of the data ``(b,)``.
        sigma: share of the noise ``(b,)``.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "flow_prediction":
        return eps - x0
    return _broadcast_over(alpha, x0) * eps - _broadcast_over(sigma, x0) * x0


def to_x0_eps(
    prediction_type: PredictionType, x: Tensor, prediction: Tensor, alpha: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Data and noise of a sample, by what a network says of it.

    Args:
        prediction_type: what it says.
        x: samples ``(b, ...)`` of one time.
        prediction: of each.
        alpha: share of the data at that time.
        sigma: share of the noise.
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "flow_prediction":
        return (x - sigma * prediction) / (alpha + sigma), (x + alpha * prediction) / (alpha + sigma)
    both = alpha * alpha + sigma * sigma
    return (alpha * x - sigma * prediction) / both, (sigma * x + alpha * prediction) / both


def min_snr_weight(
    prediction_type: PredictionType, alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"], gamma: float = 5.0
) -> Float[Tensor, " b"]:
    """Weights of a squared error, by which no noise level pulls much harder than another.

    Hang et al. 2023, https://arxiv.org/abs/2303.09556: the error of the data counts ``min(SNR, gamma)``, and a network
    that says something else errs in the data by a known factor of that.

    Args:
        prediction_type: what the network says.
        alpha: share of the data.
        sigma: share of the noise.
        gamma: signal-to-noise ratio from which on all levels count alike.
    """
    ratio = (alpha / sigma).square()
    if prediction_type == "epsilon":  # min(SNR, gamma) / SNR, which has a limit where the data is gone
        return (gamma / ratio).clamp(max=1)
    factor = (
        sigma / (alpha + sigma) if prediction_type == "flow_prediction" else sigma / (alpha.square() + sigma.square())
    )
    return ratio.clamp(max=gamma) * factor.square()


def _broadcast_over(level: Float[Tensor, " b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """A number a sample, so that it multiplies all of it."""
    return level.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
