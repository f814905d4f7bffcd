"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), version 1.5: the stride is in the 3x3 convolution."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.head import HeadKind, classifier_head
from zoo.layers.init import zero_init_residual as zero_last_norms
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats.resnet import ResNetFormat
from zoo.weights.pretrained import PretrainedNet

# Number of blocks in each of the four stages. From 50 layers on, a block is a bottleneck.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
Depth = Literal[18, 34, 50, 101, 152]
Stem = Literal["imagenet", "cifar"]


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the image size at stride 1."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return the 1x1 projection of a shortcut that changes shape, or None for an identity shortcut."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        conv(in_channels, out_channels, 1, stride),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions.

    Args:
        in_channels: input channels.
        width: channels of both convolutions and of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu(y + x)


class Bottleneck(nn.Module):
    """Residual bottleneck block: a 1x1 convolution reduces the channels, a 3x3 one follows, a 1x1 one expands them.

    Args:
        in_channels: input channels.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: stride of the 3x3 convolution and of the shortcut. The paper strides in the first 1x1 convolution, which
            skips three of four pixels.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu(y + x)


class ResNet(PretrainedNet):
    """ResNet: a stem, four stages of residual blocks, global average pooling and a classifier head.

    Parameters have the names of torchvision, which timm uses too.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        depth: number of layers with weights: 18, 34, 50, 101 or 152.
        stem: ``imagenet`` downsamples the images by 4; ``cifar``, for images up to 32 pixels, does not downsample.
        width: channels of the 3x3 convolutions in the first stage; they double from stage to stage.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        zero_init_residual: initialize every residual branch to zero (Goyal et al. 2017).
    """

    weights_format = ResNetFormat(DEPTHS)
    classifier_names = ("fc",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 18,
        stem: Stem = "imagenet",
        width: int = 64,
        head: HeadKind = "linear",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if depth not in DEPTHS:
            raise ValueError(f"depth of a ResNet must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be imagenet or cifar, got {stem!r}")
        if stem == "imagenet":
            self.conv1 = conv(in_channels, width, 7, stride=2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv(in_channels, width, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        block = BasicBlock if depth < 50 else Bottleneck
        blocks = DEPTHS[depth]
        self.layer1 = make_stage(block, width, width, blocks[0], stride=1)
        self.layer2 = make_stage(block, width * block.expansion, 2 * width, blocks[1], stride=2)
        self.layer3 = make_stage(block, 2 * width * block.expansion, 4 * width, blocks[2], stride=2)
        self.layer4 = make_stage(block, 4 * width * block.expansion, 8 * width, blocks[3], stride=2)
        channels = 8 * width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = classifier_head(head, channels, num_classes)
        self._init_weights()
        if zero_init_residual:
            zero_last_norms(self)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x).flatten(1)  # (b, c)
        return self.fc(x)


def make_stage(
    block: type[BasicBlock | Bottleneck],
    in_channels: int,
    width: int,
    num_blocks: int,
    stride: int,
) -> nn.Sequential:
    """Return a stage of residual blocks; only the first block has the stride."""
    blocks = [block(in_channels, width, stride)]
    for _ in range(num_blocks - 1):
        blocks.append(block(width * block.expansion, width))
    return nn.Sequential(*blocks)


class ResNetClassifier(ImageClassifier):
    """ResNet image classifier.

    Args:
        depth: number of layers with weights.
        stem: ``imagenet`` downsamples the images by 4; ``cifar``, for images up to 32 pixels, does not downsample.
        width: channels of the 3x3 convolutions in the first stage; they double from stage to stage.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        zero_init_residual: initialize every residual branch to zero.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {"stem": "cifar", "width": 8}

    def __init__(
        self,
        depth: Depth = 18,
        stem: Stem = "imagenet",
        width: int = 64,
        head: HeadKind = "linear",
        zero_init_residual: bool = False,
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = ResNet(
            in_channels=channels,
            num_classes=classes,
            depth=depth,
            stem=stem,
            width=width,
            head=head,
            zero_init_residual=zero_init_residual,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
