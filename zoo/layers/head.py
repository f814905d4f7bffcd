"""Classifier heads: a linear layer, or an MLP for transfer learning."""

from __future__ import annotations

from typing import Literal

from torch import nn

HeadKind = Literal["linear", "mlp"]


def classifier_head(
    kind: HeadKind,
    in_features: int,
    num_classes: int,
    hidden: int = 256,
    dropout: float = 0.5,
) -> nn.Module:
    """Return a classifier head that maps features ``(b, in_features)`` to logits ``(b, num_classes)``.

    Args:
        kind: ``linear``, or ``mlp`` with one hidden layer, ReLU and dropout.
        in_features: number of features.
        num_classes: number of logits.
        hidden: hidden size of ``mlp``.
        dropout: dropout probability before the last layer of ``mlp``.

    Raises:
        ValueError: ``kind`` is neither ``linear`` nor ``mlp``.
    """
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
    raise ValueError(f"head must be linear or mlp, got {kind!r}")
