"""PCA plot of embeddings (Pearson 1901, https://doi.org/10.1080/14786440109462720)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.figures import save_and_log_figure

MAX_LEGEND = 20  # classes up to which each has a colour of its own and a legend entry


class EmbeddingPlot(L.Callback):
    """Plot the embeddings of samples in their first two principal components, coloured by class.

    After every validation and test, ``embeddings.png`` in the run folder is replaced and logged as ``embeddings`` to
    loggers that accept images. Batches have to be ``(inputs, labels)``: the embeddings are the first output of the
    layer in each batch that has one row per label. With several processes, only samples of rank 0 are plotted. Logs no
    metrics.

    Args:
        layer: name of the module whose output is plotted, such as ``net.features``; null for the LightningModule
            itself, that is, the output of its ``forward``.
        num_samples: maximum number of points, spread evenly over the batches.
        dirpath: output folder; null for the run folder.
    """

    def __init__(self, layer: str | None = None, num_samples: int = 2000, dirpath: str | None = None) -> None:
        if num_samples < 3:
            raise ValueError(f"num_samples={num_samples}: a plot needs at least 3")
        self.layer = layer
        self.num_samples = num_samples
        self.dirpath = dirpath
        self._folder = Path()
        self._points: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._output: Tensor | None = None
        self._hook: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # log_dir is a collective call, so it is read here and not where only rank 0 writes.
        self._folder = output_folder(trainer, self.dirpath)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        modules = dict(pl_module.named_modules())
        # The root module has the empty name.
        layer = modules.get(self.layer or "")
        if layer is None:
            top_level = [name for name in modules if name and name.count(".") < 2]
            raise ValueError(f"EmbeddingPlot: there is no layer {self.layer!r}; there are {', '.join(top_level)}")
        self._hook = layer.register_forward_hook(self._record_output)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._output = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self._hook is None:
            return
        labels = _batch_labels(batch)
        output = self._output
        if labels is None or output is None or len(output) != len(labels):
            where = self.layer or type(pl_module).__name__
            raise ValueError(f"EmbeddingPlot needs batches of (inputs, labels) and a row of {where} for each label")
        num_collected = sum(map(len, self._labels))
        if num_collected >= self.num_samples:
            return
        num_batches = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        # num_batches may be infinite: one sample per batch then.
        per_batch = max(1, self.num_samples // int(min(num_batches, self.num_samples)))
        points = output[:per_batch].flatten(1)  # (n, d)
        self._points.append(points.float().cpu())
        self._labels.append(labels[:per_batch].cpu())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._hook is not None and self._points:
            names = getattr(pl_module, "class_names", None)
            if not names:
                names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
            figure = plot_embeddings(torch.cat(self._points), torch.cat(self._labels), names)
            save_and_log_figure(trainer, figure, self._folder / "embeddings.png")
        self._reset()

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._reset()

    def _record_output(self, module: nn.Module, args: Any, output: Any) -> None:
        # Under DDP the LightningModule is also called for the whole step, with another output after the first.
        if self._output is None and isinstance(output, Tensor) and output.ndim > 1:
            self._output = output.detach()

    def _reset(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._points = []
        self._labels = []
        self._output = None


def _batch_labels(batch: Any) -> Int[Tensor, " b"] | None:
    """Return the class labels of a batch ``(inputs, labels, ...)``, or None where it has no such labels."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return None
    labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        return None
    return labels


def project_to_2d(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n 2"], list[float]]:
    """Project samples on their first two principal components.

    Args:
        x: one sample per row.

    Returns:
        The coordinates, and the explained variance ratio of each of the two components.
    """
    missing_columns = max(0, 2 - x.shape[1])
    x = F.pad(x.double(), (0, missing_columns))
    x = x - x.mean(0)
    _, singular_values, components = torch.linalg.svd(x, full_matrices=False)
    missing_rows = max(0, 2 - len(components))
    plane = F.pad(components, (0, 0, 0, missing_rows))[:2]  # (2, d)
    # The sign of a component is arbitrary; a fixed one makes plots of two epochs comparable.
    index = plane.abs().argmax(1, keepdim=True)
    largest = plane.gather(1, index)
    plane = torch.where(largest < 0, -plane, plane)
    variances = singular_values.square()
    ratios = variances / variances.sum().clamp(min=1e-300)
    coordinates = x @ plane.T  # (n, 2)
    return coordinates.float(), F.pad(ratios, (0, 2))[:2].tolist()


def plot_embeddings(points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], names: list[str] | None = None) -> Any:
    """Return a matplotlib scatter plot of embeddings in their first two principal components.

    Args:
        points: one embedding per row; rows with a non-finite value are left out.
        labels: class of each row.
        names: class names; null to use the class numbers.
    """
    from matplotlib.figure import Figure

    finite = points.isfinite().all(1)
    coordinates, ratios = project_to_2d(points[finite])
    labels = labels[finite]
    classes = labels.unique().tolist()
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    for label, colour in zip(classes, _class_colours(len(classes)), strict=True):
        own = coordinates[labels == label]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=12,
            alpha=0.7,
            linewidths=0,
            color=colour,
            label=_class_name(label, names),
        )
    if len(classes) <= MAX_LEGEND:
        figure.legend(loc="outside right upper", frameon=False, markerscale=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"first principal component ({ratios[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({ratios[1]:.0%})")
    axes.set_title(f"{len(coordinates):,} embeddings of dimension {points.shape[1]}")
    return figure


def _class_colours(num_classes: int) -> list[Any]:
    from matplotlib import colormaps

    if num_classes > MAX_LEGEND:
        # Too many for a qualitative palette: a continuous colour map, sampled evenly.
        colours = colormaps["turbo"]
        return [colours(i / num_classes) for i in range(num_classes)]
    name = "tab10" if num_classes <= 10 else "tab20"
    colours = colormaps[name]
    return [colours(i) for i in range(num_classes)]


def _class_name(label: int, names: list[str] | None) -> str:
    # Negative labels are ignored classes and must not index from the end.
    if names and 0 <= label < len(names):
        return names[label]
    return str(label)
