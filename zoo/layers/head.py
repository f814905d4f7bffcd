"""The end of a classifier: one layer, or a small perceptron for transfer learning."""

from __future__ import annotations

from typing import Literal

from torch import nn

HeadKind = Literal["linear", "mlp"]


def classifier_head(kind: HeadKind, width: int, num_classes: int, hidden: int = 256, dropout: float = 0.5) -> nn.Module:
    """Build the last layer of a classifier.

    Args:
        kind: ``linear``, or ``mlp`` with a hidden layer, ReLU and dropout.
        width: number of features.
        num_classes: number of outputs.
        hidden: width of the hidden layer of ``mlp``.
        dropout: share dropped behind it.
    """
    if kind not in ("linear", "mlp"):
        raise ValueError(f"head must be linear or mlp, got {kind!r}")
    if kind == "linear":
        return nn.Linear(width, num_classes)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes))
