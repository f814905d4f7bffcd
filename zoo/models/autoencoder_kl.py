"""Autoencoder with Gaussian latent images (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import say
from zoo.layers.image_blocks import Downsample, GroupNormSiLU, ResBlock, SpatialSelfAttention, Stage, Upsample
from zoo.tasks.autoencoder import Autoencoder
from zoo.tasks.base import require
from zoo.weights.files import Weights
from zoo.weights.folders import RenamedTensors
from zoo.weights.formats.diffusers import DiffusersNet
from zoo.weights.formats.diffusers_configs import parse_vae_config, vae_config

# By name: small images of 8 to 32 pixels, halved once; larger ones, halved twice; Stable Diffusion 1.x and 2.x.
PRESETS: dict[str, dict[str, Any]] = {
    "small-2": {"channels": (32, 64), "blocks": 1, "latent_channels": 4, "groups": 16},
    "small-4": {"channels": (64, 128, 128), "blocks": 1, "latent_channels": 4, "groups": 32},
    "sd": {"in_channels": 3, "channels": (128, 256, 512, 512), "blocks": 2, "latent_channels": 4, "scale": 0.18215},
}


@dataclass
class DiagonalGaussian:
    """Normal distributions, one for each number of the latent images.

    Args:
        mean: ``(b, c, h, w)``.
        logvar: logarithms of the variances, of the same shape.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
        """Draw latents; differentiable in mean and variance."""
        kind = {"device": self.mean.device, "dtype": self.mean.dtype}
        return self.mean + torch.exp(0.5 * self.logvar) * torch.randn(self.mean.shape, generator=generator, **kind)

    def kl(self) -> Float[Tensor, " b"]:
        """The divergence from the standard normal distribution, summed over each latent image."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class Coder(nn.Module):
    """What encoder and decoder share: a convolution, stages and a middle, a normalisation and a convolution."""

    mid_block: Stage

    def ends(self, in_channels: int, first: int, last: int, out_channels: int, groups: int) -> None:
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.conv_norm_out = GroupNormSiLU(groups, last, 1e-6)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def middle(self, width: int, groups: int) -> Stage:
        blocks: list[nn.Module] = [ResBlock(width, width, None, groups, 1e-6) for _ in range(2)]
        return Stage(blocks, [SpatialSelfAttention(width, 1, groups, 1e-6)])


class Encoder(Coder):
    """From images to means and variances.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the image is halved between stages.
        blocks: residual blocks in each stage.
        out_channels: channels of the output.
        groups: of the normalisations.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], blocks: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.ends(in_channels, channels[0], channels[-1], out_channels, groups)
        self.down_blocks = nn.ModuleList()
        before = [channels[0], *channels]
        for i, width in enumerate(channels):
            resnets = [ResBlock(before[i] if j == 0 else width, width, None, groups, 1e-6) for j in range(blocks)]
            resize = {"downsamplers": Downsample(width, symmetric=False)} if i < len(channels) - 1 else {}
            self.down_blocks.append(Stage(resnets, [], **resize))
        self.mid_block = self.middle(channels[-1], groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(Coder):
    """From latents to images.

    Args:
        in_channels: channels of the latents.
        channels: channels by stage, as in the encoder: the last is where the decoder begins.
        blocks: residual blocks in each stage (one more than in the encoder's).
        out_channels: channels of the images.
        groups: of the normalisations.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], blocks: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.ends(in_channels, channels[-1], channels[0], out_channels, groups)
        self.mid_block = self.middle(channels[-1], groups)
        self.up_blocks = nn.ModuleList()
        upward = [channels[-1], *reversed(channels)]
        for i, width in enumerate(upward[1:]):
            resnets = [ResBlock(upward[i] if j == 0 else width, width, None, groups, 1e-6) for j in range(blocks + 1)]
            resize = {"upsamplers": Upsample(width)} if i < len(channels) - 1 else {}
            self.up_blocks.append(Stage(resnets, [], **resize))

    def forward(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        z = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            z = stage(z)
        return self.conv_out(self.conv_norm_out(z))


class AutoencoderKL(DiffusersNet):
    """Images to smaller latent images and back.

    Parameters are named as in diffusers. ``scale``, saved with them, is what latents are multiplied by to have a
    deviation of about 1; ``encode`` and ``decode`` leave it to the caller.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the image is halved between stages, so 4 stages make latents of an eighth.
        blocks: residual blocks in each stage (one more in the decoder's).
        latent_channels: channels of the latents.
        groups: of the normalisations; divides every width.
        scale: what latents are multiplied by; measured at the end of training.
    """

    part, presets = "vae", PRESETS
    scale: Tensor

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (64, 128),
        blocks: int = 1,
        latent_channels: int = 4,
        groups: int = 32,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if bad := [w for w in channels if w % groups]:
            raise ValueError(f"groups={groups} does not divide the width {bad[0]}")
        self.factor, self.upcast = 2 ** (len(channels) - 1), False
        self.encoder = Encoder(in_channels, channels, blocks, 2 * latent_channels, groups)
        self.decoder = Decoder(latent_channels, channels, blocks, in_channels, groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        return parse_vae_config(weights)

    def config_json(self) -> dict[str, Any]:
        return vae_config(self.arguments, float(self.scale))

    def convert_state_dict(self, weights: Weights) -> Mapping[str, Tensor]:
        if any(".query." in name for name in weights.state):  # as diffusers had them before 2023
            return RenamedTensors(weights.state, {_today(name): name for name in weights.state})
        return weights.state

    def check(self, height: int, width: int) -> None:
        """Say so where images of this size cannot be halved as often as need be."""
        if height % self.factor or width % self.factor:
            sides = f"{height}x{width}"
            raise ValueError(f"the autoencoder halves to 1/{self.factor}, which images of {sides} are not divisible by")

    def encode(self, x: Float[Tensor, "b c h w"]) -> DiagonalGaussian:
        """The distribution of an image's latents."""
        self.check(*x.shape[2:])
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        """The image of latents."""
        if not self.upcast:
            x = self.decoder(self.post_quant_conv(z))
            if x.dtype != torch.float16 or torch.is_grad_enabled() or x.isfinite().all():
                return x
            # Some decoders' activations are larger than float16 can say: from here on this one works in float32.
            say("the decoder overflowed in float16: it goes on in float32")
            self.upcast = True
            self.decoder.float()
            self.post_quant_conv.float()
        with torch.autocast(z.device.type, enabled=False):
            return self.decoder(self.post_quant_conv(z.float()))

    def forward(
        self, x: Float[Tensor, "b c h w"], sample: bool = False
    ) -> tuple[Float[Tensor, "b c h w"], DiagonalGaussian]:
        """The image again, from the mean of its latents or a sample of them, and their distribution."""
        latents = self.encode(x)
        return self.decode(latents.sample() if sample else latents.mean), latents


def _today(name: str) -> str:
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


class AutoencoderKLModule(Autoencoder):
    """An autoencoder with Gaussian latents, the first of the two stages of latent diffusion.

    Args:
        channels: channels by stage; the image is halved between stages, so 2 stages make latents of half its size.
        blocks: residual blocks in each stage (one more in the decoder's).
        latent_channels: channels of the latents.
        groups: of the normalisations; divides every width.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels; null takes it from the data.
    """

    tiny = {"channels": [16, 32], "groups": 8, "latent_channels": 8}

    def __init__(
        self,
        channels: list[int] = [32, 64],
        blocks: int = 1,
        latent_channels: int = 4,
        groups: int = 16,
        in_channels: int | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        image_channels = require(self, in_channels=in_channels)
        net = AutoencoderKL(image_channels, channels, blocks, latent_channels, groups)
        if image_size is not None:
            net.check(image_size, image_size)
        super().__init__(net=net, **kwargs)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How zoo's data should normalise images: to [-1, 1], as diffusion takes them."""
        channels = self.net.arguments["in_channels"]  # type: ignore[index]
        return {"mean": [0.5] * channels, "std": [0.5] * channels}
