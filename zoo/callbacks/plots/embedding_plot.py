"""Embeddings in two dimensions (Pearson 1901, https://doi.org/10.1080/14786440109462720: principal components)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.callbacks.gradients.heat_map import log_figure
from zoo.callbacks.output_folder import output_folder


class EmbeddingPlot(L.Callback):
    """Draw what a module makes of the samples, in the two directions in which they differ most, coloured by class.

    ``embeddings.png`` in the run folder is drawn anew after every validation and test, and handed to loggers that take
    pictures as ``embeddings``. Works where a batch is ``(inputs, classes)``: points are the first output per batch that
    has a row for each class. With several processes the first one draws its own samples. Logs no numbers.

    Args:
        layer: name of the module whose output is drawn, such as ``net.features``; null is the LightningModule itself,
            so what its ``forward`` returns.
        num_samples: points at most, taken evenly from all batches.
        dirpath: folder of the picture; null is the run folder.
    """

    def __init__(self, layer: str | None = None, num_samples: int = 2000, dirpath: str | None = None) -> None:
        if num_samples < 3:
            raise ValueError(f"num_samples={num_samples}: a plot needs at least 3")
        self.layer, self.num_samples, self.dirpath = layer, num_samples, dirpath
        self._folder = Path()
        self._points: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._output: Tensor | None = None
        self._hook: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # All processes have to ask for log_dir together, so not later, when only the first one draws.
        self._folder = output_folder(trainer, self.dirpath)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        names = dict(pl_module.named_modules())
        if (self.layer or "") not in names:
            known = ", ".join(name for name in names if name and name.count(".") < 2)
            raise ValueError(f"EmbeddingPlot: there is no layer {self.layer!r}; there are {known}")
        self._hook = names[self.layer or ""].register_forward_hook(self._record_output)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._output = None

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self._hook is None:
            return
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if (
            not isinstance(labels, Tensor)
            or labels.ndim != 1
            or self._output is None
            or len(self._output) != len(labels)
        ):
            where = self.layer or type(pl_module).__name__
            raise ValueError(f"EmbeddingPlot needs batches of (inputs, classes) and a row of {where} for each class")
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        some = max(1, self.num_samples // int(min(sum(batches), self.num_samples)))
        if sum(map(len, self._labels)) < self.num_samples:
            self._points.append(self._output[:some].flatten(1).float().cpu())
            self._labels.append(labels[:some].cpu())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._hook is not None and self._points:
            names = getattr(pl_module, "class_names", None) or getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
            figure = plot_embeddings(torch.cat(self._points), torch.cat(self._labels), names)
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "embeddings.png"
            figure.savefig(path, dpi=110)
            for logger in trainer.loggers:
                log_figure(logger, figure, path, trainer.global_step)
        self._reset()

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._reset()

    def _record_output(self, module: nn.Module, args: Any, output: Any) -> None:
        # Under DDP the LightningModule is called for the whole step too, and returns something else.
        if self._output is None and isinstance(output, Tensor) and output.ndim > 1:
            self._output = output.detach()

    def _reset(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._points, self._labels, self._output = None, [], [], None


def project_to_2d(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n 2"], list[float]]:
    """Project on the two directions in which the samples differ most.

    Args:
        x: one sample a row.

    Returns:
        The coordinates, and which share of the variance each of the two holds.
    """
    x = F.pad(x.double(), (0, max(0, 2 - x.shape[1])))
    x = x - x.mean(0)
    _, lengths, directions = torch.linalg.svd(x, full_matrices=False)
    plane = F.pad(directions, (0, 0, 0, max(0, 2 - len(directions))))[:2]
    # A direction has no sign of its own; with one, pictures of two epochs can be compared.
    largest = plane.gather(1, plane.abs().argmax(1, keepdim=True))
    plane = torch.where(largest < 0, -plane, plane)
    shares = lengths.square() / lengths.square().sum().clamp(min=1e-300)
    return (x @ plane.T).float(), F.pad(shares, (0, 2))[:2].tolist()


def plot_embeddings(points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], names: list[str] | None = None) -> Any:
    """A matplotlib figure of the points in their principal plane.

    Args:
        points: one sample a row; those that are not finite are left out.
        labels: their classes.
        names: of the classes; null numbers them.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    finite = points.isfinite().all(1)
    xy, shares = project_to_2d(points[finite])
    labels = labels[finite]
    classes = labels.unique().tolist()
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"]
    for i, label in enumerate(classes):
        own, name = xy[labels == label], names[label] if names and 0 <= label < len(names) else str(label)
        colour = colours(i if len(classes) <= 20 else i / len(classes))
        axes.scatter(own[:, 0], own[:, 1], s=12, alpha=0.7, linewidths=0, color=colour, label=name)
    if len(classes) <= 20:
        figure.legend(loc="outside right upper", frameon=False, markerscale=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"first direction ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second direction ({shares[1]:.0%})")
    axes.set_title(f"{len(xy):,} embeddings of {points.shape[1]} numbers")
    return figure
