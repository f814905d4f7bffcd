"""Mixtures of two images and of their labels, for whole batches."""

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
        alpha: the share of the image itself follows Beta(alpha, alpha), drawn for each image.
        p: probability of each image.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.p = _positive("MixUp", alpha), is_probability("MixUp", p)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        return mixup(x, y, torch.where(chosen(x, self.p), beta(x, self.alpha), 1.0))


class CutMix(LabelMixing):
    """Put a rectangle of the next image of the batch into each image, and as much of its label into the label (Yun et
    al. 2019, https://arxiv.org/abs/1905.04899).

    Labels become probabilities ``(b, k)``; the loss must take these, as cross-entropy does.

    Args:
        alpha: the share of the image itself follows Beta(alpha, alpha), drawn for each image.
        p: probability of each image.
    """

    moves = True

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.p = _positive("CutMix", alpha), is_probability("CutMix", p)

    def forward(  # type: ignore[override]
        self, x: Shaped[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        half = 0.5 * (1 - beta(x, self.alpha)).sqrt() * chosen(x, self.p)
        bounds = []
        for side in x.shape[2:]:
            centre, reach = place(x, side - 1), (half * side).long()
            bounds += [(centre - reach).clamp(min=0), (centre + reach).clamp(max=side)]
        return cutmix(x, y, *bounds)


def mixup(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b k"], share: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Blend each image with the one before it in the batch, the first with the last.

    Args:
        x: images.
        y: their labels as probabilities.
        share: of the image itself.
    """
    rest = 1 - share
    images = x * column(share) + x.roll(1, 0) * column(rest)
    return images, y * share.unsqueeze(1) + y.roll(1, 0) * rest.unsqueeze(1)


def cutmix(
    x: Shaped[Tensor, "b c h w"],
    y: Float[Tensor, "b k"],
    top: Int[Tensor, " b"],
    bottom: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    right: Int[Tensor, " b"],
) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """Put a rectangle of the image before it in the batch into each image.

    Args:
        x: images.
        y: their labels as probabilities.
        top: first row of each rectangle.
        bottom: row behind its last.
        left: first column.
        right: column behind its last.
    """
    where = boxes(x, top, left, bottom - top, right - left)
    rest = ((bottom - top) * (right - left) / (x.shape[2] * x.shape[3])).unsqueeze(1)
    return torch.where(where, x.roll(1, 0), x), y * (1 - rest) + y.roll(1, 0) * rest


def beta(x: Tensor, alpha: float) -> Float[Tensor, " b"]:
    """Draw a number of Beta(alpha, alpha) for each image."""
    both = torch.full((len(x),), alpha)
    return to_device(torch.distributions.Beta(both, both, validate_args=False).sample(), x)


def _positive(name: str, alpha: float) -> float:
    if alpha <= 0:
        raise ValueError(f"{name}: alpha is {alpha}, but must be above 0")
    return alpha
