"""Graphs of forecasters: values in their units in, scaled within the graph as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.series.time_grid import Calendar, write_time
from zoo.data.series.timeseries import TimeSeries
from zoo.errors import UserError
from zoo.export.dates import DAY, days_of, month_bounds, waves, week_phase, year_bounds
from zoo.export.graph import Export, Graph, predicted, without_messages
from zoo.export.heads import Head, Outputs

EPS = float(np.finfo(np.float64).eps)
NUM_WINDOWS = 4


class SeriesGraph(Graph):
    """Scale the past and what is known of the future, forecast, and return the units of the target.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint.
    """

    def __init__(self, head: Head, data: TimeSeries) -> None:
        super().__init__(head)
        fitted = data.fitted
        self.calendar = list(data.calendar)
        self.num_future = len(data.roles.future)
        scales = [scale[:2] for scale in fitted.scales.values()]
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64))  # (series, 2)
        self.register_buffer("means", torch.tensor(fitted.means, dtype=torch.float64))  # (covariates,)
        self.register_buffer("stds", torch.tensor(fitted.stds, dtype=torch.float64))

    def run(self, past: Tensor, series: Tensor, future: Tensor | None, times: tuple[Tensor, Tensor] | None) -> Outputs:
        """Return forecasts.

        Args:
            past: ``(b, context, columns)``, the target first.
            series: ``(b,)`` index of the series, -1 for one that training did not have.
            future: ``(b, horizon, columns)`` of covariates.
            times: of the past and of the horizon, in seconds since 1970.
        """
        mean, std = self._scale(past[:, :, 0], series)  # (b, 1) each
        target = (past[:, :, :1] - mean.unsqueeze(2)) / std.unsqueeze(2)
        covariates = self._standardized(past[:, :, 1:], 0)
        blocks = [target, covariates]
        ahead = []
        if future is not None:
            ahead.append(self._standardized(future, self.get_buffer("means").shape[0] - self.num_future))
        if times is not None:
            blocks.append(features(times[0], self.calendar))
            ahead.append(features(times[1], self.calendar))
        inputs = [torch.cat(blocks, 2).float()]
        if ahead:
            inputs.append(torch.cat(ahead, 2).float())
        outputs = {}
        for name, value in self.head(*inputs).items():
            shape = (-1, *[1] * (value.ndim - 1))
            outputs[name] = value * std.float().view(shape) + mean.float().view(shape)
        return outputs

    def _standardized(self, values: Tensor, first: int) -> Tensor:
        means = self.get_buffer("means")[first : first + values.shape[2]]
        stds = self.get_buffer("stds")[first : first + values.shape[2]]
        return torch.nan_to_num((values - means) / stds)

    def _scale(self, target: Tensor, series: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation ``(b, 1)`` of a series: those of training, or of the past of a new series."""
        known = self.get_buffer("scales")[series.clamp(min=0)]  # (b, 2)
        n = target.shape[1]
        mean = target.mean(1)
        std = (target - mean.unsqueeze(1)).square().mean(1).sqrt()
        is_constant = std**2 <= n * EPS * std**2 + (n * mean * EPS) ** 2
        own = torch.stack(
            [
                torch.where(is_constant, target[:, 0], mean),
                torch.where(is_constant, torch.ones_like(std), std),
            ],
            1,
        )
        scale = torch.where((series >= 0).unsqueeze(1), known, own)
        return scale[:, :1], scale[:, 1:]


class PastGraph(SeriesGraph):
    """Forecast from the past alone."""

    def forward(self, past: Tensor, series: Tensor) -> Outputs:
        return self.run(past, series, None, None)


class FutureGraph(SeriesGraph):
    """Forecast from the past and covariates that are known in advance."""

    def forward(self, past: Tensor, series: Tensor, future: Tensor) -> Outputs:
        return self.run(past, series, future, None)


class CalendarGraph(SeriesGraph):
    """Forecast from the past and the calendar."""

    def forward(self, past: Tensor, series: Tensor, past_time: Tensor, future_time: Tensor) -> Outputs:
        return self.run(past, series, None, (past_time, future_time))


class FutureCalendarGraph(SeriesGraph):
    """Forecast from the past, covariates that are known in advance, and the calendar."""

    def forward(self, past: Tensor, series: Tensor, future: Tensor, past_time: Tensor, future_time: Tensor) -> Outputs:
        return self.run(past, series, future, (past_time, future_time))


