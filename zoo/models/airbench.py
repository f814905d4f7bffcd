"""The network of airbench94, for a fast 94 % on CIFAR-10 (Jordan 2024, https://arxiv.org/abs/2404.00498)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.tasks.base import require
from zoo.tasks.classification import Classifier


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation without a learnt scale, which forgets fast: a run has few steps."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


class ConvGroup(nn.Module):
    """Two 3x3 convolutions; the first one's output is halved before anything else is done to it.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.pool, self.activation = nn.MaxPool2d(2), nn.GELU()
        for conv in (self.conv1, self.conv2):  # as many filters as there are inputs begin by handing these on
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        return self.activation(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """Patches of 2x2 seen through whitening filters, three groups of convolutions, and a layer over the maxima.

    The filters of ``whiten`` are meant to be set from data and kept: ``zoo.callbacks.WhitenFirstLayer``.

    Args:
        in_channels: channels of the images, which have 9 pixels a side or more.
        num_classes: number of outputs.
        channels: channels of the three groups.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: Sequence[int] = (64, 256, 256)) -> None:
        super().__init__()
        filters = 2 * in_channels * 2 * 2  # one for each direction of a patch, and one for its opposite
        self.whiten = nn.Conv2d(in_channels, filters, 2)
        self.activation = nn.GELU()
        inputs = [filters, *channels]
        self.groups = nn.Sequential(*(ConvGroup(i, o) for i, o in zip(inputs, channels, strict=False)))
        self.pool = nn.AdaptiveMaxPool2d(1)  # over the 3x3 that 32 pixels leave
        self.head = nn.Linear(inputs[-1], num_classes, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.groups(self.activation(self.whiten(x)))
        return self.head(self.pool(x).flatten(1)) / 9


class AirbenchClassifier(Classifier):
    """The network of airbench94, for small images.

    Args:
        channels: channels of the three groups of convolutions.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        channels: list[int] = [64, 256, 256],
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        image_channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        super().__init__(net=Airbench(image_channels, classes, channels), num_classes=num_classes, **kwargs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if min(x.shape[2:]) < 9:
            raise ValueError(f"AirbenchClassifier takes images of 9 pixels a side or more, got {tuple(x.shape)}")
        return super().forward(x)
