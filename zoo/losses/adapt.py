"""Adapt torch's losses to a task: computed from logits, one-vs-rest, or on all triplets of a batch."""

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
    """Return a loss in the form in which a task calls it: with outputs and targets.

    torch's NLLLoss, BCELoss and KLDivLoss, which expect probabilities, are computed from logits. Binary losses on
    classes are one-vs-rest. TripletMarginLoss and MarginRankingLoss are taken over all triplets of the batch. Losses of
    zoo and of the user are returned as they are.

    Args:
        loss: the loss that the user chose.
        kind: what the task learns. Outputs and targets are, for multiclass, logits ``(b, k)`` and classes ``(b,)``;
            for binary, ``(b,)`` and 0.0 or 1.0 of shape ``(b,)``; for multilabel and regression, ``(b, k)`` and
            ``(b, k)``; for embeddings, ``(b, d)`` and classes ``(b,)``.
        classes: number of classes; None where it is not known.

    Returns:
        A module that computes the same loss.

    Raises:
        ValueError: the loss does not suit the task or does not average over samples, or the number of class weights is
            not the number of classes.
    """
    name = type(loss).__name__
    unsuitable, suitable = _UNSUITABLE[kind]
    if isinstance(loss, unsuitable):
        target = _TARGETS.get(kind, f"{kind} labels")
        raise ValueError(f"{name} cannot learn {target}; what can is {suitable}")
    if getattr(loss, "reduction", "mean") not in ("mean", "batchmean"):
        raise ValueError(f"{name}: reduction is {loss.reduction!r}, but must be mean: a task averages over samples")
    weight = None
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
        weight = loss.weight
    if weight is not None and classes is not None and len(weight) != classes:
        raise ValueError(f"{name}: weight has {len(weight)} numbers, but there are {classes} classes")
    if not 0 <= getattr(loss, "label_smoothing", 0) <= 1:
        raise ValueError(f"{name}: label_smoothing is {loss.label_smoothing}, but must be in [0, 1]")
    if isinstance(loss, nn.TripletMarginLoss):
        return AllTripletsMarginLoss(loss)
    if isinstance(loss, nn.MarginRankingLoss):
        return RankingLoss(loss.margin)
    # From here on: losses of probabilities become losses of logits.
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
    """Return the denominator of a mean loss where that is not the number of samples.

    It is the sum of the targets' class weights, or the number of targets that are not ignored.

    Args:
        loss: a loss that :func:`adapt_loss` returned.
        target: ``(b,)`` classes; negative ones are ignored.

    Returns:
        A tensor ``()`` on the targets' device, so that nothing waits for it; None for the number of samples.
    """
    if isinstance(loss, BinaryFromMulticlass):
        loss = loss.loss
        target = target.long()
    weight = getattr(loss, "weight", None)
    ignored = getattr(loss, "ignore_index", -100)
    if not isinstance(loss, (nn.CrossEntropyLoss, FocalLoss)) or target.is_floating_point():
        return None
    if weight is None and ignored < 0:
        return None
    kept = (target != ignored) & (target >= 0)
    if weight is None:
        return kept.sum()
    # A negative index would read the weight of another class; ``kept`` removes it from the sum.
    return (weight[target.clamp(min=0)] * kept).sum()


class AllTripletsMarginLoss(nn.Module):
    """torch's triplet margin loss over all triplets of a batch; needs memory for batch^3 numbers.

    Args:
        loss: gives margin, norm and whether to swap anchor and positive.
    """

    def __init__(self, loss: nn.TripletMarginLoss) -> None:
        super().__init__()
        self.margin = loss.margin
        self.p = loss.p
        self.eps = loss.eps
        self.swap = loss.swap

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        x = at_least_float32(embeddings)
        anchor, positive, negative = all_triplets(labels)
        if not len(anchor):
            return x.sum() * 0  # no triplet: a zero that can be differentiated
        # Each of the (b, b) distances once, not once a triplet.
        distance = F.pairwise_distance(x[:, None], x, self.p, self.eps)
        near = distance[anchor, positive]
        far = distance[anchor, negative]
        if self.swap:
            far = torch.minimum(far, distance[positive, negative])
        return F.relu(near - far + self.margin).mean()


class KLDivFromLogits(nn.Module):
    """Kullback-Leibler divergence of the softmax of logits from labels, or from class probabilities."""

    def forward(self, logits: Float[Tensor, "b k"], target: Tensor) -> Float[Tensor, ""]:
        return F.kl_div(logits.log_softmax(1), one_hot(target, logits), reduction="batchmean")


class OneVsRest(nn.Module):
    """One-vs-rest: a binary loss for every class, with target 1 for the class of the label.

    Args:
        loss: a loss of logits and targets of one shape.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Float[Tensor, "b k"], target: Tensor) -> Float[Tensor, ""]:
        return self.loss(logits, one_hot(target, logits))


class BinaryFromMulticlass(nn.Module):
    """A multiclass loss on one binary logit, which is the second class's logit relative to the first.

    Args:
        loss: a loss of logits ``(b, 2)`` and classes ``(b,)``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logit: Float[Tensor, " b"], target: Tensor) -> Float[Tensor, ""]:
        logits = torch.stack([torch.zeros_like(logit), logit], 1)  # (b, 2)
        return self.loss(logits, target.long())


def one_hot(target: Tensor, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return labels as class probabilities; class probabilities are returned as they are."""
    if not target.is_floating_point():
        target = F.one_hot(target, logits.shape[1])  # (b,) -> (b, k)
    return target.to(logits.dtype)
