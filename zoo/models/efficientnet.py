"""EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946), and its lite0 variant for small devices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.files import write
from zoo.weights.pretrained import Format, PretrainedNet, infer_head
from zoo.weights.renaming import invert, rename_keys

# Compound scaling: factors on width and depth, the resolution in pixels, and the dropout of the head.
VARIANTS = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "lite0": (1.0, 1.0, 224, 0.2),
}
Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "lite0"]
# The stages of b0: expansion, kernel, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM = 32


def scaled_width(channels: int, factor: float) -> int:
    """Round scaled channels to a multiple of 8, never more than 10 % down."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def scaled_depth(blocks: int, factor: float) -> int:
    return math.ceil(blocks * factor)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: to ceil(size / stride), what is odd goes to the right and below."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        (k, _), (s, _) = self.kernel_size, self.stride
        down, right = (max((math.ceil(n / s) - 1) * s + k - n, 0) for n in x.shape[-2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: its side.
        stride: its stride.
        groups: as many as channels for a depthwise convolution.
        act: whether there is an activation.
        lite: ReLU6 in place of SiLU, TensorFlow's padding and its constants of BatchNorm.
        slow_norm: the constants of BatchNorm that b5, b6 and b7 have, which are TensorFlow's too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        lite: bool = False,
        slow_norm: bool = False,
    ) -> None:
        # with stride 1 TensorFlow's padding is the usual one
        kind, padding = (SameConv2d, 0) if lite and stride > 1 else (nn.Conv2d, kernel // 2)
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01) if lite or slow_norm else nn.BatchNorm2d
        super().__init__(
            kind(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            norm(out_channels),
            *([nn.ReLU6(inplace=True) if lite else nn.SiLU(inplace=True)] if act else []),
        )


class MBConv(nn.Module):
    """Widen by 1x1, filter each channel, weigh the channels, narrow by 1x1; beside a shortcut where shapes agree.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        expansion: how many times wider the inside is.
        kernel: side of the depthwise convolution.
        stride: of the depthwise convolution.
        drop: probability of leaving the branch out, for each sample (Huang et al. 2016).
        style: ``lite`` and ``slow_norm`` of ConvNormAct.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, drop: float, **style: bool
    ) -> None:
        super().__init__()
        inner, layers = in_channels * expansion, []
        if expansion > 1:
            layers.append(ConvNormAct(in_channels, inner, 1, **style))
        layers.append(ConvNormAct(inner, inner, kernel, stride, groups=inner, **style))
        if not style["lite"]:
            layers.append(SqueezeExcitation(inner, max(1, in_channels // 4), activation=nn.SiLU))
        self.block = nn.Sequential(*layers, ConvNormAct(inner, out_channels, 1, act=False, **style))
        self.residual = stride == 1 and in_channels == out_channels
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return x + self.stochastic_depth(self.block(x)) if self.residual else self.block(x)


class EfficientNet(PretrainedNet):
    """A stem, seven stages of MBConv blocks, and a layer over the average of the image.

    Parameters are named as in torchvision.

    Args:
        in_channels: channels of the images.
        num_classes: number of outputs.
        variant: ``b0`` to ``b7``, or ``lite0``: without squeeze-excitation, with ReLU6 and TensorFlow's padding.
        width_mult: factor on the channels of b0; null takes the variant's.
        depth_mult: factor on the blocks of each stage of b0; null takes the variant's.
        dropout: share dropped before the last layer; null takes the variant's.
        stochastic_depth: probability of leaving out the last block; it rises evenly from the first.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout.
    """

    weights_enums = tuple(f"EfficientNet_{variant.capitalize()}_Weights" for variant in VARIANTS)
    input_conv, classifier_names, formats = "features.0.0.weight", ("classifier.1",), ("torchvision", "timm")

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
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if variant not in VARIANTS:
            raise ValueError(f"variant of an EfficientNet is one of {', '.join(VARIANTS)}, got {variant!r}")
        wide, deep, self.resolution, dropped = VARIANTS[variant]
        wide, deep = width_mult or wide, depth_mult or deep
        style = {"lite": variant == "lite0", "slow_norm": variant in ("b5", "b6", "b7")}
        channels, done = scaled_width(STEM, wide), 0
        total = sum(scaled_depth(stage[-1], deep) for stage in STAGES)
        features: list[nn.Module] = [ConvNormAct(in_channels, channels, 3, 2, **style)]
        for expansion, kernel, stride, out, blocks in STAGES:
            stage = []
            for i in range(scaled_depth(blocks, deep)):
                drop = stochastic_depth * done / total
                block = MBConv(channels, scaled_width(out, wide), expansion, kernel, 1 if i else stride, drop, **style)
                stage.append(block)
                channels, done = scaled_width(out, wide), done + 1
            features.append(nn.Sequential(*stage))
        features.append(ConvNormAct(channels, 4 * channels, 1, **style))
        self.features, self.avgpool = nn.Sequential(*features), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropped if dropout is None else dropout), classifier_head(head, 4 * channels, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    @property
    def weights_enum(self) -> str:
        return f"EfficientNet_{self.arguments['variant'].capitalize()}_Weights"

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if "_conv_stem.weight" in state:  # EfficientNet-PyTorch, where blocks are numbered through
            state = _by_stage(state)
        return rename_keys(state, _timm_names(state)) if "conv_stem.weight" in state else state

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        kernel = state["features.0.0.weight"]
        blocks = tuple(len({k.split(".")[2] for k in state if k.startswith(f"features.{i}.")}) for i in range(1, 8))
        lite, last = not any(".fc1." in k for k in state), state["features.8.0.weight"].shape[1]
        sizes = {"in_channels": kernel.shape[1], **infer_head(state, "classifier.1")}
        for variant, (wide, deep, *_) in VARIANTS.items():
            scaled = tuple(scaled_depth(stage[-1], deep) for stage in STAGES)
            if (lite, last, blocks) == (variant == "lite0", scaled_width(STAGES[-1][3], wide), scaled):
                return {**sizes, "variant": variant}
        return sizes

    def save_in_format(self, path: Path, format: Format) -> None:
        if format == "torchvision":
            return super().save_in_format(path, format)
        names = invert(_timm_names(self.state_dict()))
        write(path, rename_keys(self.state_dict(), names), arguments=self.arguments, preprocessing=self.preprocessing)


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """From timm's names to these, for the blocks that a state has by either."""
    table = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.8.0", "bn2": "features.8.1"}
    lite = not any(".se." in k or ".fc1." in k for k in state)
    found = {m.groups() for k in state if (m := re.match(r"(?:blocks|features)\.(\d+)\.(\d+)\.(?:conv|block)", k))}
    first = 0 if "conv_stem.weight" in state else 1
    for stage, block in found:
        number = int(stage) - first
        parts = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        if STAGES[number][0] == 1:  # not widened: its one 1x1 convolution is the last
            parts = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
        if not lite:
            parts.insert(-1, ("se.conv_reduce", "se.conv_expand"))
        for i, (one, other) in enumerate(parts):
            ours, inner = f"features.{number + 1}.{block}.block.{i}", ("fc1", "fc2") if one[:2] == "se" else ("0", "1")
            table |= {
                f"blocks.{number}.{block}.{name}": f"{ours}.{i}" for name, i in zip((one, other), inner, strict=True)
            }
    return {**table, "classifier": "classifier.1"}


def _by_stage(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of EfficientNet-PyTorch, which TensorFlow's weights were ported to, to timm's."""
    table = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    strides = [
        len(state[f"_blocks.{i}._project_conv.weight"])
        for i in range(sum(k.endswith("_project_conv.weight") for k in state))
    ]
    stage, block = -1, 0
    for i, out in enumerate(strides):
        stage, block = (stage, block + 1) if i and out == strides[i - 1] else (stage + 1, 0)
        ours, theirs = f"blocks.{stage}.{block}", f"_blocks.{i}"
        names = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_depthwise_conv": "conv_dw"}
        if f"{theirs}._expand_conv.weight" in state:
            names |= {
                "_expand_conv": "conv_pw",
                "_bn0": "bn1",
                "_bn1": "bn2",
                "_project_conv": "conv_pwl",
                "_bn2": "bn3",
            }
        else:
            names |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        table |= {f"{theirs}.{old}": f"{ours}.{new}" for old, new in names.items()}
    return rename_keys(state, table)


class EfficientNetClassifier(ImageClassifier):
    """An EfficientNet that tells images apart.

    Args:
        variant: ``b0`` to ``b7``, or ``lite0``: without squeeze-excitation, with ReLU6 and TensorFlow's padding.
        width_mult: factor on the channels of b0; null takes the variant's.
        depth_mult: factor on the blocks of each stage of b0; null takes the variant's.
        dropout: share dropped before the last layer; null takes the variant's.
        stochastic_depth: probability of leaving out the last block; it rises evenly from the first.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        variant: Variant = "b0",
        width_mult: float | None = None,
        depth_mult: float | None = None,
        dropout: float | None = None,
        stochastic_depth: float = 0.2,
        head: HeadKind = "linear",
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        net = EfficientNet(channels, classes, variant, width_mult, depth_mult, dropout, stochastic_depth, head)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
