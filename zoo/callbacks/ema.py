"""Exponential moving average of the weights (Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046)."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.callbacks.weight_choice import has_weight_choice
from zoo.checkpoints import load_ema
from zoo.distributed import local_part, reshard, shard_like


def ema_decay(update: int, decay: float, warmup: bool) -> float:
    """The decay of an update, counted from 0: young averages forget faster, or the first weights would linger."""
    return min(decay, (1 + update) / (10 + update)) if warmup else decay


@torch.no_grad()
def ema_update(averages: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """Moves the averages towards the weights, in place."""
    alike, other = ([], []), []
    for a, w in zip(averages, weights, strict=True):
        if a.dtype == w.dtype and a.device == w.device:
            alike[0].append(a)
            alike[1].append(w)
        else:
            other.append((a, w))
    if alike[0]:
        torch._foreach_lerp_(*alike, 1 - decay)
    for a, w in other:
        a.lerp_(w.to(a), 1 - decay)  # one at a time: a cast of all at once would be a second model in memory


class EMA(L.Callback):
    """Keeps a running average of the weights, which validation, test, prediction and the fitted module then use.

    Parameters are averaged in float32 or wider, tied ones once; buffers stay the model's own. A checkpoint's
    `state_dict` holds the trained weights, its `ema_params` the averages. Logs nothing.

    Args:
        decay: share of the old average kept at each update, in [0, 1); 0.999 looks back over about 1,000 updates.
        warmup: begin with `(1 + t) / (10 + t)` at update t while that is less than `decay`.
        start_step: optimizer steps before averaging begins; until then the trained weights are used everywhere.
        every_n_steps: optimizer steps from one update to the next.
        device: where averages are kept, for instance `cpu` to spare GPU memory; null for beside the weights.
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
        self.decay, self.warmup, self.start_step, self.every_n_steps, self.device = (
            decay,
            warmup,
            start_step,
            every_n_steps,
            device,
        )
        self._param_names: dict[nn.Parameter, list[str]] = {}  # several names where tied
        self._reset()

    def _reset(self) -> None:
        self.updates = 0
        self.ema_weights: list[Tensor] | None = (
            None  # this rank's shards, in the order of _param_names; None before an update
        )
        self._raw_weights: list[Tensor] | None = None  # the trained weights while the averages stand in for them
        self._step = 0  # the optimizer step last looked at

    # fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            name = type(trainer.strategy).__name__
            raise ValueError(f"EMA cannot average what {name} shards: use ModelParallelStrategy with fully_shard")
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            rank_zero_warn("save_weights_only=True: these checkpoints will hold the trained weights, not the averages.")
        continues = trainer.global_step > 0 and any(p in self._param_names for p in pl_module.parameters())
        if not continues:
            self._reset()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_out(pl_module)  # fitted before: go on from the trained weights
        self._collect_params(pl_module)
        self._move_to_weights()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._update_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # elsewhere the module holds what it should
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap_out(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._move_to_weights()  # Lightning has moved the module off the GPU
        self._swap_in(pl_module)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._update_if_due(trainer)  # another callback may be saving before our on_train_batch_end
        if self.ema_weights is None:
            return
        checkpoint["callbacks"][self.state_key] = self.state_dict()
        checkpoint["ema_params"] = self._by_name(self.ema_weights, gather=True, keep=trainer.is_global_zero)
        if self._raw_weights is not None:
            state = checkpoint["state_dict"]
            sharded = any(isinstance(value, DTensor) for value in state.values())
            raw = self._by_name(self._raw_weights, gather=not sharded, keep=sharded or trainer.is_global_zero)
            state.update({name: tensor for name, tensor in raw.items() if name in state})

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._reset()
        averages = checkpoint.get("ema_params")
        if trainer.state.fn != TrainerFn.FITTING:
            if not has_weight_choice(trainer):
                load_ema(pl_module, averages or {})
            return
        self._step = checkpoint["global_step"]
        if averages:
            self._collect_params(pl_module)
            self.ema_weights = [
                self._ema_copy(
                    shard_like(averages[names[0]], parameter) if names[0] in averages else local_part(parameter)
                )
                for parameter, names in self._param_names.items()
            ]

    # the averages

    def _collect_params(self, module: nn.Module) -> None:
        reshard(module)
        self._param_names = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if parameter.is_floating_point() or parameter.is_complex():
                self._param_names.setdefault(parameter, []).append(name)

    def _weights(self) -> list[Tensor]:
        return [local_part(p) if isinstance(p, DTensor) else p for p in self._param_names]

    def _ema_copy(self, weight: Tensor) -> Tensor:
        # bfloat16 would round away every update of a slow average
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(self.device or weight.device, dtype, copy=True)

    def _move_to_weights(self) -> None:
        """Brings the averages to where the weights are by now."""
        if self.ema_weights is not None:
            pairs = zip(self.ema_weights, self._weights(), strict=True)
            self.ema_weights = [average.to(self.device or weight.device) for average, weight in pairs]

    @torch.no_grad()
    def _update_if_due(self, trainer: L.Trainer) -> None:
        """Updates the averages if the optimizer has stepped since the last look."""
        step, last = trainer.global_step, self._step
        if step <= last:
            return
        self._step = step
        # not `step % every_n_steps`: several optimizers in one batch advance the count by more than one
        if step <= self.start_step or step // self.every_n_steps == last // self.every_n_steps:
            return
        if self.ema_weights is None:
            self.ema_weights, self.updates = [self._ema_copy(weight) for weight in self._weights()], 0
        else:
            ema_update(self.ema_weights, self._weights(), ema_decay(self.updates, self.decay, self.warmup))
        self.updates += 1

    @torch.no_grad()
    def _swap_in(self, module: nn.Module) -> None:
        if self.ema_weights is None or self._raw_weights is not None:
            return
        reshard(module)
        weights = self._weights()
        # A copy, taken before any weight changes, and not an exchange: Ctrl-C at any point leaves both whole. It takes
        # the memory of the gradients, which Lightning has freed by now, and lies beside the averages.
        self._raw_weights = [w.to(a.device, copy=True) for w, a in zip(weights, self.ema_weights, strict=True)]
        torch._foreach_copy_(weights, self.ema_weights)

    @torch.no_grad()
    def _swap_out(self, module: nn.Module) -> None:
        if self._raw_weights is None:
            return
        reshard(module)
        torch._foreach_copy_(self._weights(), self._raw_weights)
        self._raw_weights = None

    def _by_name(self, tensors: Sequence[Tensor], gather: bool, keep: bool) -> dict[str, Tensor]:
        """The tensors under every name they have in a state_dict; all ranks call it, those that save keep them."""
        named = {}
        for (parameter, names), tensor in zip(self._param_names.items(), tensors, strict=True):
            if isinstance(parameter, DTensor):
                tensor = DTensor.from_local(
                    tensor.to(parameter.device),
                    parameter.device_mesh,
                    parameter.placements,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
                tensor = tensor.full_tensor().cpu() if gather else tensor
            if keep:
                named.update(dict.fromkeys(names, tensor))
        return named
