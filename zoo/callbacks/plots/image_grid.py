"""Grids of titled images, as ``zoo show-data`` and ``MisclassifiedImages`` plot them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

MAX_PIXELS = 224  # longest side of a thumbnail; a larger one is no clearer
MAX_TITLE = 20  # characters of a title line that fit above an image


def plot_image_grid(
    images: Float[Tensor, "n c h w"],
    titles: Sequence[str],
    heading: str = "",
    columns: int = 8,
) -> Any:
    """Return a matplotlib figure of images in a grid.

    Args:
        images: greyscale or RGB images in [0, 1].
        titles: one per image; each line is truncated to the width of the image.
        heading: title of the figure.
        columns: images per row.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(images) / columns)
    title_lines = max((title.count("\n") for title in titles), default=0) + 1
    row_height = 1.3 + 0.16 * title_lines
    size = (1.35 * columns, row_height * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=10)
    # Subsampling by a stride is enough for thumbnails.
    stride = max(1, max(images.shape[2:]) // MAX_PIXELS)
    thumbnails = images[:, :, ::stride, ::stride].permute(0, 2, 3, 1)  # (n, h, w, c)
    pixels = thumbnails.clamp(0, 1).numpy()
    if pixels.shape[3] != 3:
        pixels = pixels[:, :, :, 0]  # (n, h, w)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for i, axes in enumerate(panels):
        axes.axis("off")
        if i >= len(images):
            continue
        axes.imshow(pixels[i], cmap="gray", vmin=0, vmax=1)
        lines = [line[:MAX_TITLE] for line in titles[i].split("\n")]
        axes.set_title("\n".join(lines), fontsize=7, pad=2)
    return figure


def denormalize(x: Tensor, data: Any = None) -> Float[Tensor, "n c h w"]:
    """Undo the normalisation of images: by the mean and std of the data, else by min-max scaling of each image.

    Args:
        x: normalised images ``(n, c, h, w)``, the input of a network.
        data: the LightningDataModule, whose ``mean`` and ``std`` are used if they have one value per channel.
    """
    x = x.detach().float().cpu()
    mean = getattr(data, "mean", None)
    std = getattr(data, "std", None)
    channels = x.shape[1]
    if _is_per_channel(mean, channels) and _is_per_channel(std, channels):
        scale = x.new_tensor(std).view(-1, 1, 1)  # (c, 1, 1)
        shift = x.new_tensor(mean).view(-1, 1, 1)  # (c, 1, 1)
        return x * scale + shift
    low = x.amin((1, 2, 3), keepdim=True)
    high = x.amax((1, 2, 3), keepdim=True)
    # Images of one colour have no range to divide by.
    return (x - low) / (high - low).clamp(min=1e-12)


def _is_per_channel(statistics: Any, channels: int) -> bool:
    return isinstance(statistics, list) and len(statistics) == channels
