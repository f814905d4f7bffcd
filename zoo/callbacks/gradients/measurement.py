"""One measurement of a training step: all numbers gathered on the device, and fetched at once."""

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
"""The middle of the range, and from how far off it an output counts as saturated: 99 % of the way to an end."""


class StepMeasurement:
    """All that one measurement needs, from the first micro-batch of a step to its end; nothing waits for the device."""

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        self.step = trainer.global_step
        self.module = module
        self.num_parts = trainer.accumulate_grad_batches * trainer.world_size
        self.stepped = False
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
            if isinstance(part, RELUS) or type(part) in SATURATING:
                self._handles.append(part.register_forward_hook(self._activation_hook(name)))
        if self.num_parts > 1:
            self.samples = _batch_size(batch)
        trainable = [p for p in module.parameters() if p.requires_grad]
        if self.samples and not any(isinstance(p, DTensor) for p in trainable):
            # these hooks see the gradient of one micro-batch on one process, before it is added up
            self._handles += [p.register_hook(self._record_micro_norm) for p in trainable]

    def _activation_hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(part: nn.Module, _: Any, output: Tensor) -> None:
            if not part.training or output.ndim < 2 or not output.numel():
                return
            output = output.detach()
            if isinstance(part, RELUS):
                # a ReLU is often shared by several places of a block: each call is judged by itself
                call, self._calls[name] = self._calls[name], self._calls[name] + 1
                channel = 1 if output.ndim > 3 else output.ndim - 1
                alive = output.amax([d for d in range(output.ndim) if d != channel]) > 0
                before = self._alive.get((name, call))
                self._alive[name, call] = (
                    alive | before if before is not None and before.shape == alive.shape else alive
                )
                self.sizes["dead"][name] = alive.numel()
            else:
                middle, reach = SATURATING[type(part)]
                self._saturation[name].append(((output - middle).abs() > reach).float().mean())
                self.sizes["saturated"][name] = output[0].numel()

        return hook

    def _record_micro_norm(self, grad: Tensor) -> None:
        self._micro_norms.append(grad.detach().float().norm())

    def new_forward(self) -> None:
        self._calls.clear()

    def after_backward(self) -> None:
        """The sum of the micro-batches' gradients, in the unit of what `_record_micro_norm` saw, whatever is scaled
        later."""
        if self._micro_norms:
            self._accumulated_norm = norms([p.grad for p in self.module.parameters() if p.grad is not None]).norm()

    def before_step(self, optimizer: Optimizer) -> None:
        named = {id(p): name for name, p in self.module.named_parameters()}
        mine = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        both = [(named[id(p)], p) for p in self.module.parameters() if id(p) in mine]
        self.names, self.params = [name for name, _ in both], [p for _, p in both]
        with torch.no_grad():
            self._grads = _norms_or_zero([p.grad for p in self.params])
            self._weights = norms(self.params)
            self._weights_before = [local_shard(p).detach().clone() for p in self.params]
        self.stepped = True

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def read(self, trainer: Trainer, clipped: Tensor | None) -> dict[str, Any]:
        """All numbers by name, fetched from the device at once; `small` is the mean squared norm of micro-batches."""
        updates = norms(
            torch._foreach_sub([local_shard(p).detach() for p in self.params], self._weights_before), self.params
        )
        self._weights_before = []
        saturated = {name: torch.stack(parts).mean() for name, parts in self._saturation.items()}
        calls: dict[str, list[Tensor]] = defaultdict(list)
        for (name, _), alive in self._alive.items():
            calls[name].append(1 - alive.float().mean())
        dead = {name: torch.stack(parts).mean() for name, parts in calls.items()}
        values = {
            "norms": dict(zip(self.names, self._grads, strict=True)),
            "updates": dict(zip(self.names, updates, strict=True)),
            "weights": dict(zip(self.names, self._weights, strict=True)),
            "dead": dead,
            "saturated": saturated,
            "clipped": {} if clipped is None else {"all": clipped},
            "small": {}
            if self._accumulated_norm is None
            else {"all": self._mean_micro_square(trainer, self._accumulated_norm)},
        }
        flat = [value.to(self._grads) for part in values.values() for value in part.values()]
        numbers = iter(torch.stack(flat).tolist())
        return {key: {name: next(numbers) for name in part} for key, part in values.items()}

    def _mean_micro_square(self, trainer: Trainer, whole: Tensor) -> Tensor:
        windows = trainer.accumulate_grad_batches
        # the optimizer's gradient over the plain sum: what the loss scale and the task's own averaging came to
        unit = self._grads.norm() / whole
        mean_square = torch.stack(self._micro_norms).square().sum() / windows
        return (unit * windows).square() * trainer.strategy.reduce(mean_square, reduce_op="mean")


def local_shard(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Iterable[Tensor], like: Iterable[Tensor] | None = None) -> Tensor:
    """L2 norms by one fused call, in float32 at least; of the whole, where they (or those in `like`) are sharded."""
    tensors = [t.detach() for t in tensors]
    like = tensors if like is None else list(like)
    if not tensors:
        return torch.zeros(0)
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    squares = torch.stack(torch._foreach_norm([local_shard(t) for t in tensors], 2, dtype=wide)).square()
    for mesh in dict.fromkeys(t.device_mesh for t in like if isinstance(t, DTensor)):
        # one sum for all shards of a mesh; a tensor that is whole everywhere is not to be counted twice
        for axis, group in enumerate(mesh.get_all_groups()):
            mine = [isinstance(t, DTensor) and t.device_mesh == mesh and t.placements[axis].is_shard() for t in like]
            shared = torch.tensor(mine, device=squares.device)
            total = torch.where(shared, squares, 0)
            torch.distributed.all_reduce(total, group=group)
            squares = torch.where(shared, total, squares)
    return squares.sqrt()


def _norms_or_zero(grads: list[Tensor | None]) -> Tensor:
    """Norms of gradients, 0 for those that are missing."""
    present = norms([grad for grad in grads if grad is not None])
    there = torch.tensor([grad is not None for grad in grads], device=present.device)
    return present.new_zeros(len(grads)).masked_scatter(there, present)


def _batch_size(batch: Any) -> int:
    try:
        return extract_batch_size(batch)
    except Exception:  # whatever a batch may be: no number, no noise scale
        return 0
