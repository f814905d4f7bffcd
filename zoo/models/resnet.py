"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), version 1.5: the stride on the 3x3 convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.head import HeadKind, classifier_head
from zoo.layers.init import zero_init_residual as zero_residual_ends
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.pretrained import PretrainedNet, infer_head

# Blocks in each of the four stages. From 50 layers up a block is a bottleneck.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """A projection where the shape changes, else nothing: the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions, and of the output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, which lower and raise the width, beside a shortcut.

    Args:
        in_channels: channels of the input.
        width: channels within; the output has four times as many.
        stride: of the 3x3 convolution; in the paper it is of the first one, which leaves out three of four pixels.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1, self.bn1 = conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(PretrainedNet):
    """A stem, four stages of residual blocks, each but the first halving the image, and a layer over its average.

    Parameters are named as in torchvision, which timm does too.

    Args:
        in_channels: channels of the images.
        num_classes: number of outputs.
        depth: number of layers with weights: 18, 34, 50, 101 or 152.
        stem: ``imagenet`` divides the image by 4 before the first stage; ``cifar``, for 32 pixels and less, by 1.
        width: channels of the first stage's 3x3 convolutions; they double from stage to stage.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout.
        zero_init_residual: begin with every block as the identity (Goyal et al. 2017).
    """

    weights_enums = tuple(f"ResNet{depth}_Weights" for depth in DEPTHS)
    input_conv, classifier_names, formats = "conv1.weight", ("fc",), ("torchvision", "timm")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 18,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
        head: HeadKind = "linear",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if depth not in DEPTHS:
            raise ValueError(f"depth of a ResNet is one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be imagenet or cifar, got {stem!r}")
        self.conv1 = conv(in_channels, width, *((7, 2) if stem == "imagenet" else (3, 1)))
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        block = BasicBlock if depth < 50 else Bottleneck
        channels, stages = width, []
        for i, blocks in enumerate(DEPTHS[depth]):
            layers, inner = [], width * 2**i
            for j in range(blocks):
                layers.append(block(channels, inner, stride=2 if i > 0 and j == 0 else 1))
                channels = inner * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = classifier_head(head, channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            zero_residual_ends(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))

    @property
    def weights_enum(self) -> str | None:
        if (self.arguments["width"], self.arguments["stem"]) != (64, "imagenet"):
            return None
        return f"ResNet{self.arguments['depth']}_Weights"

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        kernel = state["conv1.weight"]
        blocks = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
        deep = "layer1.0.conv3.weight" in state
        depth = next((d for d, given in DEPTHS.items() if given == blocks and (d >= 50) == deep), None)
        stem = "imagenet" if kernel.shape[-1] == 7 else "cifar"
        sizes = {"in_channels": kernel.shape[1], "width": len(kernel), "stem": stem, **infer_head(state, "fc")}
        return sizes if depth is None else {**sizes, "depth": depth}


class ResNetClassifier(ImageClassifier):
    """A residual network that tells images apart.

    Args:
        depth: number of layers with weights.
        stem: ``imagenet`` divides the image by 4 before the first stage; ``cifar``, for 32 pixels and less, by 1.
        width: channels of the first stage's 3x3 convolutions; they double from stage to stage.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        zero_init_residual: begin with every block as the identity.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
        head: HeadKind = "linear",
        zero_init_residual: bool = False,
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = ResNet(channels, classes, depth, stem, width, head, zero_init_residual)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
