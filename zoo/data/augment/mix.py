"""MixUp and CutMix: mixtures of two images and of their labels, for whole batches."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import LabelMixing, chosen, column, is_probability, place, to_device
from zoo.data.augment.erase import boxes


class MixUp(LabelMixing):
    """Blend each image and its label with the next of the batch (Zhang et al. 2017, https://arxiv.org/abs/1710.09412).

    Labels become probabilities ``(b, k)``; the loss must take these, as cross-entropy does.

    Args:
        alpha: the share of the image itself is sampled from Beta(alpha, alpha) for each image.
        p: probability for each image.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.alpha = _positive("MixUp", alpha)
        self.p = is_probability("MixUp", p)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        share = torch.where(chosen(x, self.p), beta(x, self.alpha), 1.0)
        return mixup(x, y, share)


class CutMix(LabelMixing):
    """Paste a rectangle of the next image of the batch into each image, and mix the labels by its area (Yun et
    al. 2019, https://arxiv.org/abs/1905.04899).

    Labels become probabilities ``(b, k)``; the loss must take these, as cross-entropy does.

    Args:
        alpha: the share of the image itself is sampled from Beta(alpha, alpha) for each image.
        p: probability for each image.
    """

    moves = True

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.alpha = _positive("CutMix", alpha)
        self.p = is_probability("CutMix", p)

    def forward(  # type: ignore[override]
        self, x: Shaped[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        # Half of each side of the rectangle, as a share of the image's.
        half = 0.5 * (1 - beta(x, self.alpha)).sqrt() * chosen(x, self.p)
        bounds = []
        for side in x.shape[2:]:
            centre = place(x, side - 1)
            reach = (half * side).long()
            bounds.append((centre - reach).clamp(min=0))
            bounds.append((centre + reach).clamp(max=side))
        top, bottom, left, right = bounds
        return cutmix(x, y, top, bottom, left, right)


def mixup(
    x: Float[Tensor, "b c h w"],
    y: Float[Tensor, "b k"],
    share: Float[Tensor, " b"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Blend each image with the one before it in the batch, the first with the last.

    Args:
        x: images.
        y: their labels as probabilities.
        share: of the image itself.
    """
    rest = 1 - share
    images = x * column(share) + x.roll(1, 0) * column(rest)
    labels = y * share.unsqueeze(1) + y.roll(1, 0) * rest.unsqueeze(1)
    return images, labels


def cutmix(
    x: Shaped[Tensor, "b c h w"],
    y: Float[Tensor, "b k"],
    top: Int[Tensor, " b"],
    bottom: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    right: Int[Tensor, " b"],
) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Paste a rectangle of the image before it in the batch into each image.

    Args:
        x: images.
        y: their labels as probabilities.
        top: first row of each rectangle.
        bottom: row after its last.
        left: first column.
        right: column after its last.
    """
    height = bottom - top
    width = right - left
    where = boxes(x, top, left, height, width)
    images = torch.where(where, x.roll(1, 0), x)
    rest = (height * width / (x.shape[2] * x.shape[3])).unsqueeze(1)  # (b, 1)
    return images, y * (1 - rest) + y.roll(1, 0) * rest


def beta(x: Tensor, alpha: float) -> Float[Tensor, " b"]:
    """Return a sample of Beta(alpha, alpha) for each image."""
    both = torch.full((len(x),), alpha)
    return to_device(torch.distributions.Beta(both, both, validate_args=False).sample(), x)


def _positive(name: str, alpha: float) -> float:
    if alpha <= 0:
        raise ValueError(f"{name}: alpha is {alpha}, but must be above 0")
    return alpha
