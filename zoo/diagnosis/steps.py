"""Training steps for a diagnosis, as the trainer takes them: gradients, failures, a few steps on one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from zoo._lightning import batch_to_device, step_arguments
from zoo.callbacks.learning_rates import peak_lrs, set_value
from zoo.callbacks.lr_finder import optimizer_step
from zoo.diagnosis.recorder import Recorder

Gradients = dict[str, Tensor]
"""Gradients by parameter name; parameters without a gradient are absent."""

DIVERGED = 1e30  # of a loss
SOLVED = 0.02  # of the first loss: no more steps are needed


class TrainingSteps:
    """Training steps of a module within a running trainer.

    Args:
        trainer: the trainer, right before its first training batch.
        module: the module.
    """

    def __init__(self, trainer: Any, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self.recording = False
        self.recorded: list[Gradients] = []  # while recording: one item per optimizer step
        self.last: Recorder | None = None  # of the last step with manual optimization, or watched

    @property
    def automatic(self) -> bool:
        """Whether Lightning takes the optimizer steps, with one optimizer."""
        return self.module.automatic_optimization and len(self.trainer.optimizers) == 1

    def stop_recording(self) -> None:
        """Forget recorded gradients and record no more."""
        self.recording = False
        self.recorded.clear()

    def take(self, raw: Any, index: int = 0, seed: int = 0) -> float:
        """Take one training step as Lightning does.

        Args:
            raw: a batch as the loader yields it.
            index: index of the batch.
            seed: seed of the random numbers in the step.

        Returns:
            The loss; NaN if ``training_step`` returned none.
        """
        torch.manual_seed(seed)
        if self.automatic:
            loss = optimizer_step(self.trainer, self.module, iter([raw]), index)
            return float("nan") if loss is None else loss
        batch = self.to_device(raw)
        self.module.on_train_batch_start(batch, index)
        self.last = Recorder(self.module)
        with self.last:
            self.last.result = self.trainer.strategy.training_step(*self.arguments(batch, index))
        self.module.on_train_batch_end(self.last.result, batch, index)
        if self.last.loss is None:
            return float("nan")
        return float(self.last.loss.detach())

    def failure(self, raw_batches: list[Any]) -> tuple[int, Exception, str] | None:
        """Take one whole step on each batch until one fails.

        Args:
            raw_batches: batches as the loader yields them.

        Returns:
            Number of the failed step from 1, its exception, and the module whose forward pass failed, empty if another
            part did; None if all steps succeed.
        """
        for index, raw in enumerate(raw_batches):
            recorder = Recorder(self.module)
            try:
                if self.automatic:
                    with recorder:
                        self.take(raw, index)
                else:
                    # Records by itself.
                    self.take(raw, index)
            except Exception as error:
                if self.last is not None:
                    recorder = self.last
                return index + 1, error, recorder.unfinished_call
        return None

    def gradients(self, raw: Any, index: int) -> Gradients:
        """Return all gradients of one step, also of parameters that no optimizer holds."""
        for param in self.module.parameters():
            param.grad = None
        self.recording = True
        self.take(raw, index)
        grads: Gradients = {}
        for name, param in self.module.named_parameters():
            if param.grad is not None:
                grads[name] = param.grad
        # With manual optimization, the module may have cleared them again.
        for seen in self.recorded:
            grads |= seen
        return grads

    def record_gradients(self, optimizer: Any) -> None:
        """Record the gradients of an optimizer right before its step."""
        if not self.recording:
            return
        updated: set[int] = set()
        for group in optimizer.param_groups:
            updated.update(id(param) for param in group["params"])
        grads: Gradients = {}
        for name, param in self.module.named_parameters():
            if id(param) in updated and param.grad is not None:
                grads[name] = param.grad.detach().clone()
        self.recorded.append(grads)

    def set_peak_lr(self) -> None:
        """Set the learning rates to the maximum of their schedule; a warmup may keep them near zero at first."""
        if not self.automatic:
            return
        with suppress(ValueError):  # a schedule of an unknown class
            peaks = peak_lrs(self.trainer)
            for group, peak in zip(self.trainer.optimizers[0].param_groups, peaks, strict=True):
                set_value(group, "lr", peak)

    def train(self, raw: Any, steps: int, optimizer: Any = None, seconds: float = 10.0) -> list[float]:
        """Train on one batch until it is learned, the loss diverges, or time is up; return the losses.

        Args:
            raw: the batch as the loader yields it.
            steps: maximum number of steps.
            optimizer: optimizer in place of the module's own.
            seconds: time limit.
        """
        start = time.monotonic()
        losses: list[float] = []
        for i in range(steps):
            if optimizer is None:
                loss = self.take(raw, i)
            else:
                loss = self._plain_step(raw, optimizer)
            losses.append(loss)
            diverged = not abs(loss) < DIVERGED  # true for NaN, too
            solved = 0 <= loss < SOLVED * abs(losses[0])
            if diverged or solved or time.monotonic() - start > seconds:
                break
        return losses

    def _plain_step(self, raw: Any, optimizer: Any) -> float:
        """Take a step with another optimizer, without hooks, clipping and schedules."""
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.enable_grad():
            result = self.trainer.strategy.training_step(*self.arguments(self.to_device(raw), 0))
            loss = result["loss"] if isinstance(result, Mapping) else result
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    def to_device(self, raw: Any) -> Any:
        """Return a batch as ``training_step`` gets it."""
        return batch_to_device(self.trainer, raw)

    def arguments(self, batch: Any, index: int) -> tuple[Any, ...]:
        """Return the arguments of ``training_step``."""
        return step_arguments(self.module, batch, index)
