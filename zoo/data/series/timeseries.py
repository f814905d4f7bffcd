"""Time series forecasting data: sliding windows over a CSV file, a synthetic series or a real one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.base import DataModule
from zoo.data.series.bundled_series import BUNDLED, WEEK, bundled_columns, bundled_roles
from zoo.data.series.table import ColumnRoles, Series, find_leak, read_series
from zoo.data.series.time_grid import Calendar, TimeGrid, calendar
from zoo.data.series.windows import Places, SeriesRows, WindowDataset
from zoo.data.tabular import read_csv
from zoo.distributed import say


class TimeSeries(DataModule):
    """Time series forecasting data: ``seasons`` (synthetic), ``google_volume`` (real), or a CSV file.

    ``seasons`` is half a year of hourly values generated from ``seed``: a trend, a daily seasonality that is weaker at
    weekends, a weekly seasonality, and autocorrelated noise. ``google_volume`` is the logarithm of the daily trading
    volume of Google's shares from August 2004 to October 2008 (Yahoo Finance, as matplotlib ships it), with the
    covariates ``log_range`` (log of highest over lowest price) and ``log_close``; holidays are gaps.

    Rows are sorted by time and duplicates averaged. Missing steps are forward-filled as inputs and ignored as targets.
    All series are split by time at the same moment: a window belongs to the split that holds all its targets, and its
    context may reach back into the split before. The target is standardized by the training part of its series,
    covariates by the training parts of all series.

    A batch is ``((past, future), targets)``: ``past`` ``(b, context, input_dim)`` holds the target, then covariates;
    ``future`` ``(b, horizon, future_dim)`` holds what is known in advance, and is absent if nothing is; targets are
    ``(b, horizon)``. A dict of metadata follows in validation and test (scales and a seasonal-naive forecast), and in
    training where targets are missing (``observed``).

    Args:
        name: ``seasons`` or ``google_volume``; null with ``file``, and ``seasons`` by default.
        file: path of a CSV file with a header.
        time: column of timestamps: ISO 8601, or integers.
        target: column to forecast.
        series: column that identifies the series of each row; null for one series.
        past: columns of covariates that are known up to the present.
        future: columns of covariates that are known in advance; rows without a target at the end of a series hold
            their future values.
        calendar: calendar features of the timestamps: ``hour_of_day``, ``day_of_week``, ``day_of_month``,
            ``day_of_year``, each as sine and cosine.
        context: number of input steps.
        horizon: number of forecast steps.
        frequency: ``15min``, ``1h``, ``1D``, ``1B`` (business days), ``1W``, ``1M``, ...; null infers it.
        season_length: season length in steps, for the seasonal-naive forecast; null for a day of hours, a week of
            days, a year of months (for ``seasons`` a week, which holds both of its seasonalities).
        time_format: ``strptime`` format of the timestamps, such as ``%d.%m.%Y``; null for ISO 8601.
        predict: ``future`` forecasts beyond the end of each series, ``test`` the windows of the test split.
        val_split: fraction of the time span for validation, just before the test split.
        test_split: fraction of the time span for testing, at the end.
    """

    def __init__(
        self,
        name: Literal["seasons", "google_volume"] | None = None,
        file: str | None = None,
        time: str | None = None,
        target: str | None = None,
        series: str | None = None,
        past: list[str] = [],
        future: list[str] = [],
        calendar: list[Calendar] = [],
        context: int = 168,
        horizon: int = 24,
        frequency: str | None = None,
        season_length: int | None = None,
        time_format: str | None = None,
        predict: Literal["future", "test"] = "future",
        val_split: float = 0.15,
        test_split: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if name is not None and file is not None:
            raise ValueError(
                f"TimeSeries takes either a name ({', '.join(BUNDLED)}) or a file, got {name=} and {file=}"
            )
        if file is not None:
            required = {"time": time, "target": target}
            missing = [f"--data.{option}" for option, column in required.items() if column is None]
            if missing:
                raise ValueError(f"the roles of the columns of {file} are unknown: give {' and '.join(missing)}")
        if context < 1 or horizon < 1 or (season_length is not None and season_length < 1):
            raise ValueError(
                f"context, horizon and season_length must be >= 1, got {context=}, {horizon=}, {season_length=}"
            )
        if min(val_split, test_split) <= 0 or val_split + test_split >= 1:
            raise ValueError(
                f"val_split and test_split must be above 0 and their sum below 1, got {val_split=}, {test_split=}"
            )
        if not name and not file:
            name = "seasons"
        self.name = name
        self.file = file
        self.roles = ColumnRoles(
            time=time or "",
            target=target or "",
            series=series,
            past=list(past),
            future=list(future),
            format=time_format,
        )
        if not file:
            self.roles = bundled_roles(str(name), self.roles)
        self.calendar = list(calendar)
        self.context = context
        self.horizon = horizon
        self.frequency = frequency
        self.predict = predict
        self.val_split = val_split
        self.test_split = test_split
        self._season_length = season_length

    # Data spec --------------------------------------------------------------------------------------------------------

    @property
    def input_dim(self) -> int:
        return 1 + len(self.roles.past) + self.future_dim

    @property
    def future_dim(self) -> int:
        return len(self.roles.future) + 2 * len(self.calendar)

    @property
    def season_length(self) -> int:
        """Return the season length in steps."""
        if self._season_length is not None:
            return self._season_length
        if self.name == "seasons":
            return WEEK
        return self.grid.season

    @property
    def grid(self) -> TimeGrid:
        """Return the time grid shared by all series."""
        return self._table[0]

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> tuple[TimeGrid, list[Series]]:
        if self.file:
            columns = read_csv(Path(self.file))
        else:
            columns = bundled_columns(str(self.name), self.seed)
        grid, series, messages = read_series(columns, self._source, self.roles, self.frequency)
        # the gaps of a bundled series are documented, and not the user's to repair
        if self.file:
            for message in messages:
                say(message)
        return grid, series

    @property
    def _split_points(self) -> tuple[int, int]:
        """Return the grid indices of the first validation step and of the first test step."""
        _, series = self._table
        steps = max(s.start + s.length for s in series)
        val = round(steps * (1 - self.val_split - self.test_split))
        test = round(steps * (1 - self.test_split))
        return val, test

    @property
    def _source(self) -> str:
        return self.file or str(self.name)

    # Windows ----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, WindowDataset]:
        """Return the windows of each split.

        Raises:
            ValueError: no series can be learned, a covariate leaks the target, or a split is too short for a window.
        """
        grid, every = self._table
        val, test = self._split_points
        kept = [s for s in every if _varies(s, val)]
        self._report_excluded_series(every, kept, val)
        self._check_leakage(kept, val)
        try:
            rows = self._rows(grid, kept, val)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from None
        bounds = {"train": (0, val), "val": (val, test), "test": (test, None)}
        longest = max(kept, key=lambda s: s.length)
        datasets = {}
        for split, (begin, end) in bounds.items():
            places = rows.windows(self.context, self.horizon, begin, end)
            if not len(places[0]):
                raise self._too_short(split, longest, begin, end)
            datasets[split] = WindowDataset(
                rows,
                places,
                self.context,
                self.horizon,
                details=split != "train",
            )
        return datasets

    def predict_dataset(self) -> WindowDataset:
        test = self.datasets["test"]
        assert isinstance(test, WindowDataset)
        places = (test.places, test.series)
        if self.predict == "future":
            places = self._forecast_windows(test.rows)
        return WindowDataset(
            test.rows,
            places,
            self.context,
            self.horizon,
            details=True,
            labels=True,
        )

    def _rows(self, grid: TimeGrid, kept: list[Series], val: int) -> SeriesRows:
        """Concatenate the standardized series, each with a horizon of rows after its end."""
        season = self.season_length
        training = np.concatenate([s.values[: _training_length(s, val)] for s in kept])
        means, stds = _statistics(training[:, 1:])  # (covariates,)
        values = []
        observed = []
        scales = []
        beyond = np.zeros(self.horizon, dtype=bool)
        for s in kept:
            raw = self._extended(s)  # (length + horizon, 1 + covariates)
            mean, std = _target_scale(s, val)
            scales.append((mean, std, _naive_error(s, val, season)))
            target = (raw[:, :1] - mean) / std
            covariates = np.nan_to_num((raw[:, 1:] - means) / stds)
            times = grid.times(s.start + np.arange(len(raw)))
            values.append(np.concatenate([target, covariates, calendar(times, self.calendar)], 1))
            observed.append(np.concatenate([s.observed, beyond]))
        return SeriesRows(
            values=torch.from_numpy(np.concatenate(values)).float(),
            observed=torch.from_numpy(np.concatenate(observed)),
            lengths=[s.length for s in kept],
            ahead=self.horizon,
            starts=[s.start for s in kept],
            scales=torch.tensor(scales, dtype=torch.float64).float(),
            names=[s.name for s in kept],
            grid=grid,
            season=season,
            future_dim=self.future_dim,
        )

    def _extended(self, series: Series) -> NDArray:
        """Return the values of a series and of a horizon of steps after its end, NaN where unknown."""
        rows = series.length + self.horizon
        extended = np.full((rows, series.values.shape[1]), np.nan)
        extended[: len(series.values)] = series.values[:rows]
        # the target is forward-filled: no later one is known
        extended[series.length :, 0] = series.values[series.length - 1, 0]
        return extended

    def _report_excluded_series(self, every: list[Series], kept: list[Series], val: int) -> None:
        excluded = [s for s in every if s not in kept]
        if not excluded:
            return
        first = excluded[0]
        reason = f"is constant in its training part, {first.values[0, 0]:g}"
        if first.start >= val - 1:
            reason = f"begins after the {val} steps of training"
        text = f"{self._source}: series {first.name!r} {reason}"
        if len(excluded) > 1:
            text += f", as {len(excluded) - 1} more"
        if not kept:
            raise ValueError(f"{text}: there is nothing to learn")
        say(f"{text}: left out")

    def _check_leakage(self, kept: list[Series], val: int) -> None:
        """Raise ``ValueError`` if a covariate of the longest training part leaks the target."""
        longest = max(kept, key=lambda s: min(s.length, val - s.start))
        steps = min(longest.length, val - longest.start)
        values = longest.values[:steps]
        # filled gaps would correlate with a covariate that is filled too
        target = np.where(longest.observed[:steps], values[:, 0], np.nan)
        kinds = {"past": self.roles.past, "future": self.roles.future}
        column = 0
        for kind, names in kinds.items():
            for name in names:
                column += 1
                leak = find_leak(target, values[:, column], self.horizon, kind == "future")
                if leak is None:
                    continue
                shift, correlation = leak
                raise ValueError(
                    f"{self._source}: {kind} column {name!r} holds the target {_offset(shift)} (correlation"
                    f" {correlation:.6f}), which is not known when the forecast is made: leave it out of --data.{kind}"
                )

    def _too_short(self, split: str, longest: Series, begin: int, end: int | None) -> ValueError:
        """Return the error for a split without a window."""
        needed = f"{self.horizon}"
        if split == "train":
            needed = f"{self.context} + {self.horizon}"
            steps = _training_length(longest, end or 0)
        elif end is None:
            steps = longest.start + longest.length - begin
        else:
            steps = end - begin
        return ValueError(
            f"{self._source}: no window fits into the {max(steps, 0)} steps for {split} (of {longest.length} in the"
            f" longest series): context={self.context} and horizon={self.horizon} need {needed} with a target; give"
            " smaller ones, or another --data.val_split or --data.test_split"
        )

    def _forecast_windows(self, rows: SeriesRows) -> Places:
        """Return the windows after the end of each series.

        Raises:
            ValueError: future covariates do not reach over the horizon, or every series is shorter than the context.
        """
        if self.roles.future:
            _, every = self._table
            for s in every:
                later = s.later[: self.horizon]
                complete = len(later) == self.horizon and later.all()
                if s.name in rows.names and not complete:
                    raise ValueError(
                        f"{self._source}: {', '.join(self.roles.future)} must be known for {self.horizon} steps after"
                        f" the end of series {s.name!r}: add rows without a target, or use --data.predict test"
                    )
        places = rows.ends(self.context)
        if not len(places[0]):
            raise ValueError(
                f"{self._source}: every series is shorter than the context of {self.context} steps: give a smaller"
                " --data.context"
            )
        return places


def _training_length(series: Series, val: int) -> int:
    return min(series.length, val - series.start)


def _varies(series: Series, val: int) -> bool:
    """Return whether the target takes two values or more in the training part."""
    target = series.values[: max(_training_length(series, val), 0), 0]
    if len(target) < 2:
        return False
    return float(target.max()) > float(target.min())


def _offset(shift: int) -> str:
    """Return a shift in words: ``of 2 steps later``."""
    if shift == 0:
        return "of the same time"
    steps = "step" if abs(shift) == 1 else "steps"
    direction = "later" if shift > 0 else "before"
    return f"of {abs(shift)} {steps} {direction}"


def _target_scale(series: Series, val: int) -> tuple[float, float]:
    """Return mean and standard deviation of the observed targets of the training part."""
    steps = _training_length(series, val)
    target = series.values[:steps, 0][series.observed[:steps]]
    return float(target.mean()), float(target.std())


def _statistics(training: NDArray) -> tuple[NDArray, NDArray]:
    """Return mean and standard deviation of each column, ignoring NaN.

    The mean of a column without any number is 0; the deviation of a constant column is 1.
    """
    known = ~np.isnan(training)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, training, 0.0).sum(0) / count
    centered = np.where(known, training - mean, 0.0)
    std = np.sqrt((centered**2).sum(0) / count)
    return mean, np.where(std > 0, std, 1.0)


def _naive_error(series: Series, val: int, season: int) -> float:
    """Return the mean absolute error of the seasonal-naive forecast over the training part, the unit of MASE.

    See Hyndman and Koehler 2006, https://doi.org/10.1016/j.ijforecast.2006.03.001. Fall back to the naive forecast
    where a season does not fit, or repeats exactly; 0, which is no unit, for a constant series.
    """
    steps = _training_length(series, val)
    target = np.where(series.observed[:steps], series.values[:steps, 0], np.nan)
    for lag in (season, 1):
        errors = np.abs(target[lag:] - target[:-lag])
        if (errors > 0).any():
            return float(np.nanmean(errors))
    return 0.0
