"""What the training part of time series determines: their scales, grid and splits. A checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.series.table import Series
from zoo.data.series.time_grid import TimeGrid, write_time
from zoo.data.statistics import is_constant


@dataclass
class FittedSeries:
    """What the training part determines.

    Args:
        scales: of each series that was trained on: mean and standard deviation of its target, and the mean absolute
            error of its seasonal-naive forecast.
        excluded: names of the series that were left out, as they do not vary in the training part.
        means: of the covariates.
        stds: standard deviations of the covariates, 1 where one is constant.
        unit: of the time grid, with ``size`` and ``month_end``, see :class:`TimeGrid`.
        size: units per step.
        month_end: whether each time is the last day of its month.
        season: number of steps of a season.
        val: time of the first step of the validation split, as text; a number if the times are integers.
        test: time of the first step of the test split.
        first: time of the first step of all.
        last: time of the last step of all.
    """

    scales: dict[str, list[float]]
    excluded: list[str]
    means: list[float]
    stds: list[float]
    unit: Any
    size: int
    month_end: bool
    season: int
    val: str | int
    test: str | int
    first: str | int
    last: str | int

    def grid(self) -> TimeGrid:
        """Return the time grid, with an origin that is still to be set."""
        origin = 0 if self.unit == "step" else _parse_time(self.first)
        return TimeGrid(self.unit, self.size, origin, self.month_end)

    def split_points(self, grid: TimeGrid, steps: int) -> tuple[int, int]:
        """Return the indices of the first validation step and of the first test step in another grid.

        Args:
            grid: the grid, of the same kind.
            steps: its number of steps.
        """
        times = grid.times(np.arange(steps))
        val = int((times < _parse_time(self.val)).sum())
        test = int((times < _parse_time(self.test)).sum())
        return val, test

    def spans(self, grid: TimeGrid, steps: int) -> bool:
        """Return whether a grid has the first and the last step of training as its own, as the same file does."""
        first, last = grid.times(np.array([0, steps - 1]))
        return (_write_time(first), _write_time(last)) == (self.first, self.last)

    def plain(self) -> dict[str, Any]:
        """Return this as plain values, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> FittedSeries:
        """Return what :meth:`plain` was called on.

        Raises:
            ValueError: the values are not such.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"fitted is what a checkpoint keeps of time series, and cannot be read: {error}") from None


def fit_series(
    grid: TimeGrid,
    every: Sequence[Series],
    kept: Sequence[Series],
    val: int,
    test: int,
    season: int,
) -> FittedSeries:
    """Return what the training parts of series determine.

    Args:
        grid: the time grid.
        every: all series.
        kept: the series that are trained on.
        val: grid index of the first validation step.
        test: grid index of the first test step.
        season: number of steps of a season.
    """
    training = np.concatenate([s.values[: training_length(s, val)] for s in kept])
    means, stds = column_statistics(training[:, 1:])  # (covariates,)
    scales = {}
    for s in kept:
        length = training_length(s, val)
        scales[s.name] = [*target_scale(s, length), naive_error(s, length, season)]
    steps = max(s.start + s.length for s in every)
    first, at_val, at_test, last = (_write_time(time) for time in grid.times(np.array([0, val, test, steps - 1])))
    return FittedSeries(
        scales=scales,
        excluded=[s.name for s in every if s.name not in scales],
        means=means.tolist(),
        stds=stds.tolist(),
        unit=grid.unit,
        size=grid.size,
        month_end=grid.month_end,
        season=season,
        val=at_val,
        test=at_test,
        first=first,
        last=last,
    )


def training_length(series: Series, val: int) -> int:
    """Return the number of steps of a series before the validation split."""
    return min(series.length, val - series.start)


def varies(series: Series, length: int) -> bool:
    """Return whether the target takes two values or more in the first steps, by more than rounding."""
    target = series.values[: max(length, 0), 0]
    if len(target) < 2:
        return False
    return not is_constant(float(target.mean()), float(target.std()), len(target))


def target_scale(series: Series, length: int) -> tuple[float, float]:
    """Return mean and standard deviation of the observed targets of the first steps; 1 where they are constant."""
    target = series.values[:length, 0][series.observed[:length]]
    mean = float(target.mean())
    std = float(target.std())
    if is_constant(mean, std, len(target)):
        return float(target[0]), 1.0
    return mean, std


def column_statistics(training: NDArray) -> tuple[NDArray, NDArray]:
    """Return mean and standard deviation of each column, ignoring NaN.

    The mean of a column without any number is 0; the deviation of a constant column is 1.
    """
    known = ~np.isnan(training)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, training, 0.0).sum(0) / count
    centered = np.where(known, training - mean, 0.0)
    std = np.sqrt((centered**2).sum(0) / count)
    constant = is_constant(mean, std, count)
    # The mean of equal numbers may be off by a rounding; the largest of them is one of them.
    largest = np.where(known, training, -np.inf).max(0, initial=-np.inf)
    mean = np.where(constant & np.isfinite(largest), largest, mean)
    return mean, np.where(constant, 1.0, std)


def naive_error(series: Series, length: int, season: int) -> float:
    """Return the mean absolute error of the seasonal-naive forecast over the first steps, the unit of MASE.

    See Hyndman and Koehler 2006, https://doi.org/10.1016/j.ijforecast.2006.03.001. Fall back to the naive forecast
    where a season does not fit, or repeats exactly; 0, which is no unit, for a constant series.
    """
    target = np.where(series.observed[:length], series.values[:length, 0], np.nan)
    for lag in (season, 1):
        errors = np.abs(target[lag:] - target[:-lag])
        if (errors > 0).any():
            return float(np.nanmean(errors))
    return 0.0


def _write_time(time: Any) -> str | int:
    text = write_time(time)
    return text if np.issubdtype(np.asarray(time).dtype, np.datetime64) else int(text)


def _parse_time(time: str | int) -> Any:
    return time if isinstance(time, int) else np.datetime64(time, "s")
