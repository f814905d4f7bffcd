"""Lion, the optimizer found by symbolic search (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.optim.closure import evaluate_closure

# Elements a thread works on before moving on: parameter, gradient, momentum and update then stay in its L2 cache.
CHUNK = 65_536
# Up to this many elements the overhead of a call exceeds its computation.
SMALL = 16_384


class Lion(torch.optim.Optimizer):
    """Lion: steps by the sign of an interpolated momentum, with one state tensor per parameter and decoupled decay.

    Every element moves by ``lr`` in every step, so ``lr`` should be 3 to 10 times smaller than for AdamW, and
    ``weight_decay`` larger by the same factor.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer; real and dense.
        lr: learning rate; a one-element tensor is read once a step.
        betas: weight of the momentum in the update, and its decay from step to step.
        weight_decay: decoupled weight decay; each step subtracts ``lr`` times this fraction of the parameter.
        foreach: update all tensors of a group at once, at the cost of one temporary copy of them. None does so on
            CUDA and for small tensors, and updates large tensors elsewhere in cache-sized chunks, which is faster.
        maximize: maximize the objective instead of minimizing it.

    Raises:
        ValueError: an option is out of range.
        RuntimeError: a gradient is sparse, or a parameter complex.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        if float(lr) < 0:
            raise ValueError(f"Lion: lr is {float(lr)}, but must be at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Lion: betas are {tuple(betas)}, but must be two numbers in [0, 1)")
        if weight_decay < 0:
            raise ValueError(f"Lion: weight_decay is {weight_decay}, but must be at least 0")
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "foreach": foreach, "maximize": maximize}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients again; called once, first.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            lr = float(group["lr"])
            for update, some in self._split_by_size(params, group["foreach"]):
                grads = [self._checked_grad(p) for p in some]
                exp_avgs = [self._exp_avg(p) for p in some]
                if group["maximize"]:
                    grads = [-grad for grad in grads]
                update(some, grads, exp_avgs, lr, 1 - lr * group["weight_decay"], group["betas"])
        return loss

    @staticmethod
    def _split_by_size(params: list[Tensor], foreach: bool | None) -> list[tuple[Callable[..., None], list[Tensor]]]:
        """Return update functions with their parameters: foreach for small ones, chunked for large ones on a CPU."""
        if foreach is not None:
            return [(_foreach_update if foreach else _single_tensor_update, params)]
        together = []
        alone = []
        for param in params:
            plain = type(param) in (Tensor, nn.Parameter)  # no subclass, such as a sharded tensor
            if plain and (param.is_cuda or param.numel() <= SMALL):
                together.append(param)
            else:
                alone.append(param)
        return [(_foreach_update, together), (_single_tensor_update, alone)]

    def _exp_avg(self, param: Tensor) -> Tensor:
        """Return the momentum of a parameter, zeros at its first step."""
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state["exp_avg"]

    @staticmethod
    def _checked_grad(param: Tensor) -> Tensor:
        assert param.grad is not None
        if param.grad.is_sparse:
            raise RuntimeError("Lion takes dense gradients only; set sparse=False in the embedding")
        if param.is_complex():
            raise RuntimeError("Lion takes real parameters only: a complex number has no sign")
        return param.grad


def _foreach_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    lr: float,
    keep: float,
    betas: tuple[float, float],
) -> None:
    if not params:
        return
    updates = torch._foreach_lerp(exp_avgs, grads, 1 - betas[0])
    torch._foreach_sign_(updates)
    torch._foreach_lerp_(exp_avgs, grads, 1 - betas[1])
    if keep != 1:
        torch._foreach_mul_(params, keep)
    torch._foreach_add_(params, updates, alpha=-lr)


def _single_tensor_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    lr: float,
    keep: float,
    betas: tuple[float, float],
) -> None:
    for tensors in zip(params, grads, exp_avgs, strict=True):
        for param, grad, momentum in _chunks(*tensors):
            update = momentum.lerp(grad, 1 - betas[0]).sign_()
            momentum.lerp_(grad, 1 - betas[1])
            if keep != 1:
                param.mul_(keep)
            param.add_(update, alpha=-lr)


def _chunks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return the tensors as flat views of cache size, where their memory layout allows it."""
    chunk = CHUNK * torch.get_num_threads()
    splittable = all(
        t.device.type == "cpu" and t.is_contiguous() and type(t) in (Tensor, nn.Parameter) for t in tensors
    )
    if not splittable or tensors[0].numel() <= chunk:
        return (tensors,)
    return zip(*(t.view(-1).split(chunk) for t in tensors), strict=True)
