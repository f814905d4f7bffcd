"""Errors of numbers: regression and forecasts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.accumulation import merge_moments, widest_float

# A mean has a rounding error of a few units in its last place.
ROUNDING = 16 * torch.finfo(torch.float64).eps


class RegressionErrors(Metric):
    """Mean absolute error ``mae``, root mean squared error ``rmse`` and coefficient of determination ``r2``.

    All sums are in float64 where the device has it, and the variance is that around the mean, so that targets far from
    zero lose no digits. ``r2`` is the mean over the targets that vary; if none does, as with a single sample, it is not
    among the results.
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    deviations: Tensor
    absolute_errors: Tensor
    squared_errors: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One row for each process: moments are merged, not added.
        for name in ("count", "mean", "deviations", "absolute_errors", "squared_errors"):
            self.add_state(name, torch.zeros(1), dist_reduce_fx=None)

    def update(self, prediction: Float[Tensor, "b k"], target: Float[Tensor, "b k"]) -> None:
        """Add predictions and targets."""
        if not len(target):
            return
        dtype = widest_float(target)
        target = target.to(dtype)
        error = prediction.to(dtype) - target
        mean = target.mean(0)  # (k,)
        count = torch.full_like(mean, len(target))
        deviations = (target - mean).square().sum(0)
        # Before the first batch there are no samples, and their mean is whatever this one's is.
        mean_before = torch.where(self.count > 0, self.mean, mean)
        counts = torch.stack([self.count.expand_as(mean), count])  # (2, k)
        means = torch.stack([mean_before, mean])
        all_deviations = torch.stack([self.deviations.expand_as(mean), deviations])
        self.count, self.mean, self.deviations = merge_moments(counts, means, all_deviations)
        self.absolute_errors = self.absolute_errors + error.abs().sum(0)
        self.squared_errors = self.squared_errors + error.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        # One row per process: (processes, k) each.
        k = self.count.shape[-1]
        counts = self.count.view(-1, k)
        means = self.mean.view(-1, k)
        all_deviations = self.deviations.view(-1, k)
        count, mean, deviations = merge_moments(counts, means, all_deviations)
        squared_errors = self.squared_errors.view(-1, k).sum(0)  # (k,)
        absolute_errors = self.absolute_errors.view(-1, k).sum(0)
        if not count.sum():
            return {}
        values = {
            "mae": absolute_errors.sum() / count.sum(),
            "rmse": (squared_errors.sum() / count.sum()).sqrt(),
        }
        standard_deviation = (deviations / count).sqrt()
        varies = standard_deviation > ROUNDING * mean.abs()  # (k,)
        if varies.any():
            values["r2"] = (1 - squared_errors[varies] / deviations[varies]).mean()
        return {name: value.float() for name, value in values.items()}


class ForecastErrors(Metric):
    """Errors of forecasts: ``mae``, ``rmse``, ``mase`` and ``smape``; absent where they are not defined.

    ``mase`` (Hyndman and Koehler 2006, https://doi.org/10.1016/j.ijforecast.2006.03.001) is the mean of the absolute
    errors, each divided by its unit; errors whose unit is 0, as that of a constant series, are left out of it.
    ``smape`` is the mean of 2 |error| / (|forecast| + |target|), from 0 to 2, and 0 where both are 0.
    """

    full_state_update = False
    STATES = ("count", "absolute", "squared", "num_scaled", "scaled", "percentage")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.STATES:
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(
        self,
        forecast: Float[Tensor, " n"],
        target: Float[Tensor, " n"],
        unit: Float[Tensor, " n"],
    ) -> None:
        """Add forecasts, targets, and the units of MASE."""
        dtype = widest_float(target)
        forecast = forecast.to(dtype)
        target = target.to(dtype)
        unit = unit.to(dtype)
        error = (forecast - target).abs()
        has_unit: Bool[Tensor, " n"] = unit > 0
        scaled = torch.where(has_unit, error / unit, 0)
        size = forecast.abs() + target.abs()
        percentage = torch.where(size == 0, 0, 2 * error / size)
        terms = {
            "count": torch.ones_like(error),
            "absolute": error,
            "squared": error.square(),
            "num_scaled": has_unit.to(dtype),
            "scaled": scaled,
            "percentage": percentage,
        }
        for name, term in terms.items():
            total = getattr(self, name) + term.sum()
            setattr(self, name, total)

    def compute(self) -> dict[str, Tensor]:
        count, absolute, squared, num_scaled, scaled, percentage = (getattr(self, name) for name in self.STATES)
        if not count:
            return {}
        values = {"mae": absolute / count, "rmse": (squared / count).sqrt()}
        if num_scaled:
            values["mase"] = scaled / num_scaled
        values["smape"] = percentage / count
        return {name: value.float() for name, value in values.items()}
