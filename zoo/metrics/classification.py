"""F1 and AUROC as means over the classes for which they are defined."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class MacroF1(Metric):
    """Macro F1: the mean over the classes of their F1; the same for two classes, for many, and for labels.

    A class that neither occurs nor is predicted has no F1 and is left out, as scikit-learn does for classes. NaN where
    no class is left.

    Args:
        num_classes: number of classes, or of labels.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        for name in ("hits", "predicted", "actual"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count predictions.

        Args:
            probabilities: ``(b, k)``; ``(b,)`` of the second of two classes.
            target: class indices ``(b,)``, or 0 and 1 ``(b, k)`` for labels.
        """
        if target.ndim == 2:
            predicted = probabilities > 0.5
            actual = target > 0
            self.hits += (predicted & actual).sum(0)
            self.predicted += predicted.sum(0)
            self.actual += actual.sum(0)
            return
        if probabilities.ndim == 1:
            prediction = (probabilities > 0.5).long()
        else:
            prediction = probabilities.argmax(1)
        self.hits += self._count(target[prediction == target])
        self.predicted += self._count(prediction)
        self.actual += self._count(target)

    def _count(self, classes: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
        return torch.bincount(classes.long(), minlength=self.num_classes)

    def compute(self) -> Tensor:
        total = self.predicted + self.actual
        defined = total > 0
        return (2 * self.hits[defined] / total[defined]).mean()


class MacroAUROC(Metric):
    """Area under the ROC curve: exact, the mean over the classes against the rest, or over labels.

    A class without positive or without negative samples has no such area and is left out. NaN where no class is left.
    With two classes both have the same area. Stores all probabilities until the end of the epoch.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Store predictions; the arguments are those of :meth:`MacroF1.update`."""
        self.probabilities.append(probabilities)  # type: ignore[operator, union-attr]
        self.targets.append(target)  # type: ignore[operator, union-attr]

    def compute(self) -> Tensor:
        probabilities = dim_zero_cat(self.probabilities)  # type: ignore[arg-type]
        targets = dim_zero_cat(self.targets)  # type: ignore[arg-type]
        if probabilities.ndim == 1:
            # Of two classes both have the same area.
            probabilities = probabilities.unsqueeze(1)  # (n, 1)
            if targets.ndim == 1:
                targets = (targets == 1).unsqueeze(1)
        areas = []
        for i in range(probabilities.shape[1]):
            if targets.ndim == 2:
                positive = targets[:, i] > 0  # (n,)
            else:
                positive = targets == i
            areas.append(auroc(probabilities[:, i], positive))
        return torch.stack(areas).nanmean().float()


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the area under the ROC curve: how often a positive sample scores above a negative one, ties as a half.

    NaN if there are no positive or no negative samples.
    """
    if scores.isnan().any():
        return scores.new_tensor(torch.nan)
    negatives = scores[~positive].sort().values
    positives = scores[positive]
    if not len(negatives) or not len(positives):
        return scores.new_tensor(torch.nan)
    # Number of negatives below each positive, and of those that are not above it.
    below = torch.searchsorted(negatives, positives)
    not_above = torch.searchsorted(negatives, positives, right=True)
    # A sum of integers is exact.
    wins = (below + not_above).sum().item() / 2
    pairs = len(positives) * len(negatives)
    return scores.new_tensor(wins / pairs)
