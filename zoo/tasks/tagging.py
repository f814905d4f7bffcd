"""Tagging: a class for each step of a sequence."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.adapt import loss_weight_sum
from zoo.tasks.base import inputs_of
from zoo.tasks.classification import Classifier


class Tagger(Classifier):
    """Train any network that maps sequences to logits at each step to tell the classes of the steps apart.

    A batch is ``(inputs, targets)``, targets class numbers ``(b, t)``, and -100 (the loss's ``ignore_index``) where
    none is asked for, as in padding. The network returns logits ``(b, t, k)``. Every step that is asked for counts the
    same, in the loss and in the metrics, which are those of ``Classifier``.
    """

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(net=net, task="multiclass", **kwargs)
        self.hparams.pop("task", None)  # no choice, so nothing to give again when a checkpoint is loaded

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b t k"]:
        return self.net(*inputs)

    def step(self, batch: Any, stage: str) -> Tensor:
        logits, y = self(*inputs_of(batch)), batch[1]
        if logits.shape[:2] != y.shape:
            given = f"outputs {tuple(logits.shape)}, targets {tuple(y.shape)}"
            raise ValueError(f"a Tagger takes one class a step, (b, t) for outputs (b, t, k): got {given}")
        self.update_sequence_metrics(logits.detach(), y, stage)
        where = (y.flatten() != self._ignore_index).nonzero().squeeze(1)  # the device is waited for once
        if not len(where):
            return logits.sum() * 0
        return self.loss_and_metrics(logits.flatten(0, 1)[where], y.flatten()[where], stage)

    def update_sequence_metrics(self, logits: Tensor, y: Tensor, stage: str) -> None:
        """Look at whole sequences, for metrics that are not of steps: logits ``(b, t, k)``, targets ``(b, t)``."""

    def num_items(self, batch: Any) -> Tensor:
        """Over how many steps the mean is taken: those whose class is asked for."""
        found = loss_weight_sum(self.loss, batch[1].flatten())
        return (batch[1] != self._ignore_index).sum() if found is None else found

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a list for each sequence: ``class`` (numbers), ``name`` and ``probability``."""
        inputs = inputs_of(batch)
        top, chosen = self._probabilities(self(*inputs).flatten(0, 1)).max(1)
        rows = len(inputs[0])
        lengths = inputs[1].tolist() if len(inputs) > 1 else [len(chosen) // rows] * rows
        pairs = zip(chosen.view(rows, -1).tolist(), top.view(rows, -1).tolist(), lengths, strict=True)
        kept = [(classes[:n], scores[:n]) for classes, scores, n in pairs]
        names = [[self.class_names[c] for c in classes] for classes, _ in kept]
        return {"class": [c for c, _ in kept], "name": names, "probability": [p for _, p in kept]}

    @property
    def _ignore_index(self) -> int:
        return getattr(self.loss, "ignore_index", -100)
