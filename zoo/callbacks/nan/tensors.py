"""Non-finite values in tensors and batches of any form: search and statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo._torch import leaves, sparse_values

MAX_INPUTS = 8  # tensors in the statistics of a module's inputs


def to_containers(value: Any) -> Any:
    """Return a batch or output as nested dictionaries and lists, whatever mappings and dataclasses it consists of."""
    if value is None or isinstance(value, Tensor | str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_containers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_containers(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: to_containers(getattr(value, name, None)) for name in names}
    return str(value)


def dense_local(tensor: Tensor) -> Tensor:
    """Return the values of a tensor that this process holds, as a dense real tensor.

    Args:
        tensor: it may be sharded, sparse or complex.
    """
    to_local = getattr(tensor, "to_local", None)
    if to_local is not None:
        tensor = to_local()
    if tensor.is_sparse:
        tensor = sparse_values(tensor)
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor


def float_tensors(value: Any) -> list[Tensor]:
    """Return the floating-point and complex tensors in nested containers."""
    tensors: list[Tensor] = []
    for leaf in leaves(value):
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            continue
        if leaf.is_floating_point() or leaf.is_complex():
            tensors.append(leaf)
    return tensors


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(dense_local(tensor)).all())


def has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(dense_local(tensor)).any())


def batch_length(batch: Any) -> int | None:
    """Return the size of the first dimension of the first tensor in a batch."""
    for leaf in leaves(to_containers(batch)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.size(0)
    return None


def bad_samples(tensor: Tensor, batch_size: int | None) -> list[int] | None:
    """Return the indices of samples with a non-finite value; None if the first dimension is not the batch's."""
    if tensor.dim() == 0 or tensor.size(0) != batch_size:
        return None
    bad = ~torch.isfinite(dense_local(tensor))
    bad = bad.reshape(tensor.size(0), -1).any(1)  # (b,)
    return bad.nonzero().flatten().tolist()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Return shape, dtype, range and mean magnitude of the finite values, and the fraction of all others."""
    values = dense_local(tensor.detach()).cpu()
    finite = values[torch.isfinite(values)].double()
    minimum = maximum = abs_mean = None
    if finite.numel():
        minimum = finite.min().item()
        maximum = finite.max().item()
        abs_mean = finite.abs().mean().item()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "min": minimum,
        "max": maximum,
        "abs_mean": abs_mean,
        "non_finite_share": 1 - finite.numel() / max(values.numel(), 1),
    }


def statistics(module: nn.Module, inputs: list[Tensor], output: Tensor) -> dict[str, Any]:
    """Return statistics of the inputs, the output, and the parameters and buffers of a module itself."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {
        "inputs": [describe(tensor) for tensor in inputs[:MAX_INPUTS]],
        "output": describe(output),
        "weights": {name: describe(tensor) for name, tensor in own if tensor.is_floating_point()},
    }
