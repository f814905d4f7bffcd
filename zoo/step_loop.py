"""Lightning's training step by the shortest way, where nothing about it is out of the ordinary.

A step of Lightning 2.6 walks through some forty profiler regions, asks for the signature of ``training_step`` and calls
every hook of every callback, most of them empty: half a millisecond, as much as a small network's whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class StepLoop(_TrainingEpochLoop):
    """The loop over an epoch's batches: the same calls in the same order, and Lightning's own code for all else.

    Ordinary is one device, float32, one optimizer, no accumulation, no profiler, and a module that leaves
    ``optimizer_step`` and ``on_train_batch_start`` alone.
    """

    @classmethod
    def install(cls, trainer: L.Trainer) -> None:
        old = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, old.min_steps, old.max_steps)

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        module = trainer.lightning_module
        self._ordinary = (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) is Precision
            and type(trainer.profiler) is PassThroughProfiler
            and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and module.automatic_optimization
            and len(trainer.optimizers) == 1
            and trainer.strategy.model is module
            and not any(_overrides(module, name) for name in ("optimizer_step", "on_train_batch_start"))
        )
        if not self._ordinary:
            return
        self._callbacks = {n: [getattr(c, n) for c in trainer.callbacks if _overrides(c, n)] for n in _HOOKS}
        self._own = {n: getattr(module, n) for n in _HOOKS if _overrides(module, n)}
        data = trainer.datamodule or L.LightningDataModule()
        self._moves_itself = any(_overrides(owner, name) for owner in (module, data) for name in _TRANSFER)
        self._clips_itself = any(_overrides(module, name) for name in ("configure_gradient_clipping", "clip_gradients"))
        self._takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)

    def advance(self, data_fetcher: Any) -> None:
        if not self._ordinary or self.restarting or self.trainer.accumulate_grad_batches > 1:
            return super().advance(data_fetcher)
        connector = self.trainer._logger_connector
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        batch = self._to_device(batch)
        self.batch_progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, batch_idx)
        self.batch_progress.increment_started()
        output = self._optimize(batch, batch_idx)
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", output, batch, batch_idx)
        connector.on_batch_end()
        self.batch_progress.increment_completed()
        connector.update_train_step_metrics()

    def _optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Forward, backward and the optimizer's step; return what ``training_step`` gave, for the callbacks."""
        trainer, module = self.trainer, self.trainer.lightning_module
        optimizer, progress = trainer.optimizers[0], self.automatic_optimization.optim_progress.optimizer
        result = ClosureResult(None)

        @torch.enable_grad()
        def closure() -> Any:
            nonlocal result
            args = (batch, batch_idx) if self._takes_index else (batch,)
            output = self._within("training_step", module.training_step, *args)
            result = ClosureResult.from_training_step_output(output)
            progress.zero_grad.increment_ready()
            self._call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            epoch = trainer.current_epoch
            self._within("optimizer_zero_grad", module.optimizer_zero_grad, epoch, batch_idx, optimizer)
            progress.zero_grad.increment_completed()
            if (loss := result.closure_loss) is None:
                Closure.warning_cache.warn("training_step returned None: nothing to learn from this batch")
            else:
                self._call("on_before_backward", loss)
                module.backward(loss)
                self._call("on_after_backward")
            self._call("on_before_optimizer_step", optimizer)
            self._clip(optimizer)
            return result.loss

        progress.step.increment_ready()
        optimizer.step(closure=closure)
        progress.step.increment_completed()
        return result.asdict() if result.loss is not None else {}

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        trainer, module = self.trainer, self.trainer.lightning_module
        limit, by = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        if self._clips_itself or by == "value":
            clip, given = (
                module.configure_gradient_clipping,
                {"gradient_clip_val": limit, "gradient_clip_algorithm": by},
            )
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
        if self._moves_itself:
            module = self.trainer.lightning_module
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return move_data_to_device(batch, self.trainer.strategy.root_device)

    def _call(self, name: str, *args: Any) -> None:
        """A hook of the callbacks, then of the module."""
        for hook in self._callbacks[name]:
            self._within(name, hook, self.trainer, self.trainer.lightning_module, *args)
        if own := self._own.get(name):
            self._within(name, own, *args)

    def _within(self, name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call with the name set by which ``log`` knows where it is."""
        module = self.trainer.lightning_module
        before, module._current_fx_name = module._current_fx_name, name
        output = function(*args, **kwargs)
        module._current_fx_name = before
        return output


def _overrides(owner: Any, name: str) -> bool:
    """Whether a callback, module or datamodule has a hook of its own, in its class or as an attribute."""
    base = next(kind for kind in (L.Callback, L.LightningModule, L.LightningDataModule) if isinstance(owner, kind))
    return getattr(getattr(owner, name), "__func__", None) is not getattr(base, name)
