"""Heat map of gradient norms for ``GradientDiagnostics``: layers by steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MAX_LAYER_TICKS = 45
MAX_STEP_TICKS = 9


def heat_map(layers: list[str], steps: list[int], history: list[list[float]]) -> Any:
    """Return a matplotlib figure of the log10 gradient norm of each layer at each measurement.

    Args:
        layers: names of the layers, in order from input to output.
        steps: optimizer step of each measurement.
        history: one list per measurement, with one norm per layer; norms of 0 and non-finite ones are grey.
    """
    from matplotlib.figure import Figure

    norms = np.array(history, dtype=float).T  # (layers, steps)
    valid = (norms > 0) & np.isfinite(norms)
    norms[~valid] = np.nan
    longest = max(len(layer) for layer in layers)
    width = 7 + 0.08 * longest
    height = min(max(2.5, 1.2 + 0.22 * len(layers)), 12)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    # NaN cells are transparent, so this is the colour of the norms left out.
    axes.set_facecolor("0.8")
    image = axes.imshow(
        np.log10(norms),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
    )
    every_layer = math.ceil(len(layers) / MAX_LAYER_TICKS)
    axes.set_yticks(range(0, len(layers), every_layer), layers[::every_layer], fontsize=8)
    every_step = math.ceil(len(steps) / MAX_STEP_TICKS)
    columns = range(0, len(steps), every_step)
    axes.set_xticks(columns, [f"{steps[i]:,}" for i in columns])
    axes.set_xlabel("optimizer step")
    axes.set_title("Gradient norm by layer (input above, output below)")
    figure.colorbar(image, label="log10 of the norm")
    return figure
