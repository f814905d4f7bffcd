"""What torch.nn lacks: losses from logits, and losses on embeddings and labels.

Beside these any loss of torch.nn can be named in a configuration: a task computes those that are made for
probabilities (NLLLoss, BCELoss, KLDivLoss) from its logits, see :mod:`zoo.losses.adapt`.
"""

from zoo.losses.embeddings import BatchTripletLoss, ContrastiveLoss, RankingLoss
from zoo.losses.outputs import DistillationLoss, FocalLoss, PinballLoss

__all__ = [
    "BatchTripletLoss",
    "ContrastiveLoss",
    "DistillationLoss",
    "FocalLoss",
    "PinballLoss",
    "RankingLoss",
]
