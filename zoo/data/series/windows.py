"""Windows of series: what is seen of the past, what is known of the future, what is to be forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.series.time_grid import TimeGrid

Places = tuple[Tensor, Tensor]
"""The rows of the first targets of windows, and the numbers of their series."""


@dataclass
class SeriesRows:
    """Series behind one another.

    Args:
        values: ``(rows, columns)``: target, covariates, of which the last ``future_dim`` are known in advance.
        observed: ``(rows,)``, whether the target was there.
        lengths: steps of each series; ``ahead`` rows follow it, whose target is unknown.
        ahead: see there.
        starts: number on the grid of each series' first step.
        scales: ``(series, 3)``: mean, deviation, mean error of the seasonal-naive forecast, in training.
        names: of the series.
        grid: of the times.
        season: steps of a season.
        future_dim: number of columns that are known in advance.
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
        self.first = sizes.cumsum(0) - sizes  # row of the first step of each series
        self.gaps = any(
            not bool(self.observed[i : i + n].all()) for i, n in zip(self.first.tolist(), self.lengths, strict=True)
        )

    def windows(self, context: int, horizon: int, begin: int, end: int | None) -> Places:
        """Places of all windows whose targets lie between two numbers of the grid, and hold something seen."""
        places, series = [], []
        for i, (length, start) in enumerate(zip(self.lengths, self.starts, strict=True)):
            low = max(context, begin - start)
            high = (length if end is None else min(length, end - start)) - horizon
            if high < low:
                continue
            at = torch.arange(low, high + 1)
            first = int(self.first[i])
            seen = torch.cat([torch.zeros(1), self.observed[first : first + length].double().cumsum(0)])
            at = at[(seen[at + horizon] > seen[at]) & (seen[at] > seen[at - context])]
            places.append(first + at)
            series.append(torch.full((len(at),), i))
        empty = [torch.empty(0, dtype=torch.long)]
        return torch.cat(places or empty), torch.cat(series or empty)

    def ends(self, context: int) -> Places:
        """Places of the windows that begin where the series end."""
        kept = [i for i, length in enumerate(self.lengths) if length >= context]
        return torch.tensor([int(self.first[i]) + self.lengths[i] for i in kept]), torch.tensor(kept)


class WindowDataset(Dataset):
    """Windows cut out of rows when they are asked for.

    Args:
        rows: all series.
        places: of the windows.
        context: steps of the past.
        horizon: steps to forecast.
        details: whether units and a seasonal-naive forecast follow, for metrics.
        labels: whether the names of series and times follow, for predictions.
    """

    def __init__(
        self, rows: SeriesRows, places: Places, context: int, horizon: int, details: bool = False, labels: bool = False
    ) -> None:
        self.rows, (self.places, self.series) = rows, places
        self.context, self.horizon, self.details, self.labels = context, horizon, details, labels
        self._past, self._ahead = torch.arange(-context, 0), torch.arange(horizon)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return _first(self.batch(torch.tensor([index])))

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        rows, place = self.rows, self.places[indices].unsqueeze(1)
        ahead = place + self._ahead
        known = rows.values.shape[1] - rows.future_dim
        inputs = [rows.values[place + self._past]]
        if rows.future_dim:
            inputs.append(rows.values[:, known:][ahead])
        metadata: dict[str, Any] = {"observed": rows.observed[ahead]} if rows.gaps and not self.labels else {}
        if self.details:
            metadata |= self._details(indices, place)
        if self.labels:
            metadata |= self._labels(indices, place)
        batch = (tuple(inputs), rows.values[ahead, 0])
        return (*batch, metadata) if metadata else batch

    def _details(self, indices: Tensor, place: Tensor) -> dict[str, Tensor]:
        rows, series = self.rows, self.series[indices]
        mean, std, error = rows.scales[series].unbind(1)
        back = rows.season * (self._ahead // rows.season + 1)
        there = place - rows.season >= rows.first[series].unsqueeze(1)
        before = torch.where(there, place + self._ahead - back, place - 1)
        return {"mean": mean, "std": std, "error": error, "seasonal_naive": rows.values[before, 0]}

    def _labels(self, indices: Tensor, place: Tensor) -> dict[str, list]:
        rows, series = self.rows, self.series[indices]
        first = place.squeeze(1) - rows.first[series] + torch.tensor(rows.starts)[series]
        times = rows.grid.labels(first.numpy()[:, None] + np.arange(self.horizon))
        return {"series": [rows.names[i] for i in series.tolist()], "time": times}


def _first(value: Any) -> Any:
    """The first sample of a batch."""
    if isinstance(value, dict):
        return {k: _first(v) for k, v in value.items()}
    return tuple(_first(v) for v in value) if isinstance(value, tuple) else value[0]
