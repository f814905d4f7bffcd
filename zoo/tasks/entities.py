"""Named entity recognition as in CoNLL-2003 (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from zoo.metrics.accumulation import defined
from zoo.tasks.base import inputs_of
from zoo.tasks.tagging import Tagger


class EntityF1(Metric):
    """Micro-averaged precision, recall and F1 of entities, as conlleval and seqeval compute them.

    An entity is correct if both its boundaries and its type are. Tags are ``O``, ``B-PER``, ``I-PER``, ...; an ``I-``
    that does not continue an entity of its type begins a new one. What has nothing to divide by is NaN: the precision
    where no entity is predicted, the recall where there is none, F1 where both hold.

    Args:
        class_names: the tags, in the order of their class indices.
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
        """Count entities; positions with a negative target are left out of their sentence."""
        valid = target >= 0
        start, kind, stop = self.spans(preds, valid)
        true_start, true_kind, true_stop = self.spans(target, valid)
        n = len(self.spans.types)
        self.found += torch.bincount(kind[start], minlength=n)
        self.true += torch.bincount(true_kind[true_start], minlength=n)
        correct = start & true_start & (kind == true_kind) & (stop == true_stop)
        self.right += torch.bincount(kind[correct], minlength=n)

    def compute(self) -> dict[str, Tensor]:
        right = self.right.sum()
        found = self.found.sum()
        true = self.true.sum()
        return {
            "precision": right / found,
            "recall": right / true,
            "f1": 2 * right / (found + true),
        }

    def by_type(self) -> dict[str, float]:
        """Return the F1 of each entity type."""
        f1 = 2 * self.right / (self.found + self.true)
        return dict(zip(self.spans.types, f1.tolist(), strict=True))


class SpanDecoder:
    """Decoder of tags into entity spans.

    Args:
        class_names: the tags, in the order of their class indices.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        kinds: list[str] = []  # type of each tag, empty outside of entities
        for name in class_names:
            kinds.append(name[2:] if is_entity_tag(name) else "")
        self.types = sorted({kind for kind in kinds if kind})
        index = {kind: i for i, kind in enumerate(self.types)}
        self.kinds = torch.tensor([index.get(kind, -1) for kind in kinds])
        self.begins = torch.tensor([name.startswith("B-") for name in class_names])

    def __call__(self, tags: Int[Tensor, "b t"], valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for all valid words, concatenated: whether an entity starts there, its type, and its end ``(n,)``."""
        flat = tags[valid]  # (n,)
        n = len(flat)
        kind = self.kinds.to(tags.device)[flat]  # -1 outside of entities
        begins = self.begins.to(tags.device)[flat]
        previous = torch.cat([kind.new_full((1,), -1), kind[:-1]])
        start = (kind >= 0) & (begins | (kind != previous) | _sentence_starts(valid))
        if n == 0:
            return start, kind, kind
        # An entity ends before the next word that starts another one or is outside of entities.
        index = torch.arange(n, device=tags.device)
        boundary = torch.where(start | (kind < 0), index, n)
        after = torch.cat([boundary[1:], boundary.new_full((1,), n)])
        stop = after.flip(0).cummin(0).values.flip(0)
        return start, kind, stop


def is_entity_tag(name: str) -> bool:
    """Return whether a tag marks a word of an entity: ``B-PER``, ``I-PER``."""
    return name.startswith(("B-", "I-"))


def _sentence_starts(valid: Tensor) -> Tensor:
    """Return which of the valid words are the first of their sentence ``(n,)``."""
    first = (valid.cumsum(1) == 1) & valid
    return first[valid]


class EntityTagger(Tagger):
    """Named entity tagger: any network that maps sentences to logits of a tag per word, such as ``B-PER``.

    A batch is that of ``Tagger``; targets are -100 in padding and in all but the first subword of a word. Logs ``loss``
    and ``accuracy`` (of words), and in validation and test ``precision``, ``recall`` and ``f1`` of entities, as far as
    they are defined. Without tags that begin with ``B-`` or ``I-`` it logs what ``Tagger`` does.
    """

    monitor = "val/f1"
    monitor_mode = "max"

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(net=net, **kwargs)
        self.entities = nn.ModuleDict()
        if any(is_entity_tag(name) for name in self.class_names):
            for stage in ("val", "test"):
                # Metrics of entities take the place of those of words.
                self.metrics[stage] = MetricCollection({})
                self.logs_top5 = False
                self.entities[stage] = EntityF1(self.class_names)

    def update_sequence_metrics(self, logits: Tensor, y: Tensor, stage: str) -> None:
        if stage in self.entities:
            target = y.masked_fill(y == self._ignore_index, -1)
            self.entities[stage].update(logits.argmax(2), target)  # type: ignore[operator]

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        if stage in self.entities:
            self.entities[stage].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        metrics = super().compute_metrics(stage)
        if stage in self.entities:
            metrics |= defined(self.entities[stage].compute())  # type: ignore[operator]
        return metrics

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a list per sentence, one entry per word: ``class``, ``name`` and ``probability``."""
        # Targets mark the first subword of each word; without them words are unknown.
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or batch[1] is None:
            return super().predict_step(batch, batch_idx)
        targets: Any = batch[1]
        logits = self(*inputs_of(batch))  # (b, t, k)
        probabilities = logits.float().softmax(2)  # (b, t, k)
        probability, label = probabilities.max(2)  # (b, t)
        columns: dict[str, list] = {"class": [], "name": [], "probability": []}
        for row, words in enumerate(targets != self._ignore_index):
            labels = label[row][words].tolist()
            columns["class"].append(labels)
            columns["name"].append([self.class_names[i] for i in labels])
            columns["probability"].append(probability[row][words].tolist())
        if self.all_probabilities:
            kept = targets != self._ignore_index
            by_class = []
            for of_class in probabilities.unbind(2):
                by_class.append([of_class[row][words].tolist() for row, words in enumerate(kept)])
            columns |= self._class_columns(by_class)
        return columns
