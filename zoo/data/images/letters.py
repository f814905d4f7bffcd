"""Printed letters, rendered with the fonts that come with matplotlib: small images for pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import split_train_val_test
from zoo.data.images.base import ImageData, ImageDataset

# The small letters that differ from their capitals by more than size, as Cohen et al. 2017 merge the others
# (https://arxiv.org/abs/1702.05373).
LETTERS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt"]
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")  # beginnings of their names
FONT_SIZE = 32
CANVAS = 80  # pixels on which a letter is drawn and distorted
OVERSAMPLING = 4  # pixels per pixel of the result, before averaging


class Letters(ImageData):
    """Printed letters of 8x8 grey pixels in 37 classes, of many fonts, rotated, sheared and shifted: no download.

    They are similar enough to ``Digits`` for pretraining: a network fine-tuned on these needs few samples.

    Args:
        n: number of images; rendering a thousand takes about half a second.
        val_split: share of the images kept for validation.
        test_split: share of the images kept for the test.
    """

    num_classes = len(LETTERS)
    class_names = LETTERS
    native_channels = 1
    native_size = 8

    def __init__(self, n: int = 6000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 10 * len(LETTERS):
            raise ValueError(f"Letters: n is {n}, but {len(LETTERS)} classes need {10 * len(LETTERS)} images or more")
        self.n = n
        self.val_split = val_split
        self.test_split = test_split

    def splits(self) -> dict[str, Dataset]:
        x, y = draw_letters(self.n, self.side or 8, self.seed)
        rows = split_train_val_test(self.n, self.val_split, self.test_split, self.seed, labels=y)
        return {split: ImageDataset(x, y, part) for split, part in rows.items()}


def draw_letters(n: int, side: int, seed: int) -> tuple[UInt8[Tensor, "n 1 side side"], Int[Tensor, " n"]]:
    """Return images of letters, white on black, and their classes, each as often as the others.

    Args:
        n: number of images.
        side: height and width of each, in pixels.
        seed: decides fonts, stroke widths, angles, shears, sizes and positions.
    """
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = []
    for file in sorted(folder.glob("*.ttf")):
        if file.name.startswith(FONTS) and "Display" not in file.name:
            fonts.append(ImageFont.truetype(str(file), FONT_SIZE))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(LETTERS)
    images = []
    for label in labels:
        font = fonts[rng.integers(len(fonts))]
        images.append(draw_letter(LETTERS[label], font, side, rng))
    return torch.from_numpy(np.stack(images)).unsqueeze(1), torch.from_numpy(labels)


def draw_letter(text: str, font: Any, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image of one letter, as high as the image or a little less, at a random position in it."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (CANVAS, CANVAS))
    centre = (CANVAS / 2, CANVAS / 2)
    stroke_width = int(rng.integers(3))
    ImageDraw.Draw(image).text(centre, text, 255, font, anchor="mm", stroke_width=stroke_width)
    image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    shear = rng.uniform(-0.3, 0.3)
    matrix = (1, shear, -shear * CANVAS / 2, 0, 1, 0)
    image = image.transform((CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    image = image.crop(image.getbbox())
    full = OVERSAMPLING * side
    height = int(full * rng.uniform(0.85, 1))
    width = min(height, round(height * image.width / image.height * rng.uniform(0.7, 1.1)))
    left = int(rng.integers(full - width + 1))
    top = int(rng.integers(full - height + 1))
    canvas = Image.new("L", (full, full))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))
