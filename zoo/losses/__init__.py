"""What torch.nn lacks: losses that take plain values, and losses on embeddings. All take logits, never probabilities.

Beside these, any loss of torch.nn can be named in a configuration. One trap there: ``KLDivLoss`` takes logarithms of
probabilities; to learn from a teacher's logits use :class:`DistillationLoss`.
"""

from zoo.losses.embeddings import BatchTripletLoss, ContrastiveLoss, RankingLoss
from zoo.losses.outputs import DistillationLoss, FocalLoss, PinballLoss, WeightedCrossEntropyLoss

__all__ = [
    "BatchTripletLoss",
    "ContrastiveLoss",
    "DistillationLoss",
    "FocalLoss",
    "PinballLoss",
    "RankingLoss",
    "WeightedCrossEntropyLoss",
]
