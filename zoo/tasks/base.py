"""Base of all tasks: a network with its loss, optimizer and schedule, and means that weigh every sample alike."""

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

from zoo._lightning import HOOK_NAME, accumulates, forget_hyperparameter, log_global, logged_step, trainer_of
from zoo.adapters import frozen_params
from zoo.callbacks.weight_choice import has_weight_choice
from zoo.checkpoints import load_upgraded, mark_format, upgrade, use_ema, use_raw
from zoo.layers.init import InitRule, initialize
from zoo.optim import OptimizerFactory, ParamGroupRule, build_optimizer, fused_by_default
from zoo.optim.plateau import plateau_monitor
from zoo.tasks.adapter import NetAdapter
from zoo.tasks.by_name import loss_module, optimizer_class, schedule_class
from zoo.tasks.running_mean import RunningMean, quotient
from zoo.trust.class_paths import checked
from zoo.trust.memory import budget_of_machine


class Task(L.LightningModule):
    """Base of LightningModules that train a network; subclasses say in ``step`` what a batch means.

    Args:
        net: the network; available as ``module.net``.
        loss: loss of outputs and targets.
        lr: learning rate of parameter groups with ``lr_scale`` 1; the peak of schedules.
        optimizer: any class of torch.optim or zoo.optim, without ``lr``; null is AdamW.
        lr_scheduler: a schedule of zoo.optim (stepped every step, its total filled in) or of torch; null is none.
        param_groups: rules for groups of parameters with a learning rate, weight decay or optimizer of their own; the
            first rule that matches a parameter's name counts.
        layer_decay: layer-wise learning rate decay: factor from each block to the one below it (0.75, say).
        init: weight initialization by rule; null keeps the network's own.
        adapters: changes to the network after its weights are read and before the optimizer is built, such as
            low-rank adapters.
        compile: compile the network with torch.compile, in place.
        channels_last: use the channels-last memory format, which convolutions in bf16 or fp16 are faster with.
    """

    monitor: ClassVar[str] = "val/loss"
    monitor_mode: ClassVar[str] = "min"
    # Arguments of a small version that the tests train in seconds; may also give fields of the data spec for its data.
    tiny: ClassVar[dict[str, Any]] = {}

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
        adapters: list[NetAdapter] | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about modules among the arguments, which are removed below
            self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "param_groups", "init"])
        for name, value in list(self.hparams.items()):
            # A network or loss built in Python is given again by whoever loads the checkpoint.
            if not _is_plain_value(value):
                forget_hyperparameter(self, name)
        self.net = net
        self.loss = loss_module(loss)
        self.lr = lr
        self.optimizer = optimizer_class(optimizer) or torch.optim.AdamW
        self.lr_scheduler = schedule_class(lr_scheduler)
        self.param_groups = param_groups
        self.layer_decay = layer_decay
        self.adapters = adapters or []
        if init:
            initialize(net, init)
        self.adapt()
        if channels_last:
            # Activations take the memory format of the kernels.
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            net.compile()
        self._running_means: dict[str, RunningMean] = {}
        # Items in this batch, and on this process in this accumulation window.
        self._batch_items: float | Tensor = 0.0
        self._window_items: float | Tensor = 0.0

    # What a task defines ----------------------------------------------------------------------------------------------

    def step(self, batch: Any, stage: str) -> Tensor:
        """Return the mean loss of a batch; the same for ``train``, ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} does not define what a batch means: write step(batch, stage)")

    def num_items(self, batch: Any) -> float | Tensor:
        """Return the number of items that ``step`` averages over: samples here, tokens for a language model.

        A number that depends on the values in a batch, such as the tokens that are not padding, is a tensor ``()`` on
        its device: as a Python number it would make every step wait for the device.
        """
        if isinstance(batch, Mapping):
            return len(next(iter(batch.values())))
        return len(inputs_of(batch)[0])

    def reset_metrics(self, stage: str) -> None:
        """Reset the metrics at the start of a validation or test."""
        self._running_means.pop(stage, None)

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        """Return the metrics of a whole validation or test, except for the loss."""
        return {}

    def log_mean(self, stage: str, n: float | Tensor, **values: Tensor) -> None:
        """Add means over ``n`` items to the running means, which are logged as ``<stage>/<name>``."""
        mean = self._running_means.get(stage)
        if mean is None:
            mean = self._running_means[stage] = RunningMean()
        mean.update(n, values)

    def predict(self, x: Any, batch_size: int | None = None, progress: bool = False) -> Any:
        """Predict new samples, prepared as those of training; a module of ``zoo.load`` needs no data for that.

        Args:
            x: samples of the kind that the data of training has. Images: paths, images of Pillow, arrays, tensors of
                bytes or of floats from 0 to 1. Rows and series: a path, a DataFrame, dicts. Texts: a text, a list of
                texts, a ``pathlib.Path``, a DataFrame. Vectors and sequences, or a module without data: a tensor.
            batch_size: samples per batch; null takes the one that the data evaluates with.
            progress: show a progress bar on a terminal.

        Returns:
            The columns of ``predict_step``, lists by name; for a DataFrame a DataFrame with its index. The values of a
            sample that cannot be read are None.
        """
        from zoo.prediction.loop import predict

        return predict(self, x, batch_size, progress)

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
        """Weigh the loss by the size of its batch where several are averaged; ``on_after_backward`` divides again."""
        if self._weighs_batches:
            self._window_items += self._batch_items
            loss = loss * self._batch_items
        loss.backward(*args, **kwargs)

    def log_train_loss(self, loss: Tensor, n: float | Tensor) -> None:
        """Add to the running means of training, and log them in the steps in which Lightning logs."""
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
        """Divide the sum of gradients over micro-batches and processes by the number of all items.

        Lightning divides by the number of micro-batches, and DDP by the number of processes, which is right only if
        all have the same size. Here every sample (or token) has the same weight, so accumulation equals the large
        batch.
        """
        if not self._weighs_batches or accumulates(self.trainer):
            return
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        total = self._window_items
        self._window_items = 0.0
        if self.trainer.world_size > 1:
            total = torch.as_tensor(total, dtype=torch.float64, device=self.device)
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, quotient(parts, total, grads[0].dtype))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        # As Optimizer.zero_grad, without its profiler region, which costs a small network's step some percent.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def configure_optimizers(self) -> Any:
        optimizer = self._build_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        cls, options = _unwrap_factory(self.lr_scheduler)
        per_step = cls is not None and "total_steps" in inspect.signature(cls).parameters
        if per_step and options.get("total_steps") is None:
            scheduler = self.lr_scheduler(optimizer, total_steps=self._total_steps())  # type: ignore[call-arg]
        else:
            scheduler = self.lr_scheduler(optimizer)
        config = {"scheduler": scheduler, "interval": "step" if per_step else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = plateau_monitor(scheduler, self.monitor, self.monitor_mode)
            config["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _build_optimizer(self) -> torch.optim.Optimizer:
        # Names of parameters are relative to the network, unless the task has parameters beside it.
        whole = len(list(self.net.parameters())) != len(list(self.parameters()))
        body = self if whole else self.net
        rules = []
        for rule in self.param_groups or []:
            if rule.optimizer is not None:
                rule = replace(rule, optimizer=fused_by_default(rule.optimizer))
            rules.append(rule)
        factory = fused_by_default(self.optimizer)
        left_out = frozen_params(self)
        optimizer = build_optimizer(body, factory, self.lr, rules, self.layer_decay, left_out=left_out)
        if isinstance(optimizer, torch.optim.LBFGS) and self.trainer.accumulate_grad_batches > 1:
            raise ValueError("LBFGS cannot accumulate, as it evaluates a batch several times: take a larger batch_size")
        return optimizer

    def adapt(self) -> None:
        """Let ``adapters`` change the network; called once its weights are read."""
        for adapter in self.adapters:
            adapter.adapt(self.net)

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
        """Load a module as Lightning does, also from checkpoints of older versions of zoo with other names."""
        file = load_upgraded(checkpoint_path, cls)
        with checked("checkpoint", cls), budget_of_machine():
            return super().load_from_checkpoint(file, map_location, hparams_file, strict, weights_only, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mark_format(checkpoint)
        if mean := self._running_means.get("train"):
            checkpoint["train_running_mean"] = mean.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        upgrade(checkpoint, type(self))
        trainer = trainer_of(self)
        # Training goes on from the raw weights; everything else uses the EMA weights.
        if trainer is not None and trainer.state.fn == "fit":
            use_raw(checkpoint)
        elif trainer is None or not has_weight_choice(trainer):
            use_ema(self, checkpoint)
        if trainer is None:
            from zoo.prediction.loading import description_of_data

            # For `predict`, which builds the data that prepare its inputs when it is first called.
            object.__setattr__(self, "data_in_checkpoint", description_of_data(checkpoint))
        if state := checkpoint.get("train_running_mean"):
            self._running_means["train"] = RunningMean(**state)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == HOOK_NAME:  # set at every hook; nn.Module.__setattr__ would take 0.1 ms of a step
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Helpers ----------------------------------------------------------------------------------------------------------

    @property
    def _weighs_batches(self) -> bool:
        """Whether several batches, which may differ in size, are averaged in one step."""
        return self.automatic_optimization and self.trainer.accumulate_grad_batches * self.trainer.world_size > 1

    @property
    def _is_logging_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (logged_step(self.trainer) + 1) % every == 0

    def _log_running_means(self, stage: str, more: Mapping[str, Any] | None = None) -> None:
        values: dict[str, Any] = {}
        mean = self._running_means.pop(stage, RunningMean())
        values |= mean.compute(self.trainer)
        values |= more or {}
        in_progress_bar = {"loss", self.monitor.rpartition("/")[2]}
        for name, value in values.items():
            log_global(self, f"{stage}/{name}", value, prog_bar=name in in_progress_bar)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf") or total < 1:
            raise ValueError("a schedule needs an end: give --trainer.max_epochs or --trainer.max_steps")
        return int(total)


def require(module: nn.Module, **values: Any) -> Any:
    """Return the values, which the user or the data must give, one or several.

    Raises:
        ValueError: a value is None.
    """
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{type(module).__name__} needs {name}: give it, or data that knows it")
    if len(values) == 1:
        return next(iter(values.values()))
    return tuple(values.values())


def inputs_of(batch: Any) -> tuple[Any, ...]:
    """Return the positional arguments of the network, from a batch ``(inputs, targets)`` or the inputs alone.

    Inputs are one tensor or several, such as ``(x, lengths)``.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs)
    return (inputs,)


def _is_plain_value(value: Any) -> bool:
    """Whether a hyperparameter is a number, a string, None, or lists and dicts of these."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain_value(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain_value(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _unwrap_factory(factory: Any) -> tuple[type | None, dict[str, Any]]:
    """Return the class and the options in a class, a partial, or jsonargparse's partial around a class."""
    options = getattr(factory, "keywords", {})
    for part in (factory, getattr(factory, "func", None), *getattr(factory, "args", ())):
        if inspect.isclass(part):
            return part, options
    return None, options
