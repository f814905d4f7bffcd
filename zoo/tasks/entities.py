"""Named entities, judged as CoNLL-2003 does (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from zoo.tasks.base import inputs_of
from zoo.tasks.tagging import Tagger


class EntityF1(Metric):
    """Precision, recall and F1 of entities, over all sentences and types, as conlleval and seqeval count them.

    An entity counts where both its ends and its type are right.
    Tags are ``O``, ``B-PER``, ``I-PER``, ...; an ``I-`` that goes on from nothing of its type begins an entity too.

    Args:
        class_names: the tags, by their numbers.
    """

    full_state_update = False
    right: Tensor
    found: Tensor
    true: Tensor

    def __init__(self, class_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spans = SpanDecoder(class_names)
        for name in ("right", "found", "true"):
            self.add_state(name, torch.zeros(len(self.spans.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Int[Tensor, "b t"], target: Int[Tensor, "b t"]) -> None:
        """Count; where the target is negative nothing is asked for, and a sentence goes on behind it."""
        valid = target >= 0
        (start, kind, stop), (their_start, their_kind, their_stop) = (
            self.spans(tags, valid) for tags in (preds, target)
        )
        n = len(self.spans.types)
        self.found += torch.bincount(kind[start], minlength=n)
        self.true += torch.bincount(their_kind[their_start], minlength=n)
        same = start & their_start & (kind == their_kind) & (stop == their_stop)
        self.right += torch.bincount(kind[same], minlength=n)

    def compute(self) -> dict[str, Tensor]:
        right, found, true = (part.sum().float() for part in (self.right, self.found, self.true))
        precision, recall = right / found.clamp(min=1), right / true.clamp(min=1)
        return {"precision": precision, "recall": recall, "f1": 2 * right / (found + true).clamp(min=1)}

    def by_type(self) -> dict[str, float]:
        """F1 of each type."""
        f1 = 2 * self.right / (self.found + self.true).clamp(min=1)
        return dict(zip(self.spans.types, f1.tolist(), strict=True))


class SpanDecoder:
    """Where entities begin and end in tags.

    Args:
        class_names: the tags, by their numbers.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        parts = [name.split("-", 1) if name[:2] in ("B-", "I-") else ["O", ""] for name in class_names]
        self.types = sorted({kind for _, kind in parts if kind})
        index = {kind: i for i, kind in enumerate(self.types)}
        self.kinds = torch.tensor([index.get(kind, -1) for _, kind in parts])
        self.begins = torch.tensor([prefix == "B" for prefix, _ in parts])

    def __call__(self, tags: Int[Tensor, "b t"], valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all words that are asked for, one behind the other: whether an entity begins, its type, and its end."""
        kinds, begins = self.kinds.to(tags.device), self.begins.to(tags.device)
        flat = tags[valid]
        kind, first = kinds[flat], _row_starts(valid)
        before = torch.cat([kind.new_full((1,), -1), kind[:-1]])
        start = (kind >= 0) & (begins[flat] | (kind != before) | first)
        index = torch.arange(len(flat), device=tags.device)
        ended = torch.where(start | (kind < 0), index, len(flat))  # an entity ends in front of what is not its own
        later = torch.cat([ended[1:], ended.new_full((min(1, len(flat)),), len(flat))])
        stop = later.flip(0).cummin(0).values.flip(0) if len(flat) else later
        return start, kind, stop


def _row_starts(valid: Tensor) -> Tensor:
    return ((valid.cumsum(1) == 1) & valid)[valid]


class EntityTagger(Tagger):
    """Train any network that maps sentences to logits of a tag for each word, such as ``B-PER``.

    A batch is that of ``Tagger``: -100 where no tag is asked for, as in padding and in further pieces of a word. Logs
    ``loss`` and ``accuracy`` (of words), and in validation and test ``precision``, ``recall`` and ``f1`` of entities;
    where no tag begins with ``B-`` or ``I-``, what ``Tagger`` logs.
    """

    monitor, monitor_mode = "val/f1", "max"

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(net=net, **kwargs)
        self.entities = nn.ModuleDict()
        if any(name[:2] in ("B-", "I-") for name in self.class_names):
            for stage in ("val", "test"):
                accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
                self.metrics[stage] = MetricCollection({"accuracy": accuracy})
                self.entities[stage] = EntityF1(self.class_names)

    def update_sequence_metrics(self, logits: Tensor, y: Tensor, stage: str) -> None:
        if stage in self.entities:
            self.entities[stage].update(logits.argmax(2), y.masked_fill(y == self._ignore_index, -1))  # type: ignore[operator]

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        if stage in self.entities:
            self.entities[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        found = self.entities[stage].compute() if stage in self.entities else {}  # type: ignore[operator]
        return {**super().compute_metrics(stage), **found}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a list for each sentence, a tag a word: ``class``, ``name`` and ``probability``."""
        inputs = inputs_of(batch)
        probability, chosen = self(*inputs).float().softmax(2).max(2)
        valid = batch[1] != self._ignore_index if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if valid is None:
            return super().predict_step(batch, batch_idx)
        classes = [row[kept].tolist() for row, kept in zip(chosen, valid, strict=True)]
        scores = [row[kept].tolist() for row, kept in zip(probability, valid, strict=True)]
        names = [[self.class_names[i] for i in row] for row in classes]
        return {"class": classes, "name": names, "probability": scores}
