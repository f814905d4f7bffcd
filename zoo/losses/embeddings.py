"""Losses on embeddings and labels: every batch gives all of its pairs or triplets."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ContrastiveLoss(nn.Module):
    """Pulls a class together, pushes others ``margin`` apart (Hadsell et al. 2006, https://doi.org/10.1109/CVPR.2006.100).

    Mean over all pairs of two different
    samples: half the squared distance within a class, half of max(0, margin - distance) squared otherwise.

    Args:
        margin: distance from which two classes leave each other alone.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """The loss.

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
    """Triplet loss on the triplets found in a batch (Hermans et al. 2017, https://arxiv.org/abs/1703.07737).

    Every sample has to be nearer to its own class than to another. For an anchor a, p of its class and n of another:
    max(0, |a - p| - |a - n| + margin).

    Args:
        margin: by how much nearer.
        mining: "hard" takes, for every anchor, the farthest p and the nearest n; "all" every triplet, which needs
            memory for batch^3 numbers.
    """

    def __init__(self, margin: float = 1.0, mining: Literal["hard", "all"] = "hard") -> None:
        super().__init__()
        if mining not in ("hard", "all"):
            raise ValueError(f"BatchTripletLoss: mining is {mining!r}, but must be hard or all")
        self.margin, self.mining = margin, mining

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """The loss.

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
            near, far = distance[anchor, positive], distance[anchor, negative]
        else:
            same, other = _same_class_masks(labels)
            usable = same.any(1) & other.any(1)
            near = distance.masked_fill(~same, -math.inf).amax(1)[usable]
            far = distance.masked_fill(~other, math.inf).amin(1)[usable]
        return _mean_or_zero(F.relu(near - far + self.margin), embeddings)


class RankingLoss(nn.Module):
    """Ranks by cosine similarity: to every anchor its own class comes first, others later by a margin.

    ``torch.nn.MarginRankingLoss`` on all triplets of the batch, so memory is for batch^3 numbers.

    Args:
        margin: in cosine similarity, in [0, 2].
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """The loss.

        Args:
            embeddings: (b, d), of any length.
            labels: (b) classes.

        Returns:
            A scalar, the mean over triplets; 0 if the batch has none.
        """
        _check_labels(embeddings, labels)
        x = F.normalize(at_least_float32(embeddings), dim=1)
        similarity = x @ x.T
        anchor, positive, negative = all_triplets(labels)
        first, later = similarity[anchor, positive], similarity[anchor, negative]
        losses = F.margin_ranking_loss(first, later, torch.ones_like(first), self.margin, reduction="none")
        return _mean_or_zero(losses, embeddings)


def _check_labels(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings are {tuple(embeddings.shape)} and labels {tuple(labels.shape)}, but must be (b, d) and (b)"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """Distances are differences of near numbers: half precision has no digits left for them."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _same_class_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs are two samples of one class, and which are of two classes: (b, b) each."""
    equal = labels[:, None] == labels
    return equal & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~equal


def all_triplets(labels: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
    """Indices of anchors, of samples of their class, and of others, ``(n,)`` each: all triplets of a batch."""
    same, other = _same_class_masks(labels)
    return (same[:, :, None] & other[:, None, :]).nonzero(as_tuple=True)


def _mean_or_zero(losses: Tensor, embeddings: Tensor) -> Tensor:
    """The mean; of nothing a zero that can still be differentiated."""
    return losses.mean() if losses.numel() else embeddings.sum() * 0
