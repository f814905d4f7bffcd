"""The private names of torch that zoo needs, one function each. It imports nothing of Lightning.

A new version may move any of them. Then the function's test in ``tests/test_lightning_names.py`` fails and says which.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # documented, but only under this path

# Modules --------------------------------------------------------------------------------------------------------------

# Base classes of torch's layers that have no public name, for isinstance.
LOSS = nn.L1Loss.__mro__[1]
DROPOUT = nn.Dropout.__mro__[1]
BATCH_NORM = nn.BatchNorm1d.__mro__[1]
INSTANCE_NORM = nn.InstanceNorm1d.__mro__[1]


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary of a module's own buffers, in which they can be read and replaced quickly."""
    return module._buffers


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks before or after its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def conv_forward(conv: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of ``x`` with another weight, with the stride and the padding of a convolution."""
    return conv._conv_forward(x, weight, None)


def uncompile(module: nn.Module) -> None:
    """Undo ``module.compile()``."""
    vars(module)["_compiled_call_impl"] = None


def has_bfloat16_products() -> bool:
    """Return whether torch multiplies bfloat16 matrices with oneDNN on this CPU (AVX-512 at least)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# Data and optimizers --------------------------------------------------------------------------------------------------


def forget_iterator(loader: Any) -> None:
    """Make a DataLoader with persistent workers begin a new iterator, rather than rewind the one that it has."""
    if "_iterator" in vars(loader):
        vars(loader)["_iterator"] = None


def leave_unscaling_to_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Make the GradScaler unscale the gradients of a fused optimizer, which would do it within its step."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010


def inner_schedules(schedule: Any) -> list[Any]:
    """Return the schedules within a ``SequentialLR`` or ``ChainedScheduler``; of any other, none."""
    return list(getattr(schedule, "_schedulers", ()))


def repeat_first_step(schedule: Any) -> None:
    """Set the learning rates of step 0 again, from those that the parameter groups have now."""
    schedule.last_epoch -= 1
    schedule._initial_step()


def note_rates(schedule: Any) -> None:
    """Make ``get_last_lr`` return the learning rates that the parameter groups have now."""
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


# Trees and tensors ----------------------------------------------------------------------------------------------------


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dictionaries."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of nested lists, tuples and dictionaries with their paths, such as ``['image'][0]``."""
    from torch.utils._pytree import keystr, tree_leaves_with_path

    return [(keystr(path), leaf) for path, leaf in tree_leaves_with_path(tree)]


def map_tensors(function: Any, tree: Any) -> Any:
    """Apply a function to all tensors in nested lists, tuples and dictionaries; return the result in the same form."""
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, function, tree)


def sparse_values(tensor: Tensor) -> Tensor:
    """Return the values of a sparse tensor as stored, coalesced or not."""
    return tensor._values()


def storage_key(tensor: Tensor) -> int:
    """Return a number that identifies the storage of a tensor for as long as it is alive."""
    return tensor.untyped_storage()._cdata


# Tracing a step -------------------------------------------------------------------------------------------------------


def current_backward_node() -> Any:
    """Return the autograd node whose backward pass is running in this thread, or None."""
    return torch._C._current_autograd_node()


def last_sequence_number() -> int:
    """Return the sequence number of the autograd node that was made last in this thread."""
    return torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]


def sequence_number(node: Any) -> int:
    """Return the sequence number of an autograd node, which it got when its forward operation made it."""
    return node._sequence_nr()


def changes_inputs(operation: Any) -> bool:
    """Return whether an operation in ``__torch_dispatch__`` writes to its arguments."""
    return operation._schema.is_mutable


# Graphs ---------------------------------------------------------------------------------------------------------------


def scan(step: Any, start: Any, inputs: Any) -> tuple[Any, Any]:
    """Run ``step(states, inputs) -> (states, output)`` over the first dimension, as one operator that exports.

    Args:
        step: changes none of its arguments, and returns new tensors.
        start: first states, a tuple of tensors.
        inputs: tensors of the same first dimension.

    Returns:
        The last states, and all outputs, stacked.
    """
    from torch._higher_order_ops.scan import scan as run

    return run(step, start, inputs)
