"""Gradient measurement of one training step: computed on the device, copied to the host once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

RELUS = (nn.ReLU, nn.ReLU6)
SATURATING = {nn.Tanh: (0.0, 0.99), nn.Sigmoid: (0.5, 0.495)}
"""Midpoint of the range, and distance from it beyond which an output is saturated: 99 % of the way to an end."""


class StepMeasurement:
    """Measurement of one optimizer step, from its first micro-batch to its end; does not synchronise with the device.

    Args:
        trainer: the trainer.
        module: the module in training.
        batch: first micro-batch of the step.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        self.step = trainer.global_step
        self.module = module
        self.num_parts = trainer.accumulate_grad_batches * trainer.world_size
        self.stepped = False
        self.error: Exception | None = None
        self.names: list[str] = []
        self.params: list[Tensor] = []
        self.sizes: dict[str, dict[str, int]] = {"dead": {}, "saturated": {}}
        self.samples = 0
        self._calls: dict[str, int] = defaultdict(int)
        self._alive: dict[tuple[str, int], Tensor] = {}
        self._saturation: dict[str, list[Tensor]] = defaultdict(list)
        self._micro_norms: list[Tensor] = []
        self._accumulated_norm: Tensor | None = None
        self._handles: list[Any] = []
        for name, part in module.named_modules():
            if isinstance(part, RELUS):
                self._handles.append(part.register_forward_hook(self._contained(self._relu_hook(name))))
            elif type(part) in SATURATING:
                self._handles.append(part.register_forward_hook(self._contained(self._saturation_hook(name))))
        # The noise scale compares gradients of two batch sizes: it needs at least two micro-batches in a step.
        if self.num_parts > 1:
            self.samples = _batch_size(batch)
        trainable = [p for p in module.parameters() if p.requires_grad]
        sharded = any(isinstance(p, DTensor) for p in trainable)
        if self.samples and not sharded:
            # These hooks see the gradient of one micro-batch on one rank, before it is accumulated.
            for param in trainable:
                self._handles.append(param.register_hook(self._contained(self._record_micro_norm)))

    def _contained(self, hook: Any) -> Any:
        """Return a hook whose errors do not end the forward or backward pass: ``check`` raises them later."""

        def run(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                self.error = error

        return run

    def check(self) -> None:
        """Raise the last error of a hook."""
        if self.error is not None:
            raise self.error

    def _relu_hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(part: nn.Module, _: Any, output: Tensor) -> None:
            if not _is_measured(part, output):
                return
            # Blocks often share one ReLU module between several places: each call is evaluated separately.
            call = self._calls[name]
            self._calls[name] += 1
            channel = 1 if output.ndim > 3 else output.ndim - 1
            other_dims = [d for d in range(output.ndim) if d != channel]
            alive = output.detach().amax(other_dims) > 0  # (channels,)
            before = self._alive.get((name, call))
            if before is not None and before.shape == alive.shape:
                alive = alive | before
            self._alive[name, call] = alive
            self.sizes["dead"][name] = alive.numel()

        return hook

    def _saturation_hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(part: nn.Module, _: Any, output: Tensor) -> None:
            if not _is_measured(part, output):
                return
            middle, reach = SATURATING[type(part)]
            distance = (output.detach() - middle).abs()
            saturated = (distance > reach).float().mean()
            self._saturation[name].append(saturated)
            self.sizes["saturated"][name] = output[0].numel()

        return hook

    def _record_micro_norm(self, grad: Tensor) -> None:
        self._micro_norms.append(grad.detach().float().norm())

    def new_forward(self) -> None:
        """Start a micro-batch: the calls of shared activations are numbered from 0 again."""
        self._calls.clear()

    def after_backward(self) -> None:
        """Record the norm of the accumulated gradient before anything rescales it, as the micro-batch norms are."""
        self.check()
        if self._micro_norms:
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._accumulated_norm = norms(grads).norm()

    def before_step(self, optimizer: Optimizer) -> None:
        """Record gradients and weights of the parameters that the optimizer is about to update."""
        self.check()
        updated: set[int] = set()
        for group in optimizer.param_groups:
            updated.update(id(p) for p in group["params"] if p.requires_grad)
        self.names = []
        self.params = []
        for name, param in self.module.named_parameters():
            if id(param) in updated:
                self.names.append(name)
                self.params.append(param)
        with torch.no_grad():
            self._grads = _norms_or_zero([p.grad for p in self.params])
            self._weights = norms(self.params)
            self._weights_before = [local_shard(p).detach().clone() for p in self.params]
        self.stepped = True

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def read(self, trainer: Trainer, clipped: Tensor | None) -> dict[str, Any]:
        """Return all measured values by kind and name, with a single copy from the device.

        Args:
            trainer: the trainer.
            clipped: fraction of clipped steps, or None.

        Returns:
            Dictionaries ``norms``, ``updates`` and ``weights`` by parameter, ``dead`` and ``saturated`` by module, and
            ``clipped`` and ``small`` (mean squared gradient norm of a micro-batch), with the key ``all`` or empty.
        """
        weights = [local_shard(p).detach() for p in self.params]
        updates = norms(torch._foreach_sub(weights, self._weights_before), self.params)
        self._weights_before = []
        values: dict[str, dict[str, Tensor]] = {
            "norms": dict(zip(self.names, self._grads, strict=True)),
            "updates": dict(zip(self.names, updates, strict=True)),
            "weights": dict(zip(self.names, self._weights, strict=True)),
            "dead": self._dead_fractions(),
            "saturated": {name: torch.stack(parts).mean() for name, parts in self._saturation.items()},
            "clipped": {},
            "small": {},
        }
        if clipped is not None:
            values["clipped"]["all"] = clipped
        if self._accumulated_norm is not None:
            values["small"]["all"] = self._mean_micro_square(trainer, self._accumulated_norm)
        flat: list[Tensor] = []
        for part in values.values():
            flat += [value.to(self._grads) for value in part.values()]
        numbers = iter(torch.stack(flat).tolist())
        result: dict[str, Any] = {}
        for key, part in values.items():
            result[key] = {name: next(numbers) for name in part}
        return result

    def _dead_fractions(self) -> dict[str, Tensor]:
        """Return the fraction of dead units of each ReLU, averaged over its calls."""
        calls: dict[str, list[Tensor]] = defaultdict(list)
        for (name, _), alive in self._alive.items():
            calls[name].append(1 - alive.float().mean())
        return {name: torch.stack(fractions).mean() for name, fractions in calls.items()}

    def _mean_micro_square(self, trainer: Trainer, accumulated_norm: Tensor) -> Tensor:
        micro_batches = trainer.accumulate_grad_batches
        # Ratio of the optimizer's gradient to the plain sum: the effect of the loss scale and of averaging.
        unit = self._grads.norm() / accumulated_norm
        mean_square = torch.stack(self._micro_norms).square().sum() / micro_batches
        factor = (unit * micro_batches).square()
        return factor * trainer.strategy.reduce(mean_square, reduce_op="mean")


def _is_measured(part: nn.Module, output: Tensor) -> bool:
    return part.training and output.ndim >= 2 and output.numel() > 0


def local_shard(tensor: Tensor) -> Tensor:
    """Return the local shard of a DTensor, or any other tensor unchanged."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def norms(tensors: Iterable[Tensor], like: Iterable[Tensor] | None = None) -> Tensor:
    """Return the L2 norm of each tensor, from one fused kernel, in at least float32.

    Args:
        tensors: the tensors; norms of DTensors are those of the full tensors.
        like: tensors that are sharded in the same way, where ``tensors`` are local shards.
    """
    tensors = [t.detach() for t in tensors]
    like = tensors if like is None else list(like)
    if not tensors:
        return torch.zeros(0)
    has_double = any(t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if has_double else torch.float32
    shards = [local_shard(t) for t in tensors]
    local_norms = torch._foreach_norm(shards, 2, dtype=dtype)
    squares = torch.stack(local_norms).square()
    meshes = dict.fromkeys(t.device_mesh for t in like if isinstance(t, DTensor))
    for mesh in meshes:
        # One all-reduce for all shards of a mesh; replicated tensors must not be summed over the ranks.
        for axis, group in enumerate(mesh.get_all_groups()):
            sharded = torch.tensor([_is_sharded(t, mesh, axis) for t in like], device=squares.device)
            total = torch.where(sharded, squares, 0)
            torch.distributed.all_reduce(total, group=group)
            squares = torch.where(sharded, total, squares)
    return squares.sqrt()


def _is_sharded(tensor: Tensor, mesh: Any, axis: int) -> bool:
    if not isinstance(tensor, DTensor) or tensor.device_mesh != mesh:
        return False
    return tensor.placements[axis].is_shard()


def _norms_or_zero(grads: list[Tensor | None]) -> Tensor:
    """Return the norms of gradients, 0 for missing ones."""
    present = norms([grad for grad in grads if grad is not None])
    mask = torch.tensor([grad is not None for grad in grads], device=present.device)
    return present.new_zeros(len(grads)).masked_scatter(mask, present)


def _batch_size(batch: Any) -> int:
    try:
        return extract_batch_size(batch)
    except Exception:  # any object can be a batch; without its size there is no noise scale
        return 0
