"""VGG (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.pretrained import PretrainedNet, infer_head

# Convolutions in each of the five stages, by the number of layers with weights; the paper's columns A, B, D and E.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)  # of the stages, in units of the first one's


class VGG(PretrainedNet):
    """Five stages of 3x3 convolutions, each ending in a pooling that halves the image, and a perceptron.

    Parameters are named as in torchvision.

    Args:
        in_channels: channels of the images, which have 32 pixels or more a side.
        num_classes: number of outputs.
        depth: number of layers with weights: 11, 13, 16 or 19.
        batch_norm: normalise behind every convolution.
        width: channels of the first stage's convolutions; those of the last have eight times as many.
        pool: side of the map, in positions, that the perceptron sees; 1 suits images of 32 pixels.
        hidden: width of the perceptron's two hidden layers.
        dropout: share dropped behind each of them.
        head: its last layer: ``linear``, or ``mlp`` with one more hidden layer, of 256.
    """

    weights_enums = tuple(f"VGG{depth}{norm}_Weights" for depth in DEPTHS for norm in ("", "_BN"))
    input_conv, classifier_names = "features.0.weight", ("classifier.6", "classifier")

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
            raise ValueError(f"depth of a VGG is one of {', '.join(map(str, DEPTHS))}, got {depth}")
        layers: list[nn.Module] = []
        for factor, convolutions in zip(WIDTHS, DEPTHS[depth], strict=True):
            for _ in range(convolutions):
                norm = [nn.BatchNorm2d(factor * width)] if batch_norm else []
                layers += [nn.Conv2d(in_channels, factor * width, 3, padding=1), *norm, nn.ReLU(inplace=True)]
                in_channels = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            *(nn.Linear(in_channels * pool * pool, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            classifier_head(head, hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                # torchvision's 0.01 suits its 4,096 inputs; narrower layers would hardly start to learn with it
                nn.init.normal_(module.weight, 0, max(0.01, 0.64 / math.sqrt(module.in_features)))
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    @property
    def weights_enum(self) -> str:
        return f"VGG{self.arguments['depth']}{'_BN' if self.arguments['batch_norm'] else ''}_Weights"

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        kernels = [k for k, v in state.items() if k.startswith("features.") and v.ndim == 4]
        batch_norm = any(k.endswith("running_mean") for k in state)
        depth = {sum(stages): depth for depth, stages in DEPTHS.items()}.get(len(kernels))
        width, channels, *_ = state["features.0.weight"].shape
        sizes: dict[str, Any] = {"in_channels": channels, "width": width, "batch_norm": batch_norm}
        if (first := state.get("classifier.0.weight")) is not None:
            sizes |= {"hidden": len(first), "pool": math.isqrt(first.shape[1] // (WIDTHS[-1] * width))}
        return {**sizes, **({"depth": depth} if depth else {}), **infer_head(state, "classifier.6")}


class VGGClassifier(ImageClassifier):
    """A VGG network that tells images apart.

    Args:
        depth: number of layers with weights.
        batch_norm: normalise behind every convolution; without it the deep ones hardly start to learn.
        width: channels of the first stage's convolutions; those of the last have eight times as many.
        pool: side of the map that the perceptron sees; 7 for published weights, 1 for images of 32 pixels.
        hidden: width of the perceptron's two hidden layers; 4096 for published weights.
        dropout: share dropped behind each of them.
        head: its last layer: ``linear``, or ``mlp`` with one more hidden layer, of 256, ReLU and dropout 0.5.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels, 32 or more; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
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
                f"VGG halves images five times, so it needs 32 pixels or more, got image_size={image_size}"
            )
        net = VGG(channels, classes, depth, batch_norm, width, pool, hidden, dropout, head)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
