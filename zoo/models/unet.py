"""U-Net denoiser with optional cross-attention to text (Rombach et al. 2022, https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.image_blocks import Downsample, GroupNormSiLU, ResBlock, SpatialSelfAttention, Stage, Upsample
from zoo.models.spatial_transformer import SpatialTransformer
from zoo.weights.formats.unet import UNetFormat
from zoo.weights.pretrained import PretrainedNet

# For images of 8 pixels, of 28 to 32 pixels, for latents of 16 to 64 positions, and for Stable Diffusion's weights.
PRESETS: dict[str, dict[str, Any]] = {
    "pixels-8": {"channels": (64, 128), "blocks": 1, "attention": (False, True), "head_dim": 32, "groups": 16},
    "pixels-32": {"channels": (64, 128, 128), "attention": (False, False, True), "head_dim": 64},
    "latents": {"channels": (128, 256, 384), "attention": (False, True, True), "head_dim": 64},
    "sd-1.5": {
        "in_channels": 4,
        "channels": (320, 640, 1280, 1280),
        "attention": (True, True, True, False),
        "heads": 8,
        "text_dim": 768,
    },
    "sd-2.1": {
        "in_channels": 4,
        "channels": (320, 640, 1280, 1280),
        "attention": (True, True, True, False),
        "head_dim": 64,
        "text_dim": 1024,
        "linear_projection": True,
    },
}


class DownBlock(Stage):
    """Stage of the encoder: residual blocks whose outputs are skip connections, then downsampling."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b e"],
        text: Float[Tensor, "b s d"] | None,
        recompute: bool,
    ) -> list[Tensor]:
        """Return the outputs of all blocks, and of the downsampling if there is one; the last is the stage's output."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, text, recompute)
            outputs.append(x)
        if self.resizers:
            outputs.append(self.resize(x))  # (b, o, h / 2, w / 2)
        return outputs


class UpBlock(Stage):
    """Stage of the decoder: residual blocks that each take one skip connection, then upsampling."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        time: Float[Tensor, "b e"],
        text: Float[Tensor, "b s d"] | None,
        recompute: bool,
    ) -> Float[Tensor, "b o i j"]:
        """Return the output of the stage; the skip connections that it takes are removed from the end of ``skips``."""
        for i in range(len(self.resnets)):
            x = torch.cat([x, skips.pop()], 1)  # (b, c + skip channels, h, w)
            x = self.block(i, x, time, text, recompute)
        return self.resize(x)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep, followed by an MLP.

    Args:
        dim: dimension of the sinusoidal embedding.
        out_dim: dimension of the output.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, t: Float[Tensor, " b"] | Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        waves = sinusoidal_embedding(t, self.dim).to(self.linear_1.weight.dtype)  # (b, dim)
        return self.linear_2(F.silu(self.linear_1(waves)))


def sinusoidal_embedding(t: Float[Tensor, " b"] | Int[Tensor, " b"], dim: int) -> Float[Tensor, "b e"]:
    """Sinusoidal timestep embedding: ``dim / 2`` cosines, then as many sines, in float32 or better.

    Wavelengths are from 2 pi to 10,000 times that.
    """
    if t.dtype != torch.float64:
        t = t.float()
    half = dim // 2
    index = torch.arange(half, dtype=t.dtype, device=t.device)
    frequencies = torch.exp(-math.log(10000) * index / half)
    angles = t[:, None] * frequencies  # (b, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], 1)


