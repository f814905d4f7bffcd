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

from zoo.callbacks.gradient_picture import show
from zoo.callbacks.image_grid import as_pixels, grid, save

NUMBERED = 25  # classes up to which the cells of a confusion matrix have room for their numbers
NAMED = 60  # classes up to which every one is named


@dataclass
class Mistakes:
    """Images that were taken for another class, the worst first.

    Args:
        images: as the network got them.
        losses: cross-entropy of each.
        true: classes.
        taken: classes they were taken for.
        sure: probability of these.
    """

    images: Float[Tensor, "n c h w"]
    losses: Float[Tensor, " n"]
    true: Int[Tensor, " n"]
    taken: Int[Tensor, " n"]
    sure: Float[Tensor, " n"]

    def worst(self, n: int) -> Mistakes:
        order = self.losses.argsort(descending=True, stable=True)[:n]
        return Mistakes(*(part[order] for part in vars(self).values()))

    def and_more(self, more: Mistakes) -> Mistakes:
        return Mistakes(*(torch.cat(both) for both in zip(vars(self).values(), vars(more).values(), strict=True)))


class MistakePictures(L.Callback):
    """Draw, after a test of a classifier of images, its confusion matrix and the images it is most wrong about.

    ``confusion.png`` and ``mistakes.png`` go to the folder of the run that the checkpoint is from, and to loggers that
    take pictures. Nothing is drawn where inputs are no images or a sample has several labels. With several processes
    the matrix is of all samples, the mistakes are the first one's. Logs no numbers.

    Args:
        worst: mistakes to show.
        dirpath: folder of the pictures; null is the run's.
    """

    __test__ = False  # for pytest, which takes the name for a test's

    def __init__(self, worst: int = 40, dirpath: str | None = None) -> None:
        if worst < 1:
            raise ValueError(f"worst={worst}: a picture needs at least 1")
        self.worst, self.dirpath = worst, dirpath
        self.written: list[Path] = []
        self._log_dir: str | None = None
        self._hook: Any = None
        self._seen: Tensor | None = None
        self._mistakes: Mistakes | None = None
        self._images = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._log_dir = trainer.log_dir  # all processes have to ask for it together

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        self.written = []
        if hasattr(type(pl_module), "confusion_matrix"):
            self._hook = pl_module.register_forward_hook(self._look)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._seen = None

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self._hook is None or self._seen is None or not isinstance(batch, (tuple, list)) or len(batch) < 2:
            return
        x, y = batch[:2]
        if not (isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3) and isinstance(y, Tensor)):
            return
        if y.numel() != len(x) or y.is_floating_point():
            return
        self._images = True
        found = mistakes(x, self._seen, y.view(-1), self.worst)
        self._mistakes = found if self._mistakes is None else self._mistakes.and_more(found).worst(self.worst)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        matrix = getattr(pl_module, "confusion_matrix", None) if self._images else None
        if matrix is not None and trainer.is_global_zero:
            names = list(getattr(pl_module, "class_names", map(str, range(len(matrix)))))
            figures = {"confusion": draw_confusion(matrix.cpu(), names)}
            if self._mistakes is not None and len(self._mistakes.losses):
                data = trainer.datamodule  # type: ignore[attr-defined]
                figures["mistakes"] = draw_mistakes(self._mistakes, names, data)
            self._keep(trainer, figures)
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _keep(self, trainer: L.Trainer, figures: dict[str, Any]) -> None:
        folder = Path(self.dirpath or run_of(trainer.ckpt_path) or self._log_dir or trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                save(figure, folder / f"{name}.png")
                self.written.append(folder / f"{name}.png")
        except OSError as error:  # no reason to lose the test's numbers
            warnings.warn(f"no pictures in {folder}: {error.strerror or error}", stacklevel=2)
            return
        for (_, figure), path in zip(figures.items(), self.written, strict=True):
            for logger in trainer.loggers:
                show(logger, figure, path, trainer.global_step)

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        # Under DDP the LightningModule is called for the whole step too, and returns something else.
        if self._seen is None and isinstance(output, Tensor) and output.ndim == 2:
            self._seen = output.detach()

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._seen, self._mistakes, self._images = None, None, None, False


def run_of(checkpoint: Any) -> Path | None:
    """The folder of the run that a checkpoint is from, or None where there is none."""
    if not checkpoint or "://" in str(checkpoint):
        return None
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def mistakes(x: Float[Tensor, "b c h w"], logits: Float[Tensor, "b k"], y: Int[Tensor, " b"], worst: int) -> Mistakes:
    """The samples of a batch that are taken for another class, those with the highest loss.

    Args:
        x: images.
        logits: one column is that of the second class of two.
        y: classes.
        worst: how many at most.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    sure, taken = logits.softmax(1).max(1)
    losses = F.cross_entropy(logits, y, reduction="none")
    order = losses.masked_fill(taken == y, -1).argsort(descending=True, stable=True)[:worst]
    order = order[taken[order] != y[order]]
    return Mistakes(*(part[order].detach().float().cpu() if part.is_floating_point() else part[order].cpu()
                      for part in (x, losses, y, taken, sure)))  # fmt: skip


def draw_mistakes(found: Mistakes, names: list[str], data: Any = None) -> Any:
    """A matplotlib figure of images with what they are and what they were taken for.

    Args:
        found: the mistakes.
        names: of the classes.
        data: the LightningDataModule, by whose statistics the normalisation is undone.
    """
    rows = zip(found.true.tolist(), found.taken.tolist(), found.sure.tolist(), strict=True)
    titles = [f"{names[true]}\nnot {names[taken]} ({sure:.0%})" for true, taken, sure in rows]
    return grid(as_pixels(found.images, data), titles, "most wrong: what it is, not what it was taken for, how surely")


def draw_confusion(counts: Int[Tensor, "k k"], names: list[str]) -> Any:
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
    every = 1 if k <= NAMED else -(-k // NAMED)
    size = 8 if k <= NUMBERED else 5
    labels = [name[:18] for name in names[::every]]
    axes.set_xticks(range(0, k, every), labels, rotation=90 if k > 4 else 0, fontsize=size)
    axes.set_yticks(range(0, k, every), labels, fontsize=size)
    if k <= NUMBERED:
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
