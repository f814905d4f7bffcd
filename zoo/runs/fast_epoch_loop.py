"""Lightning's training step by the shortest way, where nothing about it is out of the ordinary.

A step of Lightning 2.6 walks through some forty profiler regions, asks for the signature of ``training_step`` and calls
every hook of every callback, most of them empty: half a millisecond, as much as a small network's whole step.

Subclasses a private class of Lightning: import this file only where ``zoo._lightning.untested`` has nothing to say.
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

# The empty hooks of a callback and of a module, which need no call.
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


class FastEpochLoop(_TrainingEpochLoop):
    """The loop over an epoch's batches: the same calls in the same order, and Lightning's own code for all else.

    Ordinary is one device, float32, one optimizer, no accumulation, no profiler, and a module that leaves
    ``optimizer_step`` alone. As in Lightning, hooks are looked up when they are due: they may be replaced at any time.
    """

    @classmethod
    def install(cls, trainer: L.Trainer) -> None:
        """Let a trainer train with this loop; when training begins, a line says whether it does."""
        old = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, old.min_steps, old.max_steps)

    def __init__(self, trainer: L.Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._reported = False
        # The function behind training_step when its signature was last asked for, and whether it takes batch_idx.
        self._step_function: Any = None
        self._takes_index = False

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        if not self._reported:
            self._reported = True
            self.trainer.lightning_module.print(f"training loop: {self._description(data_fetcher)}")

    def _description(self, data_fetcher: Any) -> str:
        unusual = self._unusual_run(data_fetcher) or self._unusual_step()
        return f"Lightning's own ({unusual})" if unusual else "zoo's fast loop"

    def _unusual_run(self, data_fetcher: Any) -> str | None:
        """What of the trainer leaves training to Lightning's own loop, or None."""
        strategy = self.trainer.strategy
        if type(strategy) is not SingleDeviceStrategy:
            return f"strategy {type(strategy).__name__}"
        if type(strategy.precision_plugin) is not Precision:
            return f"precision {strategy.precision_plugin.precision}"
        if type(self.trainer.profiler) is not PassThroughProfiler:
            return f"profiler {type(self.trainer.profiler).__name__}"
        if isinstance(data_fetcher, _DataLoaderIterDataFetcher):
            return "training_step takes dataloader_iter"
        return None

    def _unusual_step(self) -> str | None:
        """What leaves this batch's optimization to Lightning's own loop, or None."""
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
        output, ends_epoch = None, False
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
        """Forward, backward and the optimizer's step; return what ``training_step`` gave, for the callbacks."""
        if self._unusual_step():  # since on_train_batch_start
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
        result = closure.consume_result()  # refuses an optimizer that has not called the closure
        return {} if result.loss is None else result.asdict()

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
        if function is not self._step_function:  # looking at a signature takes as long as the rest of the loop
            self._step_function = function
            self._takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        return (batch, batch_idx) if self._takes_index else (batch,)

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        trainer, module = self.trainer, self.trainer.lightning_module
        limit, by = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        hooks = ("configure_gradient_clipping", "clip_gradients")
        if by == "value" or any(_overrides(module, L.LightningModule, name) for name in hooks):
            clip = module.configure_gradient_clipping
            given = {"gradient_clip_val": limit, "gradient_clip_algorithm": by}
            self._within("configure_gradient_clipping", clip, optimizer, **given)
        elif limit and limit > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            grads = [p.grad for p in parameters if p.grad is not None]
            if len({(g.dtype, g.layout) for g in grads}) > 1:
                torch.nn.utils.clip_grad_norm_(parameters, limit)
            elif grads:  # the same arithmetic, without sorting the tensors by kind twice
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
                torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))

    def _to_device(self, batch: Any) -> Any:
        trainer, module = self.trainer, self.trainer.lightning_module
        data = trainer.datamodule
        own = any(_overrides(module, L.LightningModule, name) for name in _TRANSFER)
        own = own or (data is not None and any(_overrides(data, L.LightningDataModule, name) for name in _TRANSFER))
        if own:
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return move_data_to_device(batch, trainer.strategy.root_device)

    def _call(self, name: str, *args: Any) -> Any:
        """Call a hook of the callbacks, then of the module; return what the module's gives."""
        trainer: Any = self.trainer
        empty, empty_of_module = _EMPTY[name]
        for callback in trainer.callbacks:
            hook = getattr(callback, name)
            if getattr(hook, "__func__", None) is not empty and callable(hook):
                self._within(name, hook, trainer, trainer.lightning_module, *args)
        hook = getattr(trainer.lightning_module, name)
        if getattr(hook, "__func__", None) is not empty_of_module and callable(hook):
            return self._within(name, hook, *args)
        return None

    def _within(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call with the name set by which ``log`` knows where it is."""
        attributes = vars(self.trainer.lightning_module)  # nn.Module's way to set one takes some microseconds
        before = attributes["_current_fx_name"]
        attributes["_current_fx_name"] = name
        output = function(*args, **kwargs)
        attributes["_current_fx_name"] = before
        return output


def _overrides(owner: Any, base: type, name: str) -> bool:
    """Whether a module or datamodule has a method of its own, in its class or as an attribute."""
    return getattr(getattr(owner, name), "__func__", None) is not getattr(base, name)
