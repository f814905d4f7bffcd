"""Confusion matrix of an image classifier, and its misclassified images of highest loss."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.callbacks.plots.figures import log_figure, save_figure
from zoo.callbacks.plots.image_grid import denormalize, plot_image_grid

MAX_ANNOTATED = 25  # classes up to which the cells of a confusion matrix have room for their numbers
MAX_LABELLED = 60  # classes up to which every class has a tick label


@dataclass
class Misclassified:
    """Misclassified images, in descending order of the loss.

    Args:
        images: as they were input to the network, ``(n, c, h, w)``.
        losses: cross-entropy of each image.
        target: true classes.
        predicted: predicted classes.
        confidence: probabilities of the predicted classes.
    """

    images: Float[Tensor, "n c h w"]
    losses: Float[Tensor, " n"]
    target: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]

    def worst(self, n: int) -> Misclassified:
        """Return the ``n`` images of highest loss."""
        order = self.losses.argsort(descending=True, stable=True)[:n]
        return Misclassified(*(column[order] for column in vars(self).values()))

    def merge(self, other: Misclassified) -> Misclassified:
        """Return the images of both, without sorting them."""
        columns = zip(vars(self).values(), vars(other).values(), strict=True)
        return Misclassified(*map(torch.cat, columns))


class MisclassifiedImages(L.Callback):
    """Plot the confusion matrix and the misclassified images of highest loss after testing an image classifier.

    ``confusion_matrix.png`` and ``misclassified.png`` are written to the run folder of the checkpoint, and logged to
    loggers that accept images. Nothing is plotted where inputs are not images or samples have several labels. With
    several processes, the confusion matrix covers all samples, and the misclassified images are those of rank 0. Logs
    no metrics.

    Args:
        num_images: number of misclassified images to plot.
        dirpath: output folder; null for the run folder of the checkpoint.
    """

    __test__ = False  # the name does not make it a test case for pytest

    def __init__(self, num_images: int = 40, dirpath: str | None = None) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: a plot needs at least 1")
        self.num_images = num_images
        self.dirpath = dirpath
        self.written: list[Path] = []
        self._log_dir: str | None = None
        self._hook: Any = None
        self._logits: Tensor | None = None
        self._mistakes: Misclassified | None = None
        self._has_images = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # log_dir is a collective call, so it is read here and not where only rank 0 writes.
        self._log_dir = trainer.log_dir

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()
        self.written = []
        if hasattr(type(pl_module), "confusion_matrix"):
            self._hook = pl_module.register_forward_hook(self._record_logits)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._logits = None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self._hook is None or self._logits is None:
            return
        if not _is_image_batch(batch):
            return
        x, y = batch[:2]
        self._has_images = True
        mistakes = find_misclassified(x, self._logits, y.view(-1), self.num_images)
        if self._mistakes is not None:
            mistakes = self._mistakes.merge(mistakes).worst(self.num_images)
        self._mistakes = mistakes

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._has_images:
            matrix = getattr(pl_module, "confusion_matrix", None)
            if matrix is not None and trainer.is_global_zero:
                self._plot(trainer, pl_module, matrix)
        self._reset()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._reset()

    def _plot(self, trainer: L.Trainer, pl_module: L.LightningModule, matrix: Int[Tensor, "k k"]) -> None:
        numbers = map(str, range(len(matrix)))
        names = list(getattr(pl_module, "class_names", numbers))
        figures = {"confusion_matrix": plot_confusion_matrix(matrix.cpu(), names)}
        if self._mistakes is not None and len(self._mistakes.losses):
            data = trainer.datamodule  # type: ignore[attr-defined]
            figures["misclassified"] = plot_misclassified(self._mistakes, names, data)
        self._save_figures(trainer, figures)

    def _save_figures(self, trainer: L.Trainer, figures: dict[str, Any]) -> None:
        run_folder = run_folder_of(trainer.ckpt_path)
        folder = Path(self.dirpath or run_folder or self._log_dir or trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                path = folder / f"{name}.png"
                save_figure(figure, path)
                self.written.append(path)
        except OSError as error:
            # A warning only: the metrics of the test must not be lost over a plot.
            warnings.warn(f"no plots in {folder}: {error.strerror or error}", stacklevel=2)
            return
        for figure, path in zip(figures.values(), self.written, strict=True):
            for logger in trainer.loggers:
                log_figure(logger, figure, path, trainer.global_step)

    def _record_logits(self, module: nn.Module, args: Any, output: Any) -> None:
        # Under DDP the LightningModule is also called for the whole step, with another output after the first.
        if self._logits is None and isinstance(output, Tensor) and output.ndim == 2:
            self._logits = output.detach()

    def _reset(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._logits = None
        self._mistakes = None
        self._has_images = False


def _is_image_batch(batch: Any) -> bool:
    """Return whether a batch is ``(images, labels, ...)`` with one label per image."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return False
    x, y = batch[:2]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return False
    return y.numel() == len(x) and not y.is_floating_point()


