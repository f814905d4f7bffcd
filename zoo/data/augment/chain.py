"""From a batch as it is stored to the input of a network: augmentation in training, normalisation always."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from zoo.data.augment.base import Augmentation, LabelMixing, as_float, to_bytes
from zoo.data.augment.colour import Normalize
from zoo.data.augment.crops import AlternatingFlip, RandomCrop, RandomResizedCrop


class Chain(nn.Module):
    """Apply augmentations in their order to training batches; others are only cropped to size and normalised.

    Bytes stay bytes while pixels are only moved, and become floats in [0, 1] for the rest. Transforms of torchvision
    are applied image by image, so that each has random numbers of its own, and any other module to the batch of floats.

    Args:
        steps: augmentations, in order.
        mean: mean of each channel, for a ``Normalize`` that has none.
        std: standard deviation of each channel, for a ``Normalize`` that has none.
        num_classes: number of classes, for augmentations that mix labels.
    """

    def __init__(
        self,
        steps: Sequence[nn.Module],
        mean: list[float],
        std: list[float],
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not any(isinstance(step, Normalize) for step in steps):
            steps = [*steps, Normalize()]
        self.steps = nn.ModuleList([_complete(step, mean, std) for step in steps])
        self.num_classes = num_classes

    def forward(
        self,
        x: Shaped[Tensor, "b c h w"],
        y: Any = None,
        training: bool = False,
        epoch: int = 0,
    ) -> tuple[Float[Tensor, "b c i j"], Any]:
        if not training:
            side = output_size(self.steps)
            if side is not None:
                x = centre(x, side)
        for step in self.steps:
            if training or isinstance(step, Normalize):
                x, y = self._apply_step(step, x, y, epoch)
        return as_float(x), y

    def _apply_step(self, step: nn.Module, x: Tensor, y: Any, epoch: int) -> tuple[Tensor, Any]:
        if type(step).__module__.startswith("torchvision."):
            return one_by_one(step, x), y
        if not isinstance(step, Normalize) and not getattr(step, "moves", False):
            x = as_float(x)
        if isinstance(step, AlternatingFlip):
            step.epoch = epoch
        if not isinstance(step, LabelMixing):
            return step(x), y
        if y is None or self.num_classes is None:
            raise ValueError(f"{type(step).__name__} mixes labels, and this data has none")
        if y.ndim == 1:
            y = probabilities(y, self.num_classes)
        return step(x, y.float())


def probabilities(y: Shaped[Tensor, " b"], classes: int) -> Float[Tensor, "b k"]:
    """Return class indices as one-hot rows."""
    zeros = torch.zeros(len(y), classes, device=y.device)
    return zeros.scatter_(1, y.unsqueeze(1), 1.0)


def one_by_one(transform: nn.Module, x: Tensor) -> Tensor:
    """Apply a transform to each image, so that each has random numbers of its own."""
    images = [transform(image) for image in x]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1:
        raise ValueError(f"{type(transform).__name__} gives images of different sizes: {sorted(sizes)[:2]}")
    return torch.stack([image.as_subclass(Tensor) for image in images])


def output_size(steps: Sequence[nn.Module] | nn.ModuleList) -> int | None:
    """Return height and width of the images after the last crop, or None where no step changes them."""
    size = None
    for step in steps:
        if isinstance(step, (RandomCrop, RandomResizedCrop)):
            size = step.size
    return size


def centre(x: Shaped[Tensor, "b c h w"], side: int) -> Shaped[Tensor, "b c s s"]:
    """Return the centre crop of the images, after enlarging those that are smaller."""
    if min(x.shape[2:]) < side:
        x = resize(x, side)
    height, width = x.shape[2:]
    top = (height - side) // 2
    left = (width - side) // 2
    return x[:, :, top : top + side, left : left + side]


def resize(x: Shaped[Tensor, "b c h w"], side: int) -> Shaped[Tensor, "b c i j"]:
    """Return images, of the same type, whose shorter side has this many pixels."""
    shorter = min(x.shape[2:])
    sides = [round(n * side / shorter) for n in x.shape[2:]]
    out = F.interpolate(x.float(), sides, mode="bilinear", antialias=True)
    if x.is_floating_point():
        return out
    return to_bytes(out)


class seeded:
    """Seed the random number generators of torch and Python within a ``with`` block, and restore them after it.

    Args:
        seed: of the generators.
        device: whose generator is seeded, besides that of the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.cuda = device if device.type == "cuda" else None

    def __enter__(self) -> None:
        self.torch_state = torch.get_rng_state()
        self.python_state = random.getstate()
        # torch.manual_seed also asks after every device there might be, which takes longer than a batch of digits.
        torch.default_generator.manual_seed(self.seed)
        random.seed(self.seed)
        if self.cuda is not None:
            self.cuda_state = torch.cuda.get_rng_state(self.cuda)
            with torch.cuda.device(self.cuda):
                torch.cuda.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.torch_state)
        random.setstate(self.python_state)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda_state, self.cuda)


def _complete(step: nn.Module, mean: list[float], std: list[float]) -> nn.Module:
    """Return a step, with mean and standard deviation of the data where it is a ``Normalize`` without its own."""
    name = type(step).__name__
    if name in ("MixUp", "CutMix") and not isinstance(step, Augmentation):
        raise ValueError(f"{type(step).__module__}.{name} needs labels; give {name} alone")
    if not isinstance(step, Normalize):
        return step
    if step.mean is not None:
        mean = step.mean
    if step.std is not None:
        std = step.std
    return Normalize(mean, std)
