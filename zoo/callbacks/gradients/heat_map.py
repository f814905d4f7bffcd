"""The picture of `GradientDiagnostics`: norms of gradients, layer by step."""

from pathlib import Path
from typing import Any

import numpy as np


def heat_map(layers: list[str], steps: list[int], history: list[list[float]]) -> Any:
    """A matplotlib figure of log10 of each layer's norm at each measurement; grey where it is 0 or not finite."""
    from matplotlib.figure import Figure

    norms = np.array(history, dtype=float).T
    norms[~((norms > 0) & np.isfinite(norms))] = np.nan
    longest = max(len(layer) for layer in layers)
    figure = Figure(figsize=(7 + 0.08 * longest, min(max(2.5, 1.2 + 0.22 * len(layers)), 12)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    image = axes.imshow(np.log10(norms), aspect="auto", interpolation="nearest", cmap="viridis")
    every = -(-len(layers) // 45)
    axes.set_yticks(range(0, len(layers), every), layers[::every], fontsize=8)
    columns = range(0, len(steps), -(-len(steps) // 9))
    axes.set_xticks(columns, [f"{steps[i]:,}" for i in columns])
    axes.set_xlabel("optimizer step")
    axes.set_title("Gradient norm by layer (input above, output below)")
    figure.colorbar(image, label="log10 of the norm")
    return figure


def log_figure(logger: Any, figure: Any, path: Path, step: int) -> None:
    """Hands the picture to a logger that takes pictures, as TensorBoard's and Weights & Biases' do."""
    if hasattr(logger, "log_image"):
        logger.log_image(path.stem, [str(path)])
    elif hasattr(experiment := getattr(logger, "experiment", None), "add_figure"):
        experiment.add_figure(path.stem, figure, step)  # type: ignore[union-attr]
