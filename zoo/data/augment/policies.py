"""Policies that pick operations at random, with torchvision's operations and magnitudes, for whole batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

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
SIGNED = (*GEOMETRIC, *COLOURS, "Sharpness")
Bins = Callable[[float], Float[Tensor, " n"]]


class _Policy(Augmentation, ABC):
    """Apply operations that are drawn for each image; images that drew the same one are changed together.

    What is drawn is looked at to sort the images, so the draws are made where the program runs.
    """

    moves = True  # torchvision's operations are made for bytes

    def __init__(self, bins: int, interpolation: Interpolation, fill: float) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"{type(self).__name__}: num_magnitude_bins starts at 2, got {bins}")
        self.bins, self.fill = bins, fill
        self.interpolation: Interpolation = interpolation

    @abstractmethod
    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        """The magnitude of each operation at each of the bins."""

    @abstractmethod
    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The operation and the bin of each image."""

    def once(self, x: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        operations, bins = self.draw(len(x))
        sizes = self.table(*x.shape[2:])[operations, bins]
        signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operations]
        sizes = torch.where(signed & (torch.rand(len(x)) < 0.5), -sizes, sizes)
        out = x.clone()
        for operation in operations.unique().tolist():
            name, mine = OPERATIONS[operation], (operations == operation).nonzero().flatten()
            where, magnitudes = to_device(mine, x), to_device(sizes[mine], x)
            out[where] = operate(x[where], name, magnitudes, self.interpolation, self.fill)
        return out


class RandAugment(_Policy):
    """Apply a few operations, drawn for each image, at one strength (Cubuk et al. 2019,
    https://arxiv.org/abs/1909.13719).

    Args:
        num_ops: how many, one after the other.
        magnitude: strength, from 0 up to ``num_magnitude_bins - 1``.
        num_magnitude_bins: into how many the range of strengths is divided.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of what comes from outside the image.
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
        self.num_ops, self.magnitude = num_ops, magnitude

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        out = as_bytes(x)
        for _ in range(self.num_ops):
            out = self.once(out)
        return as_float(out) if x.is_floating_point() else out

    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        return magnitudes(self.bins, 0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, 4)

    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        return torch.randint(len(OPERATIONS), (n,)), torch.full((n,), self.magnitude)


class TrivialAugmentWide(_Policy):
    """Apply one operation at one strength, both drawn for each image (Müller and Hutter 2021,
    https://arxiv.org/abs/2103.10158).

    Args:
        num_magnitude_bins: into how many the range of strengths is divided.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of what comes from outside the image.
    """

    def __init__(
        self, num_magnitude_bins: int = 31, interpolation: Interpolation = "nearest", fill: float = 0.0
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        out = self.once(as_bytes(x))
        return as_float(out) if x.is_floating_point() else out

    def table(self, height: int, width: int) -> Float[Tensor, "o n"]:
        return magnitudes(self.bins, 0.99, 32.0, 32.0, 135.0, 0.99, 6)

    def draw(self, n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        return torch.randint(len(OPERATIONS), (n,)), torch.randint(self.bins, (n,))


def magnitudes(
    bins: int, shear: float, across: float, down: float, degrees: float, colour: float, bits: float
) -> Float[Tensor, "o n"]:
    """A row an operation, a column a bin.

    Args:
        bins: number of columns.
        shear: greatest tangent.
        across: greatest shift, in pixels.
        down: greatest shift, in pixels.
        degrees: greatest rotation.
        colour: greatest distance of a factor from 1.
        bits: most that are taken from the eight of a value.
    """
    share = torch.linspace(0, 1, bins)
    most = {"ShearX": shear, "ShearY": shear, "TranslateX": across, "TranslateY": down, "Rotate": degrees}
    most |= dict.fromkeys((*COLOURS, "Sharpness"), colour)
    rows = {name: share * most.get(name, 0.0) for name in OPERATIONS}
    rows["TranslateX"], rows["TranslateY"] = rows["TranslateX"].trunc(), rows["TranslateY"].trunc()
    rows["Posterize"], rows["Solarize"] = (8 - share * bits).round(), 255 * (1 - share)
    return torch.stack(list(rows.values()))


def operate(
    x: UInt8[Tensor, "b c h w"],
    name: str,
    magnitude: Float[Tensor, " b"],
    interpolation: Interpolation = "nearest",
    fill: float = 0.0,
) -> UInt8[Tensor, "b c h w"]:
    """Apply one operation to images, at a magnitude of each.

    Args:
        x: images.
        name: of OPERATIONS.
        magnitude: signed tangent, pixels, degrees, distance from a factor of 1, bits kept, or least value inverted.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value of what comes from outside the image.
    """
    from torchvision.transforms.v2 import functional as tv

    if name in GEOMETRIC:
        return affine(x, _map(name, magnitude, *x.shape[2:]), interpolation, fill)
    if name in COLOURS:
        kind = COLOURS[name]
        order = torch.full((len(x), 1), kind)
        return jitter(x, order, (1 + magnitude).unsqueeze(1).expand(-1, 4))
    if name == "Sharpness":
        smooth = tv.adjust_sharpness(x, 0.0)
        return torch.lerp(smooth.float(), x.float(), column(1 + magnitude)).clamp_(0, 255).byte()
    if name == "Posterize":
        step = 2 ** (8 - column(magnitude))
        return (x.float() / step).floor_().mul_(step).byte()
    if name == "Solarize":
        return torch.where(x >= column(magnitude), 255 - x, x)
    return {"AutoContrast": tv.autocontrast, "Equalize": tv.equalize, "Identity": lambda x: x}[name](x)


def _map(name: str, magnitude: Float[Tensor, " b"], height: int, width: int) -> Float[Tensor, "b 2 3"]:
    none = torch.zeros_like(magnitude)
    if name == "Rotate":
        return rotation(magnitude)
    if name.startswith("Translate"):
        shift = (magnitude, none) if name == "TranslateX" else (none, magnitude)
        return inverse(none, *shift, none + 1, none, none)
    angle = magnitude.atan().rad2deg()
    across = name == "ShearX"
    maps = inverse(none, none, none, none + 1, *((angle, none) if across else (none, angle)))
    # torchvision shears about the upper left corner: seen from the centre, that is a shift as well
    corner = maps.new_tensor([-width / 2, -height / 2])
    maps[:, :, 2] = corner - maps[:, :, :2] @ corner
    return maps
