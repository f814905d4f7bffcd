"""BLEU and chrF as sacrebleu computes them (Post 2018, https://aclanthology.org/W18-6319)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text import SacreBLEUScore


class SacreBLEU(SacreBLEUScore):
    """Corpus BLEU from 0 to 1 (Papineni et al. 2002, https://aclanthology.org/P02-1040), smoothed as in sacrebleu.

    torchmetrics' is 0 where no n-gram of some order is in common. sacrebleu halves the precision of one match for each
    such order (method 3 of Chen and Cherry 2014, https://aclanthology.org/W14-3346). As there, BLEU is 0 where no word
    is in common, and where no translation has n-grams of an order. NaN where no reference has a word.
    """

    def compute(self) -> Tensor:
        if not self.target_len:
            return self.numerator.new_full((), torch.nan)
        matches = self.numerator.tolist()
        totals = self.denominator.tolist()
        if not any(matches) or not all(totals):
            return self.numerator.new_zeros(())
        smoothing = 1.0
        precisions = []
        for match, total in zip(matches, totals, strict=True):
            if match == 0:
                smoothing *= 2
                match = 1 / smoothing
            precisions.append(match / total)
        log_precision = torch.tensor(precisions, dtype=torch.float64).log().mean()
        log_brevity = min(0.0, 1 - float(self.target_len) / float(self.preds_len))
        return (log_precision + log_brevity).exp().to(self.numerator)


class CharacterF(Metric):
    """chrF2 from 0 to 1 (Popović 2015, https://aclanthology.org/W15-3049), as sacrebleu computes it for a corpus.

    Precision and recall of character n-grams without whitespace are averaged over the orders 1 to 6 that both sides
    have, and recall weighs twice as much. NaN where no reference has a character.
    """

    full_state_update = False
    higher_is_better = True
    ORDER = 6
    BETA = 2
    matches: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("matches", "predicted", "actual"):
            self.add_state(name, torch.zeros(self.ORDER, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add texts, and a list with the one reference of each."""
        counts = torch.zeros(3, self.ORDER, dtype=torch.long)
        for prediction, (reference,) in zip(predictions, references, strict=True):
            prediction = "".join(prediction.split())
            reference = "".join(reference.split())
            for order in range(1, self.ORDER + 1):
                ours = _ngrams(prediction, order)
                theirs = _ngrams(reference, order)
                if not theirs:
                    # n-grams of an order that the reference lacks do not lower the precision.
                    continue
                common = (ours & theirs).total()
                row = torch.tensor([common, ours.total(), theirs.total()])
                counts[:, order - 1] += row
        matches, predicted, actual = counts.to(self.matches.device)
        self.matches += matches
        self.predicted += predicted
        self.actual += actual

    def compute(self) -> Tensor:
        if not self.actual.any():
            return torch.full((), torch.nan, device=self.matches.device)
        both = (self.predicted > 0) & (self.actual > 0)
        if not self.matches.any():
            return torch.zeros((), device=self.matches.device)
        precision = (self.matches[both] / self.predicted[both]).mean()
        recall = (self.matches[both] / self.actual[both]).mean()
        factor = self.BETA**2
        return (1 + factor) * precision * recall / (factor * precision + recall)


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))
