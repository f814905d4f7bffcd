"""Sequence tagging: a class for each step of a sequence."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.adapt import loss_weight_sum
from zoo.tasks.base import inputs_of
from zoo.tasks.classification import Classifier


class Tagger(Classifier):
    """Sequence tagger: any network that maps sequences to logits at each step.

    A batch is ``(inputs, targets)``. Targets are class indices ``(b, t)``, and -100 (the loss's ``ignore_index``) at
    steps that are ignored, such as padding. The network returns logits ``(b, t, k)``. Loss and metrics, those of
    ``Classifier``, weigh all other steps alike.
    """

    def __init__(self, net: nn.Module, **kwargs: Any) -> None:
        super().__init__(net=net, task="multiclass", **kwargs)
        self.hparams.pop("task", None)  # fixed, so it is no argument when a checkpoint is loaded

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b t k"]:
        return self.net(*inputs)

    def step(self, batch: Any, stage: str) -> Tensor:
        logits = self(*inputs_of(batch))
        y = batch[1]
        if logits.shape[:2] != y.shape:
            raise ValueError(
                "a Tagger takes one class per step, (b, t) for outputs (b, t, k): got outputs"
                f" {tuple(logits.shape)}, targets {tuple(y.shape)}"
            )
        self.update_sequence_metrics(logits.detach(), y, stage)
        # One index for logits and targets: each boolean mask would wait for the device.
        y = y.flatten()  # (b t,)
        kept = (y != self._ignore_index).nonzero().squeeze(1)
        if stage == "train" and not len(kept):
            return logits.sum() * 0
        logits = logits.flatten(0, 1)  # (b t, k)
        return self.loss_and_metrics(logits[kept], y[kept], stage)

    def update_sequence_metrics(self, logits: Tensor, y: Tensor, stage: str) -> None:
        """Update metrics of whole sequences, for subclasses: logits ``(b, t, k)``, targets ``(b, t)``."""

    def num_items(self, batch: Any) -> Tensor:
        """Return the number of steps that are not ignored, or the sum of their class weights."""
        weight_sum = loss_weight_sum(self.loss, batch[1].flatten())
        if weight_sum is not None:
            return weight_sum
        return (batch[1] != self._ignore_index).sum()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns with a list per sequence: ``class`` (index), ``name`` and ``probability``."""
        inputs = inputs_of(batch)
        logits = self(*inputs)  # (b, t, k)
        rows, steps = logits.shape[:2]
        probabilities = self._probabilities(logits.flatten(0, 1))  # (b t, k)
        best = probabilities.max(1)
        classes = best.indices.view(rows, steps)  # (b, t)
        scores = best.values.view(rows, steps)
        lengths = [steps] * rows
        if len(inputs) > 1:
            lengths = inputs[1].tolist()
        columns: dict[str, list] = {"class": [], "name": [], "probability": []}
        for row, length in enumerate(lengths):
            labels = classes[row, :length].tolist()
            columns["class"].append(labels)
            columns["name"].append([self.class_names[label] for label in labels])
            columns["probability"].append(scores[row, :length].tolist())
        if self.all_probabilities:
            by_step = probabilities.view(rows, steps, -1)  # (b, t, k)
            by_class = [[by_step[row, :length, i].tolist() for row, length in enumerate(lengths)]
                        for i in range(by_step.shape[2])]  # fmt: skip
            columns |= self._class_columns(by_class)
        return columns

    @property
    def _ignore_index(self) -> int:
        return getattr(self.loss, "ignore_index", -100)
