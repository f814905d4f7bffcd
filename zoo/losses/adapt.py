"""Which loss a task can learn from, and how torch's losses are computed from logits or on triplets of a batch."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.losses.embeddings import BatchTripletLoss, ContrastiveLoss, RankingLoss, all_triplets, at_least_float32
from zoo.losses.outputs import FocalLoss

Kind = Literal["multiclass", "binary", "multilabel", "regression", "embeddings"]

_MULTICLASS = (nn.CrossEntropyLoss, nn.NLLLoss, nn.KLDivLoss)
_BINARY = (nn.BCELoss, nn.BCEWithLogitsLoss)
_REGRESSION = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_EMBEDDINGS = (ContrastiveLoss, BatchTripletLoss, RankingLoss, nn.MarginRankingLoss, nn.TripletMarginLoss)
_UNSUITABLE: dict[Kind, tuple[tuple[type[nn.Module], ...], str]] = {
    "multiclass": (
        (*_REGRESSION, *_EMBEDDINGS),
        "CrossEntropyLoss, NLLLoss, KLDivLoss, BCEWithLogitsLoss or FocalLoss",
    ),
    "binary": ((*_REGRESSION, *_EMBEDDINGS), "BCEWithLogitsLoss, CrossEntropyLoss, NLLLoss, KLDivLoss or FocalLoss"),
    "multilabel": ((*_REGRESSION, *_EMBEDDINGS, *_MULTICLASS), "BCEWithLogitsLoss, BCELoss or FocalLoss"),
    "regression": ((*_MULTICLASS, *_BINARY, FocalLoss, *_EMBEDDINGS), "MSELoss, L1Loss, SmoothL1Loss or HuberLoss"),
    "embeddings": (
        (*_MULTICLASS, *_BINARY, FocalLoss, *_REGRESSION),
        "ContrastiveLoss, BatchTripletLoss, RankingLoss, TripletMarginLoss or MarginRankingLoss",
    ),
}
_TARGETS = {"regression": "numbers", "embeddings": "embeddings"}


def adapt_loss(loss: nn.Module, kind: Kind, classes: int | None = None) -> nn.Module:
    """The loss as a task calls it, with outputs and targets.

    torch's NLLLoss, BCELoss and KLDivLoss, made for probabilities, are computed from logits; yes-or-no losses on
    classes see them as one question per class; TripletMarginLoss and MarginRankingLoss are taken on all triplets of the
    batch. Zoo's own losses and a user's are called as they are.

    Args:
        loss: as the user named it.
        kind: what the task learns; its outputs are logits ``(b, k)`` and its targets ``(b,)`` classes for multiclass,
            ``(b,)`` and ``(b,)`` of 0.0 and 1.0 for binary, ``(b, k)`` and ``(b, k)`` for multilabel and regression, and
            ``(b, d)`` and ``(b,)`` classes for embeddings.
        classes: how many there are; null where that is not known.

    Returns:
        A module with the same meaning.

    Raises:
        ValueError: the loss is for something else, or does not average over samples; class weights are too few or many.
    """
    name, (unsuitable, suitable) = type(loss).__name__, _UNSUITABLE[kind]
    if isinstance(loss, unsuitable):
        raise ValueError(f"{name} cannot learn {_TARGETS.get(kind, f'{kind} labels')}; what can is {suitable}")
    if getattr(loss, "reduction", "mean") not in ("mean", "batchmean"):
        raise ValueError(f"{name}: reduction is {loss.reduction!r}, but must be mean: a task averages over samples")
    weight = loss.weight if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) else None
    if weight is not None and classes is not None and len(weight) != classes:
        raise ValueError(f"{name}: weight has {len(weight)} numbers, but there are {classes} classes")
    if not 0 <= getattr(loss, "label_smoothing", 0) <= 1:
        raise ValueError(f"{name}: label_smoothing is {loss.label_smoothing}, but must be in [0, 1]")
    if isinstance(loss, nn.TripletMarginLoss):
        return AllTripletsMarginLoss(loss)
    if isinstance(loss, nn.MarginRankingLoss):
        return RankingLoss(loss.margin)
    if isinstance(loss, nn.BCELoss):
        loss = nn.BCEWithLogitsLoss(loss.weight)
    if isinstance(loss, nn.NLLLoss):
        loss = nn.CrossEntropyLoss(loss.weight, ignore_index=loss.ignore_index)
    if kind in ("multiclass", "binary") and isinstance(loss, nn.KLDivLoss):
        loss = KLDivFromLogits()
    if kind == "multiclass" and isinstance(loss, nn.BCEWithLogitsLoss):
        return OneVsRest(loss)
    if kind == "binary" and isinstance(loss, (nn.CrossEntropyLoss, KLDivFromLogits)):
        return BinaryFromMulticlass(loss)
    return loss


def loss_weight_sum(loss: nn.Module | None, target: Tensor) -> Tensor | None:
    """What a loss divides its sum by where that is not the number of samples: class weights, or samples that count.

    Args:
        loss: as :func:`adapt_loss` returned it.
        target: ``(b,)`` classes; negative ones do not count.

    Returns:
        The number as a tensor ``()``, which nobody waits for, or ``None`` for the number of samples.
    """
    if isinstance(loss, BinaryFromMulticlass):
        loss, target = loss.loss, target.long()
    weight, ignored = getattr(loss, "weight", None), getattr(loss, "ignore_index", -100)
    if not isinstance(loss, (nn.CrossEntropyLoss, FocalLoss)) or target.is_floating_point():
        return None
    if weight is None and ignored < 0:
        return None
    kept = (target != ignored) & (target >= 0)
    return kept.sum() if weight is None else (weight[target.clamp(min=0)] * kept).sum()


class AllTripletsMarginLoss(nn.Module):
    """torch's triplet margin loss on all triplets of a batch, from each distance once; memory for batch^3 numbers.

    Args:
        loss: says margin, norm and whether to swap.
    """

    def __init__(self, loss: nn.TripletMarginLoss) -> None:
        super().__init__()
        self.margin, self.p, self.eps, self.swap = loss.margin, loss.p, loss.eps, loss.swap

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        x, (anchor, positive, negative) = at_least_float32(embeddings), all_triplets(labels)
        distance = F.pairwise_distance(x[:, None], x, self.p, self.eps)
        near, far = distance[anchor, positive], distance[anchor, negative]
        if self.swap:
            far = torch.minimum(far, distance[positive, negative])
        return F.relu(near - far + self.margin).mean() if len(anchor) else x.sum() * 0


class KLDivFromLogits(nn.Module):
    """Kullback-Leibler divergence of the network's softmax from the truth: labels, or probabilities of the classes."""

    def forward(self, logits: Float[Tensor, "b k"], target: Tensor) -> Float[Tensor, ""]:
        return F.kl_div(logits.log_softmax(1), one_hot(target, logits), reduction="batchmean")


class OneVsRest(nn.Module):
    """A yes-or-no loss on classes: one question per class, of which the label's has the answer yes.

    Args:
        loss: of logits and targets of one shape.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Float[Tensor, "b k"], target: Tensor) -> Float[Tensor, ""]:
        return self.loss(logits, one_hot(target, logits))


class BinaryFromMulticlass(nn.Module):
    """A loss of classes on one logit: that of the second class over the first.

    Args:
        loss: of logits ``(b, 2)`` and classes ``(b,)``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logit: Float[Tensor, " b"], target: Tensor) -> Float[Tensor, ""]:
        return self.loss(torch.stack([torch.zeros_like(logit), logit], 1), target.long())


def one_hot(target: Tensor, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Labels as probabilities of the classes; probabilities as they are."""
    soft = target.is_floating_point()
    return target.to(logits.dtype) if soft else F.one_hot(target, logits.shape[1]).to(logits.dtype)
