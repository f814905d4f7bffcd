"""Changes of colour, as torchvision.transforms.v2 names them, for whole batches."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, brightest, chosen, column, is_probability, pair, to_device, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue of each image, by its own factors and in its own order.

    Args:
        brightness: the factor lies in ``[1 - brightness, 1 + brightness]``, or in a list of two; 0 leaves it.
        contrast: factor of the distance to the image's mean grey, likewise.
        saturation: factor of the distance to the pixel's grey, likewise; grey images stay.
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
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self.ranges = [pair(f"ColorJitter: {name}", value, 1.0, 0.0, most) for name, value in given.items()]
        self.ranges.append(pair("ColorJitter: hue", hue, 0.0, -0.5, 0.5))
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.active = [i for i, r in enumerate(self.ranges) if r != ((0.0, 0.0) if i == HUE else (1.0, 1.0))]

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        factors = torch.stack([uniform(x, *bounds) for bounds in self.ranges], 1)
        # The order is drawn where the program runs: it is looked at, and looking at a GPU would wait for it.
        order = torch.tensor(self.active)[torch.rand(len(x), len(self.active)).argsort(1)]
        return jitter(x, order, factors)


class RandomGrayscale(Augmentation):
    """Take the colour from images; they keep their channels.

    Args:
        p: probability of each image.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = is_probability("RandomGrayscale", p)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        return torch.where(column(chosen(x, self.p)), grey(x.float()).to(x.dtype), x)


class Normalize(Augmentation):
    """Subtract the mean of each channel and divide by its deviation; bytes count as floats in [0, 1].

    Without one in ``augment`` it comes last by itself; with one, what stands behind it sees normalised images.

    Args:
        mean: one number a channel, of pixels in [0, 1]; null takes the training images'.
        std: one number a channel, likewise.
    """

    def __init__(self, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        if std is not None and min(std, default=0) <= 0:
            raise ValueError(f"Normalize: std is {std}, but deviations must be above 0")
        self._made: dict[tuple, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        assert self.mean is not None
        assert self.std is not None
        if x.shape[1] != len(self.mean) or len(self.mean) != len(self.std):
            counts = f"{len(self.mean)} means and {len(self.std)} deviations"
            raise ValueError(f"Normalize: {counts} for images of {x.shape[1]} channels")
        key = (x.device, x.dtype)
        if key not in self._made:  # once a device: copying them there for each batch would wait for it
            std = torch.tensor(self.std, device=x.device)
            shift = -torch.tensor(self.mean, device=x.device) / std
            self._made[key] = (1 / (std * brightest(x))).view(-1, 1, 1), shift.view(-1, 1, 1)
        scale, shift = self._made[key]
        return x.to(scale.dtype).mul(scale).add_(shift)


def jitter(
    x: Shaped[Tensor, "b c h w"], order: Int[Tensor, "b k"], factors: Float[Tensor, "b 4"]
) -> Shaped[Tensor, "b c h w"]:
    """Change the colours of each image, by its own factors and in its own order.

    Args:
        x: images; grey ones keep saturation and hue.
        order: which of BRIGHTNESS, CONTRAST, SATURATION, HUE comes first, second, ...; in the CPU's memory.
        factors: of the four, in that order; the last is a shift.
    """
    out, white = x.to(torch.float32, copy=True), brightest(x)
    whole = not x.is_floating_point()
    there = to_device(order, x)
    for i in range(order.shape[1]):
        own = (order[:, i] == HUE).nonzero().flatten()
        if len(own) and x.shape[1] == 3:
            own = to_device(own, x)
            turned = turn_hue(out[own] / white, factors[own, HUE])
            out[own] = turned.mul_(255.999).floor_() if whole else turned  # as torchvision makes bytes of floats
        kind = there[:, i]
        if len(own) < len(x):
            blend_(out, kind, factors.gather(1, kind.unsqueeze(1))[:, 0], white, whole)
    return out.to(x.dtype)


def blend_(
    x: Float[Tensor, "b c h w"], kind: Int[Tensor, " b"], factor: Float[Tensor, " b"], white: float, whole: bool
) -> None:
    """Blend images, in place, with black, their mean grey, or their own grey.

    All three are ``factor * x + (1 - factor) * reference``, so that one pass serves images of different kinds.

    Args:
        x: images.
        kind: BRIGHTNESS, CONTRAST or SATURATION, one an image; any other leaves it.
        factor: 1 leaves an image as it is.
        white: the highest value.
        whole: round down, as torchvision does with bytes.
    """
    light = grey(x)
    light = light.floor_() if whole and x.shape[1] == 3 else light
    still = kind == HUE if x.shape[1] == 3 else (kind == HUE) | (kind == SATURATION)
    factor = factor.masked_fill(still, 1.0)
    rest = 1 - factor
    mean = column(light.mean((1, 2, 3)) * rest * (kind == CONTRAST))
    if x.shape[1] == 3:  # a grey image is its own light, which stays
        mean = light.mul_(column(rest * (kind == SATURATION))).add_(mean)
    x.mul_(column(factor)).add_(mean).clamp_(0, white)
    if whole:
        x.floor_()


def grey(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """The luminance of each pixel (ITU-R BT.601), as torchvision weighs the colours."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def turn_hue(x: Float[Tensor, "b 3 h w"], shift: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Shift the hue, keeping the greatest and the least of each pixel's three values.

    Args:
        x: images in [0, 1].
        shift: in turns around the colour circle.
    """
    red, green, blue = x.unbind(1)
    top, chroma = x.amax(1), x.amax(1) - x.amin(1)
    span = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        top == red,
        (green - blue) / span,
        torch.where(top == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    sixth = (sixth + 6 * shift.view(-1, 1, 1)).unsqueeze(1)
    offset = torch.arange(5, 0, -2, device=x.device).view(1, 3, 1, 1)
    # (Smith 1978, https://doi.org/10.1145/800248.807361), each channel a trapezoid around the circle
    k = (sixth + offset).remainder_(6)
    return top.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)
