"""Printed letters, drawn by the fonts that come with matplotlib: small images to learn from before others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.base import split_indices
from zoo.data.images.base import ImageData, ImageDataset

# The small letters that differ from their capitals by more than size, as Cohen et al. 2017 merge the others
# (https://arxiv.org/abs/1702.05373).
LETTERS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt"]
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")  # beginnings of their names
HEIGHT, CANVAS, FINER = 32, 80, 4


class Letters(ImageData):
    """Printed letters of 8x8 grey pixels in 37 classes, of many fonts, turned, slanted and shifted: no download.

    They look enough like ``Digits`` for a network that knows them to learn those from few samples.

    Args:
        n: number of images; drawing a thousand takes about half a second.
        val_split: share of the images kept for validation.
        test_split: share of the images kept for the test.
    """

    num_classes, class_names = len(LETTERS), LETTERS
    native_channels, native_size = 1, 8

    def __init__(self, n: int = 6000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 10 * len(LETTERS):
            raise ValueError(f"Letters: n is {n}, but {len(LETTERS)} classes need {10 * len(LETTERS)} images or more")
        self.n, self.val_split, self.test_split = n, val_split, test_split

    def splits(self) -> dict[str, ImageDataset]:
        x, y = draw_letters(self.n, self.side or 8, self.seed)
        shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
        rows = split_indices(self.n, shares, self.seed, labels=y)
        return {name: ImageDataset(x, y, r) for name, r in zip(("train", "val", "test"), rows, strict=True)}


def draw_letters(n: int, side: int, seed: int) -> tuple[UInt8[Tensor, "n 1 side side"], Int[Tensor, " n"]]:
    """Draw letters, each class as often, white on black.

    Args:
        n: number of images.
        side: of each, in pixels.
        seed: decides fonts, weights, angles, slants, sizes and places.
    """
    import matplotlib
    from PIL import ImageFont

    files = sorted(f for f in (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")
                   if f.name.startswith(FONTS) and "Display" not in f.name)  # fmt: skip
    fonts = [ImageFont.truetype(str(file), HEIGHT) for file in files]
    rng, labels = np.random.default_rng(seed), np.arange(n) % len(LETTERS)
    images = [draw_letter(LETTERS[label], fonts[rng.integers(len(fonts))], side, rng) for label in labels]
    return torch.from_numpy(np.stack(images)).unsqueeze(1), torch.from_numpy(labels)


def draw_letter(text: str, font: Any, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one letter, as high as the image or a little less, at a random place in it."""
    from PIL import Image, ImageDraw

    large = Image.new("L", (CANVAS, CANVAS))
    centre, weight = (CANVAS / 2, CANVAS / 2), int(rng.integers(3))
    ImageDraw.Draw(large).text(centre, text, 255, font, anchor="mm", stroke_width=weight)
    large = large.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    slant = rng.uniform(-0.3, 0.3)
    slanted = (1, slant, -slant * CANVAS / 2, 0, 1, 0)
    large = large.transform((CANVAS, CANVAS), Image.Transform.AFFINE, slanted, Image.Resampling.BILINEAR)
    large = large.crop(large.getbbox())
    high = int(FINER * side * rng.uniform(0.85, 1))
    wide = min(high, round(high * large.width / large.height * rng.uniform(0.7, 1.1)))
    canvas = Image.new("L", (FINER * side, FINER * side))
    left, top = (int(rng.integers(FINER * side - length + 1)) for length in (wide, high))
    canvas.paste(large.resize((wide, high), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))
