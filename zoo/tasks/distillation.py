"""Distillation: a small network learns from a large one (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints import Checkpoint
from zoo.losses import DistillationLoss
from zoo.tasks.classification import Classifier


class Distiller(Classifier):
    """Train any network to tell classes apart by what a trained one, the teacher, thinks of the same inputs.

    The loss is alpha T^2 KL(teacher at T, student at T) + (1 - alpha) cross-entropy (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531). The teacher never learns and is always in eval mode; it is no part of the
    module's parameters and checkpoints, which are those of a Classifier with the same ``net``. Logs what Classifier
    logs and ``teacher_accuracy``, which tells whether there is anything to learn from.

    Args:
        teacher: network that maps the same inputs to logits ``(b, k)``; null builds the one of ``teacher_checkpoint``.
        teacher_checkpoint: file with its weights, written by ``zoo fit``; null takes ``teacher`` as it is.
        temperature: T, above 0; the higher, the more the unlikely classes count.
        alpha: share of the teacher in the loss, in [0, 1].
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
        super().__init__(net=net, num_classes=num_classes, loss=DistillationLoss(temperature, alpha), **kwargs)
        if self.task != "multiclass":
            raise ValueError(f"Distiller tells one class of many, so task is multiclass, not {self.task}")
        if teacher is None and teacher_checkpoint is None:
            raise ValueError("Distiller needs a teacher, a teacher_checkpoint, or both")
        self.teacher_checkpoint = teacher_checkpoint
        self._teacher = (teacher,)  # a tuple keeps it out of the module's parameters, state_dict and train()
        self._teacher_logits = torch.empty(0)

    @property
    def teacher(self) -> nn.Module:
        """The trained network; read from its file when training or evaluation begins, as prediction needs none."""
        teacher = self._teacher[0]
        assert teacher is not None
        return teacher

    def setup(self, stage: str) -> None:
        if stage == "predict":
            return
        if self.teacher_checkpoint is not None:
            self._teacher = (load_teacher(self.teacher_checkpoint, self._teacher[0]),)
        self.teacher.eval()

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Move and cast the teacher, which is no submodule, wherever the student goes."""
        if self._teacher[0] is not None:
            self._teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        with torch.no_grad():
            self._teacher_logits = self.teacher(x)
        if stage != "train":
            self.log_mean(stage, len(y), teacher_accuracy=(self._teacher_logits.argmax(1) == y).float().mean())
        return super().step(batch, stage)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if logits.shape != self._teacher_logits.shape:
            shapes = f"{tuple(logits.shape)}, the teacher's {tuple(self._teacher_logits.shape)}"
            raise ValueError(f"the student's logits are {shapes}: give both the same num_classes")
        assert self.loss is not None
        return self.loss(logits, self._teacher_logits, y)


def load_teacher(path: str, teacher: nn.Module | None = None) -> nn.Module:
    """Read a trained network, averaged weights if it has them, without running anything that may be in the file.

    Args:
        path: a checkpoint of ``zoo fit``.
        teacher: network to load the weights into; null builds the module that the checkpoint names.

    Returns:
        The network.

    Raises:
        ValueError: there is no such file, it does not name its module, or it is of another network.
    """
    if not Path(path).is_file():
        raise ValueError(f"teacher_checkpoint: there is no file {path}; train the teacher first")
    checkpoint = Checkpoint(path)
    if teacher is None:
        if "model" not in checkpoint.hyperparameters:
            raise ValueError(f"{path} does not name the class of its model, so Distiller needs a teacher too")
        teacher = checkpoint.build().get_submodule("net")
    weights = {k.removeprefix("net."): v for k, v in checkpoint.state_dict().items() if k.startswith("net.")}
    try:
        teacher.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1].split())
        raise ValueError(f"{path} is not of this {type(teacher).__name__}: {reason}") from error
    return teacher
