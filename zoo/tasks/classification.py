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

from zoo.tasks.base import Task, need


class Classifier(Task):
    """Train any network that maps inputs to logits to tell classes apart.

    A batch is ``(inputs, targets)``: class numbers ``(b,)``, or ``(b, k)`` of 0 and 1 for multilabel. The network
    returns logits ``(b, k)``; for binary ``(b,)``, ``(b, 1)`` or ``(b, 2)``. Logs ``loss`` and ``accuracy``; in
    validation and test also ``f1`` (macro), ``auroc``, and ``top5`` from six classes up.

    Args:
        num_classes: number of classes (of labels for multilabel); null takes it from the data.
        class_names: names for predictions and tables; null takes them from the data, or numbers.
        task: ``multiclass``, ``binary`` or ``multilabel``; null takes it from the data, or multiclass.
    """

    monitor, monitor_mode = "val/accuracy", "max"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        task: Literal["multiclass", "binary", "multilabel"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        classes: int = need(self, num_classes=num_classes)
        task = task or "multiclass"
        if task == "binary" and classes != 2:
            raise ValueError(f"a binary task has 2 classes, got num_classes={num_classes}")
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}: {class_names}")
        self.num_classes, self.task = classes, task
        self.class_names = class_names or [str(i) for i in range(classes)]
        if self.loss is None:
            self.loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
        metrics = _metrics(task, classes)
        self.metrics = nn.ModuleDict({stage: metrics.clone() for stage in ("val", "test")})
        if task != "multilabel":
            matrix = BinaryConfusionMatrix() if task == "binary" else MulticlassConfusionMatrix(classes)
            self.metrics["confusion"] = matrix

    def forward(self, x: Tensor) -> Float[Tensor, "b k"]:
        logits = self.net(x)
        return logits if logits.ndim > 1 else logits.unsqueeze(1)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        if y.device.type == "cpu" or stage not in self._meters:  # elsewhere looking at values waits for the device
            self._check(y)
        loss = self._loss(logits, y)
        if stage == "train":
            with torch.no_grad():
                correct = self._decide(logits) == (y if self.task == "multilabel" else y.view(-1))
                self.report("train", len(y), accuracy=correct.float().mean())
        else:
            self._update_metrics(logits, y, stage)
        return loss

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        assert self.loss is not None
        if logits.shape[1] != self.num_classes and not (self.task == "binary" and logits.shape[1] == 1):
            raise ValueError(f"outputs of shape {tuple(logits.shape)} do not fit num_classes={self.num_classes}")
        if self.task == "multiclass":
            return self.loss(logits, y)
        if self.task == "binary":
            return self.loss(binary_logit(logits), y.view(-1).to(logits.dtype))
        return self.loss(logits, y.to(logits.dtype))

    def _decide(self, logits: Tensor) -> Tensor:
        if self.task == "multiclass":
            return logits.argmax(1)
        return (binary_logit(logits) > 0).long() if self.task == "binary" else (logits > 0).long()

    def _update_metrics(self, logits: Tensor, y: Tensor, stage: str) -> None:
        scores = self._probabilities(logits)
        self.metrics[stage].update(scores, y.view(-1) if self.task == "binary" else y)  # type: ignore[operator]
        if stage == "test" and "confusion" in self.metrics:
            self.metrics["confusion"].update(scores, y.view(-1))  # type: ignore[operator]

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities in float32: ``(b,)`` of the second class for binary, else ``(b, k)``."""
        logits = logits.float()
        if self.task == "multiclass":
            return logits.softmax(1)
        return binary_logit(logits).sigmoid() if self.task == "binary" else logits.sigmoid()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.metrics["val"].reset()  # type: ignore[operator]

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        for name in self.metrics.keys() - {"val"}:
            self.metrics[name].reset()  # type: ignore[operator]

    def end_of_evaluation(self, stage: str) -> dict[str, Any]:
        return self.metrics[stage].compute()  # type: ignore[operator]

    @property
    def confusion_matrix(self) -> Tensor | None:
        """Counts ``(true class, predicted class)`` of the last test, or None before one."""
        matrix = dict(self.metrics.items()).get("confusion")
        return matrix.compute() if matrix is not None and matrix.update_called else None  # type: ignore

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return columns: ``class`` (number), ``name`` and ``probability``; for multilabel the lists of those set."""
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        scores = self._probabilities(self(x))
        if self.task == "multilabel":
            chosen = [(row > 0.5).nonzero().flatten().tolist() for row in scores]
            picked = [row[c].tolist() for row, c in zip(scores, chosen, strict=True)]
            return {"class": chosen, "name": [[self.class_names[i] for i in c] for c in chosen], "probability": picked}
        if self.task == "binary":
            scores = torch.stack([1 - scores, scores], 1)
        probability, chosen = scores.max(1)
        names = [self.class_names[i] for i in chosen.tolist()]
        return {"class": chosen.tolist(), "name": names, "probability": probability.tolist()}

    def _check(self, y: Tensor) -> None:
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
