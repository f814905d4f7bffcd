"""The denoising U-Net that may read a text (Rombach et al. 2022, https://arxiv.org/abs/2112.10752)."""

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
from zoo.weights.files import Weights
from zoo.weights.formats.diffusers import DiffusersNet
from zoo.weights.formats.diffusers_configs import parse_unet_config, unet_config

# By name: what fits images of 8 pixels, of 28 to 32, latents of 16 to 64, and Stable Diffusion's published weights.
PRESETS: dict[str, dict[str, Any]] = {
    "pixels-8": {"channels": (64, 128), "blocks": 1, "attention": (False, True), "head_dim": 32, "groups": 16},
    "pixels-32": {"channels": (64, 128, 128), "attention": (False, False, True), "head_dim": 64},
    "latents": {"channels": (128, 256, 384), "attention": (False, True, True), "head_dim": 64},
    "sd-1.5": {
        "in_channels": 4, "channels": (320, 640, 1280, 1280), "attention": (True, True, True, False), "heads": 8,
        "text_dim": 768,
    },
    "sd-2.1": {
        "in_channels": 4, "channels": (320, 640, 1280, 1280), "attention": (True, True, True, False), "head_dim": 64,
        "text_dim": 1024, "linear_projection": True,
    },
}  # fmt: skip


class DownBlock(Stage):
    """Blocks, each of whose outputs is kept for the way up, then half the resolution."""

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b e"], text: Float[Tensor, "b s d"] | None, again: bool
    ) -> list[Tensor]:
        kept = []
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, text, again)
            kept.append(x)
        return [*kept, self.resize(x)] if self.resizers else kept


class UpBlock(Stage):
    """Blocks, each of which takes back one output of the way down, then twice the resolution."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b c h w"],
        kept: list[Tensor],
        time: Float[Tensor, "b e"],
        text: Float[Tensor, "b s d"] | None,
        again: bool,
    ) -> Float[Tensor, "b o i j"]:
        for i in range(len(self.resnets)):
            x = self.block(i, torch.cat([x, kept.pop()], 1), time, text, again)
        return self.resize(x)


class TimeEmbedding(nn.Module):
    """The time as waves of many lengths, through a perceptron.

    Args:
        dim: number of waves.
        out_dim: width of the output.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1, self.linear_2 = nn.Linear(dim, out_dim), nn.Linear(out_dim, out_dim)

    def forward(self, t: Float[Tensor, " b"] | Int[Tensor, " b"]) -> Float[Tensor, "b e"]:
        return self.linear_2(F.silu(self.linear_1(sinusoidal_embedding(t, self.dim).to(self.linear_1.weight.dtype))))


def sinusoidal_embedding(t: Float[Tensor, " b"] | Int[Tensor, " b"], dim: int) -> Float[Tensor, "b e"]:
    """Cosines, then sines, of the time; wave lengths from 2 pi to 10,000 times that, in float32 or better."""
    t = t if t.dtype == torch.float64 else t.float()
    steps = torch.arange(dim // 2, dtype=t.dtype, device=t.device)
    angles = t[:, None] * torch.exp(-math.log(10000) * steps / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], 1)


