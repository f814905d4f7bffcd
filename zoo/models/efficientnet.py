"""EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946), and its lite0 variant for mobile devices."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats.efficientnet import TF_NORM_EPS, TORCH_NORM_EPS, EfficientNetFormat
from zoo.weights.pretrained import PretrainedNet

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "lite0"]
Padding = Literal["symmetric", "same"]


class Scaling(NamedTuple):
    """Compound scaling of a variant: factors on width and depth, image size in pixels, dropout of the head."""

    width_mult: float
    depth_mult: float
    resolution: int
    dropout: float


VARIANTS = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
    "lite0": Scaling(1.0, 1.0, 224, 0.2),
}


class StageSpec(NamedTuple):
    """One stage of b0."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    num_blocks: int


STAGES = (
    StageSpec(1, 3, 1, 16, 1),
    StageSpec(6, 3, 2, 24, 2),
    StageSpec(6, 5, 2, 40, 2),
    StageSpec(6, 3, 2, 80, 3),
    StageSpec(6, 5, 1, 112, 3),
    StageSpec(6, 5, 2, 192, 4),
    StageSpec(6, 3, 1, 320, 1),
)
STEM_CHANNELS = 32


def scale_width(channels: int, factor: float) -> int:
    """Return scaled channels, rounded to a multiple of 8 but never down by more than 10 %."""
    scaled = channels * factor
    rounded = int(scaled + 4) // 8 * 8
    rounded = max(8, rounded)
    if rounded < 0.9 * scaled:
        rounded += 8
    return rounded


def scale_depth(num_blocks: int, factor: float) -> int:
    """Return the scaled number of blocks, rounded up."""
    return math.ceil(num_blocks * factor)


def stage_shapes() -> dict[str, tuple[int, list[int]]]:
    """Return the channels of the last stage and the number of blocks of each stage, by variant."""
    shapes = {}
    for variant, scaling in VARIANTS.items():
        channels = scale_width(STAGES[-1].channels, scaling.width_mult)
        num_blocks = [scale_depth(spec.num_blocks, scaling.depth_mult) for spec in STAGES]
        shapes[variant] = (channels, num_blocks)
    return shapes


def default_style(variant: str) -> tuple[float, Padding]:
    """Return epsilon of the batch normalizations and padding of a variant, as torchvision's weights have them."""
    if variant == "lite0":  # ported from TensorFlow
        return TF_NORM_EPS, "same"
    if variant in ("b5", "b6", "b7"):
        return TF_NORM_EPS, "symmetric"
    return TORCH_NORM_EPS, "symmetric"


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output size ceil(size / stride), odd padding at right and bottom."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        top, bottom = self._padding(x.shape[-2])
        left, right = self._padding(x.shape[-1])
        return super().forward(F.pad(x, (left, right, top, bottom)))

    def _padding(self, size: int) -> tuple[int, int]:
        kernel_size = self.kernel_size[0]
        stride = self.stride[0]
        out_size = math.ceil(size / stride)
        total = max((out_size - 1) * stride + kernel_size - size, 0)
        return total // 2, total - total // 2


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalization and activation.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: kernel size of the convolution.
        stride: stride of the convolution.
        groups: groups of the convolution; as many as channels for a depthwise convolution.
        act: apply the activation.
        relu6: ReLU6 instead of SiLU.
        padding: ``symmetric``, or ``same`` as in TensorFlow.
        norm_eps: epsilon of the batch normalization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        relu6: bool = False,
        padding: Padding = "symmetric",
        norm_eps: float = TORCH_NORM_EPS,
    ) -> None:
        conv_type = nn.Conv2d
        margin = kernel_size // 2
        if padding == "same" and stride > 1:  # at stride 1 TensorFlow pads like torch
            conv_type = SameConv2d
            margin = 0
        conv = conv_type(in_channels, out_channels, kernel_size, stride, margin, groups=groups, bias=False)
        norm = nn.BatchNorm2d(out_channels, norm_eps)
        if norm_eps == TF_NORM_EPS:
            norm.momentum = 0.01
        layers = [conv, norm]
        if act:
            layers.append(nn.ReLU6(inplace=True) if relu6 else nn.SiLU(inplace=True))
        super().__init__(*layers)


