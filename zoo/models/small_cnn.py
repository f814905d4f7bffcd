"""Small convolutional network (LeCun et al. 1998, https://doi.org/10.1109/5.726791; BN: Ioffe and Szegedy 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.build import LayerSpec, activation, build, norm
from zoo.tasks import Classifier, require

_activation, _norm = activation, norm


class ConvBlock(nn.Sequential):
    """Convolution of 3x3 that keeps the size, normalisation, activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        activation: layer of torch.nn by name.
        norm: ``none``, or a normalisation of torch.nn by name; the convolution has a bias only with ``none``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, activation: LayerSpec = "ReLU", norm: LayerSpec = "BatchNorm2d"
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm == "none")
        act = _activation(activation)
        if hasattr(act, "inplace"):
            act.inplace = True  # type: ignore[assignment]
        super().__init__(conv, *([] if norm == "none" else [_norm(norm, out_channels)]), act)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(x)


class SmallCNN(nn.Module):
    """Stages of convolution blocks, pooling between them, and a classifier of one hidden layer.

    Args:
        in_channels: channels of the images.
        num_classes: number of outputs.
        stages: widths of the blocks, by stage; the image is halved between stages.
        head: ``pool`` averages over the image before the classifier, ``flatten`` keeps every position (needs
            ``image_size`` and one more halving).
        hidden: width of the classifier's hidden layer.
        dropout: share dropped before the last layer.
        activation: layer of torch.nn by name.
        norm: normalisation in the blocks; ``none`` for none.
        pool: layer of torch.nn that halves: ``MaxPool2d`` or ``AvgPool2d``.
        image_size: side of the images in pixels, for ``flatten``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stages: Sequence[Sequence[int]] = ((32, 64), (128, 128), (256,)),
        head: Literal["pool", "flatten"] = "pool",
        hidden: int = 128,
        dropout: float = 0.4,
        activation: LayerSpec = "ReLU",
        norm: LayerSpec = "BatchNorm2d",
        pool: LayerSpec = "MaxPool2d",
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for i, stage in enumerate(stages):
            for out in stage:
                layers.append(ConvBlock(width, out, activation, norm))
                width = out
            if i < len(stages) - 1 or head == "flatten":
                layers.append(build(pool, 2))
        if head == "flatten":
            side = (image_size or 0) >> len(stages)
            if side < 1:
                least = f"needs images of {2 ** len(stages)} pixels or more"
                raise ValueError(f"head flatten with {len(stages)} stages {least}, got image_size={image_size}")
            width *= side * side
        self.features = nn.Sequential(*layers, *([nn.AdaptiveAvgPool2d(1)] if head == "pool" else []))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width, hidden),
            _activation(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.features(x))


class SmallCNNClassifier(Classifier):
    """A small convolutional network that tells images apart.

    Args:
        stages: widths of the convolution blocks, by stage; the image is halved between stages.
        head: ``pool`` averages over the image before the classifier, ``flatten`` keeps every position.
        hidden: width of the classifier's hidden layer.
        dropout: share dropped before the last layer.
        activation: layer of torch.nn by name.
        norm: normalisation in the blocks (``BatchNorm2d``, ``GroupNorm``, ``InstanceNorm2d``); ``none`` for none.
        pool: ``MaxPool2d`` or ``AvgPool2d``.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels, needed by ``flatten``; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        stages: list[list[int]] = [[32, 64], [128, 128], [256]],
        head: Literal["pool", "flatten"] = "pool",
        hidden: int = 128,
        dropout: float = 0.4,
        activation: LayerSpec = "ReLU",
        norm: LayerSpec = "BatchNorm2d",
        pool: LayerSpec = "MaxPool2d",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = SmallCNN(channels, classes, stages, head, hidden, dropout, activation, norm, pool, image_size)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