class UNet(DiffusersNet):
    """Predicts what a denoising step needs (noise, velocity, ...) from a noisy image and its time.

    Parameters are named as in diffusers: with ``text_dim`` it is ``UNet2DConditionModel``, without it ``UNet2DModel``.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the image is halved between stages.
        out_channels: channels of the output; null is ``in_channels``.
        blocks: residual blocks in each stage (one more on the way up).
        attention: for each stage, whether attention follows its blocks; the middle always has it.
        heads: attention heads, the same number in every stage; null, with ``head_dim`` null too, is one.
        head_dim: width of a head, the same in every stage: instead of ``heads``.
        num_classes: number of classes to choose from, null for none; id ``num_classes`` means no choice.
        text_dim: width of the states of a text that attention reads; null for no text.
        groups: of the normalisations; divides every width.
        dropout: dropout probability in the residual blocks.
        linear_projection: keep the ends of the attention to text as linear layers (Stable Diffusion 2) or as
            convolutions of 1x1 (1).
    """

    part, presets = "unet", PRESETS
    activation_checkpointing: bool = False  # recompute the blocks in the backward pass

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
        _check(channels, attention, groups, heads, head_dim)
        self.num_classes, self.text_dim, self.factor = num_classes, text_dim, 2 ** (len(channels) - 1)
        time_dim = 4 * channels[0]

        def block(width: int, out: int) -> nn.Module:
            return ResBlock(width, out, time_dim, groups, 1e-5, dropout)

        def attend(width: int) -> nn.Module:
            n = heads or width // (head_dim or width)
            if text_dim is None:
                return SpatialSelfAttention(width, n, groups)
            return SpatialTransformer(width, n, text_dim, groups, linear_projection, dropout)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], time_dim)
        self.class_embedding = nn.Embedding(num_classes + 1, time_dim) if num_classes else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        kept, width, last = [channels[0]], channels[0], len(channels) - 1
        for i, out in enumerate(channels):
            resnets = [block(width if j == 0 else out, out) for j in range(blocks)]
            resize = {"downsamplers": Downsample(out)} if i < last else {}
            self.down_blocks.append(DownBlock(resnets, [attend(out) for _ in resnets if attention[i]], **resize))
            kept += [out] * (blocks + (i < last))
            width = out
        self.mid_block = Stage([block(width, width), block(width, width)], [attend(width)])
        for i, out in reversed(list(enumerate(channels))):
            resnets = [block((width if j == 0 else out) + kept.pop(), out) for j in range(blocks + 1)]
            resize = {"upsamplers": Upsample(out)} if i > 0 else {}
            self.up_blocks.append(UpBlock(resnets, [attend(out) for _ in resnets if attention[i]], **resize))
            width = out
        self.conv_norm_out = GroupNormSiLU(groups, channels[0], 1e-5)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        return parse_unet_config(weights)

    @classmethod
    def _infer_config(cls, weights: Weights) -> dict[str, Any]:
        found, state = super()._infer_config(weights), weights.state
        if "preset" not in weights.arguments or "conv_in.weight" not in state:
            return found
        # Those of a LatentDiffusion: null is what its preset says, and channels and classes are those of its data.
        given = {k: v for k, v in found.items() if v is not None}
        heads = {k: given.get(k) for k in ("heads", "head_dim")}
        sizes = {**PRESETS.get(weights.arguments["preset"], {}), **given, **(heads if any(heads.values()) else {})}
        texts = [k for k in state if k.endswith("attn2.to_k.weight")]
        return {
            **sizes, "in_channels": state["conv_in.weight"].shape[1],
            "num_classes": len(state[key]) - 1 if (key := "class_embedding.weight") in state else None,
            "text_dim": state[texts[0]].shape[1] if texts else None,
        }  # fmt: skip

    def config_json(self) -> dict[str, Any]:
        return unet_config(self.arguments)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"] | Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        text: Float[Tensor, "b s d"] | None = None,
    ) -> Float[Tensor, "b k h w"]:
        time = self._embed_conditions(x, t, labels, text)
        again = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        if x.device.type == "cpu":  # whose convolutions are faster so
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], time, text, again)
        x = self.mid_block(kept[-1], time, text, again)
        for up in self.up_blocks:
            x = up(x, kept, time, text, again)
        return self.conv_out(self.conv_norm_out(x))

    def _embed_conditions(
        self, x: Tensor, t: Tensor, labels: Tensor | None, text: Tensor | None
    ) -> Float[Tensor, "b e"]:
        """Time and class as one vector, ready for the blocks, after a look at whether inputs fit."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            n, sides = len(self.down_blocks), f"{x.shape[-2]}x{x.shape[-1]}"
            raise ValueError(f"a UNet of {n} stages needs sides divisible by {self.factor}, got {sides}")
        if (text is None) != (self.text_dim is None):
            has = "reads no text, but got some" if self.text_dim is None else "reads a text, but got none"
            raise ValueError(f"this UNet {has} (text_dim={self.text_dim})")
        vector = self.time_embedding(t)
        if self.class_embedding is not None:
            if labels is None:
                labels = t.new_full((len(x),), self.class_embedding.num_embeddings - 1, dtype=torch.long)
            vector = vector + self.class_embedding(labels)
        elif labels is not None:
            raise ValueError("this UNet knows no classes, but got labels (num_classes=null)")
        return F.silu(vector)  # as every block would


def _check(
    channels: Sequence[int], attention: Sequence[bool], groups: int, heads: int | None, head_dim: int | None
) -> None:
    if len(channels) != len(attention):
        raise ValueError(f"attention needs a value for each of the {len(channels)} stages, got {list(attention)}")
    if bad := [w for w in channels if w % groups]:
        raise ValueError(f"groups={groups} does not divide the width {bad[0]}")
    if heads and head_dim:
        raise ValueError(f"give heads or head_dim, not both: got heads={heads}, head_dim={head_dim}")
    unit = heads or head_dim or 1
    if bad := [w for w, a in zip(channels, [*attention[:-1], True], strict=True) if a and w % unit]:
        raise ValueError(f"{'heads' if heads else 'head_dim'}={unit} does not divide the width {bad[0]}")