class UNet(PretrainedNet):
    """U-Net of denoising diffusion: predicts the noise, velocity or flow of noisy images at given timesteps.

    Parameters are named as in diffusers: with ``text_dim`` it is ``UNet2DConditionModel``, without it ``UNet2DModel``.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the resolution is halved between stages.
        out_channels: channels of the output; null for ``in_channels``.
        blocks: residual blocks per stage of the encoder; stages of the decoder have one more.
        attention: for each stage, whether attention follows its residual blocks; the middle stage always has it.
        heads: number of attention heads, the same in every stage; null, with ``head_dim`` null too, for one.
        head_dim: dimension of an attention head, the same in every stage, instead of ``heads``.
        num_classes: number of classes of a class-conditional model, null for none; the index ``num_classes`` stands for
            no class.
        text_dim: dimension of the text states for cross-attention; null for a model without text.
        groups: groups of the group normalizations; divides all numbers of channels.
        dropout: dropout probability in the residual blocks.
        linear_projection: linear instead of 1x1 convolutional projections around cross-attention, as in Stable
            Diffusion 2.
    """

    weights_format = UNetFormat(PRESETS)
    presets = PRESETS
    # Whether to recompute the activations of the blocks in the backward pass.
    activation_checkpointing: bool = False

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (64, 128, 256),
        out_channels: int | None = None,
        blocks: int = 2,
        attention: Sequence[bool] = (False, True, True),
        heads: int | None = None,
        head_dim: int | None = None,
        num_classes: int | None = None,
        text_dim: int | None = None,
        groups: int = 32,
        dropout: float = 0.0,
        linear_projection: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        if heads is None and head_dim is None and text_dim is not None:
            heads = 1
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_arguments(channels, attention, groups, heads, head_dim)
        self.num_classes = num_classes
        self.text_dim = text_dim
        self.factor = 2 ** (len(channels) - 1)
        time_dim = 4 * channels[0]

        def residual(width: int, out: int) -> nn.Module:
            return ResBlock(width, out, time_dim, groups, 1e-5, dropout)

        def attend(width: int) -> nn.Module:
            num_heads = heads or width // (head_dim or width)
            if text_dim is None:
                return SpatialSelfAttention(width, num_heads, groups)
            return SpatialTransformer(width, num_heads, text_dim, groups, linear_projection, dropout)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], time_dim)
        self.class_embedding = None
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + 1, time_dim)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        width = channels[0]
        # Channels of all skip connections, which the decoder takes from the end.
        skip_channels = [width]
        for i, out in enumerate(channels):
            is_last = i == len(channels) - 1
            resnets = []
            for _ in range(blocks):
                resnets.append(residual(width, out))
                skip_channels.append(out)
                width = out
            resize = {}
            if not is_last:
                resize["downsamplers"] = Downsample(out)
                skip_channels.append(out)
            attentions = [attend(out) for _ in resnets if attention[i]]
            self.down_blocks.append(DownBlock(resnets, attentions, **resize))
        middle = [residual(width, width), residual(width, width)]
        self.mid_block = Stage(middle, [attend(width)])
        for i, out in reversed(list(enumerate(channels))):
            resnets = []
            for _ in range(blocks + 1):
                # Each block takes one skip connection, concatenated to its input.
                resnets.append(residual(width + skip_channels.pop(), out))
                width = out
            resize = {}
            if i > 0:
                resize["upsamplers"] = Upsample(out)
            attentions = [attend(out) for _ in resnets if attention[i]]
            self.up_blocks.append(UpBlock(resnets, attentions, **resize))
        self.conv_norm_out = GroupNormSiLU(groups, channels[0], 1e-5)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"] | Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        text: Float[Tensor, "b s d"] | None = None,
    ) -> Float[Tensor, "b k h w"]:
        self._check_inputs(x, labels, text)
        embedding = self._embed_conditions(t, labels)  # (b, 4 * channels[0])
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        if x.device.type == "cpu":
            # Convolutions on a CPU are faster with this memory layout.
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)  # (b, channels[0], h, w)
        skips = [x]
        for down in self.down_blocks:
            skips += down(skips[-1], embedding, text, recompute)
        x = self.mid_block(skips[-1], embedding, text, recompute)
        for up in self.up_blocks:
            x = up(x, skips, embedding, text, recompute)
        return self.conv_out(self.conv_norm_out(x))

    def _embed_conditions(self, t: Tensor, labels: Tensor | None) -> Float[Tensor, "b e"]:
        """Return the sum of the embeddings of time and class, after the activation that all residual blocks apply."""
        embedding = self.time_embedding(t)
        if self.class_embedding is not None:
            if labels is None:
                no_class = self.class_embedding.num_embeddings - 1
                labels = t.new_full((len(t),), no_class, dtype=torch.long)
            embedding = embedding + self.class_embedding(labels)
        return F.silu(embedding)

    def _check_inputs(self, x: Tensor, labels: Tensor | None, text: Tensor | None) -> None:
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width must be divisible by {self.factor} for a UNet with {len(self.down_blocks)} stages, "
                f"got {height}x{width}"
            )
        if self.text_dim is None and text is not None:
            raise ValueError("this UNet has no cross-attention (text_dim=null), but got text states")
        if self.text_dim is not None and text is None:
            raise ValueError(f"this UNet needs text states (text_dim={self.text_dim}), but got none")
        if self.class_embedding is None and labels is not None:
            raise ValueError("this UNet is not class-conditional (num_classes=null), but got labels")


def check_arguments(
    channels: Sequence[int],
    attention: Sequence[bool],
    groups: int,
    heads: int | None,
    head_dim: int | None,
) -> None:
    """Raise a ValueError where the arguments of a ``UNet`` do not go together."""
    if len(channels) != len(attention):
        raise ValueError(f"attention needs {len(channels)} values, one per stage, got {list(attention)}")
    for width in channels:
        if width % groups:
            raise ValueError(f"groups={groups} does not divide the {width} channels of a stage")
    if heads and head_dim:
        raise ValueError(f"give heads or head_dim, not both: got heads={heads}, head_dim={head_dim}")
    name = "head_dim"
    divisor = head_dim or 1
    if heads:
        name = "heads"
        divisor = heads
    # The middle stage has attention and the channels of the last one.
    has_attention = [*attention[:-1], True]
    for width, attends in zip(channels, has_attention, strict=True):
        if attends and width % divisor:
            raise ValueError(f"{name}={divisor} does not divide the {width} channels of a stage")
