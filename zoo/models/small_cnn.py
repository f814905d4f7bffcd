"""Small CNN (LeCun et al. 1998, https://doi.org/10.1109/5.726791; batch norm: Ioffe and Szegedy 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo import layers
from zoo.layers.build import LayerSpec
from zoo.tasks import Classifier, require

Head = Literal["pool", "flatten"]


class ConvBlock(nn.Sequential):
    """3x3 convolution that keeps the image size, normalization and activation.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        activation: activation of torch.nn by name.
        norm: normalization of torch.nn by name, or ``none``; only without one the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: LayerSpec = "ReLU",
        norm: LayerSpec = "BatchNorm2d",
    ) -> None:
        has_norm = norm != "none"
        block: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not has_norm),
        ]
        if has_norm:
            block.append(layers.norm(norm, out_channels))
        act = layers.activation(activation)
        if hasattr(act, "inplace"):
            act.inplace = True  # type: ignore[assignment]
        block.append(act)
        super().__init__(*block)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(x)


class SmallCNN(nn.Module):
    """Convolutional network: stages of convolution blocks with pooling between them, and an MLP classifier.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        stages: channels of the convolution blocks, one list per stage; pooling halves the image between stages.
        head: ``pool`` applies global average pooling before the classifier; ``flatten`` keeps all positions, with
            pooling after the last stage too, and needs ``image_size``.
        hidden: hidden size of the classifier.
        dropout: dropout probability before the last layer.
        activation: activation of torch.nn by name.
        norm: normalization in the blocks by name; ``none`` for none.
        pool: pooling layer of torch.nn: ``MaxPool2d`` or ``AvgPool2d``.
        image_size: side of the images in pixels, for ``flatten``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stages: Sequence[Sequence[int]] = ((32, 64), (128, 128), (256,)),
        head: Head = "pool",
        hidden: int = 128,
        dropout: float = 0.4,
        activation: LayerSpec = "ReLU",
        norm: LayerSpec = "BatchNorm2d",
        pool: LayerSpec = "MaxPool2d",
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = in_channels
        for i, stage in enumerate(stages):
            for out_channels in stage:
                features.append(ConvBlock(channels, out_channels, activation, norm))
                channels = out_channels
            is_last = i == len(stages) - 1
            if not is_last or head == "flatten":
                features.append(layers.build(pool, 2))
        if head == "pool":
            features.append(nn.AdaptiveAvgPool2d(1))
            num_features = channels
        else:
            side = pooled_size(image_size, len(stages))
            num_features = channels * side * side
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(num_features, hidden),
            layers.activation(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.features(x))


def pooled_size(image_size: int | None, num_stages: int) -> int:
    """Return the side of the feature map after one halving per stage.

    Raises:
        ValueError: nothing remains of the image, or its size is unknown.
    """
    side = (image_size or 0) >> num_stages
    if side < 1:
        raise ValueError(
            f"head flatten with {num_stages} stages needs images of {2**num_stages} pixels or more, "
            f"got image_size={image_size}"
        )
    return side


class SmallCNNClassifier(Classifier):
    """Small CNN image classifier.

    Args:
        stages: channels of the convolution blocks, one list per stage; pooling halves the image between stages.
        head: ``pool`` applies global average pooling before the classifier; ``flatten`` keeps all positions.
        hidden: hidden size of the classifier.
        dropout: dropout probability before the last layer.
        activation: activation of torch.nn by name.
        norm: normalization in the blocks (``BatchNorm2d``, ``GroupNorm``, ``InstanceNorm2d``); ``none`` for none.
        pool: ``MaxPool2d`` or ``AvgPool2d``.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels, needed by ``flatten``; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        stages: list[list[int]] = [[32, 64], [128, 128], [256]],
        head: Head = "pool",
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
        net = SmallCNN(
            in_channels=channels,
            num_classes=classes,
            stages=stages,
            head=head,
            hidden=hidden,
            dropout=dropout,
            activation=activation,
            norm=norm,
            pool=pool,
            image_size=image_size,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
