"""Autoencoder with Gaussian latent images, a VAE (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import say
from zoo.layers.image_blocks import Downsample, GroupNormSiLU, ResBlock, SpatialSelfAttention, Stage, Upsample
from zoo.tasks.autoencoder import Autoencoder
from zoo.tasks.base import require
from zoo.weights.formats.autoencoder_kl import AutoencoderKLFormat
from zoo.weights.pretrained import PretrainedNet

# For images of 8 to 32 pixels (latents of half the size), for larger ones (a quarter), and Stable Diffusion 1 and 2.
PRESETS: dict[str, dict[str, Any]] = {
    "small-2": {"channels": (32, 64), "blocks": 1, "latent_channels": 4, "groups": 16},
    "small-4": {"channels": (64, 128, 128), "blocks": 1, "latent_channels": 4, "groups": 32},
    "sd": {"in_channels": 3, "channels": (128, 256, 512, 512), "blocks": 2, "latent_channels": 4, "scale": 0.18215},
}
# Epsilon of all group normalizations.
EPS = 1e-6


@dataclass
class DiagonalGaussian:
    """Diagonal Gaussian distribution of latent images.

    Args:
        mean: mean of each latent value, ``(b, c, h, w)``.
        logvar: log-variance of each latent value, ``(b, c, h, w)``.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
        """Sample latents, differentiably in mean and variance (the reparameterization trick)."""
        noise = torch.randn(
            self.mean.shape,
            generator=generator,
            device=self.mean.device,
            dtype=self.mean.dtype,
        )
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Return the KL divergence from the standard normal distribution, summed over each latent image, in nats."""
        divergence = self.mean.square() + self.logvar.exp() - 1 - self.logvar  # (b, c, h, w)
        return 0.5 * divergence.flatten(1).sum(1)


class Coder(nn.Module):
    """Base class of encoder and decoder, with their first and last layers.

    Args:
        in_channels: channels of the input.
        first: channels after the first convolution.
        last: channels before the last convolution.
        out_channels: channels of the output.
        groups: groups of the group normalizations.
    """

    def __init__(self, in_channels: int, first: int, last: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.conv_norm_out = GroupNormSiLU(groups, last, EPS)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)


def residual_blocks(in_channels: int, out_channels: int, n: int, groups: int) -> list[nn.Module]:
    """Return ``n`` residual blocks without time embedding, the first of which changes the number of channels."""
    blocks: list[nn.Module] = []
    for _ in range(n):
        blocks.append(ResBlock(in_channels, out_channels, None, groups, EPS))
        in_channels = out_channels
    return blocks


def middle_stage(channels: int, groups: int) -> Stage:
    """Return the stage at the lowest resolution: residual block, self-attention, residual block."""
    blocks = residual_blocks(channels, channels, 2, groups)
    return Stage(blocks, [SpatialSelfAttention(channels, 1, groups, EPS)])


class Encoder(Coder):
    """Encoder: images to the parameters of the latent distribution.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the resolution is halved between stages.
        blocks: residual blocks per stage.
        out_channels: channels of the output.
        groups: groups of the group normalizations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        blocks: int,
        out_channels: int,
        groups: int,
    ) -> None:
        super().__init__(in_channels, channels[0], channels[-1], out_channels, groups)
        self.down_blocks = nn.ModuleList()
        width = channels[0]
        for i, out in enumerate(channels):
            resnets = residual_blocks(width, out, blocks, groups)
            resize = {}
            if i < len(channels) - 1:
                resize["downsamplers"] = Downsample(out, symmetric=False)
            self.down_blocks.append(Stage(resnets, [], **resize))
            width = out
        self.mid_block = middle_stage(channels[-1], groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_norm_out(x))


