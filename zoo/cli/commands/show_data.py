"""``zoo show-data``: what is in the data, and what a network sees of it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.data.augment.chain import seeded
from zoo.data.base import BatchTensorDataset, DataModule, run_seed
from zoo.data.images.base import ImageData, stack_inputs
from zoo.data.images.latents import Latents
from zoo.data.sampler import mix_seeds

ROWS = 30  # classes up to which all are listed
SHOWN = 32  # images in the picture
SAMPLE = 2000  # inputs that a range is taken of


def show_data(data: L.LightningDataModule | None, path: Path) -> str:
    """Draw augmented training inputs into a file, where they are images, and return a text on the data.

    Args:
        data: the data.
        path: of the picture, ``.png``.
    """
    if data is None:
        raise ValueError("show-data needs data: give --data NAME, or a config with -c FILE")
    if path.suffix != ".png":
        raise ValueError(f"the picture is a .png file, got --out {path}")
    data = data.data if isinstance(data, Latents) else data  # shown as the images they are of
    data.prepare_data()
    data.setup("fit")
    splits = find_splits(data)
    about = getattr(data, "describe", None)
    parts = [head(data, splits), about() if about else "", balance(data, splits), *statistics(data, splits)]
    batch = first_batch(data)
    if batch is None:
        parts.append("no picture: the inputs are no images")
    else:
        from zoo.callbacks.plots.image_grid import denormalize, plot_image_grid, save_figure

        figure = plot_image_grid(
            denormalize(batch[0], data), titles(batch[1], class_names(data)), "inputs of the first step"
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_figure(figure, path)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
        parts.append(f"picture: {path}")
    return "\n\n".join(part for part in parts if part)


def find_splits(data: L.LightningDataModule) -> dict[str, Any]:
    """The datasets by name, of zoo's own data and of anyone's."""
    if isinstance(data, DataModule):
        return data.datasets
    found = {}
    for name in ("train", "val", "test"):
        hook = f"{name}_dataloader"
        if is_overridden(hook, data):
            if name == "test":
                data.setup("test")
            found[name] = getattr(getattr(data, hook)(), "dataset", None)
    return found


def head(data: L.LightningDataModule, splits: dict[str, Any]) -> str:
    sizes = [f"{len(part):,} {name}" for name, part in splits.items() if hasattr(part, "__len__")]
    names = class_names(data)
    classes = f", {len(names)} classes" if names else ""
    return f"{type(data).__name__}: {', '.join(sizes)}{classes}"


def class_names(data: Any) -> list[str] | None:
    names, count = getattr(data, "class_names", None), getattr(data, "num_classes", None)
    return list(names) if names else [str(i) for i in range(count)] if count else None


def labels_of(part: Any) -> Tensor | None:
    """The class of every sample, where that is known without reading the samples."""
    found = getattr(part, "labels", None)
    if found is None and isinstance(part, BatchTensorDataset) and len(part.tensors) > 1:
        found = part.tensors[1]
    whole = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
    return found if whole else None


def balance(data: L.LightningDataModule, splits: dict[str, Any]) -> str:
    """How many samples of each class are in each split."""
    from zoo.cli.trainer import columns

    names = class_names(data)
    known = {name: y for name, part in splits.items() if (y := labels_of(part)) is not None and len(y)}
    if not names or "train" not in known:
        return ""
    counts = {name: y.bincount(minlength=len(names)) for name, y in known.items()}
    share = counts["train"] / counts["train"].sum()
    order = list(range(len(names)))
    note = ""
    if len(names) > ROWS:
        order = counts["train"].argsort(descending=True, stable=True).tolist()
        order, note = [*order[:5], *order[-5:]], "\n  (the five largest and the five smallest)"
    rows = [{"class": names[i], **{name: int(c[i]) for name, c in counts.items()},
             "share of train": f"{float(share[i]):.1%}"} for i in order]  # fmt: skip
    return columns(rows) + note


def statistics(data: L.LightningDataModule, splits: dict[str, Any]) -> list[str]:
    """Sizes, ranges and augmentation of the inputs."""
    n = min(len(splits["train"]), SAMPLE) if hasattr(splits.get("train"), "__len__") else 0
    x = stack_inputs(splits["train"], torch.linspace(0, len(splits["train"]) - 1, n).long()) if n else None
    if not isinstance(x, Tensor):
        return []
    kind = "bytes" if x.dtype == torch.uint8 else str(x.dtype).removeprefix("torch.")
    lines = [f"inputs: {' x '.join(map(str, x.shape[1:]))}, {kind}, from {float(x.min()):.4g} to {float(x.max()):.4g}"]
    if isinstance(data, ImageData):
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (data.mean, data.std))
        lines.append(f"of each channel, white being 1: mean {mean}, deviation {std}")
        steps = [str(step) for step in data.augment]
        lines.append(f"augmentation: {', '.join(steps) if steps else 'none'}")
        lines.append(f"the network gets {data.in_channels} x {data.image_size} x {data.image_size}")
    elif x.is_floating_point():
        lines.append(f"mean {float(x.mean()):.4g}, deviation {float(x.std()):.4g}")
    return ["\n".join(lines)]


def first_batch(data: L.LightningDataModule) -> tuple[Tensor, Any] | None:
    """The images of the first training step, as the network gets them, with labels, texts or None; or None."""
    batch = next(iter(data.train_dataloader()), None)
    x, y, *_ = (*batch, None, None) if isinstance(batch, (tuple, list)) else (batch, None)
    told = isinstance(y, Tensor) or (isinstance(data, ImageData) and (y is None or isinstance(y[0], str)))
    if not isinstance(x, Tensor) or not told or x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    if isinstance(data, ImageData):
        with seeded(mix_seeds(run_seed(), 1, 0, 1), x.device):  # as in a run that starts now
            x, mixed = data.prepare(x, y, training=True)
        y = y if mixed is None else mixed
    return x[:SHOWN], None if y is None else y[:SHOWN]


def titles(y: Tensor | list[str] | None, names: list[str] | None) -> list[str]:
    """The class of each image, or those it is mixed of, or the beginning of its text."""
    if y is None or isinstance(y, list):
        return ["\n".join(textwrap.wrap(text, 20)[:3]) for text in y or [""] * SHOWN]

    def name(i: int) -> str:
        return names[i] if names and 0 <= i < len(names) else str(i)

    if y.ndim == 1:
        return [name(int(v)) if float(v).is_integer() else f"{float(v):.3g}" for v in y.tolist()]
    parts = [row.topk(min(2, len(row))) for row in y.float()]
    pairs = [list(zip(p.values.tolist(), p.indices.tolist(), strict=True)) for p in parts]
    return ["\n".join(f"{v:.0%} {name(i)}" if v < 1 else name(i) for v, i in row if v > 0.005) for row in pairs]
