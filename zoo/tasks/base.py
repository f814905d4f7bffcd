"""What all tasks share: a network, its optimizer and schedule, and the arithmetic of averaging over samples."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zoo._lightning import HOOK_NAME, accumulates, forget_hyperparameter, logged_step, trainer_of
from zoo.callbacks.weight_choice import has_weight_choice
from zoo.checkpoints import load_upgraded, mark_format, upgrade, use_ema
from zoo.layers.init import InitRule, initialize
from zoo.optim import OptimizerFactory, ParamGroupRule, build_optimizer, fused_by_default
from zoo.optim.plateau import plateau_monitor
from zoo.tasks.running_mean import RunningMean, quotient


class Task(L.LightningModule):
    """A network with a loss, an optimizer and a schedule. Subclasses say what a batch means in ``step``.

    Args:
        net: the network; kept as ``module.net``.
        loss: from outputs and targets to a number.
        lr: learning rate, of groups with ``lr_scale`` 1; schedules rise to it and fall from it.
        optimizer: any class of torch.optim or zoo.optim, without ``lr``; null is AdamW.
        lr_scheduler: a schedule of zoo.optim (stepped every step, its total found by itself) or of torch; null is none.
        param_groups: groups of parameters with a rate, decay or optimizer of their own; the first that matches a name counts.
        layer_decay: factor of the learning rate from each block to the one below it (0.75, say).
        init: how to initialise weights, by rule; null keeps what the network does itself.
        compile: compile the network with torch.compile, in place.
        channels_last: lay images out with channels last in memory, which convolutions in bf16 or fp16 are faster with.
    """

    monitor: ClassVar[str] = "val/loss"
    monitor_mode: ClassVar[str] = "min"

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        lr: float = 1e-3,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        param_groups: list[ParamGroupRule] | None = None,
        layer_decay: float | None = None,
        init: list[InitRule] | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on networks and losses among the arguments, which are taken out below
            self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "param_groups", "init"])
        for name in [k for k, v in self.hparams.items() if not _is_plain_value(v)]:
            forget_hyperparameter(self, name)  # a network or loss built in Python: the one who loads gives it again
        self.net, self.loss, self.lr = net, loss, lr
        self.optimizer, self.lr_scheduler = optimizer or torch.optim.AdamW, lr_scheduler
        self.param_groups, self.layer_decay = param_groups, layer_decay
        if init:
            initialize(net, init)
        if channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # activations follow the kernels
        if compile:
            net.compile()
        self._running_means: dict[str, RunningMean] = {}
        self._batch_items: float | Tensor = 0.0  # in this batch
        self._window_items: float | Tensor = 0.0  # in this accumulation window, on this process

    # What a task says -------------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        """Return the mean loss of a batch; the same for ``train``, ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} does not say what a batch means: write step(batch, stage)")

    def num_items(self, batch: Any) -> float | Tensor:
        """Over how many items ``step`` takes its mean: samples here, tokens for a language model.

        What only the values of a batch tell, such as how many tokens are no padding, is a tensor ``()`` on its device:
        as a number it would make every step wait for the device.
        """
        return len(next(iter(batch.values())) if isinstance(batch, Mapping) else inputs_of(batch)[0])

    def reset_metrics(self, stage: str) -> None:
        """Forget the last validation or test."""
        self._running_means.pop(stage, None)

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        """Return the metrics of a whole validation or test, without the loss."""
        return {}

    def log_mean(self, stage: str, n: float | Tensor, **values: Tensor) -> None:
        """Add means over ``n`` items to the running means that are logged as ``<stage>/<name>``."""
        mean = self._running_means.get(stage)
        if mean is None:
            mean = self._running_means[stage] = RunningMean()
        mean.update(n, values)

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch, "train")
        n = self.num_items(batch)
        self.log_train_loss(loss, n)
        self._batch_items = n
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh the batch by its size where batches are averaged; ``on_after_backward`` divides by all of them."""
        if self._weighs_batches:
            self._window_items += self._batch_items
            loss = loss * self._batch_items
        loss.backward(*args, **kwargs)

    def log_train_loss(self, loss: Tensor, n: float | Tensor) -> None:
        """Add to the running means of training; log them where Lightning logs, at the end of a window."""
        self.log_mean("train", n, loss=loss)
        if self._is_logging_step and not accumulates(self.trainer):
            self._log_running_means("train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_mean("val", self.num_items(batch), loss=self.step(batch, "val"))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log_mean("test", self.num_items(batch), loss=self.step(batch, "test"))

    def on_train_epoch_end(self) -> None:
        self._log_running_means("train")

    def on_validation_epoch_start(self) -> None:
        self.reset_metrics("val")

    def on_validation_epoch_end(self) -> None:
        self._log_running_means("val", self.compute_metrics("val"))

    def on_test_epoch_start(self) -> None:
        self.reset_metrics("test")

    def on_test_epoch_end(self) -> None:
        self._log_running_means("test", self.compute_metrics("test"))

    def on_after_backward(self) -> None:
        """Turn the sum of gradients over micro-batches and processes into the gradient of the mean over all items.

        Lightning divides by the number of micro-batches and DDP by that of processes, right only where all are of one
        size; here every sample (or token) counts the same, so accumulation equals the big batch.
        """
        if not self._weighs_batches or accumulates(self.trainer):
            return
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        total, self._window_items = self._window_items, 0.0
        if self.trainer.world_size > 1:
            total = torch.as_tensor(total, dtype=torch.float64, device=self.device)
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, quotient(parts, total, grads[0].dtype))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:  # Optimizer.zero_grad does the same inside a profiler's region
            for parameter in group["params"]:
                parameter.grad = None

    def configure_optimizers(self) -> Any:
        body = self.net if len(list(self.net.parameters())) == len(list(self.parameters())) else self
        param_groups = self.param_groups and [
            replace(r, optimizer=r.optimizer and fused_by_default(r.optimizer)) for r in self.param_groups
        ]
        optimizer = build_optimizer(body, fused_by_default(self.optimizer), self.lr, param_groups, self.layer_decay)
        if isinstance(optimizer, torch.optim.LBFGS) and self.trainer.accumulate_grad_batches > 1:
            raise ValueError("LBFGS cannot accumulate, it looks at a batch several times: take a larger batch_size")
        if self.lr_scheduler is None:
            return optimizer
        cls, given = _unwrap_factory(self.lr_scheduler)
        accepts_total = cls is not None and "total_steps" in inspect.signature(cls).parameters
        if accepts_total and given.get("total_steps") is None:
            scheduler = self.lr_scheduler(optimizer, total_steps=self._total_steps())  # type: ignore[call-arg]
        else:
            scheduler = self.lr_scheduler(optimizer)
        plan = {"scheduler": scheduler, "interval": "step" if accepts_total else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            plan["monitor"] = plateau_monitor(scheduler, self.monitor, self.monitor_mode)
            plan["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": plan}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a module as Lightning does, also from a checkpoint of an older zoo, whose names have changed since."""
        file = load_upgraded(checkpoint_path, cls)
        return super().load_from_checkpoint(file, map_location, hparams_file, strict, weights_only, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mark_format(checkpoint)
        if mean := self._running_means.get("train"):
            checkpoint["train_running_mean"] = mean.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        upgrade(checkpoint, type(self))
        trainer = trainer_of(self)
        # Training goes on from the raw weights; everything else uses the EMA weights.
        if trainer is None or (trainer.state.fn != "fit" and not has_weight_choice(trainer)):
            use_ema(self, checkpoint)
        if state := checkpoint.get("train_running_mean"):
            self._running_means["train"] = RunningMean(**state)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == HOOK_NAME:  # nn.Module's way would take 0.1 ms of a step
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Helpers ----------------------------------------------------------------------------------------------------------

    @property
    def _weighs_batches(self) -> bool:
        """Whether micro-batches or processes may differ in size, so that means of means would be wrong."""
        return self.automatic_optimization and self.trainer.accumulate_grad_batches * self.trainer.world_size > 1

    @property
    def _is_logging_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (logged_step(self.trainer) + 1) % every == 0

    def _log_running_means(self, stage: str, more: Mapping[str, Any] | None = None) -> None:
        mean = self._running_means.pop(stage, None)
        values = {**(mean.compute(self.trainer) if mean else {}), **(more or {})}
        bar = {"loss", self.monitor.rpartition("/")[2]}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in bar, batch_size=1)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf") or total < 1:
            raise ValueError("a schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
        return int(total)


def require(module: nn.Module, **values: Any) -> Any:
    """Return the values that the user or the data must give, one or several, or say which is missing."""
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{type(module).__name__} needs {name}: give it, or data that knows it")
    return tuple(values.values()) if len(values) > 1 else next(iter(values.values()))


def inputs_of(batch: Any) -> tuple[Any, ...]:
    """What the network is called with, from a batch ``(inputs, targets)`` or the bare inputs.

    Inputs are one tensor or several, such as ``(x, lengths)``.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _is_plain_value(value: Any) -> bool:
    """Whether a hyperparameter is a number, a string, None, or lists and dicts of these."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain_value(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain_value(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _unwrap_factory(factory: Any) -> tuple[type | None, dict[str, Any]]:
    """Find the class and the given options in a class, a partial, or jsonargparse's partial around a class."""
    parts = (factory, getattr(factory, "func", None), *getattr(factory, "args", ()))
    return next((p for p in parts if inspect.isclass(p)), None), getattr(factory, "keywords", {})
