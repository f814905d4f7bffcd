"""Attention maps of sequence-to-sequence models (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, figure 3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.figures import save_and_log_figure

Alignment = tuple[list[str], list[str], Float[Tensor, "t s"]]
"""Source tokens, target tokens, and the attention weights of each target token over the source."""

# Inches of a figure: a cell of the map, the margin of a panel, and the largest figure.
CELL = 0.28
PANEL_MARGIN = 0.6
MAX_WIDTH = 24
MAX_HEIGHT = 30


class AttentionMaps(L.Callback):
    """Plot the cross-attention weights of a translation model as heat maps.

    After every validation and test, ``attention.png`` in the run folder is replaced by the maps of the first samples
    and logged as ``attention`` to loggers that accept images. Works with any module that has
    ``alignments(batch, num_samples)``, as ``Translator`` has. With several processes, only samples of rank 0 are
    plotted. Logs no metrics.

    Args:
        num_samples: number of source sequences to plot.
        dirpath: output folder; null for the run folder.
    """

    def __init__(self, num_samples: int = 4, dirpath: str | None = None) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: a plot needs at least 1")
        self.num_samples = num_samples
        self.dirpath = dirpath
        self._folder = Path()
        self._alignments: list[Alignment] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # log_dir is a collective call, so it is read here and not where only rank 0 writes.
        self._folder = output_folder(trainer, self.dirpath)
        if not hasattr(pl_module, "alignments"):
            raise ValueError(f"AttentionMaps plots translation models, and {type(pl_module).__name__} is not one")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
        **__: Any,
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            self._alignments = pl_module.alignments(batch, self.num_samples)  # type: ignore[operator]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        alignments = self._alignments
        self._alignments = []
        if not alignments or trainer.sanity_checking:
            return
        figure = plot_attention(alignments)
        save_and_log_figure(trainer, figure, self._folder / "attention.png")

    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def plot_attention(alignments: list[Alignment]) -> Any:
    """Return a matplotlib figure with one attention map per sample: source tokens on x, target tokens on y.

    Args:
        alignments: tokens and attention weights of each sample; at least one.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(alignments))
    rows = math.ceil(len(alignments) / columns)
    figure = Figure(figsize=_figure_size(alignments, rows, columns), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    image: Any = None
    for axes, alignment in zip(panels, alignments, strict=False):
        image = _draw_map(axes, alignment)
    # The grid may have one panel more than there are samples.
    for axes in panels[len(alignments) :]:
        axes.set_axis_off()
    figure.suptitle("Attention: source tokens (x) and target tokens (y)", fontsize=10)
    figure.colorbar(image, ax=list(panels), label="attention weight")
    return figure


def _figure_size(alignments: list[Alignment], rows: int, columns: int) -> tuple[float, float]:
    longest_source = 2
    longest_target = 2
    for source, target, _ in alignments:
        longest_source = max(longest_source, len(source))
        longest_target = max(longest_target, len(target))
    width = 1 + CELL * columns * longest_source
    height = 0.8 + rows * (PANEL_MARGIN + CELL * longest_target)
    return min(MAX_WIDTH, width), min(MAX_HEIGHT, height)


def _draw_map(axes: Any, alignment: Alignment) -> Any:
    """Draw one attention map into a panel; return the image, from which the colour bar is made."""
    source, target, weights = alignment
    image = axes.imshow(
        weights.numpy(),
        vmin=0,
        vmax=1,
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
    )
    source_labels = [_label(token) for token in source]
    target_labels = [_label(token) for token in target]
    # Labels of more than two characters would overlap their neighbours.
    rotation = 90 if max(map(len, source)) > 2 else 0
    axes.set_xticks(range(len(source)), source_labels, rotation=rotation)
    axes.set_yticks(range(len(target)), target_labels)
    axes.tick_params(
        length=0,
        labelsize=8,
        top=True,
        labeltop=True,
        bottom=False,
        labelbottom=False,
    )
    return image


def _label(token: str) -> str:
    """Return a token as a tick label: a space made visible, dollar signs escaped from matplotlib's math mode."""
    if token == " ":
        return "\u2423"
    return token.replace("$", r"\$")
