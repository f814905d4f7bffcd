"""A training loop with less overhead per step than Lightning's, for the common case of a fit.

A step of Lightning 2.6 enters some forty profiler regions, inspects the signature of ``training_step`` and calls every
hook of every callback, most of them empty: half a millisecond, as much as the whole step of a small network.

It subclasses a private class of Lightning: import this file only if ``zoo._lightning.untested("lightning")`` is None.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from zoo._lightning import HOOK_NAME

# The hooks as Lightning defines them for a callback and for a module: empty, so they need no call.
_EMPTY = {
    name: (getattr(L.Callback, name), getattr(L.LightningModule, name))
    for name in (
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
    )
}
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_CLIPPING = ("configure_gradient_clipping", "clip_gradients")


class FastEpochLoop(_TrainingEpochLoop):
    """Loop over the batches of an epoch that makes the same calls in the same order as Lightning's, with less overhead.

    It handles one device, float32, one optimizer, no gradient accumulation, no profiler, and a module that does not
    override ``optimizer_step``. In all other cases Lightning's own code runs. As in Lightning, hooks are looked up when
    they are called, so they may be replaced at any time.
    """

    @classmethod
    def install(cls, trainer: L.Trainer) -> None:
        """Make a trainer use this loop; when training begins, a line says which loop runs."""
        old = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, old.min_steps, old.max_steps)

    def __init__(self, trainer: L.Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._reported = False
        # The function behind training_step when its signature was last inspected, and whether it takes batch_idx.
        self._step_function: Any = None
        self._takes_index = False

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        if not self._reported:
            self._reported = True
            self.trainer.lightning_module.print(f"training loop: {self._description(data_fetcher)}")

    def _description(self, data_fetcher: Any) -> str:
        unusual = self._unusual_run(data_fetcher) or self._unusual_step()
        if unusual:
            return f"Lightning's own ({unusual})"
        return "zoo's fast loop"

    def _unusual_run(self, data_fetcher: Any) -> str | None:
        """Return what about the trainer requires Lightning's own loop, or None."""
        trainer: Any = self.trainer
        strategy = trainer.strategy
        if type(strategy) is not SingleDeviceStrategy:
            return f"strategy {type(strategy).__name__}"
        if type(strategy.precision_plugin) is not Precision:
            return f"precision {strategy.precision_plugin.precision}"
        if type(trainer.profiler) is not PassThroughProfiler:
            return f"profiler {type(trainer.profiler).__name__}"
        if isinstance(data_fetcher, _DataLoaderIterDataFetcher):
            return "training_step takes dataloader_iter"
        return None

    def _unusual_step(self) -> str | None:
        """Return what requires Lightning's own code for the optimization of this batch, or None."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        if not module.automatic_optimization:
            return "manual optimization"
        if trainer.accumulate_grad_batches > 1:
            return f"accumulate_grad_batches {trainer.accumulate_grad_batches}"
        if len(trainer.optimizers) != 1:
            return f"{len(trainer.optimizers)} optimizers"
        if isinstance(trainer.optimizers[0], LightningOptimizer):
            return "configure_optimizers returns a LightningOptimizer"
        if trainer.strategy.model is not module:
            return "the module is compiled as a whole"
        if _overrides(module, L.LightningModule, "optimizer_step"):
            return f"{type(module).__name__} has an optimizer_step of its own"
        return None

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting or self._unusual_run(data_fetcher) or self._unusual_step():
            return super().advance(data_fetcher)
        connector = self.trainer._logger_connector
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        batch = self._to_device(batch)
        self.batch_progress.increment_ready()
        connector.on_batch_start(batch)
        output = None
        ends_epoch = False
        if batch is None:
            self._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        elif self._call("on_train_batch_start", batch, batch_idx) == -1:
            self.batch_progress.increment_by(0, is_last_batch=True)
            ends_epoch = True
        else:
            self.batch_progress.increment_started()
            output = self._optimize(batch, batch_idx)
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if ends_epoch:
            raise StopIteration
        self._call("on_train_batch_end", output, batch, batch_idx)
        connector.on_batch_end()
        self.batch_progress.increment_completed()
        connector.update_train_step_metrics()

    def _optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Run forward, backward and the optimizer step; return the outputs of ``training_step`` for the callbacks."""
        if self._unusual_step():  # on_train_batch_start may have changed the module or the trainer
            return self._optimize_as_lightning(batch, batch_idx)
        optimizer = self.trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        closure = Closure(
            step_fn=partial(self._forward, self._step_arguments(batch, batch_idx)),
            backward_fn=self._backward,
            zero_grad_fn=partial(self._zero_grad, optimizer, batch_idx),
        )

        def forward_and_backward() -> torch.Tensor | None:
            loss = closure()
            self._call("on_before_optimizer_step", optimizer)
            self._clip(optimizer)
            return loss

        progress.step.increment_ready()
        self._within("optimizer_step", optimizer.step, closure=forward_and_backward)
        progress.step.increment_completed()
        result = closure.consume_result()  # raises if the optimizer has not called the closure
        if result.loss is None:
            return {}
        return result.asdict()

    def _optimize_as_lightning(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        arguments = self._build_kwargs(OrderedDict(), batch, batch_idx)
        if self.trainer.lightning_module.automatic_optimization:
            return self.automatic_optimization.run(self.trainer.optimizers[0], batch_idx, arguments)
        return self.manual_optimization.run(arguments)

    def _forward(self, arguments: tuple[Any, ...]) -> ClosureResult:
        output = self._within("training_step", self.trainer.lightning_module.training_step, *arguments)
        return ClosureResult.from_training_step_output(output)

    def _zero_grad(self, optimizer: torch.optim.Optimizer, batch_idx: int) -> None:
        progress = self.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self._call("on_before_zero_grad", optimizer)
        progress.increment_started()
        zero_grad = self.trainer.lightning_module.optimizer_zero_grad
        self._within("optimizer_zero_grad", zero_grad, self.trainer.current_epoch, batch_idx, optimizer)
        progress.increment_completed()

    def _backward(self, loss: torch.Tensor) -> None:
        self._call("on_before_backward", loss)
        self._within("backward", self.trainer.lightning_module.backward, loss)
        self._call("on_after_backward")

    def _step_arguments(self, batch: Any, batch_idx: int) -> tuple[Any, ...]:
        step = self.trainer.lightning_module.training_step
        function = getattr(step, "__func__", step)
        if function is not self._step_function:  # inspecting a signature takes as long as the rest of the loop
            self._step_function = function
            self._takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        if self._takes_index:
            return (batch, batch_idx)
        return (batch,)

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip gradients by norm; by value, or where the module overrides the hooks, Lightning does it."""
        module = self.trainer.lightning_module
        limit = self.trainer.gradient_clip_val
        algorithm = self.trainer.gradient_clip_algorithm
        is_overridden = any(_overrides(module, L.LightningModule, name) for name in _CLIPPING)
        if algorithm == "value" or is_overridden:
            self._within(
                "configure_gradient_clipping",
                module.configure_gradient_clipping,
                optimizer,
                gradient_clip_val=limit,
                gradient_clip_algorithm=algorithm,
            )
        elif limit and limit > 0:
            _clip_norm(optimizer, limit)

    def _to_device(self, batch: Any) -> Any:
        trainer: Any = self.trainer
        module = trainer.lightning_module
        data = trainer.datamodule
        is_overridden = any(_overrides(module, L.LightningModule, name) for name in _TRANSFER)
        if data is not None and not is_overridden:
            is_overridden = any(_overrides(data, L.LightningDataModule, name) for name in _TRANSFER)
        if is_overridden:
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return move_data_to_device(batch, trainer.strategy.root_device)

    def _call(self, name: str, *args: Any) -> Any:
        """Call a hook of the callbacks, then of the module; return the result of the module's hook."""
        trainer: Any = self.trainer
        empty_of_callback, empty_of_module = _EMPTY[name]
        for callback in trainer.callbacks:
            hook = getattr(callback, name)
            if getattr(hook, "__func__", None) is not empty_of_callback and callable(hook):
                self._within(name, hook, trainer, trainer.lightning_module, *args)
        hook = getattr(trainer.lightning_module, name)
        if getattr(hook, "__func__", None) is not empty_of_module and callable(hook):
            return self._within(name, hook, *args)
        return None

    def _within(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call a function with the name of the hook set, which ``log`` reads."""
        attributes = vars(self.trainer.lightning_module)  # setattr of nn.Module takes some microseconds
        before = attributes[HOOK_NAME]
        attributes[HOOK_NAME] = name
        output = function(*args, **kwargs)
        attributes[HOOK_NAME] = before
        return output


def _overrides(owner: Any, base: type, name: str) -> bool:
    """Return whether a module or datamodule overrides a method, in its class or as an attribute."""
    return getattr(getattr(owner, name), "__func__", None) is not getattr(base, name)


def _clip_norm(optimizer: torch.optim.Optimizer, limit: float) -> None:
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len({(grad.dtype, grad.layout) for grad in grads}) > 1:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
    elif grads:
        # The arithmetic of clip_grad_norm_, without its grouping of tensors by dtype and device.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