def features(seconds: Tensor, names: Sequence[Calendar]) -> Tensor:
    """Return sine and cosine of the phase in the day, week, month or year, ``(b, t, 2 * names)``."""
    days = days_of(seconds)
    within = (seconds - days * DAY).double() / DAY
    phases = []
    for name in names:
        if name == "hour_of_day":
            phases.append(within)
        elif name == "day_of_week":
            phases.append(week_phase(days))
        else:
            bounds = month_bounds if name == "day_of_month" else year_bounds
            first, following = bounds(days)
            phases.append(((days - first).double() + within) / (following - first).double())
    return torch.stack(waves(phases), 2)


# Windows to compare on ------------------------------------------------------------------------------------------------


def export_of_series(head: Head, data: TimeSeries, source: Sequence[str] | None) -> Export:
    """Return the graph of a forecaster, with windows to compare it on.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint.
        source: not for series, whose windows are generated with the scales of training.
    """
    if source is not None:
        raise UserError(
            "--samples is not for time series: an export is compared on windows with the scales of training"
        )
    fitted = data.fitted
    roles = data.roles
    names = list(fitted.scales)
    windows = [window(data, i) for i in range(NUM_WINDOWS)]
    series = [i % len(names) for i in range(NUM_WINDOWS)]
    if roles.series is not None:
        series[-1] = -1  # one that training did not have
    expected: list[Outputs] = []
    for values, i in zip(windows, series, strict=True):
        expected.append(predicted_window(head, data, values, names[i] if i >= 0 else "a new one"))
    past = torch.from_numpy(np.stack([values[: data.context] for values in windows]))
    inputs = {"past": past, "series": torch.tensor(series)}
    covariates = [*roles.past, *roles.future]
    descriptions = {
        "past": f"(batch, {data.context}, {1 + len(covariates)}) in their units: "
        + ", ".join([roles.target, *covariates]),
        "series": "index of the series in the order of series (batch,); -1 for another one, scaled by its own past",
    }
    graph = {(False, False): PastGraph, (True, False): FutureGraph, (False, True): CalendarGraph,
             (True, True): FutureCalendarGraph}[bool(roles.future), bool(data.calendar)]  # fmt: skip
    if roles.future:
        ahead = np.stack([values[data.context :, -len(roles.future) :] for values in windows])
        inputs["future"] = torch.from_numpy(ahead)
        descriptions["future"] = (
            f"(batch, {data.horizon}, {len(roles.future)}), in their units: {', '.join(roles.future)}"
        )
    if data.calendar:
        seconds = torch.from_numpy(times_of(data).astype("M8[s]").astype(np.int64)).repeat(NUM_WINDOWS, 1)
        inputs["past_time"] = seconds[:, : data.context]
        inputs["future_time"] = seconds[:, data.context :]
        descriptions["past_time"] = f"seconds since 1970-01-01 of each step of the past (batch, {data.context})"
        descriptions["future_time"] = f"seconds since 1970-01-01 of each step ahead (batch, {data.horizon})"
    return Export(
        graph=graph(head, data),
        inputs=inputs,
        expected={name: torch.cat([one[name] for one in expected]) for name in expected[0]},
        descriptions=descriptions,
        facts={"series": names, "quantiles": head.module.quantiles, "target": roles.target},
        source="generated windows",
    )


def times_of(data: TimeSeries) -> NDArray:
    """Return the times of a window and its horizon, from the beginning of training on."""
    return data.fitted.grid().times(np.arange(data.context + data.horizon))


def window(data: TimeSeries, index: int) -> NDArray[np.float64]:
    """Return values ``(context + horizon, columns)`` such as a series has, the target's only in the context."""
    fitted = data.fitted
    steps = data.context + data.horizon
    rng = np.random.default_rng(index)
    scales = list(fitted.scales.values())
    mean, std = scales[index % len(scales)][:2]
    target = mean + std * np.cumsum(rng.normal(size=steps)) / np.sqrt(steps)
    columns = [target]
    for of_column, deviation in zip(fitted.means, fitted.stds, strict=True):
        columns.append(of_column + deviation * rng.normal(size=steps))
    return np.stack(columns, 1)


def predicted_window(head: Head, data: TimeSeries, values: NDArray, name: str) -> Outputs:
    """Return what the module forecasts for one window, read as a new file of a user is."""
    roles = data.roles
    rows = len(values) if roles.future else data.context
    columns: dict[str, list[Any]] = {roles.time: [write_time(time) for time in times_of(data)[:rows]]}
    columns[roles.target] = [
        repr(value) if i < data.context else "" for i, value in enumerate(values[:rows, 0].tolist())
    ]
    if roles.series is not None:
        columns[roles.series] = [name] * rows
    for i, covariate in enumerate([*roles.past, *roles.future], 1):
        columns[covariate] = [repr(value) for value in values[:rows, i].tolist()]
    table = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    with without_messages():
        samples = data.read_samples(table)
    dataset: Any = samples.dataset
    return predicted(head, dataset.batch(torch.arange(1)))
