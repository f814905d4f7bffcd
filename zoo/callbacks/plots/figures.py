"""Write matplotlib figures to files and hand them to loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.files import atomic_file

DPI = 110


def save_figure(figure: Any, path: Path, dpi: int = DPI) -> None:
    """Write a matplotlib figure as a PNG file, atomically: no half-written file is left by a crash.

    Args:
        figure: the figure.
        path: file to write; replaced if it exists.
        dpi: pixels per inch.
    """
    with atomic_file(path) as temporary:
        # The temporary name has no suffix from which matplotlib could infer the format.
        figure.savefig(temporary, dpi=dpi, format="png")


def log_figure(logger: Any, figure: Any, path: Path, step: int) -> None:
    """Log a figure to a logger that accepts images, such as TensorBoard or Weights & Biases; else do nothing.

    Args:
        logger: a Lightning logger.
        figure: the figure.
        path: file of the figure; its stem is the key.
        step: global step to log it at.
    """
    if hasattr(logger, "log_image"):
        logger.log_image(path.stem, [str(path)])
        return
    experiment = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):
        experiment.add_figure(path.stem, figure, step)  # type: ignore[union-attr]


def save_and_log_figure(trainer: Any, figure: Any, path: Path, dpi: int = DPI) -> None:
    """Write a figure to a PNG file and log it to every logger that accepts images.

    Args:
        trainer: the Lightning trainer.
        figure: the figure.
        path: file to write; its stem is the key in the loggers.
        dpi: pixels per inch.
    """
    save_figure(figure, path, dpi)
    for logger in trainer.loggers:
        log_figure(logger, figure, path, trainer.global_step)
