"""What a translator looks at (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, figure 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.gradients.heat_map import log_figure
from zoo.callbacks.output_folder import output_folder

Alignment = tuple[list[str], list[str], Float[Tensor, "t s"]]
"""Tokens of a source, those of its translation, and how the attention of each of these is shared out."""


class AttentionMaps(L.Callback):
    """Draw where a translator looks in the source while it writes each token of the translation.

    ``attention.png`` in the run folder is drawn anew after every validation and test, for the first samples, and handed
    to loggers that take pictures as ``attention``. Works with any module that has ``alignments(batch, samples)``, as
    ``Translator`` has. With several processes the first one draws its own samples. Logs no numbers.

    Args:
        num_samples: sources drawn.
        dirpath: folder of the picture; null is the run folder.
    """

    def __init__(self, num_samples: int = 4, dirpath: str | None = None) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: a plot needs at least 1")
        self.num_samples, self.dirpath = num_samples, dirpath
        self._folder = Path()
        self._alignments: list[Alignment] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # All processes have to ask for log_dir together, so not later, when only the first one draws.
        self._folder = output_folder(trainer, self.dirpath)
        if not hasattr(pl_module, "alignments"):
            raise ValueError(f"AttentionMaps draws translators, and {type(pl_module).__name__} is none")

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
        alignments, self._alignments = self._alignments, []
        if alignments and not trainer.sanity_checking:
            figure, path = plot_attention(alignments), self._folder / "attention.png"
            self._folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
            for logger in trainer.loggers:
                log_figure(logger, figure, path, trainer.global_step)

    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def plot_attention(alignments: list[Alignment]) -> Any:
    """A matplotlib figure with a map for each source: its tokens across, those of the translation down.

    Args:
        alignments: at least one.
    """
    from matplotlib.figure import Figure

    widths, heights = ([max(2, len(part[side])) for part in alignments] for side in (0, 1))
    columns = min(2, len(alignments))
    rows = -(-len(alignments) // columns)
    size = (min(24, 1 + 0.28 * columns * max(widths)), min(30, 0.8 + rows * (0.6 + 0.28 * max(heights))))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    image: Any = None
    for axes, (source, target, weights) in zip(panels, alignments, strict=False):
        image = axes.imshow(weights.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_xticks(
            range(len(source)), [_label(token) for token in source], rotation=90 if _needs_rotation(source) else 0
        )
        axes.set_yticks(range(len(target)), [_label(token) for token in target])
        axes.tick_params(length=0, labelsize=8, top=True, labeltop=True, bottom=False, labelbottom=False)
    for axes in panels[len(alignments) :]:
        axes.set_axis_off()
    figure.suptitle("Attention: the source across, its translation down", fontsize=10)
    figure.colorbar(image, ax=list(panels), label="share of the attention")
    return figure


def _label(token: str) -> str:
    """A token as a label; matplotlib would take dollar signs for mathematics, and a space would not be seen."""
    return "\u2423" if token == " " else token.replace("$", r"\$")


def _needs_rotation(tokens: list[str]) -> bool:
    return max(map(len, tokens)) > 2
