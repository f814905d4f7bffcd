"""What a learning rate sweep saw: the curve, the rates read off it, a table and a picture."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Mode = Literal["exponential", "linear"]
Suggestion = Literal["steepest", "valley", "minimum/10"]


@dataclass
class Sweep:
    """What a sweep saw: one entry a step, rates as the module's main `lr`. Without suggestions the loss never fell."""

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
        """Rates and smoothed losses; a running mean tells of the rates some steps back, so it is moved back to them."""
        lag = max(0, min(self.lag, len(self.lrs) - 3))
        return self.lrs[: len(self.lrs) - lag], self.smoothed[lag:]


def lr_grid(first: float, last: float, steps: int, mode: Mode) -> list[float]:
    space = np.geomspace if mode == "exponential" else np.linspace
    return space(first, last, steps).tolist()


def suggest(lrs: list[float], losses: list[float], mode: Mode = "exponential") -> dict[str, float]:
    """Three rates read off a (smoothed) curve over their logarithms, or, if linear, over themselves.

    All of them lie on the way down to the least loss.
    """
    x, y = np.log(lrs) if mode == "exponential" else np.asarray(lrs), np.asarray(losses)
    least = int(y.argmin())
    down = slice(0, max(least, 1) + 1)
    fallen = (y[0] - y[down]) / max(y[0] - y[least], 1e-12)
    # from where on a tenth stays done: before it the curve may waver
    start, end = np.flatnonzero(fallen < 0.1)[-1] + 1, int((fallen >= 0.9).argmax())
    middle = float(x[start] + x[max(start, end)]) / 2
    return {
        "steepest": lrs[int(np.gradient(y, x)[down].argmin())],
        "valley": math.exp(middle) if mode == "exponential" else middle,
        "minimum/10": lrs[least] / 10,
    }


def loss_decreases(result: Sweep) -> bool:
    """Whether the smoothed loss falls below where it began by more than the noise of single batches."""
    start = np.mean(result.losses[: max(1, len(result.losses) // 10)])
    noise = np.median(np.abs(np.subtract(result.losses, result.smoothed)))
    return bool(start - min(result.smoothed) > 2 * noise)


def write_csv(result: Sweep, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["factor", "lr", "loss", "smoothed"])
        for lr, loss, smoothed in zip(result.lrs, result.losses, result.smoothed, strict=True):
            writer.writerow([lr / result.base, lr, loss, smoothed])


def plot_sweep(result: Sweep) -> Any:
    """The curve as a matplotlib figure, suggestions marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.lrs, result.losses, color="0.75", linewidth=1, label="loss")
    axes.plot(*result.curve, color="tab:blue", linewidth=2, label="smoothed loss")
    colors = ("tab:red", "tab:green", "tab:purple")
    for (name, lr), color in zip(result.suggestions.items(), colors, strict=False):
        height = float(np.interp(lr, *result.curve))
        taken = " (chosen)" if lr == result.chosen else ""
        axes.plot(lr, height, "o", color=color, markersize=8, label=f"{name}: {lr:.2g}{taken}")
        axes.axvline(lr, color=color, linewidth=1, linestyle=":")
    low, start = min(result.losses + result.smoothed), result.smoothed[0]
    room = max(start - low, 1e-3 * abs(start), 1e-12)
    # the diverging end would flatten all the rest
    axes.set_ylim(low - 0.2 * room, start + 0.8 * room)
    if result.mode == "exponential":
        axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning rate range test")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure
