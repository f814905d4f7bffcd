"""Where a classifier of images goes wrong: which classes it takes for which, and the images it is most wrong about."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.callbacks.gradients.heat_map import log_figure
from zoo.callbacks.plots.image_grid import denormalize, plot_image_grid, save_figure

MAX_ANNOTATED = 25  # classes up to which the cells of a confusion matrix have room for their numbers
MAX_LABELLED = 60  # classes up to which every one is named


@dataclass
class Misclassified:
    """Images that were taken for another class, the worst first.

    Args:
        images: as the network got them.
        losses: cross-entropy of each.
        target: classes.
        predicted: classes they were taken for.
        confidence: probability of these.
    """

    images: Float[Tensor, "n c h w"]
    losses: Float[Tensor, " n"]
    target: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]

    def worst(self, n: int) -> Misclassified:
        order = self.losses.argsort(descending=True, stable=True)[:n]
        return Misclassified(*(part[order] for part in vars(self).values()))

    def merge(self, more: Misclassified) -> Misclassified:
        return Misclassified(*(torch.cat(both) for both in zip(vars(self).values(), vars(more).values(), strict=True)))


class MisclassifiedImages(L.Callback):
    """Draw, after a test of a classifier of images, its confusion matrix and the images it is most wrong about.

    ``confusion_matrix.png`` and ``misclassified.png`` go to the folder of the run that the checkpoint is from, and to
    loggers that
    take pictures. Nothing is drawn where inputs are no images or a sample has several labels. With several processes
    the matrix is of all samples, the mistakes are the first one's. Logs no numbers.

    Args:
        num_images: mistakes to show.
        dirpath: folder of the pictures; null is the run's.
    """

    __test__ = False  # for pytest, which takes the name for a test's

    def __init__(self, num_images: int = 40, dirpath: str | None = None) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images}: a plot needs at least 1")
        self.num_images, self.dirpath = num_images, dirpath
        self.written: list[Path] = []
        self._log_dir: str | None = None
        self._hook: Any = None
        self._logits: Tensor | None = None
        self._mistakes: Misclassified | None = None
        self._has_images = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._log_dir = trainer.log_dir  # all processes have to ask for it together

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()
        self.written = []
        if hasattr(type(pl_module), "confusion_matrix"):
            self._hook = pl_module.register_forward_hook(self._record_logits)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._logits = None

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self._hook is None or self._logits is None or not isinstance(batch, (tuple, list)) or len(batch) < 2:
            return
        x, y = batch[:2]
        if not (isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3) and isinstance(y, Tensor)):
            return
        if y.numel() != len(x) or y.is_floating_point():
            return
        self._has_images = True
        misclassified = find_misclassified(x, self._logits, y.view(-1), self.num_images)
        self._mistakes = (
            misclassified if self._mistakes is None else self._mistakes.merge(misclassified).worst(self.num_images)
        )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        matrix = getattr(pl_module, "confusion_matrix", None) if self._has_images else None
        if matrix is not None and trainer.is_global_zero:
            names = list(getattr(pl_module, "class_names", map(str, range(len(matrix)))))
            figures = {"confusion_matrix": plot_confusion_matrix(matrix.cpu(), names)}
            if self._mistakes is not None and len(self._mistakes.losses):
                data = trainer.datamodule  # type: ignore[attr-defined]
                figures["misclassified"] = plot_misclassified(self._mistakes, names, data)
            self._save_figures(trainer, figures)
        self._reset()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._reset()

    def _save_figures(self, trainer: L.Trainer, figures: dict[str, Any]) -> None:
        folder = Path(self.dirpath or run_folder_of(trainer.ckpt_path) or self._log_dir or trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                save_figure(figure, folder / f"{name}.png")
                self.written.append(folder / f"{name}.png")
        except OSError as error:  # no reason to lose the test's numbers
            warnings.warn(f"no plots in {folder}: {error.strerror or error}", stacklevel=2)
            return
        for (_, figure), path in zip(figures.items(), self.written, strict=True):
            for logger in trainer.loggers:
                log_figure(logger, figure, path, trainer.global_step)

    def _record_logits(self, module: nn.Module, args: Any, output: Any) -> None:
        # Under DDP the LightningModule is called for the whole step too, and returns something else.
        if self._logits is None and isinstance(output, Tensor) and output.ndim == 2:
            self._logits = output.detach()

    def _reset(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._logits, self._mistakes, self._has_images = None, None, None, False


def run_folder_of(checkpoint: Any) -> Path | None:
    """The folder of the run that a checkpoint is from, or None where there is none."""
    if not checkpoint or "://" in str(checkpoint):
        return None
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def find_misclassified(
    x: Float[Tensor, "b c h w"], logits: Float[Tensor, "b k"], y: Int[Tensor, " b"], num_images: int
) -> Misclassified:
    """The samples of a batch that are taken for another class, those with the highest loss.

    Args:
        x: images.
        logits: one column is that of the second class of two.
        y: classes.
        num_images: how many at most.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    confidence, predicted = logits.softmax(1).max(1)
    losses = F.cross_entropy(logits, y, reduction="none")
    order = losses.masked_fill(predicted == y, -1).argsort(descending=True, stable=True)[:num_images]
    order = order[predicted[order] != y[order]]
    return Misclassified(*(part[order].detach().float().cpu() if part.is_floating_point() else part[order].cpu()
                      for part in (x, losses, y, predicted, confidence)))  # fmt: skip


def plot_misclassified(misclassified: Misclassified, names: list[str], data: Any = None) -> Any:
    """A matplotlib figure of images with what they are and what they were taken for.

    Args:
        misclassified: the mistakes.
        names: of the classes.
        data: the LightningDataModule, by whose statistics the normalisation is undone.
    """
    rows = zip(
        misclassified.target.tolist(), misclassified.predicted.tolist(), misclassified.confidence.tolist(), strict=True
    )
    titles = [f"{names[target]}\nnot {names[predicted]} ({confidence:.0%})" for target, predicted, confidence in rows]
    return plot_image_grid(
        denormalize(misclassified.images, data), titles, "most wrong: what it is, not what it was taken for, how surely"
    )


def plot_confusion_matrix(counts: Int[Tensor, "k k"], names: list[str]) -> Any:
    """A matplotlib figure of a confusion matrix: a row a true class, coloured by the share of its samples.

    Args:
        counts: samples, by true class and predicted one.
        names: of the classes.
    """
    from matplotlib.figure import Figure

    k, total = len(counts), int(counts.sum())
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = min(max(4.0, 2 + 0.42 * k), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    every = 1 if k <= MAX_LABELLED else -(-k // MAX_LABELLED)
    size = 8 if k <= MAX_ANNOTATED else 5
    labels = [name[:18] for name in names[::every]]
    axes.set_xticks(range(0, k, every), labels, rotation=90 if k > 4 else 0, fontsize=size)
    axes.set_yticks(range(0, k, every), labels, fontsize=size)
    if k <= MAX_ANNOTATED:
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                colour = "white" if shares[i, j] > 0.5 else "black" if count else "0.75"
                axes.text(j, i, f"{count}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = float(counts.diagonal().sum()) / max(1, total)
    axes.set_title(f"{right:.1%} of {total:,} samples are right")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure
