"""Metric-learning losses on embeddings and labels, over all pairs or triplets of a batch."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ContrastiveLoss(nn.Module):
    """Contrastive loss (Hadsell et al. 2006, https://doi.org/10.1109/CVPR.2006.100).

    The mean over all pairs of different samples: half of the squared distance within a class, half of
    max(0, margin - distance) squared between two classes.

    Args:
        margin: distance beyond which two classes no longer repel each other.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: (b, d).
            labels: (b) classes.

        Returns:
            A scalar; 0 for a single sample.
        """
        _check_labels(embeddings, labels)
        if len(labels) < 2:
            return embeddings.sum() * 0
        # pdist has every pair once, none with itself, and a gradient of 0 where two embeddings coincide.
        distance = F.pdist(at_least_float32(embeddings))
        first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
        apart = F.relu(self.margin - distance)
        return torch.where(labels[first] == labels[second], distance, apart).square().mean() / 2


class BatchTripletLoss(nn.Module):
    """Triplet loss with mining in the batch (Hermans et al. 2017, https://arxiv.org/abs/1703.07737).

    For an anchor a, a positive p of its class and a negative n of another: max(0, |a - p| - |a - n| + margin).

    Args:
        margin: by how much the positive has to be nearer than the negative.
        mining: "hard" takes the farthest positive and the nearest negative of every anchor; "all" takes every triplet,
            which needs memory for batch^3 numbers.
    """

    def __init__(self, margin: float = 1.0, mining: Literal["hard", "all"] = "hard") -> None:
        super().__init__()
        if mining not in ("hard", "all"):
            raise ValueError(f"BatchTripletLoss: mining is {mining!r}, but must be hard or all")
        self.margin = margin
        self.mining = mining

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: (b, d).
            labels: (b) classes.

        Returns:
            A scalar, the mean over anchors or triplets; 0 if the batch has no triplet.
        """
        _check_labels(embeddings, labels)
        x = at_least_float32(embeddings)
        # The usual trick with a matrix product loses half of the digits of small distances.
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        if self.mining == "all":
            anchor, positive, negative = all_triplets(labels)
            near = distance[anchor, positive]
            far = distance[anchor, negative]
        else:
            same, other = _same_class_masks(labels)
            usable = same.any(1) & other.any(1)  # anchors with a positive and a negative
            near = distance.masked_fill(~same, -math.inf).amax(1)[usable]
            far = distance.masked_fill(~other, math.inf).amin(1)[usable]
        return _mean_or_zero(F.relu(near - far + self.margin), embeddings)


class RankingLoss(nn.Module):
    """Margin ranking loss on cosine similarities: positives rank above negatives by a margin.

    ``torch.nn.MarginRankingLoss`` over all triplets of the batch, which needs memory for batch^3 numbers.

    Args:
        margin: in cosine similarity, in [0, 2].
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: (b, d); they are normalized here.
            labels: (b) classes.

        Returns:
            A scalar, the mean over triplets; 0 if the batch has none.
        """
        _check_labels(embeddings, labels)
        x = F.normalize(at_least_float32(embeddings), dim=1)
        similarity = x @ x.T
        anchor, positive, negative = all_triplets(labels)
        to_positive = similarity[anchor, positive]
        to_negative = similarity[anchor, negative]
        higher_is_positive = torch.ones_like(to_positive)
        losses = F.margin_ranking_loss(to_positive, to_negative, higher_is_positive, self.margin, reduction="none")
        return _mean_or_zero(losses, embeddings)


def _check_labels(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings are {tuple(embeddings.shape)} and labels {tuple(labels.shape)}, but must be (b, d) and (b)"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32: distances are differences of near numbers and need its digits."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x


def _same_class_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs are two samples of one class, and which are of two classes: ``(b, b)`` each."""
    equal = labels[:, None] == labels  # (b, b)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return equal & ~itself, ~equal


def all_triplets(labels: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
    """Return the indices ``(n,)`` of anchors, positives and negatives of all triplets of a batch."""
    same, other = _same_class_masks(labels)
    triplets = same[:, :, None] & other[:, None, :]  # (anchor, positive, negative)
    return triplets.nonzero(as_tuple=True)


def _mean_or_zero(losses: Tensor, embeddings: Tensor) -> Tensor:
    """Return the mean, or, of no losses, a zero that can be differentiated."""
    if losses.numel() == 0:
        return embeddings.sum() * 0
    return losses.mean()
