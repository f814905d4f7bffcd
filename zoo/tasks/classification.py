"""Classification: multiclass, binary or multilabel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryConfusionMatrix, MulticlassConfusionMatrix

from zoo.losses import DistillationLoss, FocalLoss
from zoo.losses.adapt import BinaryFromMulticlass, adapt_loss, loss_weight_sum
from zoo.metrics.accumulation import defined
from zoo.metrics.classification import MacroAUROC, MacroF1
from zoo.tasks.base import Task, inputs_of, require

ClassificationTask = Literal["multiclass", "binary", "multilabel"]

# Losses that take class indices only, not probabilities as MixUp makes them.
_HARD_TARGET_LOSSES = (
    FocalLoss,
    DistillationLoss,
    BinaryFromMulticlass,
    nn.MultiMarginLoss,
)


class Classifier(Task):
    """Classifier: trains any network that maps inputs to logits.

    A batch is ``(inputs, targets)``. Inputs are one tensor, or several as the network takes them, such as
    ``(x, lengths)``. Targets are class indices ``(b,)``, probabilities ``(b, k)`` as MixUp makes them, or 0 and 1 of
    shape ``(b, k)`` for multilabel. The network returns logits ``(b, k)``; for binary also ``(b,)`` or ``(b, 1)``.

    Logs ``loss`` and ``accuracy``, the fraction of correct samples (of correct labels for multilabel); in validation
    and test also ``f1`` and ``auroc``, and ``top5`` with more than five classes. ``f1`` and ``auroc`` are macro
    averages for two classes as for many: means over all classes, each against the rest. A class for which they are not
    defined, such as one that the split lacks, is left out; a metric that is defined for no class is not logged. Samples
    whose label is the loss's ``ignore_index`` (-100) count for no metric.

    Args:
        num_classes: number of classes (of labels for multilabel); null takes it from the data.
        class_names: class names for predictions and tables; null takes them from the data, or uses the indices.
        task: ``multiclass``, ``binary`` or ``multilabel``; null takes it from the data, or is multiclass.
        test_time_flip: average the logits of an image and its mirror image in validation, test and prediction.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"
    logs_top5 = True  # with more than five classes
    all_probabilities = False  # whether predictions have a column for each class, ``probability_<class>``

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        task: ClassificationTask | None = None,
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
        self.num_classes = classes
        self.class_names = class_names or [str(i) for i in range(classes)]
        self.task = task
        self.test_time_flip = test_time_flip
        if self.loss is None:
            self.loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
        self.loss = adapt_loss(self.loss, task, classes)
        self.metrics = nn.ModuleDict({stage: build_metrics(classes) for stage in ("val", "test")})
        if task == "multiclass":
            self.metrics["confusion"] = MulticlassConfusionMatrix(classes)
        elif task == "binary":
            self.metrics["confusion"] = BinaryConfusionMatrix()
        self._confusion_matrix: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b k"]:
        logits = self.net(*inputs)
        if self.test_time_flip and not self.training:
            logits = (logits + self._flipped_logits(*inputs)) / 2
        if logits.ndim == 1:
            logits = logits.unsqueeze(1)  # (b, 1)
        return logits

    def _flipped_logits(self, x: Tensor, *others: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"test_time_flip is for images (b, c, h, w), got inputs {tuple(x.shape)}")
        return self.net(x.flip(-1), *others)

    # Loss and metrics -------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        _, y = batch
        logits = self(*inputs_of(batch))
        return self.loss_and_metrics(logits, y, stage)

    def loss_and_metrics(self, logits: Tensor, y: Tensor, stage: str) -> Tensor:
        """Return the mean loss, and update the metrics of a stage.

        Args:
            logits: ``(b, k)``; for binary also ``(b, 1)``.
            y: targets, one row per sample.
            stage: ``train``, ``val`` or ``test``.
        """
        # On a GPU, reading values synchronizes: check the labels there only once per epoch.
        if y.device.type == "cpu" or stage not in self._running_means:
            self._check_labels(y)
        self._check_soft_targets(y)
        scores = self._scores(logits)
        labels = self._hard_labels(y)
        loss = self._loss(scores, y)
        scores = scores.detach()
        if stage != "train" or y.device.type == "cpu":
            scores, labels = self._without_ignored(scores, labels)
        correct = self._predicted_labels(scores) == labels
        self.log_mean(stage, len(labels), accuracy=correct.mean(dtype=torch.float32))
        if stage != "train":
            self._update_metrics(scores, labels, stage)
        return loss

    def _without_ignored(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and labels of the samples that have a label."""
        ignore_index = getattr(self.loss, "ignore_index", None)
        if ignore_index is None or labels.ndim != 1:
            return scores, labels
        kept = labels != ignore_index
        if kept.all():
            return scores, labels
        return scores[kept], labels[kept]

    def num_items(self, batch: Any) -> float | Tensor:
        """Return the number of samples with a label, or the sum of their class weights if the loss divides by that."""
        y = batch[1]
        weight = loss_weight_sum(self.loss, y)
        if weight is not None:
            return weight
        ignore_index = getattr(self.loss, "ignore_index", None)
        if ignore_index is None or y.is_floating_point():
            return super().num_items(batch)
        n = (y != ignore_index).sum()
        # Elsewhere a Python number would wait for the device.
        return n.item() if y.device.type == "cpu" else n

    def _scores(self, logits: Tensor) -> Tensor:
        """Return the logits that the loss takes: ``(b,)`` of the second class for binary, else ``(b, k)``."""
        single_logit = self.task == "binary" and logits.shape[1] == 1
        if logits.shape[1] != self.num_classes and not single_logit:
            raise ValueError(f"outputs of shape {tuple(logits.shape)} do not fit num_classes={self.num_classes}")
        if self.task == "binary":
            return binary_logit(logits)
        return logits

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        assert self.loss is not None
        if self.task == "multiclass":
            return self.loss(scores, y)
        if self.task == "binary":
            y = y[:, 1] if _is_soft_target(y) else y.view(-1)  # (b,)
        return self.loss(scores, y.to(scores.dtype))

    def _hard_labels(self, y: Tensor) -> Tensor:
        """Return integer targets: for probabilities the most likely class."""
        if self.task == "multilabel":
            return (y > 0.5).long() if y.is_floating_point() else y
        if _is_soft_target(y):
            return y.argmax(1)
        return y.view(-1)

    def _predicted_labels(self, scores: Tensor) -> Tensor:
        if self.task == "multiclass":
            return scores.argmax(1)
        return scores > 0

    def _probabilities(self, scores: Tensor) -> Tensor:
        """Return probabilities in float32: ``(b,)`` of the second class for binary, else ``(b, k)``."""
        scores = scores.float()
        if self.task == "multiclass":
            return scores.softmax(1)
        return scores.sigmoid()

    def _update_metrics(self, scores: Tensor, labels: Tensor, stage: str) -> None:
        if self.logs_top5 and self.num_classes > 5 and self.task == "multiclass":
            best = scores.topk(5, dim=1).indices  # (b, 5)
            hits = (best == labels.unsqueeze(1)).any(1)
            self.log_mean(stage, len(labels), top5=hits.mean(dtype=torch.float32))
        probabilities = self._probabilities(scores)
        self.metrics[stage].update(probabilities, labels)  # type: ignore[operator]
        if stage == "test" and "confusion" in self.metrics:
            self.metrics["confusion"].update(probabilities, labels)  # type: ignore[operator]

    def reset_metrics(self, stage: str) -> None:
        super().reset_metrics(stage)
        self.metrics[stage].reset()  # type: ignore[operator]
        if stage == "test" and "confusion" in self.metrics:
            self.metrics["confusion"].reset()  # type: ignore[operator]
            self._confusion_matrix = None

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        if stage == "test" and "confusion" in self.metrics:
            # Here all processes take part; the main process alone asks for it later.
            self._confusion_matrix = self.metrics["confusion"].compute()  # type: ignore[operator]
        return defined(self.metrics[stage].compute())  # type: ignore[operator]

    @property
    def confusion_matrix(self) -> Tensor | None:
        """Counts ``(true class, predicted class)`` of the last test, or None before a test."""
        return self._confusion_matrix

    # Prediction -------------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list]:
        """Return the columns ``class`` (index), ``name``, ``probability``; for multilabel, lists of all above 0.5.

        With ``all_probabilities`` a column ``probability_<class>`` for each class follows.
        """
        logits = self(*inputs_of(batch))
        probabilities = self._probabilities(self._scores(logits))
        if self.task == "multilabel":
            return self._multilabel_columns(probabilities) | self._class_columns(probabilities.T.tolist())
        if self.task == "binary":
            probabilities = torch.stack([1 - probabilities, probabilities], 1)  # (b, 2)
        highest, classes = probabilities.max(1)
        indices = classes.tolist()
        columns = {
            "class": indices,
            "name": [self.class_names[i] for i in indices],
            "probability": highest.tolist(),
        }
        return columns | self._class_columns(probabilities.T.tolist())

    def _class_columns(self, values: list[list]) -> dict[str, list]:
        """Return a column of probabilities for each class, if they are asked for.

        Args:
            values: for each class the values of all samples.
        """
        if not self.all_probabilities:
            return {}
        return {f"probability_{name}": column for name, column in zip(self.class_names, values, strict=True)}

    def _multilabel_columns(self, probabilities: Float[Tensor, "b k"]) -> dict[str, list]:
        columns: dict[str, list] = {"class": [], "name": [], "probability": []}
        for row in probabilities:
            indices = (row > 0.5).nonzero().flatten().tolist()
            columns["class"].append(indices)
            columns["name"].append([self.class_names[i] for i in indices])
            columns["probability"].append(row[indices].tolist())
        return columns

    # Checks -----------------------------------------------------------------------------------------------------------

    def _check_soft_targets(self, y: Tensor) -> None:
        """Refuse probabilities as targets of a loss that takes class indices only."""
        if not _is_soft_target(y) or self.task == "multilabel" or not isinstance(self.loss, _HARD_TARGET_LOSSES):
            return
        name = type(self.loss).__name__
        if isinstance(self.loss, BinaryFromMulticlass):
            name = "CrossEntropyLoss"  # the user's name for it
        suitable = "BCEWithLogitsLoss" if self.task == "binary" else "CrossEntropyLoss"
        raise ValueError(
            f"{name} takes no probabilities as targets, such as those of MixUp and CutMix: "
            f"remove these augmentations, or set the loss to {suitable}"
        )

    def _check_labels(self, y: Tensor) -> None:
        """Refuse labels out of range, which a kernel would report as an index out of bounds or not at all."""
        is_probability = y.is_floating_point() and self.task == "multiclass"
        if is_probability or len(y) == 0:
            return
        highest_label = self.num_classes - 1 if self.task == "multiclass" else 1
        low, high = (value.item() for value in y.aminmax())
        if low >= 0 and high <= highest_label:
            return
        out_of_range = (y < 0) | (y > highest_label)
        ignore_index = getattr(self.loss, "ignore_index", None)
        if ignore_index is not None:
            out_of_range &= y != ignore_index
        wrong = y[out_of_range]
        if len(wrong) == 0:
            return
        rule = f"the labels of a {self.task} task are 0 or 1"
        if self.task == "multiclass":
            rule = f"num_classes={self.num_classes} allows labels from 0 to {highest_label}"
        raise ValueError(f"label {wrong.flatten()[0].item():g} is out of range: {rule}")


def _is_soft_target(y: Tensor) -> bool:
    """Return whether targets are a row of probabilities per sample, not its class index."""
    return y.is_floating_point() and y.ndim == 2 and y.shape[1] > 1


def binary_logit(logits: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the logit of the second class from one output ``(b, 1)`` or two ``(b, 2)``."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[:, 1] - logits[:, 0]


def build_metrics(num_classes: int) -> MetricCollection:
    """Return macro F1 and AUROC."""
    # Compute groups are found by equal states in the first batch, which may be equal by chance.
    return MetricCollection({"f1": MacroF1(num_classes), "auroc": MacroAUROC()}, compute_groups=False)
