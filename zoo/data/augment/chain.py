"""From a batch as it is stored to what a network takes: augmentation in training, the same size and scale always."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from zoo.data.augment.base import Augmentation, LabelMixing, as_float
from zoo.data.augment.colour import Normalize
from zoo.data.augment.crops import AlternatingFlip, RandomCrop, RandomResizedCrop


class Chain(nn.Module):
    """Apply augmentations in their order; other data than that for training is only cut to size and normalised.

    Bytes stay bytes while pixels are only moved, and become floats in [0, 1] for the rest. Transforms of torchvision
    are applied image by image, so that each draws its own, and any other module to the batch of floats.

    Args:
        steps: augmentations, in order.
        mean: of each channel, for ``Normalize`` where it has none.
        std: likewise.
        num_classes: of labels that are mixed.
    """

    def __init__(
        self, steps: Sequence[nn.Module], mean: list[float], std: list[float], num_classes: int | None = None
    ) -> None:
        super().__init__()
        if not any(isinstance(step, Normalize) for step in steps):
            steps = [*steps, Normalize()]
        self.steps = nn.ModuleList([_complete(step, mean, std) for step in steps])
        self.num_classes = num_classes

    def forward(
        self, x: Shaped[Tensor, "b c h w"], y: Any = None, training: bool = False, epoch: int = 0
    ) -> tuple[Float[Tensor, "b c i j"], Any]:
        if not training:
            side = output_size(self.steps)
            x = x if side is None else centre(x, side)
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
        return step(x, y.float() if y.ndim > 1 else probabilities(y, self.num_classes))


def probabilities(y: Shaped[Tensor, " b"], classes: int) -> Float[Tensor, "b k"]:
    """Class numbers as rows of 0 and 1."""
    return torch.zeros(len(y), classes, device=y.device).scatter_(1, y.unsqueeze(1), 1.0)


def one_by_one(transform: nn.Module, x: Tensor) -> Tensor:
    """Apply a transform to each image, so that each has draws of its own."""
    images = [transform(image) for image in x]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1:
        raise ValueError(f"{type(transform).__name__} gives images of different sizes: {sorted(sizes)[:2]}")
    return torch.stack([image.as_subclass(Tensor) for image in images])


def output_size(steps: Sequence[nn.Module] | nn.ModuleList) -> int | None:
    """The side of the images behind the last crop, or None where nothing changes their size."""
    sizes = [step.size for step in steps if isinstance(step, (RandomCrop, RandomResizedCrop))]
    return sizes[-1] if sizes else None


def centre(x: Shaped[Tensor, "b c h w"], side: int) -> Shaped[Tensor, "b c s s"]:
    """Cut the square in the middle of the images; enlarge those that are smaller."""
    if min(x.shape[2:]) < side:
        x = resize(x, side)
    top, left = ((n - side) // 2 for n in x.shape[2:])
    return x[:, :, top : top + side, left : left + side]


def resize(x: Shaped[Tensor, "b c h w"], side: int) -> Shaped[Tensor, "b c i j"]:
    """Resize images so that the shorter side has as many pixels; what kind they are stays."""
    shorter = min(x.shape[2:])
    sides = [round(n * side / shorter) for n in x.shape[2:]]
    out = F.interpolate(x.float(), sides, mode="bilinear", antialias=True)
    return out if x.is_floating_point() else out.round_().clamp_(0, 255).byte()


class seeded:
    """Let torch's and Python's random numbers follow from a seed, and go on as before afterwards.

    Args:
        seed: decides what is drawn.
        device: on which to draw, besides the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.cuda = seed, device if device.type == "cuda" else None

    def __enter__(self) -> None:
        self.before = torch.get_rng_state(), random.getstate()
        # torch.manual_seed also asks after every device there might be, which takes longer than a batch of digits
        torch.default_generator.manual_seed(self.seed)
        random.seed(self.seed)
        if self.cuda is not None:
            self.on_device = torch.cuda.get_rng_state(self.cuda)
            with torch.cuda.device(self.cuda):
                torch.cuda.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.before[0])
        random.setstate(self.before[1])
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.on_device, self.cuda)


def _complete(step: nn.Module, mean: list[float], std: list[float]) -> nn.Module:
    if type(step).__name__ in ("MixUp", "CutMix") and not isinstance(step, Augmentation):
        raise ValueError(
            f"{type(step).__module__}.{type(step).__name__} needs labels; give {type(step).__name__} alone"
        )
    if not isinstance(step, Normalize):
        return step
    return Normalize(mean if step.mean is None else step.mean, std if step.std is None else step.std)
