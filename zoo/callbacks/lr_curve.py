"""Result of a learning rate range test: the loss curve, the suggested rates, a CSV file and a plot."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.files import atomic_file

Mode = Literal["exponential", "linear"]
Suggestion = Literal["steepest", "valley", "minimum/10"]


@dataclass
class Sweep:
    """Losses of a learning rate sweep, one entry per step, and the rates suggested by them.

    Args:
        base: learning rate before the sweep.
        mode: spacing of the rates.
        lag: number of steps by which the smoothed loss lags behind the rates.
        lrs: learning rate of each step, as the module's main ``lr``.
        losses: loss of each step.
        smoothed: bias-corrected exponential moving average of the losses.
        suggestions: suggested rate by method; empty if the loss never fell.
        chosen: the suggestion taken, or None.
    """

    base: float
    mode: Mode = "exponential"
    lag: int = 0
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    suggestions: dict[str, float] = field(default_factory=dict)
    chosen: float | None = None

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Rates and smoothed losses, shifted by the lag so that each loss is at the rate that it belongs to."""
        # At least three points have to be left.
        lag = max(0, min(self.lag, len(self.lrs) - 3))
        end = len(self.lrs) - lag
        return self.lrs[:end], self.smoothed[lag:]


def lr_grid(first: float, last: float, steps: int, mode: Mode) -> list[float]:
    """Return learning rates from ``first`` to ``last``, evenly spaced on a logarithmic or on a linear scale.

    Args:
        first: lowest rate.
        last: highest rate.
        steps: number of rates.
        mode: ``exponential`` or ``linear``.
    """
    if mode == "exponential":
        return np.geomspace(first, last, steps).tolist()
    return np.linspace(first, last, steps).tolist()


def suggest(lrs: list[float], losses: list[float], mode: Mode = "exponential") -> dict[str, float]:
    """Return the rates suggested by a loss curve; all of them are before its minimum.

    Args:
        lrs: learning rates in ascending order.
        losses: (smoothed) loss at each of them.
        mode: spacing of the rates, and the scale on which slopes and midpoints are computed.

    Returns:
        ``steepest`` (where the loss falls fastest), ``valley`` (midway between the rates at which 10 % and 90 % of the
        fall are reached) and ``minimum/10`` (a tenth of the rate of the lowest loss).
    """
    x = np.asarray(lrs)
    if mode == "exponential":
        x = np.log(lrs)
    y = np.asarray(losses)
    minimum = int(y.argmin())
    descent = slice(0, max(minimum, 1) + 1)
    total_fall = max(y[0] - y[minimum], 1e-12)
    progress = (y[0] - y[descent]) / total_fall
    # The last point below 10 %, not the first above: before it the curve may oscillate.
    start = np.flatnonzero(progress < 0.1)[-1] + 1
    end = int((progress >= 0.9).argmax())
    middle = float(x[start] + x[max(start, end)]) / 2
    if mode == "exponential":
        middle = math.exp(middle)
    slopes = np.gradient(y, x)[descent]
    return {
        "steepest": lrs[int(slopes.argmin())],
        "valley": middle,
        "minimum/10": lrs[minimum] / 10,
    }


def loss_decreases(result: Sweep) -> bool:
    """Return whether the smoothed loss falls below its start by more than twice the noise of single batches."""
    num_first = max(1, len(result.losses) // 10)
    start = np.mean(result.losses[:num_first])
    residuals = np.subtract(result.losses, result.smoothed)
    noise = np.median(np.abs(residuals))
    return bool(start - min(result.smoothed) > 2 * noise)


def write_csv(result: Sweep, path: Path) -> None:
    """Write the sweep to a CSV file with the columns ``factor`` (rate over base rate), ``lr``, ``loss``, ``smoothed``.

    Args:
        result: the sweep.
        path: file to write.
    """
    with atomic_file(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["factor", "lr", "loss", "smoothed"])
        for lr, loss, smoothed in zip(result.lrs, result.losses, result.smoothed, strict=True):
            writer.writerow([lr / result.base, lr, loss, smoothed])


def plot_sweep(result: Sweep) -> Any:
    """Return a matplotlib figure of loss over learning rate, with the suggestions marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        result.lrs,
        result.losses,
        color="0.75",
        linewidth=1,
        label="loss",
    )
    axes.plot(
        *result.curve,
        color="tab:blue",
        linewidth=2,
        label="smoothed loss",
    )
    _mark_suggestions(axes, result)
    low = min(result.losses + result.smoothed)
    start = result.smoothed[0]
    span = max(start - low, 1e-3 * abs(start), 1e-12)
    # Without limits, the divergence at the end would flatten the rest of the curve.
    axes.set_ylim(low - 0.2 * span, start + 0.8 * span)
    if result.mode == "exponential":
        axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning rate range test")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def _mark_suggestions(axes: Any, result: Sweep) -> None:
    colors = ("tab:red", "tab:green", "tab:purple")
    for (name, lr), color in zip(result.suggestions.items(), colors, strict=False):
        height = float(np.interp(lr, *result.curve))
        label = f"{name}: {lr:.2g}"
        if lr == result.chosen:
            label += " (chosen)"
        axes.plot(
            lr,
            height,
            "o",
            color=color,
            markersize=8,
            label=label,
        )
        axes.axvline(lr, color=color, linewidth=1, linestyle=":")
