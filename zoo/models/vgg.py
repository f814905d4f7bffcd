"""VGG (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556)."""

from __future__ import annotations

import math
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats.vgg import VGGFormat
from zoo.weights.pretrained import PretrainedNet

# Number of convolutions in each of the five stages: columns A, B, D and E of the paper.
DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
Depth = Literal[11, 13, 16, 19]
# Channels of each stage, as multiples of those of the first.
WIDTH_FACTORS = (1, 2, 4, 8, 8)


class VGG(PretrainedNet):
    """VGG: five stages of 3x3 convolutions, each followed by max pooling, and an MLP classifier.

    Parameters have the names of torchvision.

    Args:
        in_channels: channels of the images, which are at least 32x32 pixels.
        num_classes: number of logits.
        depth: number of layers with weights: 11, 13, 16 or 19.
        batch_norm: apply batch normalization after every convolution.
        width: channels of the first stage; the last stage has eight times as many.
        pool: height and width of the feature map that the classifier gets; 1 suits images of 32 pixels.
        hidden: hidden size of the classifier's two hidden layers.
        dropout: dropout probability after each hidden layer.
        head: last layer of the classifier: ``linear``, or ``mlp`` with one more hidden layer of 256.
    """

    weights_format = VGGFormat(DEPTHS)
    # The classifier as a whole is replaced when its hidden size differs too.
    classifier_names = ("classifier.6", "classifier")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 16,
        batch_norm: bool = False,
        width: int = 64,
        pool: int = 7,
        hidden: int = 4096,
        dropout: float = 0.5,
        head: HeadKind = "linear",
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if depth not in DEPTHS:
            raise ValueError(f"depth of a VGG must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        layers: list[nn.Module] = []
        channels = in_channels
        for factor, num_convs in zip(WIDTH_FACTORS, DEPTHS[depth], strict=True):
            layers += make_stage(channels, factor * width, num_convs, batch_norm)
            channels = factor * width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Linear(channels * pool * pool, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            classifier_head(head, hidden, num_classes),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                # torchvision's constant 0.01 suits 4,096 inputs, but is too small for narrower layers to train.
                std = max(0.01, 0.64 / math.sqrt(module.in_features))
                nn.init.normal_(module.weight, 0, std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.features(x)
        x = self.avgpool(x).flatten(1)  # (b, c * pool * pool)
        return self.classifier(x)


def make_stage(in_channels: int, out_channels: int, num_convs: int, batch_norm: bool) -> list[nn.Module]:
    """Return the layers of a stage: 3x3 convolutions with ReLU, then max pooling that halves the feature map."""
    layers: list[nn.Module] = []
    channels = in_channels
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU(inplace=True))
        channels = out_channels
    layers.append(nn.MaxPool2d(2))
    return layers


class VGGClassifier(ImageClassifier):
    """VGG image classifier.

    Args:
        depth: number of layers with weights.
        batch_norm: apply batch normalization after every convolution; without it deep networks hardly start to train.
        width: channels of the first stage; the last stage has eight times as many.
        pool: height and width of the feature map that the classifier gets; 7 for published weights, 1 for images of 32
            pixels.
        hidden: hidden size of the classifier's two hidden layers; 4096 for published weights.
        dropout: dropout probability after each hidden layer.
        head: last layer of the classifier: ``linear``, or ``mlp`` with one more hidden layer of 256.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels, 32 or more; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {
        "depth": 11,
        "width": 16,
        "pool": 1,
        "hidden": 64,
        "dropout": 0.0,
        "lr": 3e-3,
        "image_size": 64,
    }

    def __init__(
        self,
        depth: Depth = 16,
        batch_norm: bool = True,
        width: int = 64,
        pool: int = 7,
        hidden: int = 4096,
        dropout: float = 0.5,
        head: HeadKind = "linear",
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        if image_size is not None and image_size < 32:
            raise ValueError(
                f"VGG downsamples images by 32, so it needs 32 pixels or more, got image_size={image_size}"
            )
        net = VGG(
            in_channels=channels,
            num_classes=classes,
            depth=depth,
            batch_norm=batch_norm,
            width=width,
            pool=pool,
            hidden=hidden,
            dropout=dropout,
            head=head,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
