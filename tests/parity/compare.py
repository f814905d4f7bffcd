"""Is a network another one: the same names and shapes, the same outputs and gradients with the same weights?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build without memory or arithmetic."""
    with torch.device("meta"):
        return build()


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Outputs, and the gradients of a loss in all parameters and in the input."""
    torch.manual_seed(1)  # the same dropout and the same left-out branches
    x = x.clone().requires_grad_()
    out = net(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out.square() + weights * out).mean().backward()
    assert x.grad is not None
    return out.detach(), {k: p.grad for k, p in net.named_parameters() if p.grad is not None}, x.grad


def randomize(net: nn.Module) -> None:
    """Every parameter and statistic its own value, so that one in another's place would show."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if "running_var" in name:
            tensor.copy_(1 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            kept = tensor.float() if tensor.ndim > 1 and tensor.std() > 0 else torch.zeros(tensor.shape)
            offset = 1.0 if tensor.ndim == 1 and "weight" in name else 0.0
            tensor.copy_(kept + offset + 0.1 * torch.randn(tensor.shape, generator=generator) / max(1, tensor.ndim - 1))


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, dtype: torch.dtype, train: bool = False) -> None:
    """Copy the weights of theirs by name; outputs and every gradient must agree."""
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    results = [run(net.to(dtype).train(train), x.to(dtype)) for net in (ours, theirs)]
    (out, grads, into), (expected, theirs_grads, expected_into) = results
    assert expected.abs().max() > 1e-3
    assert_near("output", out, expected, dtype)
    assert_near("gradient of the input", into, expected_into, dtype)
    assert grads.keys() == theirs_grads.keys() == dict(theirs.named_parameters()).keys()
    for name, grad in grads.items():
        assert_near(f"gradient of {name}", grad, theirs_grads[name], dtype)


def assert_near(what: str, value: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert value.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    error = (value - expected).abs().max().item() / scale
    assert error <= TOLERANCE[dtype], f"{what} is off by {error:.1e} of {scale:.1e}"
