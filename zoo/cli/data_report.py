"""What ``zoo show-data`` prints and plots: splits, class balance, statistics, and inputs as the network gets them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.cli.tables import number_table
from zoo.data.augment.chain import seeded
from zoo.data.base import BatchTensorDataset, DataModule, run_seed
from zoo.data.images.base import ImageData, stack_inputs
from zoo.data.images.latents import Latents
from zoo.data.sampler import mix_seeds

MAX_CLASSES = 30  # of more classes only the largest and the smallest are listed
MAX_IMAGES = 32  # in the plot
MAX_SAMPLES = 2000  # inputs that statistics are computed from


def data_report(data: L.LightningDataModule, path: Path) -> str:
    """Return statistics of the data as text, and plot augmented training images to a file.

    Args:
        data: the data.
        path: file of the plot, ``.png``; nothing is written if the inputs are not images.
    """
    if path.suffix != ".png":
        raise ValueError(f"the plot is a .png file, got --out {path}")
    if isinstance(data, Latents):
        data = data.data  # the images that the latents are encoded from
    data.prepare_data()
    data.setup("fit")
    splits = find_splits(data)
    parts = [split_sizes(data, splits)]
    describe = getattr(data, "describe", None)
    if describe is not None:
        parts.append(describe())
    parts.append(class_balance(data, splits))
    parts.append(input_statistics(data, splits))
    batch = first_batch(data)
    if batch is None:
        parts.append("no plot: the inputs are not images")
    else:
        plot_batch(data, batch, path)
        parts.append(f"plot: {path}")
    return "\n\n".join(part for part in parts if part)


# Splits and classes ---------------------------------------------------------------------------------------------------


def find_splits(data: L.LightningDataModule) -> dict[str, Any]:
    """Return the datasets by split, of zoo's data and of any other LightningDataModule."""
    if isinstance(data, DataModule):
        return data.datasets
    splits = {}
    for name in ("train", "val", "test"):
        hook = f"{name}_dataloader"
        if not is_overridden(hook, data):
            continue
        if name == "test":
            data.setup("test")
        loader = getattr(data, hook)()
        splits[name] = getattr(loader, "dataset", None)
    return splits


def split_sizes(data: L.LightningDataModule, splits: dict[str, Any]) -> str:
    """Return the number of samples of each split and the number of classes."""
    sizes = []
    for name, split in splits.items():
        if hasattr(split, "__len__"):
            sizes.append(f"{len(split):,} {name}")
    text = f"{type(data).__name__}: {', '.join(sizes)}"
    names = class_names(data)
    if names:
        text += f", {len(names)} classes"
    return text


def class_names(data: Any) -> list[str] | None:
    """Return the names of the classes, or their indices, or None for data without classes."""
    names = getattr(data, "class_names", None)
    if names:
        return list(names)
    count = getattr(data, "num_classes", None)
    if count:
        return [str(i) for i in range(count)]
    return None


def labels_of(split: Any) -> Tensor | None:
    """Return the labels of a split, shape (n,), if they are known without reading the samples."""
    labels = getattr(split, "labels", None)
    if labels is None and isinstance(split, BatchTensorDataset) and len(split.tensors) > 1:
        labels = split.tensors[1]
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
        return labels
    return None


def class_balance(data: L.LightningDataModule, splits: dict[str, Any]) -> str:
    """Return a table with the number of samples of each class in each split; an empty text if unknown."""
    names = class_names(data)
    if not names:
        return ""
    counts = {}
    for split_name, split in splits.items():
        labels = labels_of(split)
        if labels is not None and len(labels):
            counts[split_name] = labels.bincount(minlength=len(names))
    if "train" not in counts:
        return ""
    fractions = counts["train"] / counts["train"].sum()
    order = list(range(len(names)))
    note = ""
    if len(names) > MAX_CLASSES:
        order = counts["train"].argsort(descending=True, stable=True).tolist()
        order = order[:5] + order[-5:]
        note = "\n  (the five largest and the five smallest)"
    rows = []
    for i in order:
        row: dict[str, Any] = {"class": names[i]}
        for split_name, count in counts.items():
            row[split_name] = int(count[i])
        row["% of train"] = f"{float(fractions[i]):.1%}"
        rows.append(row)
    return number_table(rows) + note


