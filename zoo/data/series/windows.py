"""Sliding windows over time series: context, covariates known over the forecast horizon, and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.series.time_grid import TimeGrid

Places = tuple[Tensor, Tensor]
"""Row of the first target of each window ``(n,)``, and index of its series ``(n,)``."""


@dataclass
class SeriesRows:
    """Time series concatenated along the time axis.

    Args:
        values: ``(rows, columns)``: target, then covariates, the last ``future_dim`` of which are known in advance.
        observed: ``(rows,)``, whether the target was observed.
        lengths: number of steps of each series, without the ``ahead`` rows that follow it.
        ahead: number of rows after each series that hold future covariates only; their target is unknown.
        starts: grid index of the first step of each series.
        scales: ``(series, 3)``: mean, standard deviation and mean absolute error of the seasonal-naive forecast, all
            of the training part.
        names: name of each series.
        grid: time grid of all series.
        season: number of steps of a season.
        future_dim: number of columns known in advance.
    """

    values: Tensor
    observed: Tensor
    lengths: list[int]
    ahead: int
    starts: list[int]
    scales: Tensor
    names: list[str]
    grid: TimeGrid
    season: int
    future_dim: int

    def __post_init__(self) -> None:
        sizes = torch.tensor([length + self.ahead for length in self.lengths])
        # row of the first step of each series
        self.first = sizes.cumsum(0) - sizes
        self.gaps = False
        for first, length in zip(self.first.tolist(), self.lengths, strict=True):
            observed = self.observed[first : first + length]
            if not bool(observed.all()):
                self.gaps = True

    def windows(self, context: int, horizon: int, begin: int, end: int | None) -> Places:
        """Return the windows whose targets all lie in ``[begin, end)`` of the grid.

        Windows without any observed value in the context, or in the targets, are skipped.

        Args:
            context: number of input steps.
            horizon: number of forecast steps.
            begin: grid index of the first allowed target.
            end: grid index after the last allowed target; None for the end of each series.
        """
        # an empty tensor first, so that no window at all can be concatenated too
        places = [torch.empty(0, dtype=torch.long)]
        series = [torch.empty(0, dtype=torch.long)]
        for i, length in enumerate(self.lengths):
            start = self.starts[i]
            stop = length
            if end is not None:
                stop = min(length, end - start)
            lowest = max(context, begin - start)
            highest = stop - horizon
            if highest < lowest:
                continue
            steps = torch.arange(lowest, highest + 1)
            first = int(self.first[i])
            # (length + 1,): number of observed steps before each
            observed = self.observed[first : first + length].double().cumsum(0)
            observed = torch.cat([torch.zeros(1), observed])
            has_target = observed[steps + horizon] > observed[steps]
            has_context = observed[steps] > observed[steps - context]
            steps = steps[has_target & has_context]
            places.append(first + steps)
            series.append(torch.full((len(steps),), i))
        return torch.cat(places), torch.cat(series)

    def ends(self, context: int) -> Places:
        """Return the windows that forecast beyond the end of each series of at least ``context`` steps."""
        places = []
        series = []
        for i, length in enumerate(self.lengths):
            if length >= context:
                places.append(int(self.first[i]) + length)
                series.append(i)
        return torch.tensor(places), torch.tensor(series)


class WindowDataset(Dataset):
    """Dataset of sliding windows, sliced from the series on access.

    Args:
        rows: all series.
        places: positions of the windows.
        context: number of input steps.
        horizon: number of forecast steps.
        details: whether to add scales and a seasonal-naive forecast to each batch, for metrics.
        labels: whether to add the names of series and the times, for predictions.
        truth: whether the targets of labelled windows are known, and a mask tells which.
    """

    def __init__(
        self,
        rows: SeriesRows,
        places: Places,
        context: int,
        horizon: int,
        details: bool = False,
        labels: bool = False,
        truth: bool = False,
    ) -> None:
        self.rows = rows
        self.places, self.series = places
        self.context = context
        self.horizon = horizon
        self.details = details
        self.labels = labels
        self.truth = truth
        # offsets from the first target
        self._past = torch.arange(-context, 0)
        self._ahead = torch.arange(horizon)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        batch = self.batch(torch.tensor([index]))
        return _first_sample(batch)

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        """Return ``((past, future), targets)`` of windows, and a dict of metadata where there is any."""
        rows = self.rows
        place = self.places[indices].unsqueeze(1)  # (b, 1)
        ahead = place + self._ahead  # (b, horizon)
        past = rows.values[place + self._past]  # (b, context, columns)
        inputs = (past,)
        if rows.future_dim:
            known_in_advance = rows.values[:, rows.values.shape[1] - rows.future_dim :]
            inputs = (past, known_in_advance[ahead])  # (b, horizon, future_dim)
        targets = rows.values[ahead, 0]  # (b, horizon)

        metadata: dict[str, Any] = {}
        if self.truth or (rows.gaps and not self.labels):
            metadata["observed"] = rows.observed[ahead]
        if self.details:
            metadata |= self._details(indices, place)
        if self.labels:
            metadata |= self._labels(indices, place)
        if metadata:
            return inputs, targets, metadata
        return inputs, targets

    def _details(self, indices: Tensor, place: Tensor) -> dict[str, Tensor]:
        rows = self.rows
        series = self.series[indices]
        mean, std, error = rows.scales[series].unbind(1)
        # (horizon,): whole seasons to go back, so that the step before is in the context
        back = rows.season * (self._ahead // rows.season + 1)
        has_season = place - rows.season >= rows.first[series].unsqueeze(1)  # (b, 1)
        # the last value where the series is younger than a season
        before = torch.where(has_season, place + self._ahead - back, place - 1)  # (b, horizon)
        return {
            "mean": mean,
            "std": std,
            "error": error,
            "seasonal_naive": rows.values[before, 0],
        }

    def _labels(self, indices: Tensor, place: Tensor) -> dict[str, list]:
        rows = self.rows
        series = self.series[indices]
        starts = torch.tensor(rows.starts)[series]
        first = place.squeeze(1) - rows.first[series] + starts
        numbers = first.numpy()[:, None] + np.arange(self.horizon)  # (b, horizon)
        return {
            "series": [rows.names[i] for i in series.tolist()],
            "time": rows.grid.labels(numbers),
        }


def _first_sample(value: Any) -> Any:
    """Return the first sample of a batch, without its batch dimension."""
    if isinstance(value, dict):
        return {k: _first_sample(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_first_sample(v) for v in value)
    return value[0]
