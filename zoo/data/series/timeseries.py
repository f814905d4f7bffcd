"""Time series forecasting data: sliding windows over a CSV file, a synthetic series or a real one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data.csv_numbers import Decimal, DecimalSigns
from zoo.data.csv_tables import CSVTable, check_format, read_table
from zoo.data.fitted import FittedDataModule
from zoo.data.new_rows import check_columns, read_rows
from zoo.data.new_samples import NewSamples
from zoo.data.series.bundled_series import BUNDLED, WEEK, bundled_columns, bundled_roles
from zoo.data.series.fit import FittedSeries, fit_series, naive_error, target_scale, training_length, varies
from zoo.data.series.table import ColumnRoles, Series, find_leak, read_series
from zoo.data.series.time_grid import Calendar, TimeGrid, calendar
from zoo.data.series.windows import Places, SeriesRows, WindowDataset
from zoo.distributed import say
from zoo.errors import UserError


class TimeSeries(FittedDataModule):
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

    A checkpoint keeps the scales of the series, their grid and the times at which the splits begin. New files are
    scaled and cut by these; a series that training did not have is scaled by its own past. ``predict: future`` needs
    ``context`` steps and no training file.

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
        separator: between columns, as ``;`` or ``tab``; null finds it.
        decimal: the decimal sign, ``.`` or ``,``; null finds it for each column.
        encoding: of a file without byte order mark, such as ``latin-1``; null is UTF-8.
        fitted: scales, grid and splits, as a checkpoint keeps them; null takes them from the training part.
    """

    fitted_type = FittedSeries
    without_fitted = "scales of its series, which are computed anew from"

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
        separator: str | None = None,
        decimal: Decimal | None = None,
        encoding: str | None = None,
        fitted: dict[str, Any] | None = None,
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
        self.separator = check_format(separator, encoding)
        self.decimal: Decimal | None = decimal
        self.encoding = encoding
        self._keep(fitted)
        self._new_table: CSVTable | None = None

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
        if self._kept is not None:
            return self._kept.season
        if self.name == "seasons":
            return WEEK
        return self.grid.season

    @property
    def grid(self) -> TimeGrid:
        """Return the time grid shared by all series."""
        return self._table[0]

    @property
    def target_name(self) -> str:
        """Name of the target column, under which forecasts are written."""
        return self.roles.target

    # Fitted state -----------------------------------------------------------------------------------------------------

    @cached_property
    def _own_fit(self) -> FittedSeries:
        grid, every = self._table
        val, test = self._own_split_points
        kept = [s for s in every if varies(s, training_length(s, val))]
        self._report_excluded_series(every, kept, val)
        self._check_leakage(kept, val)
        return fit_series(grid, every, kept, val, test, self.season_length)

    def _forget_fit(self) -> None:
        vars(self).pop("_table", None)
        self.reset_datasets()

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> tuple[TimeGrid, list[Series]]:
        like = None if self._kept is None else self._kept.grid()
        if self.file is None:
            columns = bundled_columns(str(self.name), self.seed)
            # The gaps of a bundled series are documented, and not the user's to repair.
            grid, series, _ = read_series(columns, self._source, self.roles, self.frequency, like=like)
            return grid, series
        read = self._new_table or read_table(self.file, self.separator, self.encoding)
        grid, series, messages = read_series(
            read.columns,
            self._source,
            self.roles,
            self.frequency,
            rows=read.rows,
            signs=DecimalSigns(read.columns, self.decimal),
            like=like,
        )
        for message in messages:
            say(message)
        return grid, series

    @property
    def _num_steps(self) -> int:
        return max(s.start + s.length for s in self._table[1])

    @property
    def _own_split_points(self) -> tuple[int, int]:
        """Return the grid indices of the first validation step and of the first test step, by their shares."""
        steps = self._num_steps
        val = round(steps * (1 - self.val_split - self.test_split))
        test = round(steps * (1 - self.test_split))
        return val, test

    # Windows ----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, WindowDataset]:
        """Return the windows of each split.

        Raises:
            ValueError: no series can be learned, a covariate leaks the target, or a split is too short for a window.
        """
        rows = self._rows(for_forecast=False)
        if self._kept is None:
            return self._cut(rows, *self._own_split_points)
        val, test = self._kept.split_points(rows.grid, self._num_steps)
        datasets = self._cut(rows, val, test, required=False)
        if self._trains and "train" not in datasets:
            say(f"{self._source} has no steps of the training split: it is split anew, and scaled as in training")
            return self._cut(rows, *self._own_split_points)
        if not self._kept.spans(rows.grid, self._num_steps):
            begin = self._kept.test
            say(f"{self._source} is not the file of training: the windows from {begin} on are its test split")
        elif (val, test) != self._own_split_points:
            say("val_split and test_split have no effect: the splits are those of the checkpoint")
        for split in ("val", "test"):
            if split in datasets:
                continue
            everything = rows.windows(self.context, self.horizon, 0, None)
            if len(everything[0]):
                say(f"{self._source} has no window of the {split} split of training: all its windows are used")
                datasets[split] = self._windows(rows, everything)
        if not datasets:
            raise self._too_short("test", rows, 0, None)
        return datasets

    def _cut(self, rows: SeriesRows, val: int, test: int, required: bool = True) -> dict[str, WindowDataset]:
        """Return the windows of each split.

        Args:
            rows: all series.
            val: grid index of the first validation step.
            test: grid index of the first test step.
            required: whether a split without a window is an error; else it is left out.
        """
        bounds = {"train": (0, val), "val": (val, test), "test": (test, None)}
        datasets = {}
        for split, (begin, end) in bounds.items():
            places = rows.windows(self.context, self.horizon, begin, end)
            if len(places[0]):
                datasets[split] = self._windows(rows, places, details=split != "train")
            elif required:
                raise self._too_short(split, rows, begin, end)
        return datasets

    def _windows(self, rows: SeriesRows, places: Places, details: bool = True, **labels: bool) -> WindowDataset:
        return WindowDataset(rows, places, self.context, self.horizon, details=details, **labels)

    def predict_dataset(self) -> WindowDataset:
        if self.predict == "test":
            test = self.datasets["test"]
            assert isinstance(test, WindowDataset)
            return self._windows(test.rows, (test.places, test.series), labels=True, truth=True)
        rows = self._rows(for_forecast=True)
        return self._windows(rows, self._forecast_windows(rows), labels=True)

    def read_samples(self, source: Any) -> NewSamples:
        """Read new series, which are forecast beyond their ends.

        Args:
            source: paths of ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` files, or a DataFrame, with the columns of
                the training file; several files need the column of the series.
        """
        tables = read_rows(source, self.separator, self.encoding)
        roles = self.roles
        needed = [roles.time, roles.target, *([roles.series] if roles.series else []), *roles.past, *roles.future]
        for table in tables:
            check_columns(table, needed, [])
        if len(tables) > 1 and not roles.series:
            raise UserError(f"{len(tables)} files are one series each: forecast them one after the other")
        columns = {name: [str(cell) for table in tables for cell in table.columns[name]] for name in needed}
        rows = [row for table in tables for row in table.rows]
        if not rows:
            raise UserError(f"{tables[0].path} has no rows")
        new = copy.copy(self)
        new._kept = self.fitted
        new._new_table = CSVTable(tables[0].path, columns, rows)
        new.file = tables[0].path
        new.predict = "future"
        new._forget_fit()
        return NewSamples(new.predict_dataset())

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        return {}  # the predictions have series, time and step

    def predict_targets(self) -> Sequence[Any] | None:
        return None

    def predict_test(self) -> None:
        super().predict_test()
        self.predict = "test"
        self._predicts_test = False  # windows of the test split, with their names

    def _rows(self, for_forecast: bool) -> SeriesRows:
        """Concatenate the standardized series, each with a horizon of rows after its end.

        Args:
            for_forecast: whether all steps are in the past. Else the targets of windows are not, and a series that
                training did not have is scaled by its first ``context`` steps.
        """
        fitted = self.fitted
        grid, every = self._table
        num_covariates = len(self.roles.past) + len(self.roles.future)
        if len(fitted.means) != num_covariates:
            raise ValueError(f"the checkpoint has {len(fitted.means)} covariates, and past and future {num_covariates}")
        if not for_forecast:
            every = [s for s in every if s.name not in fitted.excluded]
        if not every:
            raise ValueError(f"{self._source}: all series were left out of training, where they do not vary")
        new = [s.name for s in every if s.name not in fitted.scales]
        if new:
            say(f"{self._source}: {len(new)} series are not of training ({new[0]!r}, ...) and scaled by their own past")
        values = []
        observed = []
        scales = []
        beyond = np.zeros(self.horizon, dtype=bool)
        for s in every:
            raw = self._extended(s)  # (length + horizon, 1 + covariates)
            scale = fitted.scales.get(s.name)
            if scale is None:
                length = s.length if for_forecast else min(s.length, self.context)
                scale = [*target_scale(s, length), naive_error(s, length, fitted.season)]
            scales.append(scale)
            target = (raw[:, :1] - scale[0]) / scale[1]
            covariates = np.nan_to_num((raw[:, 1:] - fitted.means) / fitted.stds)
            times = grid.times(s.start + np.arange(len(raw)))
            try:
                features = calendar(times, self.calendar)
            except ValueError as error:
                raise ValueError(f"{self._source}: {error}") from None
            values.append(np.concatenate([target, covariates, features], 1))
            observed.append(np.concatenate([s.observed, beyond]))
        return SeriesRows(
            values=torch.from_numpy(np.concatenate(values)).float(),
            observed=torch.from_numpy(np.concatenate(observed)),
            lengths=[s.length for s in every],
            ahead=self.horizon,
            starts=[s.start for s in every],
            scales=torch.tensor(scales, dtype=torch.float64).float(),
            names=[s.name for s in every],
            grid=grid,
            season=self.season_length,
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
        steps = training_length(longest, val)
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

    def _too_short(self, split: str, rows: SeriesRows, begin: int, end: int | None) -> ValueError:
        """Return the error for a split without a window."""
        longest = max(rows.lengths)
        start = rows.starts[rows.lengths.index(longest)]
        needed = f"{self.horizon}"
        if split == "train":
            needed = f"{self.context} + {self.horizon}"
            steps = min(longest, (end or 0) - start)
        elif end is None:
            steps = start + longest - begin
        else:
            steps = end - begin
        return ValueError(
            f"{self._source}: no window fits into the {max(steps, 0)} steps for {split} (of {longest} in the"
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
                if s.name in rows.names and s.length >= self.context and not complete:
                    raise ValueError(
                        f"{self._source}: {', '.join(self.roles.future)} must be known for {self.horizon} steps after"
                        f" the end of series {s.name!r}: add rows without a target, or use --data.predict test"
                    )
        short = [name for name, length in zip(rows.names, rows.lengths, strict=True) if length < self.context]
        if len(short) == len(rows.names):
            raise ValueError(
                f"{self._source}: a forecast needs the last {self.context} steps (--data.context), and"
                f" {'the longest series' if len(short) > 1 else f'series {short[0]!r}'} has {max(rows.lengths)}"
            )
        if short:
            say(f"{self._source}: {len(short)} series have less than {self.context} steps: no forecast of {short[0]!r}")
        return rows.ends(self.context)


def _offset(shift: int) -> str:
    """Return a shift in words: ``of 2 steps later``."""
    if shift == 0:
        return "of the same time"
    steps = "step" if abs(shift) == 1 else "steps"
    direction = "later" if shift > 0 else "before"
    return f"of {abs(shift)} {steps} {direction}"
