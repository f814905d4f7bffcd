"""Noise schedules (Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672).

At every time t a sample is ``x = alpha x0 + sigma eps``, with data ``x0`` and standard normal noise ``eps``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.diffusion.prediction import broadcast_over

Spacing = Literal["trailing", "leading", "linspace"]
ScheduleName = Literal["linear", "cosine", "scaled_linear", "flow"]

# Betas: the variance of the noise that each step adds ----------------------------------------------------------------


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Float[Tensor, " t"]:
    """Linear beta schedule (Ho et al. 2020): ``steps`` noise variances from ``start`` to ``end``."""
    return _linspace_betas(start, end, steps)


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Float[Tensor, " t"]:
    """Scaled linear beta schedule of Stable Diffusion (Rombach et al. 2022): square roots rise linearly."""
    return _linspace_betas(math.sqrt(start), math.sqrt(end), steps).square()


def cosine_betas(steps: int = 1000, largest: float = 0.999) -> Float[Tensor, " t"]:
    """Cosine beta schedule (Nichol and Dhariwal 2021): ``alphas_cumprod`` is a squared cosine of the time."""
    # steps + 1 times, as each beta is the ratio of two values of the cosine
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_cumprod = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return betas.clamp(max=largest)


def zero_terminal_snr(betas: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Rescale betas to zero terminal SNR: no signal remains at the last step (Lin et al. 2024).

    https://arxiv.org/abs/2305.08891, algorithm 1.
    """
    signal = (1 - betas).cumprod(0).sqrt()
    # Shifted so that the last value is zero, then scaled so that the first stays.
    first = signal[0].clone()
    last = signal[-1].clone()
    alphas_cumprod = ((signal - last) * (first / (first - last))).square()
    ratios = alphas_cumprod[1:] / alphas_cumprod[:-1]
    return 1 - torch.cat([alphas_cumprod[:1], ratios])


def _linspace_betas(start: float, end: float, n: int) -> Float[Tensor, " n"]:
    if not 0 < start <= end < 1:
        raise ValueError(f"betas must rise within (0, 1), got {start:g} to {end:g}")
    return torch.linspace(start, end, n, dtype=torch.float64)


# Schedules: alpha and sigma as functions of time ----------------------------------------------------------------------


