"""Classification: one label of many, yes or no, or several labels at once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryConfusionMatrix,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelAUROC,
    MultilabelF1Score,
)

from zoo.losses import DistillationLoss, FocalLoss
from zoo.losses.adapt import BinaryFromMulticlass, adapt_loss, loss_weight_sum
from zoo.tasks.base import Task, inputs_of, require

_HARD_TARGET_LOSSES = (
    FocalLoss,
    DistillationLoss,
    BinaryFromMulticlass,
    nn.MultiMarginLoss,
)  # losses that take no probabilities as targets


class Classifier(Task):
    """Train any network that maps inputs to logits to tell classes apart.

    A batch is ``(inputs, targets)``: inputs one tensor, or several as the network takes them, such as ``(x, lengths)``;
    targets class numbers ``(b,)``, probabilities ``(b, k)`` such as MixUp makes, or ``(b, k)`` of 0 and 1 for
    multilabel. The network returns logits ``(b, k)``; for binary ``(b,)``, ``(b, 1)`` or ``(b, 2)``. Logs ``loss`` and
    ``accuracy``; in validation and test also ``f1`` (macro), ``auroc``, and ``top5`` from six classes up.

    Args:
        num_classes: number of classes (of labels for multilabel); null takes it from the data.
        class_names: names for predictions and tables; null takes them from the data, or numbers.
        task: ``multiclass``, ``binary`` or ``multilabel``; null takes it from the data, or multiclass.
        test_time_flip: outside of training, average the logits of an image and of its mirror image.
    """

    monitor, monitor_mode = "val/accuracy", "max"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        task: Literal["multiclass", "binary", "multilabel"] | None = None,
        test_time_flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        classes: int = require(self, num_classes=num_classes)
        task = task or "multiclass"
        if task == "binary" and classes != 2:
            raise ValueError(f"a binary task has 2 classes, got num_classes={num_classes}")
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}: {class_names}")
        self.num_classes, self.task, self.test_time_flip = classes, task, test_time_flip
        self.class_names = class_names or [str(i) for i in range(classes)]
        if self.loss is None:
            self.loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
        self.loss = adapt_loss(self.loss, task, classes)
        metrics = _metrics(task, classes)
        self.metrics = nn.ModuleDict({stage: metrics.clone() for stage in ("val", "test")})
        if task != "multilabel":
            matrix = BinaryConfusionMatrix() if task == "binary" else MulticlassConfusionMatrix(classes)
            self.metrics["confusion"] = matrix

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        logits = self.net(*inputs)
        if self.test_time_flip and not self.training:
            if inputs[0].ndim != 4:
                raise ValueError(f"test_time_flip is for images (b, c, h, w), got inputs {tuple(inputs[0].shape)}")
            logits = (logits + self.net(inputs[0].flip(-1), *inputs[1:])) / 2
        return logits if logits.ndim > 1 else logits.unsqueeze(1)

    def step(self, batch: Any, stage: str) -> Tensor:
        _, y = batch
        return self.loss_and_metrics(self(*inputs_of(batch)), y, stage)

    def loss_and_metrics(self, logits: Tensor, y: Tensor, stage: str) -> Tensor:
        """Return the loss of outputs and targets, one a row, and count them in the metrics of a stage."""
        if (
            y.device.type == "cpu" or stage not in self._running_means
        ):  # elsewhere looking at values waits for the device
            self._check_labels(y)
        if _is_soft_target(y) and self.task != "multilabel" and isinstance(self.loss, _HARD_TARGET_LOSSES):
            name = "CrossEntropyLoss" if isinstance(self.loss, BinaryFromMulticlass) else type(self.loss).__name__
            right = "BCEWithLogitsLoss" if self.task == "binary" else "CrossEntropyLoss"
            makers = "such as MixUp and CutMix make: leave these out"
            raise ValueError(f"{name} here takes no probabilities as targets, {makers}, or take {right}")
        scores, labels = self._scores(logits), self._hard_labels(y)
        loss = self._loss(scores, y)
        if stage == "train":
            correct = self._predicted_labels(scores.detach()) == labels
            self.log_mean("train", len(y), accuracy=correct.mean(dtype=torch.float32))
        else:
            self._update_metrics(scores, labels, stage)
        return loss

    def num_items(self, batch: Any) -> float | Tensor:
        """Samples, or what else the loss divides by: their class weights, those that count."""
        weight = loss_weight_sum(self.loss, batch[1])
        return super().num_items(batch) if weight is None else weight

    def _scores(self, logits: Tensor) -> Tensor:
        """Logits as the loss takes them: ``(b,)`` of the second class for binary, else ``(b, k)``."""
        if logits.shape[1] != self.num_classes and not (self.task == "binary" and logits.shape[1] == 1):
            raise ValueError(f"outputs of shape {tuple(logits.shape)} do not fit num_classes={self.num_classes}")
        return binary_logit(logits) if self.task == "binary" else logits

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        assert self.loss is not None
        if self.task == "binary":
            y = y[:, 1] if _is_soft_target(y) else y.view(-1)
        return self.loss(scores, y if self.task == "multiclass" else y.to(scores.dtype))

    def _hard_labels(self, y: Tensor) -> Tensor:
        """Targets as whole numbers: of probabilities the likeliest class."""
        if self.task == "multilabel":
            return (y > 0.5).long() if y.is_floating_point() else y
        return y.argmax(1) if _is_soft_target(y) else y.view(-1)

    def _predicted_labels(self, scores: Tensor) -> Tensor:
        return scores.argmax(1) if self.task == "multiclass" else scores > 0

    def _update_metrics(self, scores: Tensor, y: Tensor, stage: str) -> None:
        scores = self._probabilities(scores)
        self.metrics[stage].update(scores, y)  # type: ignore[operator]
        if stage == "test" and "confusion" in self.metrics:
            self.metrics["confusion"].update(scores, y)  # type: ignore[operator]

    def _probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities in float32: ``(b,)`` of the second class for binary, else ``(b, k)``."""
        scores = scores.float()
        return scores.softmax(1) if self.task == "multiclass" else scores.sigmoid()

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]
        if stage == "test" and "confusion" in self.metrics:
            self.metrics["confusion"].reset()  # type: ignore[operator]

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        return self.metrics[stage].compute()  # type: ignore[operator]

    @property
    def confusion_matrix(self) -> Tensor | None:
        """Counts ``(true class, predicted class)`` of the last test, or None before one."""
        matrix = dict(self.metrics.items()).get("confusion")
        return matrix.compute() if matrix is not None and matrix.update_called else None  # type: ignore

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns: ``class`` (number), ``name`` and ``probability``; for multilabel the lists of those set."""
        scores = self._probabilities(self._scores(self(*inputs_of(batch))))
        if self.task == "multilabel":
            chosen = [(row > 0.5).nonzero().flatten().tolist() for row in scores]
            picked = [row[c].tolist() for row, c in zip(scores, chosen, strict=True)]
            return {"class": chosen, "name": [[self.class_names[i] for i in c] for c in chosen], "probability": picked}
        if self.task == "binary":
            scores = torch.stack([1 - scores, scores], 1)
        probability, chosen = scores.max(1)
        names = [self.class_names[i] for i in chosen.tolist()]
        return {"class": chosen.tolist(), "name": names, "probability": probability.tolist()}

    def _check_labels(self, y: Tensor) -> None:
        """Say in words what a kernel would call an index out of bounds, or take for granted."""
        top = self.num_classes - 1 if self.task == "multiclass" else 1
        if (y.is_floating_point() and self.task == "multiclass") or not len(y):
            return  # probabilities of the classes
        low, high = (float(v) for v in y.aminmax())
        if low >= 0 and high <= top:
            return
        ignored = getattr(self.loss, "ignore_index", None)
        bad = y[((y < 0) | (y > top)) & (y != ignored)] if ignored is not None else y[(y < 0) | (y > top)]
        if len(bad):
            allowed = f"num_classes={self.num_classes} allows labels from 0 to {top}"
            rule = allowed if self.task == "multiclass" else f"the labels of a {self.task} task are 0 or 1"
            raise ValueError(f"label {bad.flatten()[0].item():g} is out of range: {rule}")


def _is_soft_target(y: Tensor) -> bool:
    """Whether targets are a row of probabilities for each sample, rather than its class."""
    return y.is_floating_point() and y.ndim == 2 and y.shape[1] > 1


def binary_logit(logits: Tensor) -> Tensor:
    """The logit ``(b,)`` of the second class from one output ``(b, 1)`` or two ``(b, 2)``."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def _metrics(task: str, k: int) -> MetricCollection:
    fast: dict[str, Any] = {"validate_args": False}  # their checks read values back from the device
    if task == "binary":
        chosen = {"accuracy": BinaryAccuracy(**fast), "f1": BinaryF1Score(**fast), "auroc": BinaryAUROC(**fast)}
    elif task == "multilabel":
        kinds = {"accuracy": MultilabelAccuracy, "f1": MultilabelF1Score, "auroc": MultilabelAUROC}
        chosen = {name: kind(k, **fast) for name, kind in kinds.items()}
    else:
        chosen = {
            "accuracy": MulticlassAccuracy(k, average="micro", **fast),
            "f1": MulticlassF1Score(k, average="macro", **fast),
            "auroc": MulticlassAUROC(k, **fast),
        }
        if k > 5:
            chosen["top5"] = MulticlassAccuracy(k, top_k=5, average="micro", **fast)
    return MetricCollection(chosen)