class Decoder(Coder):
    """Decoder: latents to images.

    Args:
        in_channels: channels of the latents.
        channels: channels by stage of the encoder, which the decoder has in reverse order.
        blocks: residual blocks per stage of the encoder; the decoder has one more.
        out_channels: channels of the images.
        groups: groups of the group normalizations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        blocks: int,
        out_channels: int,
        groups: int,
    ) -> None:
        super().__init__(in_channels, channels[-1], channels[0], out_channels, groups)
        self.mid_block = middle_stage(channels[-1], groups)
        self.up_blocks = nn.ModuleList()
        width = channels[-1]
        for i, out in enumerate(reversed(channels)):
            resnets = residual_blocks(width, out, blocks + 1, groups)
            resize = {}
            if i < len(channels) - 1:
                resize["upsamplers"] = Upsample(out)
            self.up_blocks.append(Stage(resnets, [], **resize))
            width = out

    def forward(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        z = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            z = stage(z)
        return self.conv_out(self.conv_norm_out(z))


class AutoencoderKL(PretrainedNet):
    """Convolutional variational autoencoder (VAE) with latent images, as of latent diffusion.

    Parameters are named as in diffusers. The buffer ``scale`` is the factor that gives latents a standard deviation of
    about 1; ``encode`` and ``decode`` leave it to the caller.

    Args:
        in_channels: channels of the images.
        channels: channels by stage; the resolution is halved between stages, so 4 stages give latents of an eighth.
        blocks: residual blocks per stage of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        groups: groups of the group normalizations; divides all numbers of channels.
        scale: factor for the latents; measured in training.
    """

    weights_format = AutoencoderKLFormat()
    presets = PRESETS
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
        for width in channels:
            if width % groups:
                raise ValueError(f"groups={groups} does not divide the {width} channels of a stage")
        self.factor = 2 ** (len(channels) - 1)
        # Whether the decoder has been converted to float32, because it overflowed in float16.
        self.upcast = False
        # The encoder's output is mean and log-variance.
        self.encoder = Encoder(in_channels, channels, blocks, 2 * latent_channels, groups)
        self.decoder = Decoder(latent_channels, channels, blocks, in_channels, groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.register_buffer("scale", torch.tensor(scale))

    def check(self, height: int, width: int) -> None:
        """Raise a ValueError for an image size that cannot be halved as often as the encoder does."""
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"height and width must be divisible by {self.factor} for this autoencoder, got images of "
                f"{height}x{width}"
            )

    def encode(self, x: Float[Tensor, "b c h w"]) -> DiagonalGaussian:
        """Return the distribution of the latents of images."""
        self.check(*x.shape[2:])
        moments = self.quant_conv(self.encoder(x))  # (b, 2 * latent_channels, h / factor, w / factor)
        mean, logvar = moments.chunk(2, 1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        """Return the images of latents; a decoder that overflows in float16 is converted to float32 for good."""
        if not self.upcast:
            x = self.decoder(self.post_quant_conv(z))
            if x.dtype != torch.float16 or torch.is_grad_enabled() or x.isfinite().all():
                return x
            # The activations of some published decoders exceed the range of float16.
            say("the decoder overflowed in float16: it continues in float32")
            self.upcast = True
            self.decoder.float()
            self.post_quant_conv.float()
        with torch.autocast(z.device.type, enabled=False):
            return self.decoder(self.post_quant_conv(z.float()))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        sample: bool = False,
    ) -> tuple[Float[Tensor, "b c h w"], DiagonalGaussian]:
        """Return the reconstruction of images, from the mean or a sample of their latents, and the distribution."""
        latents = self.encode(x)
        z = latents.sample() if sample else latents.mean
        return self.decode(z), latents


class AutoencoderKLModule(Autoencoder):
    """Variational autoencoder (VAE) with latent images, the first stage of latent diffusion.

    Args:
        channels: channels by stage; the resolution is halved between stages, so 2 stages give latents of half the size.
        blocks: residual blocks per stage of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        groups: groups of the group normalizations; divides all numbers of channels.
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
        """Mean and standard deviation that normalize images to [-1, 1], as diffusion models take them."""
        channels = self.net.arguments["in_channels"]  # type: ignore[index]
        return {"mean": [0.5] * channels, "std": [0.5] * channels}