class NoiseSchedule(ABC):
    """Noise schedule: how much signal and how much noise a sample contains at a time.

    Args:
        steps: number of noise levels in training; the network is conditioned on a time from 0 to ``steps``.
    """

    # preserving: alpha^2 + sigma^2 = 1 (variance-preserving); straight: alpha + sigma = 1
    path: Literal["preserving", "straight"]

    def __init__(self, steps: int = 1000) -> None:
        if steps < 1:
            raise ValueError(f"a noise schedule needs at least 1 step, got {steps}")
        self.steps = steps

    @abstractmethod
    def alpha_sigma(self, t: Shaped[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return ``alpha`` and ``sigma`` at times, in float64."""

    @abstractmethod
    def training_timesteps(self, u: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        """Map uniform numbers in [0, 1) to training times, so that all noise levels are equally frequent."""

    @abstractmethod
    def model_time(self, t: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        """Return the time that the network is conditioned on, a number from 0 to ``steps``."""

    @abstractmethod
    def timesteps(
        self,
        n: int,
        spacing: Spacing,
        offset: int = 0,
        integer_timesteps: bool = True,
        extra_timesteps: int = 0,
    ) -> Float[Tensor, " n"]:
        """Return the times at which a sampler evaluates the network, in descending order.

        Args:
            n: number of sampling steps.
            spacing: spacing of the times, see ``Sampler``.
            offset: added to the times of ``leading``.
            integer_timesteps: round the times of ``linspace``.
            extra_timesteps: number of times beyond ``n`` that are spaced and then dropped, at the end.
        """

    def add_noise(
        self,
        x0: Float[Tensor, "b ..."],
        eps: Float[Tensor, "b ..."],
        t: Shaped[Tensor, " b"],
    ) -> Float[Tensor, "b ..."]:
        """Return noisy samples: data ``x0`` with noise ``eps`` at times ``t``."""
        alpha, sigma = self.alpha_sigma(t)
        return broadcast_over(alpha, x0) * x0 + broadcast_over(sigma, x0) * eps


class DDPMSchedule(NoiseSchedule):
    """Variance-preserving noise schedule of DDPM, in discrete steps.

    Args:
        betas: variance of the noise that each step adds.
    """

    path = "preserving"

    def __init__(self, betas: Float[Tensor, " t"]) -> None:
        super().__init__(len(betas))
        self.betas = betas.double()
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha_sigma(self, t: Shaped[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        alphas, sigmas = self._tables_on(t.device)
        if not t.is_floating_point():
            return alphas[t], sigmas[t]
        # Between two steps sigma / alpha is interpolated linearly, as by diffusers' EulerDiscreteScheduler.
        low = t.floor().long().clamp(0, self.steps - 1)
        high = (low + 1).clamp(max=self.steps - 1)
        fraction = t.double() - low
        ratios = sigmas / alphas
        ratio = ratios[low] + fraction * (ratios[high] - ratios[low])
        # At whole steps the tables are exact; with zero terminal SNR the last ratio is infinite.
        between = fraction > 0
        ratio = torch.where(between, ratio, ratios[low])
        alpha = (1 + ratio.square()).rsqrt()
        return torch.where(between, alpha, alphas[low]), torch.where(between, ratio * alpha, sigmas[low])

    def _tables_on(self, device: torch.device) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
        """Return alpha and sigma of all steps, copied to a device once."""
        if device not in self._tables:
            alphas_cumprod = self.alphas_cumprod.to(device)
            self._tables[device] = (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
        return self._tables[device]

    def training_timesteps(self, u: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return (u * self.steps).long().clamp(max=self.steps - 1)

    def model_time(self, t: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
        return t

    def timesteps(
        self,
        n: int,
        spacing: Spacing,
        offset: int = 0,
        integer_timesteps: bool = True,
        extra_timesteps: int = 0,
    ) -> Float[Tensor, " n"]:
        if not 1 <= n <= self.steps:
            raise ValueError(f"steps must be 1 to {self.steps}, the number of training timesteps, got {n}")
        spaced = n + extra_timesteps
        # float64, as diffusers computes them: float32 would round some times to another integer
        index = torch.arange(spaced, dtype=torch.float64)
        if spacing == "linspace":
            stride = (self.steps - 1) / max(1, spaced - 1)
            times = (index * stride).flip(0)[:n]
            return times.round() if integer_timesteps else times
        if spacing == "leading":
            if spaced > self.steps:
                limit = self.steps - extra_timesteps
                raise ValueError(f"steps must be at most {limit} for this sampler with spacing leading, got {n}")
            times = (index * (self.steps // spaced)).flip(0)[:n]
            return (times + offset).clamp(max=self.steps - 1)
        return (self.steps - index[:n] * (self.steps / n)).round() - 1


class FlowMatching(NoiseSchedule):
    """Flow matching, or rectified flow: the straight line from data at time 0 to noise at time 1.

    Liu et al. 2023, https://arxiv.org/abs/2209.03003; Lipman et al. 2023, https://arxiv.org/abs/2210.02747. Time runs
    as in diffusers, from data to noise.

    Args:
        steps: the network is conditioned on the time multiplied by this.
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
        self,
        n: int,
        spacing: Spacing,
        offset: int = 0,
        integer_timesteps: bool = True,
        extra_timesteps: int = 0,
    ) -> Float[Tensor, " n"]:
        if n < 1:
            raise ValueError(f"steps must be at least 1, got {n}")
        index = torch.arange(n, dtype=torch.float64)
        if spacing == "linspace":
            last = 1 / self.steps
            t = 1 - index * ((1 - last) / max(1, n - 1))
        elif spacing == "trailing":
            t = 1 - index / n
        else:
            raise ValueError(f"spacing must be trailing or linspace with schedule flow, got {spacing}")
        return self.shift * t / (1 + (self.shift - 1) * t)


def make_schedule(
    name: ScheduleName,
    steps: int = 1000,
    zero_snr: bool = False,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> NoiseSchedule:
    """Return a noise schedule by name.

    Args:
        name: ``linear``, ``cosine``, ``scaled_linear`` or ``flow``.
        steps: number of noise levels in training.
        zero_snr: rescale the betas to zero terminal SNR; ``flow`` has that in any case.
        beta_start: first beta of ``linear`` and ``scaled_linear``; None for the paper's.
        beta_end: last beta of ``linear`` and ``scaled_linear``; None for the paper's.

    Raises:
        ValueError: the name is unknown, or its schedule has no betas to set.
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule must be one of {', '.join(get_args(ScheduleName))}, got {name}")
    ends = {}
    if beta_start is not None:
        ends["start"] = beta_start
    if beta_end is not None:
        ends["end"] = beta_end
    if ends and name in ("cosine", "flow"):
        raise ValueError(f"beta_start and beta_end are for schedule linear or scaled_linear, got schedule {name}")
    if name == "flow":
        return FlowMatching(steps)
    makers = {"linear": linear_betas, "cosine": cosine_betas, "scaled_linear": scaled_linear_betas}
    betas = makers[name](steps, **ends)
    if zero_snr:
        betas = zero_terminal_snr(betas)
    return DDPMSchedule(betas)