class MBConv(nn.Module):
    """Mobile inverted bottleneck: 1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection.

    The block has a residual connection if input and output have the same shape.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        expansion: expansion ratio; the depthwise convolution has ``expansion * in_channels`` channels.
        kernel_size: kernel size of the depthwise convolution.
        stride: stride of the depthwise convolution.
        drop: stochastic depth: probability of skipping the residual branch, per sample (Huang et al. 2016).
        style: ``relu6``, ``padding`` and ``norm_eps`` of ConvNormAct; with ``relu6`` there is no squeeze-excitation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        kernel_size: int,
        stride: int,
        drop: float,
        **style: Any,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(ConvNormAct(in_channels, hidden, 1, **style))
        layers.append(ConvNormAct(hidden, hidden, kernel_size, stride, groups=hidden, **style))
        if not style["relu6"]:
            squeezed = max(1, in_channels // 4)
            layers.append(SqueezeExcitation(hidden, squeezed, activation=nn.SiLU))
        layers.append(ConvNormAct(hidden, out_channels, 1, act=False, **style))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.block(x)
        if not self.residual:
            return y
        return x + self.stochastic_depth(y)


class EfficientNet(PretrainedNet):
    """EfficientNet: a stem, seven stages of MBConv blocks, global average pooling and a classifier head.

    Parameters have the names of torchvision.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        variant: ``b0`` to ``b7``, or ``lite0``: without squeeze-excitation, with ReLU6 and TensorFlow's padding.
        width_mult: factor on the channels of b0; null takes the variant's.
        depth_mult: factor on the number of blocks in each stage of b0; null takes the variant's.
        dropout: dropout probability before the head; null takes the variant's.
        stochastic_depth: probability of skipping the last block; it increases linearly from 0 at the first block.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        norm_eps: epsilon of the batch normalizations; null takes the variant's, 1e-5 or 1e-3.
        padding: of convolutions with stride 2: ``symmetric``, or ``same`` as in weights from TensorFlow (timm's
            ``tf_efficientnet_*``); null takes the variant's.
    """

    weights_format = EfficientNetFormat(stage_shapes(), default_style)
    classifier_names = ("classifier.1",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        variant: Variant = "b0",
        width_mult: float | None = None,
        depth_mult: float | None = None,
        dropout: float | None = None,
        stochastic_depth: float = 0.2,
        head: HeadKind = "linear",
        norm_eps: float | None = None,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if variant not in VARIANTS:
            raise ValueError(f"variant of an EfficientNet must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if padding not in (None, "symmetric", "same"):
            raise ValueError(f"padding must be symmetric or same, got {padding!r}")
        scaling = VARIANTS[variant]
        width_mult = width_mult or scaling.width_mult
        depth_mult = depth_mult or scaling.depth_mult
        if dropout is None:
            dropout = scaling.dropout
        self.resolution = scaling.resolution
        default_eps, default_padding = default_style(variant)
        style = {
            "relu6": variant == "lite0",
            "padding": padding or default_padding,
            "norm_eps": norm_eps or default_eps,
        }

        channels = scale_width(STEM_CHANNELS, width_mult)
        features: list[nn.Module] = [ConvNormAct(in_channels, channels, 3, 2, **style)]
        total_blocks = sum(scale_depth(spec.num_blocks, depth_mult) for spec in STAGES)
        block_index = 0
        for spec in STAGES:
            out_channels = scale_width(spec.channels, width_mult)
            stage = nn.Sequential()
            for i in range(scale_depth(spec.num_blocks, depth_mult)):
                stride = spec.stride if i == 0 else 1
                drop = stochastic_depth * block_index / total_blocks
                block = MBConv(channels, out_channels, spec.expansion, spec.kernel_size, stride, drop, **style)
                stage.append(block)
                channels = out_channels
                block_index += 1
            features.append(stage)
        features.append(ConvNormAct(channels, 4 * channels, 1, **style))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            classifier_head(head, 4 * channels, num_classes),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.features(x)
        x = self.avgpool(x).flatten(1)  # (b, c)
        return self.classifier(x)


class EfficientNetClassifier(ImageClassifier):
    """EfficientNet image classifier.

    Args:
        variant: ``b0`` to ``b7``, or ``lite0``: without squeeze-excitation, with ReLU6 and TensorFlow's padding.
        width_mult: factor on the channels of b0; null takes the variant's.
        depth_mult: factor on the number of blocks in each stage of b0; null takes the variant's.
        dropout: dropout probability before the head; null takes the variant's.
        stochastic_depth: probability of skipping the last block; it increases linearly from 0 at the first block.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        norm_eps: epsilon of the batch normalizations; null takes the variant's, 1e-5 or 1e-3.
        padding: of convolutions with stride 2: ``symmetric``, or ``same`` as in weights from TensorFlow (timm's
            ``tf_efficientnet_*``); null takes the variant's.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {
        "width_mult": 0.25,
        "depth_mult": 0.3,
        "dropout": 0.0,
        "stochastic_depth": 0.0,
        "image_size": 64,
    }

    def __init__(
        self,
        variant: Variant = "b0",
        width_mult: float | None = None,
        depth_mult: float | None = None,
        dropout: float | None = None,
        stochastic_depth: float = 0.2,
        head: HeadKind = "linear",
        norm_eps: float | None = None,
        padding: Padding | None = None,
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = EfficientNet(
            in_channels=channels,
            num_classes=classes,
            variant=variant,
            width_mult=width_mult,
            depth_mult=depth_mult,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            head=head,
            norm_eps=norm_eps,
            padding=padding,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
