"""Exponential moving average of the weights (Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.adapters import frozen_names
from zoo.callbacks.weight_choice import has_weight_choice
from zoo.checkpoints import load_ema
from zoo.distributed import local_part, reshard, shard_like


def ema_decay(update: int, decay: float, warmup: bool) -> float:
    """Return the decay of an update.

    Args:
        update: index of the update, from 0.
        decay: final decay.
        warmup: whether the decay is lower at first, so that the initial weights are forgotten fast.
    """
    if not warmup:
        return decay
    return min(decay, (1 + update) / (10 + update))


@torch.no_grad()
def ema_update(averages: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """Update the EMA weights in place.

    Args:
        averages: the EMA weights.
        weights: the current weights, in the same order; dtype and device may differ.
        decay: weight of the old average.
    """
    fused_averages: list[Tensor] = []
    fused_weights: list[Tensor] = []
    for average, weight in zip(averages, weights, strict=True):
        if average.dtype == weight.dtype and average.device == weight.device:
            fused_averages.append(average)
            fused_weights.append(weight)
        else:
            # One at a time: converting all of them at once would need memory for a second model.
            average.lerp_(weight.to(average), 1 - decay)
    if fused_averages:
        torch._foreach_lerp_(fused_averages, fused_weights, 1 - decay)


class EMA(L.Callback):
    """Exponential moving average (EMA) of the weights, used for validation, test, prediction and the fitted module.

    Parameters are averaged in at least float32, tied ones once; buffers are those of the model. Logs no metrics.

    In a checkpoint ``state_dict`` holds the EMA weights, so that ``load_from_checkpoint`` of any module gives what
    validation measured, and ``raw_params`` the trained ones: :func:`zoo.checkpoints.with_ema` chooses. A resumed fit
    goes on from the trained weights. In the folder of a sharded model ``state_dict`` holds the trained weights, and
    ``ema_params`` the EMA weights.

    Args:
        decay: weight of the old average in each update, in [0, 1); 0.999 averages over about 1,000 updates.
        warmup: use the decay ``(1 + t) / (10 + t)`` at update t while it is less than ``decay``.
        start_step: optimizer steps before averaging starts; until then the trained weights are used everywhere.
        every_n_steps: optimizer steps between two updates.
        device: device of the EMA weights, for instance ``cpu`` to save GPU memory; null for that of the weights.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = True,
        start_step: int = 0,
        every_n_steps: int = 1,
        device: str | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, not {decay}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, not {start_step}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        try:
            torch.device(device or "cpu")
        except RuntimeError:
            raise ValueError(f"device must be a torch device like cpu or cuda:0, not {device!r}") from None
        self.decay = decay
        self.warmup = warmup
        self.start_step = start_step
        self.every_n_steps = every_n_steps
        self.device = device
        # Tied parameters have several names.
        self._param_names: dict[nn.Parameter, list[str]] = {}
        self._reset()

    def _reset(self) -> None:
        self.updates = 0
        # Shards of this rank, in the order of _param_names; None before the first update.
        self.ema_weights: list[Tensor] | None = None
        # The trained weights while the module holds the EMA weights.
        self._raw_weights: list[Tensor] | None = None
        # Optimizer step of the last check whether an update is due.
        self._step = 0

    # fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            name = type(trainer.strategy).__name__
            raise ValueError(
                f"EMA does not support weights that {name} shards: use ModelParallelStrategy with fully_shard"
            )
        all_callbacks = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in all_callbacks if isinstance(callback, (EMA, WeightAveraging))]
        if len(others) > 1:
            names = " and ".join(type(callback).__name__ for callback in others)
            raise ValueError(f"{names} would both replace the weights for validation: give one of them")
        weights_only = [getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks]
        if any(weights_only):
            rank_zero_warn("save_weights_only=True: checkpoints will hold the trained weights, not the EMA weights.")
        # A second fit with the same module continues averaging; any other fit starts anew.
        is_same_module = any(p in self._param_names for p in pl_module.parameters())
        if trainer.global_step == 0 or not is_same_module:
            self._reset()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After an earlier fit the module holds the EMA weights: continue from the trained ones.
        self._swap_out(pl_module)
        self._collect_params(pl_module)
        self._move_to_weights()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._update_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Outside of fit, the module already holds the weights that were chosen.
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has moved the module off the GPU by now.
        self._move_to_weights()
        self._swap_in(pl_module)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Another callback may save before our on_train_batch_end is called.
        self._update_if_due(trainer)
        if self.ema_weights is None:
            return
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        is_main = trainer.is_global_zero
        averages = self._by_name(self.ema_weights, gather=True, keep=is_main)
        checkpoint["ema_params"] = averages
        state = checkpoint["state_dict"]
        # The trained weights; the module holds the EMA weights during a validation.
        weights = self._raw_weights
        if weights is None:
            weights = [weight.detach() for weight in self._weights()]
        if any(isinstance(value, DTensor) for value in state.values()):
            if self._raw_weights is not None:
                state.update(only_known(self._by_name(weights, gather=False, keep=True), state))
            return
        raw = self._by_name(weights, gather=True, keep=is_main)
        checkpoint["raw_params"] = only_known(raw, state)
        for name, tensor in only_known(averages, state).items():
            state[name] = tensor.to(state[name].dtype)  # of equal dtypes the same tensor, which a file holds once

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._reset()
        averages = checkpoint.get("ema_params")
        if trainer.state.fn != TrainerFn.FITTING:
            if not has_weight_choice(trainer):
                load_ema(pl_module, averages or {})
            return
        self._step = checkpoint["global_step"]
        load_ema(pl_module, checkpoint.get("raw_params", {}))
        if averages:
            self._collect_params(pl_module)
            self.ema_weights = self._load_averages(averages)

    def _load_averages(self, averages: dict[str, Tensor]) -> list[Tensor]:
        """Return the EMA weights of a checkpoint; a parameter that it does not have starts from its weight."""
        loaded: list[Tensor] = []
        for parameter, names in self._param_names.items():
            average = averages.get(names[0])
            if average is None:
                local = local_part(parameter)
            else:
                local = shard_like(average, parameter)
            loaded.append(self._ema_copy(local))
        return loaded

    # EMA weights

    def _collect_params(self, module: nn.Module) -> None:
        reshard(module)
        self._param_names = {}
        frozen = frozen_names(module)
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in frozen:
                continue
            if parameter.is_floating_point() or parameter.is_complex():
                self._param_names.setdefault(parameter, []).append(name)

    def _weights(self) -> list[Tensor]:
        """Return the weights of this rank, as they are in the module: no copies."""
        weights: list[Tensor] = []
        for parameter in self._param_names:
            if isinstance(parameter, DTensor):
                weights.append(local_part(parameter))
            else:
                weights.append(parameter)
        return weights

    def _ema_copy(self, weight: Tensor) -> Tensor:
        # In bfloat16, the small updates of a slow average would be rounded away.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(self.device or weight.device, dtype, copy=True)

    def _move_to_weights(self) -> None:
        """Move the EMA weights to the current device of the weights, or to ``device``."""
        if self.ema_weights is None:
            return
        pairs = zip(self.ema_weights, self._weights(), strict=True)
        self.ema_weights = [average.to(self.device or weight.device) for average, weight in pairs]

    @torch.no_grad()
    def _update_if_due(self, trainer: L.Trainer) -> None:
        """Update the EMA weights if the optimizer has stepped since the last call."""
        step = trainer.global_step
        last = self._step
        if step <= last:
            return
        self._step = step
        if step <= self.start_step:
            return
        # Not `step % every_n_steps`: several optimizers in one batch advance the step by more than 1.
        if step // self.every_n_steps == last // self.every_n_steps:
            return
        if self.ema_weights is None:
            self.ema_weights = [self._ema_copy(weight) for weight in self._weights()]
            self.updates = 0
        else:
            decay = ema_decay(self.updates, self.decay, self.warmup)
            ema_update(self.ema_weights, self._weights(), decay)
        self.updates += 1

    @torch.no_grad()
    def _swap_in(self, module: nn.Module) -> None:
        if self.ema_weights is None or self._raw_weights is not None:
            return
        reshard(module)
        weights = self._weights()
        # Copied before any weight changes, not exchanged: an interrupt at any point leaves both sets complete. The copy
        # is on the device of the EMA weights and needs no more memory than the gradients, which are freed by now.
        pairs = zip(weights, self.ema_weights, strict=True)
        self._raw_weights = [weight.to(average.device, copy=True) for weight, average in pairs]
        torch._foreach_copy_(weights, self.ema_weights)

    @torch.no_grad()
    def _swap_out(self, module: nn.Module) -> None:
        if self._raw_weights is None:
            return
        reshard(module)
        torch._foreach_copy_(self._weights(), self._raw_weights)
        self._raw_weights = None

    def _by_name(self, tensors: Sequence[Tensor], gather: bool, keep: bool) -> dict[str, Tensor]:
        """Return the tensors under all their names in a state_dict; all ranks have to call it.

        Args:
            tensors: one per averaged parameter, the local shard where it is sharded.
            gather: whether shards are gathered into full tensors on the CPU.
            keep: whether this rank needs the result; else it is empty.
        """
        named: dict[str, Tensor] = {}
        for (parameter, names), tensor in zip(self._param_names.items(), tensors, strict=True):
            if isinstance(parameter, DTensor):
                tensor = _as_dtensor(tensor, parameter)
                if gather:
                    tensor = tensor.full_tensor().cpu()
            if keep:
                named.update(dict.fromkeys(names, tensor))
        return named


def only_known(tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors whose names a ``state_dict`` has: a module may leave some out."""
    return {name: tensor for name, tensor in tensors.items() if name in state}


def _as_dtensor(shard: Tensor, like: DTensor) -> DTensor:
    """Return a local shard as a DTensor that is sharded as ``like`` is."""
    return DTensor.from_local(
        shard.to(like.device),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
