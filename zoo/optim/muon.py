"""Muon with its Newton-Schulz iterations in batches (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon

from zoo.optim.closure import evaluate_closure

# Elements in one batch: on a CPU what stays in its cache, elsewhere what keeps the memory for temporaries small.
_CPU_BATCH, _GPU_BATCH = 2**19, 2**26


class BatchedMuon(Muon):
    """torch's Muon, with small matrices of one shape orthogonalised together: the same numbers, about twice as fast.

    Options, update and checkpoints are those of ``torch.optim.Muon``. Worth it for nets whose matrices are small; with
    large ones the time is in the multiplications themselves.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every matrix that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; called once, first.

        Returns:
            What the closure returned, or ``None``.
        """
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            keep = 1 - lr * group["weight_decay"]
            for params in _batches([p for p in group["params"] if p.grad is not None]):
                grads = [p.grad for p in params if p.grad is not None]
                buffers = [self._buffer(p) for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - momentum)
                directions = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
                alone = len(params) == 1
                x = (directions[0] if alone else torch.stack(directions)).bfloat16()
                x = orthogonalize(x, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(params[0].dtype)
                if keep != 1:
                    torch._foreach_mul_(params, keep)
                step_size = lr * shape_factor(params[0], group["adjust_lr_fn"])
                torch._foreach_add_(params, [x] if alone else list(x.unbind()), alpha=-step_size)
        return loss

    def _buffer(self, param: Tensor) -> Tensor:
        grad, state = param.grad, self.state[param]
        assert grad is not None
        if grad.is_sparse or param.is_complex():
            raise RuntimeError("BatchedMuon takes dense gradients of real matrices only")
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def orthogonalize(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Brings all singular values of a matrix near 1, by Newton-Schulz iterations of fifth order.

    Args:
        x: (m, n) or (batch, m, n).
        coefficients: of the polynomial, for powers 1, 3 and 5.
        steps: iterations.
        eps: least norm to divide by.

    Returns:
        Of the same shape and dtype.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    multiply_add = torch.baddbmm if x.ndim == 3 else torch.addmm
    for _ in range(steps):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def shape_factor(matrix: Tensor, rule: str | None) -> float:
    """How the step depends on a matrix's shape.

    Args:
        matrix: (out, in).
        rule: "original", "match_rms_adamw" or "spectral_unclamped", as torch names them; ``None`` is the first.

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
    """Matrices of one shape, dtype and device, as many at a time as is fast; sharded ones each alone."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for param in params:
        plain = type(param) in (Tensor, nn.Parameter)
        alike[(param.shape, param.dtype, param.device) if plain else id(param)].append(param)
    for same in alike.values():
        limit = _CPU_BATCH if same[0].device.type == "cpu" else _GPU_BATCH
        size = max(1, limit // same[0].numel())
        yield from (same[start : start + size] for start in range(0, len(same), size))
