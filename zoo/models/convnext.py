"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats.convnext import ConvNeXtFormat
from zoo.weights.pretrained import PretrainedNet

NUM_STAGES = 4
NORM_EPS = 1e-6


class Size(NamedTuple):
    """Name in torchvision, number of blocks and channels of each stage."""

    name: str
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]


SIZES = {
    "T": Size("Tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
    "S": Size("Small", (3, 3, 27, 3), (96, 192, 384, 768)),
    "B": Size("Base", (3, 3, 27, 3), (128, 256, 512, 1024)),
    "L": Size("Large", (3, 3, 27, 3), (192, 384, 768, 1536)),
}


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels at each position of a feature map."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = x.permute(0, 2, 3, 1)  # (b, h, w, c)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt block: depthwise 7x7 convolution, layer normalization and MLP, with a residual connection.

    Args:
        dim: channels.
        layer_scale: initial value of the scale of the residual branch (Touvron et al. 2021).
        drop: stochastic depth: probability of skipping the residual branch, per sample (Huang et al. 2016).
    """

    def __init__(self, dim: int, layer_scale: float, drop: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 7, padding=3, groups=dim),
            Permute([0, 2, 3, 1]),  # (b, h, w, c)
            nn.LayerNorm(dim, NORM_EPS),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            Permute([0, 3, 1, 2]),  # (b, c, h, w)
        )
        self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), layer_scale))
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.layer_scale * self.block(x)
        return x + self.stochastic_depth(y)


class ConvNeXt(PretrainedNet):
    """ConvNeXt: a patchify stem, four stages of ConvNeXt blocks with downsampling between them, and a classifier head.

    Parameters have the names of torchvision.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        depths: number of blocks in each of the four stages.
        dims: channels of each stage.
        patch_size: kernel size and stride of the stem; the stages downsample by 8 more.
        layer_scale: initial value of the scale of the residual branches.
        stochastic_depth: probability of skipping the last block; it increases linearly from 0 at the first block.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
    """

    weights_format = ConvNeXtFormat({size.name: (size.depths, size.dims) for size in SIZES.values()})
    classifier_names = ("classifier.2",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depths: Sequence[int] = SIZES["T"].depths,
        dims: Sequence[int] = SIZES["T"].dims,
        patch_size: int = 4,
        layer_scale: float = 1e-6,
        stochastic_depth: float = 0.0,
        head: HeadKind = "linear",
    ) -> None:
        super().__init__()
        depths = list(depths)
        dims = list(dims)
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if len(depths) != NUM_STAGES or len(dims) != NUM_STAGES:
            raise ValueError(
                f"ConvNeXt has {NUM_STAGES} stages: give {NUM_STAGES} depths and dims, got {depths=}, {dims=}"
            )
        stem = nn.Sequential(
            nn.Conv2d(in_channels, dims[0], patch_size, stride=patch_size),
            LayerNorm2d(dims[0], NORM_EPS),
        )
        self.features = nn.Sequential(stem)
        num_blocks = sum(depths)
        block_index = 0
        for stage in range(NUM_STAGES):
            if stage > 0:
                self.features.append(downsample(dims[stage - 1], dims[stage]))
            blocks = nn.Sequential()
            for _ in range(depths[stage]):
                drop = stochastic_depth * block_index / max(1, num_blocks - 1)
                blocks.append(Block(dims[stage], layer_scale, drop))
                block_index += 1
            self.features.append(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(dims[-1], NORM_EPS),
            nn.Flatten(),
            classifier_head(head, dims[-1], num_classes),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.features(x)
        x = self.avgpool(x)  # (b, c, 1, 1)
        return self.classifier(x)


def downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return layer normalization and a strided convolution that halves height and width."""
    return nn.Sequential(
        LayerNorm2d(in_channels, NORM_EPS),
        nn.Conv2d(in_channels, out_channels, 2, stride=2),
    )


class ConvNeXtClassifier(ImageClassifier):
    """ConvNeXt image classifier.

    Args:
        size: depths and dims by name: T, S, B or L.
        patch_size: kernel size and stride of the stem; the stages downsample by 8 more. 1 for images of 8 to 32 pixels.
        stochastic_depth: probability of skipping the last block; it increases linearly from 0 at the first block.
        layer_scale: initial value of the scale of the residual branches.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        depths: number of blocks in each of the four stages; null takes those of ``size``.
        dims: channels of each stage; null takes those of ``size``.
        in_channels: channels of the images; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32], "patch_size": 1}

    def __init__(
        self,
        size: Literal["T", "S", "B", "L"] = "T",
        patch_size: int = 4,
        stochastic_depth: float = 0.0,
        layer_scale: float = 1e-6,
        head: HeadKind = "linear",
        depths: list[int] | None = None,
        dims: list[int] | None = None,
        in_channels: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, classes = require(self, in_channels=in_channels, num_classes=num_classes)
        preset = SIZES[size]
        net = ConvNeXt(
            in_channels=channels,
            num_classes=classes,
            depths=depths or preset.depths,
            dims=dims or preset.dims,
            patch_size=patch_size,
            layer_scale=layer_scale,
            stochastic_depth=stochastic_depth,
            head=head,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
