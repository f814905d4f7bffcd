"""What zoo needs of torch beyond its public names: one function for each private name, and nothing of Lightning.

A new version may move any of them. Then the function's test in ``tests/test_lightning_names.py`` fails and says which.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # documented, but only under this path

# Modules --------------------------------------------------------------------------------------------------------------

# Bases of torch's layers without a public name, to ask isinstance.
LOSS = nn.L1Loss.__mro__[1]
DROPOUT = nn.Dropout.__mro__[1]
BATCH_NORM = nn.BatchNorm1d.__mro__[1]
INSTANCE_NORM = nn.InstanceNorm1d.__mro__[1]


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The dictionary in which a module keeps its own buffers, to read and replace them without a search."""
    return module._buffers


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks are called before or after a module's ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def uncompile(module: nn.Module) -> None:
    """Undo ``module.compile()``."""
    vars(module)["_compiled_call_impl"] = None


# Data and optimizers --------------------------------------------------------------------------------------------------


def forget_iterator(loader: Any) -> None:
    """Let a DataLoader with persistent workers begin a new iterator, rather than rewind the one that it has."""
    if "_iterator" in vars(loader):
        vars(loader)["_iterator"] = None


def leave_unscaling_to_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Let the GradScaler unscale the gradients of a fused optimizer, which else does it within its step."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010


def inner_schedules(schedule: Any) -> list[Any]:
    """The schedules within a ``SequentialLR`` or ``ChainedScheduler``; of any other none."""
    return list(getattr(schedule, "_schedulers", ()))


def repeat_first_step(schedule: Any) -> None:
    """Give the parameter groups of a schedule at step 0 their rates of step 0 again, from what they are now."""
    schedule.last_epoch -= 1
    schedule._initial_step()


def note_rates(schedule: Any) -> None:
    """Let ``get_last_lr`` return the rates that the parameter groups have now."""
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


# Trees and tensors ----------------------------------------------------------------------------------------------------


def leaves(tree: Any) -> list[Any]:
    """What lies in nested lists, tuples and dictionaries."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The same, with the way to each as one would type it: ``['image'][0]``."""
    from torch.utils._pytree import keystr, tree_leaves_with_path

    return [(keystr(path), leaf) for path, leaf in tree_leaves_with_path(tree)]


def map_tensors(function: Any, tree: Any) -> Any:
    """The same lists, tuples and dictionaries, with a function applied to each tensor in them."""
    from torch.utils._pytree import tree_map_only

    return tree_map_only(Tensor, function, tree)


def sparse_values(tensor: Tensor) -> Tensor:
    """The values of a sparse tensor as they are in memory, whether or not an index occurs twice."""
    return tensor._values()


def storage_key(tensor: Tensor) -> int:
    """A number that tensors share exactly if they share memory, for as long as that is alive."""
    return tensor.untyped_storage()._cdata


# A step under watch ---------------------------------------------------------------------------------------------------


def current_backward_node() -> Any:
    """The node of the autograd graph whose backward pass is running in this thread, or None."""
    return torch._C._current_autograd_node()


def last_sequence_number() -> int:
    """The number of the autograd node that was made last in this thread."""
    return torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]


def sequence_number(node: Any) -> int:
    """The number that an autograd node got when its forward operation made it."""
    return node._sequence_nr()


def changes_inputs(operation: Any) -> bool:
    """Whether an operation that reaches ``__torch_dispatch__`` writes into its arguments."""
    return operation._schema.is_mutable
