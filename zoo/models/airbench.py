"""airbench94, a CNN that reaches 94 % on CIFAR-10 in seconds (Jordan 2024, https://arxiv.org/abs/2404.00498)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.tasks.base import require
from zoo.tasks.classification import Classifier

# The whitening convolution and three poolings leave one pixel of this many.
MIN_PIXELS = 9
# Scales the logits of an untrained network down.
LOGIT_DIVISOR = 9


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalization with a frozen scale and a high momentum, since a run has few steps."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution whose first ``in_channels`` filters are initialized to the identity."""
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:in_channels])
    return layer


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, each with batch normalization and GELU; max pooling directly after the first convolution.

    Args:
        in_channels: input channels.
        width: channels of both convolutions.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.norm1 = batch_norm(width)
        self.conv2 = conv3x3(width, width)
        self.norm2 = batch_norm(width)
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.GELU()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = self.pool(self.conv1(x))
        x = self.activation(self.norm1(x))
        x = self.conv2(x)
        return self.activation(self.norm2(x))


class Airbench(nn.Module):
    """airbench94: a whitening convolution over 2x2 patches, three convolution groups, max pooling and a linear head.

    The filters of ``whiten`` are set from data and stay frozen: see ``zoo.callbacks.WhitenFirstLayer``.

    Args:
        in_channels: channels of the images, which are at least 9x9 pixels.
        num_classes: number of logits.
        channels: channels of the three groups.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: Sequence[int] = (64, 256, 256)) -> None:
        super().__init__()
        # One filter for each of the 4 * in_channels directions of a patch, and one for its negative.
        num_filters = 2 * in_channels * 2 * 2
        self.whiten = nn.Conv2d(in_channels, num_filters, 2)
        self.activation = nn.GELU()
        self.groups = nn.Sequential()
        width = num_filters
        for out_channels in channels:
            self.groups.append(ConvGroup(width, out_channels))
            width = out_channels
        # The paper's pooling covers the 3x3 positions that remain of 32 pixels.
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(width, num_classes, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.activation(self.whiten(x))
        x = self.groups(x)
        x = self.pool(x).flatten(1)  # (b, c)
        return self.head(x) / LOGIT_DIVISOR


class AirbenchClassifier(Classifier):
    """airbench94 image classifier, for small images.

    Args:
        channels: channels of the three convolution groups.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {"channels": [8, 16, 16], "lr": 0.1, "image_size": 16}

    def __init__(
        self,
        channels: list[int] = [64, 256, 256],
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        image_channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = Airbench(image_channels, classes, channels)
        super().__init__(net=net, num_classes=num_classes, **kwargs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if min(x.shape[2:]) < MIN_PIXELS:
            raise ValueError(f"AirbenchClassifier needs images of 9x9 pixels or more, got shape {tuple(x.shape)}")
        return super().forward(x)
