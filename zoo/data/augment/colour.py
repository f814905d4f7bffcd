"""Changes of colour, named as in torchvision.transforms.v2, for whole batches."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, brightest, chosen, column, is_probability, pair, to_device, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue of each image, by its own factors and in its own order.

    Args:
        brightness: the factor lies in ``[1 - brightness, 1 + brightness]``, or in a list of two; 0 leaves it.
        contrast: factor of the distance to the image's mean grey value, likewise.
        saturation: factor of the distance to the pixel's grey value, likewise; grey images stay.
        hue: shift of the hue, in turns around the colour circle, at most 0.5, or a list of two; 0 leaves it.
    """

    def __init__(
        self,
        brightness: float | list[float] = 0.0,
        contrast: float | list[float] = 0.0,
        saturation: float | list[float] = 0.0,
        hue: float | list[float] = 0.0,
    ) -> None:
        super().__init__()
        most = torch.finfo(torch.float32).max
        self.ranges = [
            pair("ColorJitter: brightness", brightness, 1.0, 0.0, most),
            pair("ColorJitter: contrast", contrast, 1.0, 0.0, most),
            pair("ColorJitter: saturation", saturation, 1.0, 0.0, most),
            pair("ColorJitter: hue", hue, 0.0, -0.5, 0.5),
        ]
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        neutral = [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
        self.active = [i for i, bounds in enumerate(self.ranges) if bounds != neutral[i]]

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        factors = torch.stack([uniform(x, *bounds) for bounds in self.ranges], 1)  # (b, 4)
        # The order is sampled on the CPU: ``jitter`` looks at it, and looking at a GPU's memory would wait for it.
        shuffled = torch.rand(len(x), len(self.active)).argsort(1)
        order = torch.tensor(self.active)[shuffled]  # (b, k)
        return jitter(x, order, factors)


class RandomGrayscale(Augmentation):
    """Turn images grey; they keep their channels.

    Args:
        p: probability for each image.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = is_probability("RandomGrayscale", p)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        which = column(chosen(x, self.p))
        return torch.where(which, grey(x.float()).to(x.dtype), x)


class Normalize(Augmentation):
    """Subtract the mean of each channel and divide by its standard deviation; bytes are first scaled to [0, 1].

    Without one in ``augment`` it comes last by itself; with one, the augmentations after it get normalised images.

    Args:
        mean: one number a channel, of pixels in [0, 1]; null takes the training images'.
        std: one number a channel, likewise.
    """

    def __init__(self, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        super().__init__()
        if std is not None and min(std, default=0) <= 0:
            raise ValueError(f"Normalize: std is {std}, but standard deviations must be above 0")
        self.mean = mean
        self.std = std
        self._constants: dict[tuple, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        assert self.mean is not None
        assert self.std is not None
        if x.shape[1] != len(self.mean) or len(self.mean) != len(self.std):
            counts = f"{len(self.mean)} means and {len(self.std)} standard deviations"
            raise ValueError(f"Normalize: {counts} for images of {x.shape[1]} channels")
        key = (x.device, x.dtype)
        if key not in self._constants:  # once a device: copying them there for each batch would wait for it
            std = torch.tensor(self.std, device=x.device)
            shift = -torch.tensor(self.mean, device=x.device) / std
            scale = 1 / (std * brightest(x))
            self._constants[key] = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
        scale, shift = self._constants[key]  # (c, 1, 1) each
        return x.to(scale.dtype).mul(scale).add_(shift)


def jitter(
    x: Shaped[Tensor, "b c h w"],
    order: Int[Tensor, "b k"],
    factors: Float[Tensor, "b 4"],
) -> Shaped[Tensor, "b c h w"]:
    """Change the colours of each image, by its own factors and in its own order.

    Args:
        x: images; grey ones keep saturation and hue.
        order: which of BRIGHTNESS, CONTRAST, SATURATION, HUE comes first, second, ...; in the CPU's memory.
        factors: of the four, in that order; the last is a shift.
    """
    out = x.to(torch.float32, copy=True)
    white = brightest(x)
    is_bytes = not x.is_floating_point()
    order_on_device = to_device(order, x)
    for i in range(order.shape[1]):
        rows = (order[:, i] == HUE).nonzero().flatten()
        if len(rows) and x.shape[1] == 3:
            rows = to_device(rows, x)
            turned = turn_hue(out[rows] / white, factors[rows, HUE])
            if is_bytes:  # as torchvision makes bytes of floats
                turned = turned.mul_(255.999).floor_()
            out[rows] = turned
        if len(rows) < len(x):
            kind = order_on_device[:, i]
            factor = factors.gather(1, kind.unsqueeze(1))[:, 0]  # (b,)
            blend_(out, kind, factor, white, is_bytes)
    return out.to(x.dtype)


def blend_(
    x: Float[Tensor, "b c h w"],
    kind: Int[Tensor, " b"],
    factor: Float[Tensor, " b"],
    white: float,
    is_bytes: bool,
) -> None:
    """Blend images, in place, with black, their mean grey value, or the grey value of each pixel.

    All three are ``factor * x + (1 - factor) * reference``, so that one pass serves images of different kinds.

    Args:
        x: images.
        kind: BRIGHTNESS, CONTRAST or SATURATION, one an image; any other leaves it.
        factor: 1 leaves an image as it is.
        white: the highest value.
        is_bytes: round down, as torchvision does with bytes.
    """
    is_colour = x.shape[1] == 3
    light = grey(x)  # (b, 1, h, w)
    if is_bytes and is_colour:
        light = light.floor_()
    unchanged = kind == HUE
    if not is_colour:
        unchanged = unchanged | (kind == SATURATION)
    factor = factor.masked_fill(unchanged, 1.0)
    rest = 1 - factor
    reference = column(light.mean((1, 2, 3)) * rest * (kind == CONTRAST))
    if is_colour:  # a grey image is its own light, which stays
        reference = light.mul_(column(rest * (kind == SATURATION))).add_(reference)
    x.mul_(column(factor)).add_(reference).clamp_(0, white)
    if is_bytes:
        x.floor_()


def grey(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the luminance of each pixel (ITU-R BT.601), with torchvision's weights of the colours."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    light = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return light.unsqueeze(1)


def turn_hue(x: Float[Tensor, "b 3 h w"], shift: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Shift the hue, keeping the greatest and the least of each pixel's three values.

    Args:
        x: images in [0, 1].
        shift: in turns around the colour circle.
    """
    red, green, blue = x.unbind(1)
    top = x.amax(1)
    chroma = top - x.amin(1)
    span = torch.where(chroma == 0, 1.0, chroma)
    # The hue in sixths of the circle, by which of the three is the greatest.
    hue_red = (green - blue) / span
    hue_green = 2 + (blue - red) / span
    hue_blue = 4 + (red - green) / span
    hue = torch.where(top == red, hue_red, torch.where(top == green, hue_green, hue_blue))
    hue = (hue + 6 * shift.view(-1, 1, 1)).unsqueeze(1)  # (b, 1, h, w)
    offset = torch.arange(5, 0, -2, device=x.device).view(1, 3, 1, 1)
    # Each channel is a trapezoid around the circle (Smith 1978, https://doi.org/10.1145/800248.807361).
    k = (hue + offset).remainder_(6)
    return top.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)