def run_folder_of(checkpoint: Any) -> Path | None:
    """Return the run folder of a checkpoint path, or None where there is no local one."""
    if not checkpoint or "://" in str(checkpoint):
        return None
    folder = Path(checkpoint).parent
    if folder.name == "checkpoints":
        return folder.parent
    return folder


def find_misclassified(
    x: Float[Tensor, "b c h w"],
    logits: Float[Tensor, "b k"],
    y: Int[Tensor, " b"],
    num_images: int,
) -> Misclassified:
    """Return the misclassified images of a batch, in descending order of the loss.

    Args:
        x: images ``(b, c, h, w)``.
        logits: ``(b, k)``; a single column is the logit of class 1 of two.
        y: true classes ``(b,)``.
        num_images: maximum number of images.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)  # (b, 2)
    confidence, predicted = logits.softmax(1).max(1)
    losses = F.cross_entropy(logits, y, reduction="none")
    # A loss is never negative, so correct images come last; the cut may still hold some of them.
    ranking = losses.masked_fill(predicted == y, -1)
    order = ranking.argsort(descending=True, stable=True)[:num_images]
    order = order[predicted[order] != y[order]]
    return Misclassified(
        images=_select(x, order),
        losses=_select(losses, order),
        target=_select(y, order),
        predicted=_select(predicted, order),
        confidence=_select(confidence, order),
    )


def _select(column: Tensor, order: Int[Tensor, " n"]) -> Tensor:
    """Return the selected rows on the CPU, in float32 where they are floating point."""
    selected = column[order].detach()
    if selected.is_floating_point():
        selected = selected.float()
    return selected.cpu()


def plot_misclassified(misclassified: Misclassified, names: list[str], data: Any = None) -> Any:
    """Return a matplotlib figure of misclassified images, each titled with its true and its predicted class.

    Args:
        misclassified: images, classes and confidences.
        names: class names.
        data: the LightningDataModule, by whose statistics the normalisation is undone.
    """
    rows = zip(
        misclassified.target.tolist(),
        misclassified.predicted.tolist(),
        misclassified.confidence.tolist(),
        strict=True,
    )
    titles = []
    for target, predicted, confidence in rows:
        titles.append(f"{names[target]}\nnot {names[predicted]} ({confidence:.0%})")
    images = denormalize(misclassified.images, data)
    heading = "misclassified images of highest loss: true class, not predicted class (confidence)"
    return plot_image_grid(images, titles, heading)


def plot_confusion_matrix(counts: Int[Tensor, "k k"], names: list[str]) -> Any:
    """Return a matplotlib figure of a confusion matrix, with one row per true class, coloured by row-wise recall.

    Args:
        counts: number of samples by true class (row) and predicted class (column).
        names: class names.
    """
    from matplotlib.figure import Figure

    k = len(counts)
    # Classes without samples get a row of zeros.
    row_totals = counts.sum(1, keepdim=True).clamp(min=1)  # (k, 1)
    fractions = (counts / row_totals).numpy()
    side = min(max(4.0, 2 + 0.42 * k), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        fractions,
        vmin=0,
        vmax=1,
        cmap="Blues",
        interpolation="nearest",
    )
    _label_classes(axes, names, k)
    if k <= MAX_ANNOTATED:
        _annotate_cells(axes, counts, fractions)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    total = int(counts.sum())
    accuracy = float(counts.diagonal().sum()) / max(1, total)
    axes.set_title(f"accuracy {accuracy:.1%} on {total:,} samples")
    figure.colorbar(image, label="fraction of the true class", shrink=0.8)
    return figure


def _label_classes(axes: Any, names: list[str], k: int) -> None:
    every = math.ceil(k / MAX_LABELLED)
    ticks = range(0, k, every)
    labels = [name[:18] for name in names[::every]]
    fontsize = 8 if k <= MAX_ANNOTATED else 5
    rotation = 90 if k > 4 else 0
    axes.set_xticks(ticks, labels, rotation=rotation, fontsize=fontsize)
    axes.set_yticks(ticks, labels, fontsize=fontsize)


def _annotate_cells(axes: Any, counts: Int[Tensor, "k k"], fractions: Any) -> None:
    for i, row in enumerate(counts.tolist()):
        for j, count in enumerate(row):
            axes.text(
                j,
                i,
                f"{count}",
                ha="center",
                va="center",
                fontsize=7,
                color=_text_colour(count, fractions[i, j]),
            )


def _text_colour(count: int, fraction: float) -> str:
    """Return a colour that can be read on the cell; zeros are pale, so that the mistakes stand out."""
    if fraction > 0.5:
        return "white"
    if count:
        return "black"
    return "0.75"
