"""Knowledge distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.checkpoints import Checkpoint
from zoo.checkpoints.hyperparameters import NOT_READ
from zoo.distributed import say
from zoo.errors import UserError
from zoo.losses import DistillationLoss
from zoo.tasks.classification import Classifier


class Distiller(Classifier):
    """Knowledge distillation: trains a classifier, the student, on the logits of a trained network, the teacher.

    The loss is alpha T^2 KL(teacher at T, student at T) + (1 - alpha) cross-entropy. The teacher is not trained and is
    always in eval mode. It is no submodule: checkpoints are those of a Classifier with the same ``net``. Logs the
    metrics of Classifier and ``teacher_accuracy``. A checkpoint may not name another one, so that evaluation without
    ``teacher_checkpoint`` logs the cross-entropy as the loss, and no ``teacher_accuracy``.

    Args:
        teacher: network that maps the same inputs to logits ``(b, k)``; null builds that of ``teacher_checkpoint``.
        teacher_checkpoint: checkpoint with the teacher's weights, written by ``zoo fit``; null keeps the weights that
            ``teacher`` has.
        temperature: T, above 0; higher values give more weight to unlikely classes.
        alpha: weight of the distillation term in the loss, in [0, 1].
    """

    def __init__(
        self,
        net: nn.Module,
        teacher: nn.Module | None = None,
        teacher_checkpoint: str | None = None,
        temperature: float = 4.0,
        alpha: float = 0.7,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        loss = DistillationLoss(temperature, alpha)
        super().__init__(net=net, num_classes=num_classes, loss=loss, **kwargs)
        if self.task != "multiclass":
            raise ValueError(f"Distiller needs task multiclass, got {self.task}")
        if teacher is None and teacher_checkpoint is None:
            raise ValueError("Distiller needs a teacher, a teacher_checkpoint, or both")
        self.teacher_checkpoint = teacher_checkpoint
        # A tuple hides the teacher from nn.Module: from parameters(), state_dict() and train().
        self._teacher = (teacher,)
        self._teacher_logits = torch.empty(0)

    @property
    def teacher(self) -> nn.Module:
        """The teacher network; loaded from its checkpoint at the start of training or evaluation."""
        teacher = self._teacher[0]
        assert teacher is not None
        return teacher

    def setup(self, stage: str) -> None:
        if stage == "predict":
            return  # prediction uses the student only
        named_by_checkpoint = (self.teacher_checkpoint or "").startswith(NOT_READ)
        if named_by_checkpoint and stage in ("validate", "test"):
            say(
                "the loss is the cross-entropy alone, as a checkpoint may not name its teacher: for the loss of "
                "distillation give --model.teacher_checkpoint FILE"
            )
            self._teacher = (None,)  # one without its weights would be a wrong one
            return
        if self.teacher_checkpoint is not None:
            teacher = load_teacher(self.teacher_checkpoint, self._teacher[0])
            self._teacher = (teacher,)
        self.teacher.eval()

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Move and cast the teacher together with the student: ``to``, ``cuda``, ``double`` and others call this."""
        teacher = self._teacher[0]
        if teacher is not None:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        if self._teacher[0] is None:
            return super().step(batch, stage)
        with torch.no_grad():
            self._teacher_logits = self.teacher(x)
        if stage != "train":
            correct = self._teacher_logits.argmax(1) == y
            self.log_mean(stage, len(y), teacher_accuracy=correct.float().mean())
        return super().step(batch, stage)

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        if self._teacher[0] is None:
            return cross_entropy(scores, y)
        if scores.shape != self._teacher_logits.shape:
            raise ValueError(
                f"the student's logits are {tuple(scores.shape)}, the teacher's {tuple(self._teacher_logits.shape)}: "
                f"give both the same num_classes"
            )
        assert self.loss is not None
        return self.loss(scores, self._teacher_logits, y)


def load_teacher(path: str, teacher: nn.Module | None = None) -> nn.Module:
    """Load a trained network from a checkpoint, with its EMA weights if there are any.

    Args:
        path: checkpoint of ``zoo fit``; it is read without executing code.
        teacher: network to load the weights into; null builds the module that the checkpoint names.

    Returns:
        The network.

    Raises:
        ValueError: there is no such file, it does not name its module, or it does not fit ``teacher``.
    """
    if path.startswith(NOT_READ):
        raise UserError(
            "a checkpoint may not name a second one: give --model.teacher_checkpoint FILE; "
            f"this one was trained with {path.removeprefix(NOT_READ)}"
        )
    if not Path(path).is_file():
        raise ValueError(f"teacher_checkpoint: there is no file {path}; train the teacher first")
    checkpoint = Checkpoint(path)
    if teacher is None:
        if "model" not in checkpoint.hyperparameters:
            raise ValueError(f"{path} does not name the class of its model, so Distiller needs a teacher too")
        return checkpoint.build().get_submodule("net")
    weights = {}
    for key, tensor in checkpoint.state_dict().items():
        if key.startswith("net."):
            weights[key.removeprefix("net.")] = tensor
    try:
        teacher.load_state_dict(weights)
    except RuntimeError as error:
        # torch's first line says that loading failed, the second why.
        reason = " ".join(str(error).splitlines()[1].split())
        raise ValueError(f"{path} is not of this {type(teacher).__name__}: {reason}") from error
    return teacher
