"""How images are resized and cropped for evaluation: as the user asks for, else as the model's published weights do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Resizing = Literal["crop", "stretch"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class ResizeView:
    """How images become squares.

    Args:
        resize: ``crop`` resizes the shorter side and crops the centre, ``stretch`` resizes both sides.
        interpolation: filter of the resizing.
        crop_pct: share of the resized side that the central crop keeps.
    """

    resize: Resizing = "crop"
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0

    def cache_options(self) -> dict[str, Any]:
        """Return what the key of a cache has to contain, which is nothing for defaults that came later."""
        options: dict[str, Any] = {"resize": self.resize}
        if self.interpolation != "bilinear":
            options["interpolation"] = self.interpolation
        if self.crop_pct != 1.0:
            options["crop_pct"] = self.crop_pct
        return options

    def __str__(self) -> str:
        return f"{self.interpolation}, {self.resize}, crop_pct {self.crop_pct:g}"


DEFAULT_VIEW = ResizeView()


def published_view(preprocessing: Mapping[str, Any]) -> ResizeView | None:
    """Return the view that weights were tested with (see :mod:`zoo.weights.preprocessing`); None if it is unknown."""
    if not {"interpolation", "crop_pct"} <= preprocessing.keys():
        return None
    resize: Resizing = "stretch" if preprocessing.get("stretch") else "crop"
    return ResizeView(resize, preprocessing["interpolation"], preprocessing["crop_pct"])
