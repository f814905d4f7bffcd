"""Images side by side with a title each, as `zoo show-data` and `MisclassifiedImages` draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from zoo.files import atomic_file

MAX_PIXELS = 224  # of a side, beyond which a thumbnail is no clearer
DPI = 110


def plot_image_grid(
    images: Float[Tensor, "n c h w"], titles: Sequence[str], heading: str = "", columns: int = 8
) -> Any:
    """A matplotlib figure of images in rows.

    Args:
        images: grey or colour, in [0, 1].
        titles: one an image; each line is cut to what fits.
        heading: above them all.
        columns: images in a row.
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    lines = max((title.count("\n") for title in titles), default=0) + 1
    figure = Figure(figsize=(1.35 * columns, (1.3 + 0.16 * lines) * rows + 0.4), layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=10)
    step = max(1, max(images.shape[2:]) // MAX_PIXELS)
    pixels = images[:, :, ::step, ::step].permute(0, 2, 3, 1).clamp(0, 1).numpy()
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(pixels[i] if pixels.shape[3] == 3 else pixels[i, :, :, 0], cmap="gray", vmin=0, vmax=1)
            axes.set_title("\n".join(line[:20] for line in titles[i].split("\n")), fontsize=7, pad=2)
    return figure


def denormalize(x: Tensor, data: Any = None) -> Float[Tensor, "n c h w"]:
    """Undo the normalisation of images: by the statistics of the data, or else from darkest to brightest.

    Args:
        x: images ``(n, c, h, w)`` as a network gets them.
        data: the LightningDataModule, whose ``mean`` and ``std`` are used if they fit.
    """
    x = x.detach().float().cpu()
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == x.shape[1]:
        return x * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-12)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure whole or not at all."""
    with atomic_file(path) as new:
        figure.savefig(new, dpi=DPI, format="png")