# Inputs ---------------------------------------------------------------------------------------------------------------


def input_statistics(data: L.LightningDataModule, splits: dict[str, Any]) -> str:
    """Return shape, dtype, range and augmentation of the inputs; an empty text if they are not tensors."""
    train: Any = splits.get("train")
    if not hasattr(train, "__len__") or not len(train):
        return ""
    count = min(len(train), MAX_SAMPLES)
    x = stack_inputs(train, torch.linspace(0, len(train) - 1, count).long())  # (count, ...)
    if not isinstance(x, Tensor):
        return ""
    shape = " x ".join(str(size) for size in x.shape[1:])
    dtype = str(x.dtype).removeprefix("torch.")
    lines = [f"inputs: {shape}, {dtype}, from {float(x.min()):.4g} to {float(x.max()):.4g}"]
    if isinstance(data, ImageData):
        lines.append(
            f"mean of each channel {_decimals(data.mean)}, standard deviation {_decimals(data.std)}, in [0, 1]"
        )
        augment = ", ".join(str(step) for step in data.augment)
        lines.append(f"augmentation: {augment or 'none'}")
        lines.append(f"the network gets {data.in_channels} x {data.image_size} x {data.image_size}")
    elif x.is_floating_point():
        lines.append(f"mean {float(x.mean()):.4g}, standard deviation {float(x.std()):.4g}")
    return "\n".join(lines)


def _decimals(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def first_batch(data: L.LightningDataModule) -> tuple[Tensor, Any] | None:
    """Return images of the first training step as the network gets them, with labels or texts.

    Returns:
        Images of shape (n, c, h, w), and labels, texts or None; or None if the inputs are not images.
    """
    batch = next(iter(data.train_dataloader()), None)
    x: Any = batch
    y: Any = None
    if isinstance(batch, (tuple, list)):
        x = batch[0] if batch else None
        y = batch[1] if len(batch) > 1 else None
    is_image = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)
    if not is_image:
        return None
    if isinstance(data, ImageData):
        if not (y is None or isinstance(y, Tensor) or isinstance(y[0], str)):
            return None
        with seeded(mix_seeds(run_seed(), 1, 0, 1), x.device):  # the random numbers of a run that starts now
            x, mixed = data.prepare(x, y, training=True)
        if mixed is not None:
            y = mixed
    elif not isinstance(y, Tensor):
        return None
    if y is not None:
        y = y[:MAX_IMAGES]
    return x[:MAX_IMAGES], y


# The plot -------------------------------------------------------------------------------------------------------------


def plot_batch(data: L.LightningDataModule, batch: tuple[Tensor, Any], path: Path) -> None:
    """Plot images with their classes or texts to a file."""
    from zoo.callbacks.plots.figures import save_figure
    from zoo.callbacks.plots.image_grid import denormalize, plot_image_grid

    images, targets = batch
    figure = plot_image_grid(
        denormalize(images, data),
        titles(targets, class_names(data)),
        "inputs of the first step",
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def titles(targets: Tensor | list[str] | None, names: list[str] | None) -> list[str]:
    """Return a title for each image.

    Args:
        targets: class indices or values of shape (n,), class probabilities of shape (n, k), texts, or None.
        names: of the classes.
    """
    if targets is None:
        return [""] * MAX_IMAGES
    if isinstance(targets, list):
        return ["\n".join(textwrap.wrap(text, 20)[:3]) for text in targets]
    if targets.ndim == 1:
        return [title_of_value(value, names) for value in targets.tolist()]
    return [title_of_mixture(row, names) for row in targets.float()]


def title_of_value(value: float, names: list[str] | None) -> str:
    """Return the name of a class, or a number as text."""
    if not float(value).is_integer():
        return f"{float(value):.3g}"
    index = int(value)
    if names and 0 <= index < len(names):
        return names[index]
    return str(index)


def title_of_mixture(probabilities: Tensor, names: list[str] | None) -> str:
    """Return the two most probable classes of a mixture such as MixUp makes, each with its percentage."""
    top = probabilities.topk(min(2, len(probabilities)))
    lines = []
    for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        if value <= 0.005:
            continue
        name = title_of_value(index, names)
        lines.append(f"{value:.0%} {name}" if value < 1 else name)
    return "\n".join(lines)
