"""Muon with its Newton-Schulz iterations in batches (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon

from zoo.optim.closure import evaluate_closure

# Elements in one batch: on a CPU what stays in its cache, elsewhere what keeps the memory for temporaries small.
_CPU_BATCH = 2**19
_GPU_BATCH = 2**26


class BatchedMuon(Muon):
    """torch's Muon with small matrices of one shape orthogonalized in one batch: same numbers, about twice as fast.

    Options, update and checkpoints are those of ``torch.optim.Muon``. It helps networks with small matrices; with
    large ones the time is spent in the matrix products themselves.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient.

        Args:
            closure: computes the loss and its gradients again; called once, first.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            for params in _batches([p for p in group["params"] if p.grad is not None]):
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Take the step of matrices ``(m, n)`` of one shape."""
        lr = float(group["lr"])
        momentum = group["momentum"]
        grads = [p.grad for p in params if p.grad is not None]
        directions = [self._buffer(p) for p in params]
        torch._foreach_lerp_(directions, grads, 1 - momentum)
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(grads, directions, momentum))

        single = len(params) == 1
        x = directions[0] if single else torch.stack(directions)  # (m, n) or (batch, m, n)
        x = orthogonalize(x.bfloat16(), group["ns_coefficients"], group["ns_steps"], group["eps"])
        x = x.to(params[0].dtype)
        updates = [x] if single else list(x.unbind())

        keep = 1 - lr * group["weight_decay"]
        if keep != 1:
            torch._foreach_mul_(params, keep)
        step_size = lr * shape_factor(params[0], group["adjust_lr_fn"])
        torch._foreach_add_(params, updates, alpha=-step_size)

    def _buffer(self, param: Tensor) -> Tensor:
        """Return the momentum of a matrix, zeros at its first step."""
        grad = param.grad
        state = self.state[param]
        assert grad is not None
        if grad.is_sparse or param.is_complex():
            raise RuntimeError("BatchedMuon takes dense gradients of real matrices only")
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def orthogonalize(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Bring all singular values of a matrix near 1 by quintic Newton-Schulz iterations.

    Args:
        x: (m, n) or (batch, m, n).
        coefficients: of the polynomial, for powers 1, 3 and 5.
        steps: iterations.
        eps: least norm to divide by.

    Returns:
        A tensor of the same shape and dtype.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()  # the Gram matrix of the shorter side is the smaller one
    # The spectral norm is at most the Frobenius norm, so all singular values are at most 1 from here on.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    multiply_add = torch.baddbmm if x.ndim == 3 else torch.addmm
    for _ in range(steps):
        gram = x @ x.mT
        # a x + (b (x x^T) + c (x x^T)^2) x
        polynomial = multiply_add(gram, gram, gram, beta=b, alpha=c)
        x = multiply_add(x, polynomial, x, beta=a)
    if tall:
        return x.mT
    return x


def shape_factor(matrix: Tensor, rule: str | None) -> float:
    """Return the factor on the learning rate that depends on a matrix's shape.

    Args:
        matrix: (out, in).
        rule: torch's names "original", "match_rms_adamw" or "spectral_unclamped"; None is the first.

    Returns:
        Factor on the learning rate.
    """
    rows, columns = matrix.shape
    if rule == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    if rule == "spectral_unclamped":
        return (rows / columns) ** 0.5
    return max(1, rows / columns) ** 0.5


def _batches(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield batches of matrices of one shape, dtype and device; sharded matrices are alone in theirs."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for param in params:
        plain = type(param) in (Tensor, nn.Parameter)
        key = (param.shape, param.dtype, param.device) if plain else id(param)
        alike[key].append(param)
    for same in alike.values():
        limit = _CPU_BATCH if same[0].device.type == "cpu" else _GPU_BATCH
        size = max(1, limit // same[0].numel())
        for start in range(0, len(same), size):
            yield same[start : start + size]
