"""Time series: windows of the past and the steps to forecast, from a CSV file, a generated series or a real one."""

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
    """Windows of time series: ``seasons`` (generated), ``google_volume`` (real), or a CSV file with a time column.

    ``seasons`` is half a year of hours: a trend, a season of a day that is weaker at weekends, one of a week, and noise
    that lasts some hours, drawn from ``seed``. ``google_volume`` is the logarithm of how many shares of Google were
    traded on each business day from August 2004 to October 2008 (Yahoo Finance, as matplotlib ships it), with the
    covariates ``log_range`` (highest over lowest price) and ``log_close``; its holidays are gaps.

    Rows are sorted, those of one time averaged; steps without a row or value take the value before, so that nothing
    later is seen, and do not count as targets. The series are cut by time, for all of them at the same moment: a window
    belongs to the part in which all its targets lie, and its inputs may reach back into the part before. Each series is
    standardised by its training part, covariates by the training part of all series.

    A batch is ``((past, future), targets)``: ``past`` ``(b, context, input_dim)``, the target first, then covariates;
    ``future`` ``(b, horizon, future_dim)``, what is known in advance, and absent if nothing is; targets
    ``(b, horizon)``. A dict follows: in validation and test with the units and a seasonal-naive forecast, and where
    targets are missing with which were ``observed``.

    Args:
        name: ``seasons`` or ``google_volume``; null with ``file``, and ``seasons`` without.
        file: a CSV file with a header.
        time: its column of times: ISO 8601, or whole numbers.
        target: its column to forecast.
        series: its column that tells several series apart; null for one series.
        past: its columns of covariates that are known up to now.
        future: its columns of covariates that are known in advance; rows without a target at the end hold them for
            the time to come.
        calendar: features known in advance that the dates give: ``hour_of_day``, ``day_of_week``, ``day_of_month``,
            ``day_of_year``, each as sine and cosine.
        context: steps of the past that are inputs.
        horizon: steps to forecast.
        frequency: ``15min``, ``1h``, ``1D``, ``1B`` (business days), ``1W``, ``1M``, ...; null finds it.
        season_length: steps of a season, for the seasonal-naive forecast; null: a day of hours, a week of days, a year
            of months (for ``seasons`` a week, which holds both).
        time_format: how times are written, such as ``%d.%m.%Y``; null reads ISO 8601.
        predict: ``future``, the steps after the end of each series, or ``test``, the windows of the test.
        val_split: share of the time kept for validation, before that of the test.
        test_split: share of the time kept for the test, at the end.
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
        if file is not None and (time is None or target is None):
            missing = " and ".join(f"--data.{k}" for k, v in (("time", time), ("target", target)) if v is None)
            raise ValueError(f"which column of {file} is it? give {missing}")
        if context < 1 or horizon < 1 or (season_length is not None and season_length < 1):
            raise ValueError(f"steps are counted from 1, got {context=}, {horizon=}, {season_length=}")
        if min(val_split, test_split) <= 0 or val_split + test_split >= 1:
            raise ValueError(f"shares are above 0 and leave some for training, got {val_split=}, {test_split=}")
        self.name, self.file = name if file or name else "seasons", file
        given = ColumnRoles(time or "", target or "", series, list(past), list(future), time_format)
        self.roles = given if file else bundled_roles(str(self.name), given)
        self.calendar, self.context, self.horizon = list(calendar), context, horizon
        self.frequency, self._season_length, self.predict = frequency, season_length, predict
        self.val_split, self.test_split = val_split, test_split

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    @property
    def input_dim(self) -> int:
        return 1 + len(self.roles.past) + self.future_dim

    @property
    def future_dim(self) -> int:
        return len(self.roles.future) + 2 * len(self.calendar)

    @property
    def season_length(self) -> int:
        """Steps of a season."""
        if self._season_length is None and self.name == "seasons":
            return WEEK
        return self._season_length or self.grid.season

    @property
    def grid(self) -> TimeGrid:
        """The equal steps on which the times of all series stand."""
        return self._table[0]

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> tuple[TimeGrid, list[Series]]:
        columns = read_csv(Path(self.file)) if self.file else bundled_columns(str(self.name), self.seed)
        grid, series, notes = read_series(columns, self._source, self.roles, self.frequency)
        for note in notes if self.file else []:
            say(note)
        return grid, series

    @property
    def _cuts(self) -> tuple[int, int]:
        """The numbers of the first step of validation, and of the test."""
        steps = max(s.start + s.length for s in self._table[1])
        return round(steps * (1 - self.val_split - self.test_split)), round(steps * (1 - self.test_split))

    # Windows ----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, WindowDataset]:
        grid, every = self._table
        cut, test = self._cuts
        known = [s for s in every if self._varies(s, cut)]
        self._report_excluded_series(every, known, cut)
        self._check_leakage(known, cut)
        try:
            rows = self._rows(grid, known, cut)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from None
        windows = {
            "train": rows.windows(self.context, self.horizon, 0, cut),
            "val": rows.windows(self.context, self.horizon, cut, test),
            "test": rows.windows(self.context, self.horizon, test, None),
        }
        self._check_enough_windows(windows, known, cut, test)
        return {k: WindowDataset(rows, w, self.context, self.horizon, details=k != "train") for k, w in windows.items()}

    def predict_dataset(self) -> WindowDataset:
        test = self.datasets["test"]
        assert isinstance(test, WindowDataset)
        places = self._ends(test.rows) if self.predict == "future" else (test.places, test.series)
        return WindowDataset(test.rows, places, self.context, self.horizon, details=True, labels=True)

    def _rows(self, grid: TimeGrid, known: list[Series], cut: int) -> SeriesRows:
        """All series behind one another, each with a horizon of rows after its end, standardised."""
        h, season = self.horizon, self.season_length
        width = 1 + len(self.roles.past) + len(self.roles.future)
        training = np.concatenate([s.values[: min(cut - s.start, s.length)] for s in known])
        means, stds = _statistics(training[:, 1:])
        blocks, observed, scales = [], [], []
        for s in known:
            raw = np.full((s.length + h, width), np.nan)
            raw[: len(s.values)] = s.values[: s.length + h]
            raw[s.length :, 0] = s.values[s.length - 1, 0]  # no target is known there
            seen = s.values[: min(cut - s.start, s.length), 0][s.observed[: cut - s.start]]
            mean, std = float(seen.mean()), float(seen.std())
            scales.append((mean, std, _naive_error(s, cut, season)))
            covariates = np.nan_to_num((raw[:, 1:] - means) / stds)
            dates = calendar(grid.times(s.start + np.arange(len(raw))), self.calendar)
            blocks.append(np.concatenate([(raw[:, :1] - mean) / std, covariates, dates], 1))
            observed.append(np.concatenate([s.observed, np.zeros(h, dtype=bool)]))
        return SeriesRows(
            values=torch.from_numpy(np.concatenate(blocks)).float(),
            observed=torch.from_numpy(np.concatenate(observed)),
            lengths=[s.length for s in known],
            ahead=h,
            starts=[s.start for s in known],
            scales=torch.tensor(scales, dtype=torch.float64).float(),
            names=[s.name for s in known],
            grid=grid,
            season=season,
            future_dim=self.future_dim,
        )

    def _varies(self, series: Series, cut: int) -> bool:
        seen = series.values[: max(min(cut - series.start, series.length), 0), 0]
        return len(seen) > 1 and float(seen.max()) > float(seen.min())

    def _report_excluded_series(self, every: list[Series], known: list[Series], cut: int) -> None:
        out = [s for s in every if s not in known]
        if not out:
            return
        first = out[0]
        late = f"begins after the {cut} steps of training"
        constant = f"is constant in its training part, {first.values[0, 0]:g}"
        text = f"{self._source}: series {first.name!r} {late if first.start >= cut - 1 else constant}"
        text += f", as {len(out) - 1} more" if len(out) > 1 else ""
        if not known:
            raise ValueError(f"{text}: there is nothing to learn")
        say(f"{text}: left out")

    def _check_leakage(self, known: list[Series], cut: int) -> None:
        longest = max(known, key=lambda s: min(s.length, cut - s.start))
        stop = min(longest.length, cut - longest.start)
        values = longest.values[:stop]
        target = np.where(longest.observed[:stop], values[:, 0], np.nan)
        for i, name in enumerate([*self.roles.past, *self.roles.future], 1):
            ahead = i > len(self.roles.past)
            leak = find_leak(target, values[:, i], self.horizon, ahead)
            if leak is not None:
                shift, close = leak
                word = f"{abs(shift)} step{'s' * (abs(shift) > 1)} {'later' if shift > 0 else 'before'}"
                what = f"the target of {word}" if shift else "the target of the same time"
                kind = "future" if ahead else "past"
                raise ValueError(
                    f"{self._source}: {kind} column {name!r} holds {what} (correlation {close:.6f}), which is not known"
                    f" when the forecast is made: leave it out of --data.{kind}"
                )

    def _check_enough_windows(self, windows: dict[str, Any], known: list[Series], cut: int, test: int) -> None:
        longest = max(known, key=lambda s: s.length)
        for split, (starts, _) in windows.items():
            if not len(starts):
                steps = {"train": min(longest.length, cut - longest.start), "val": test - cut}.get(
                    split, longest.start + longest.length - test
                )
                need = f"{self.context} + {self.horizon}" if split == "train" else f"{self.horizon}"
                raise ValueError(
                    f"{self._source}: no window fits into the {max(steps, 0)} steps for {split} (of {longest.length} in"
                    f" the longest series): context={self.context} and horizon={self.horizon} need {need} with a"
                    " target; give smaller ones, or another share"
                )

    def _ends(self, rows: SeriesRows) -> Places:
        """The windows after the end of each series, or say what is missing there."""
        for s in self._table[1] if self.roles.future else []:
            if s.name in rows.names and not (len(s.later) >= self.horizon and s.later[: self.horizon].all()):
                raise ValueError(
                    f"{self._source}: {', '.join(self.roles.future)} must be known for {self.horizon} steps after the"
                    f" end of series {s.name!r}: add rows without a target, or take --data.predict test"
                )
        places = rows.ends(self.context)
        if not len(places[0]):
            raise ValueError(f"{self._source}: no series has {self.context} steps, the context, to forecast from")
        return places

    @property
    def _source(self) -> str:
        return self.file or str(self.name)


def _statistics(training: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and deviation of each column, 0 and 1 where nothing is known, deviation 1 where it does not vary."""
    known = ~np.isnan(training)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, training, 0.0).sum(0) / count
    std = np.sqrt((np.where(known, training - mean, 0.0) ** 2).sum(0) / count)
    return mean, np.where(std > 0, std, 1.0)


def _naive_error(series: Series, cut: int, season: int) -> float:
    """Mean absolute error of the seasonal-naive forecast over the training part (Hyndman and Koehler 2006).

    https://doi.org/10.1016/j.ijforecast.2006.03.001: the unit of MASE. Where a season does not fit, or repeats
    exactly, the naive forecast's.
    """
    stop = min(cut - series.start, series.length)
    target = np.where(series.observed[:stop], series.values[:stop, 0], np.nan)
    for lag in (season, 1):
        errors = np.abs(target[lag:] - target[:-lag])
        if (errors > 0).any():
            return float(np.nanmean(errors))
    return 1.0
