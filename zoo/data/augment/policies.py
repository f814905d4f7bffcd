"""Augmentation policies that pick operations at random, with torchvision's operations and magnitudes, for batches."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from zoo.data.augment.affine import Interpolation, affine, inverse, rotation
from zoo.data.augment.base import Augmentation, as_bytes, as_float, column, to_device
from zoo.data.augment.colour import BRIGHTNESS, CONTRAST, SATURATION, jitter

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
COLOURS = {"Brightness": BRIGHTNESS, "Contrast": CONTRAST, "Color": SATURATION}
OPERATIONS = (
    "Identity", *GEOMETRIC, *COLOURS, "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
SIGNED = (*GEOMETRIC, *COLOURS, "Sharpness")  # operations whose magnitude is negative for half of the images


class _Policy(Augmentation, ABC):
    """Apply operations that are sampled for each image; images with the same operation are processed together.

    The samples decide how images are grouped, so they are taken on the CPU.
    """

    moves = True  # torchvision's operations are made for bytes

    def __init__(self, bins: int, interpolation: Interpolation, fill: float) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"{type(self).__name__}: num_magnitude_bins starts at 2, got {bins}")
        self.bins = bins
        self.fill = fill
        self.interpolation: Interpolation = interpolation

    @abstractmethod
    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        """Return the magnitude of each operation at each of the bins."""

    @abstractmethod
    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return the operation and the bin of each image."""

    def once(self, x: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        """Apply one operation to each image."""
        operations, bins = self.draw(len(x))
        magnitude = self.table(*x.shape[2:])[operations, bins]  # (b,)
        is_signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operations]
        is_negative = is_signed & (torch.rand(len(x)) < 0.5)
        magnitude = torch.where(is_negative, -magnitude, magnitude)
        out = x.clone()
        for operation in operations.unique().tolist():
            rows = (operations == operation).nonzero().flatten()
            own_magnitude = to_device(magnitude[rows], x)
            rows = to_device(rows, x)
            out[rows] = operate(x[rows], OPERATIONS[operation], own_magnitude, self.interpolation, self.fill)
        return out


class RandAugment(_Policy):
    """Apply a few operations, sampled for each image, at one strength (Cubuk et al. 2019,
    https://arxiv.org/abs/1909.13719).

    Args:
        num_ops: number of operations, one after the other.
        magnitude: strength, from 0 up to ``num_magnitude_bins - 1``.
        num_magnitude_bins: number of different strengths.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of pixels from outside the image.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Interpolation = "nearest",
        fill: float = 0.0,
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)
        if num_ops < 1 or not 0 <= magnitude < num_magnitude_bins:
            allowed = f"num_ops starts at 1 and magnitude lies in 0 to {num_magnitude_bins - 1}"
            raise ValueError(f"RandAugment: {allowed}, got num_ops={num_ops}, magnitude={magnitude}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        out = as_bytes(x)
        for _ in range(self.num_ops):
            out = self.once(out)
        if x.is_floating_point():
            return as_float(out)
        return out

    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        across = 150 / 331 * width
        down = 150 / 331 * height
        return magnitudes(self.bins, 0.3, across, down, 30.0, 0.9, 4)

    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        return torch.randint(len(OPERATIONS), (n,)), torch.full((n,), self.magnitude)


class TrivialAugmentWide(_Policy):
    """Apply one operation at one strength, both sampled for each image (Müller and Hutter 2021,
    https://arxiv.org/abs/2103.10158).

    Args:
        num_magnitude_bins: number of different strengths.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of pixels from outside the image.
    """

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: Interpolation = "nearest",
        fill: float = 0.0,
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        out = self.once(as_bytes(x))
        if x.is_floating_point():
            return as_float(out)
        return out

    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        return magnitudes(self.bins, 0.99, 32.0, 32.0, 135.0, 0.99, 6)

    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        return torch.randint(len(OPERATIONS), (n,)), torch.randint(self.bins, (n,))


def magnitudes(
    bins: int,
    shear: float,
    across: float,
    down: float,
    degrees: float,
    colour: float,
    bits: float,
) -> Float[Tensor, "o n"]:
    """Return the magnitude of each of OPERATIONS, a row each, at each strength, a column each.

    Args:
        bins: number of columns.
        shear: greatest tangent.
        across: greatest horizontal translation, in pixels.
        down: greatest vertical translation, in pixels.
        degrees: greatest rotation.
        colour: greatest distance of a factor from 1.
        bits: most that are dropped from the eight of a value.
    """
    strength = torch.linspace(0, 1, bins)
    rows = dict.fromkeys(OPERATIONS, torch.zeros(bins))
    rows["ShearX"] = strength * shear
    rows["ShearY"] = strength * shear
    rows["TranslateX"] = (strength * across).trunc()
    rows["TranslateY"] = (strength * down).trunc()
    rows["Rotate"] = strength * degrees
    for name in (*COLOURS, "Sharpness"):
        rows[name] = strength * colour
    rows["Posterize"] = (8 - strength * bits).round()
    rows["Solarize"] = 255 * (1 - strength)
    return torch.stack(list(rows.values()))


def operate(
    x: UInt8[Tensor, "b c h w"],
    name: str,
    magnitude: Float[Tensor, " b"],
    interpolation: Interpolation = "nearest",
    fill: float = 0.0,
) -> UInt8[Tensor, "b c h w"]:
    """Apply one operation to images, each at its own magnitude.

    Args:
        x: images.
        name: of OPERATIONS.
        magnitude: signed tangent, pixels, degrees, distance from a factor of 1, bits kept, or least value inverted.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value of pixels from outside the image.
    """
    from torchvision.transforms.v2 import functional as tv

    if name in GEOMETRIC:
        height, width = x.shape[2:]
        return affine(x, _geometric_maps(name, magnitude, height, width), interpolation, fill)
    if name in COLOURS:
        order = torch.full((len(x), 1), COLOURS[name])
        factors = (1 + magnitude).unsqueeze(1).expand(-1, 4)  # (b, 4)
        return jitter(x, order, factors)
    if name == "Sharpness":
        smooth = tv.adjust_sharpness(x, 0.0)
        sharpened = torch.lerp(smooth.float(), x.float(), column(1 + magnitude))
        return sharpened.clamp_(0, 255).byte()
    if name == "Posterize":
        step = 2 ** (8 - column(magnitude))
        return (x.float() / step).floor_().mul_(step).byte()
    if name == "Solarize":
        return torch.where(x >= column(magnitude), 255 - x, x)
    if name == "AutoContrast":
        return tv.autocontrast(x)
    if name == "Equalize":
        return tv.equalize(x)
    return x


def _geometric_maps(name: str, magnitude: Float[Tensor, " b"], height: int, width: int) -> Float[Tensor, "b 2 3"]:
    """Return the matrices from output to input pixels of one of GEOMETRIC."""
    zero = torch.zeros_like(magnitude)
    one = zero + 1
    if name == "Rotate":
        return rotation(magnitude)
    if name == "TranslateX":
        return inverse(zero, magnitude, zero, one, zero, zero)
    if name == "TranslateY":
        return inverse(zero, zero, magnitude, one, zero, zero)
    angle = magnitude.atan().rad2deg()
    if name == "ShearX":
        maps = inverse(zero, zero, zero, one, angle, zero)
    else:
        maps = inverse(zero, zero, zero, one, zero, angle)
    # torchvision shears about the upper left corner: seen from the centre, that is a translation as well.
    corner = maps.new_tensor([-width / 2, -height / 2])
    maps[:, :, 2] = corner - maps[:, :, :2] @ corner
    return maps
