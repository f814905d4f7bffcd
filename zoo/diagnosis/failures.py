"""Exceptions of a user's module in preparation or in a training step, as findings: place, cause and advice."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.diagnosis.report import Finding
from zoo.errors import UserError

# Regular expression for the error text, cause (may be empty), advice.
KNOWN = (
    (
        "backward through the graph a second time",
        "the step keeps a tensor of the step before together with its graph",
        "detach the state that is carried from step to step (hidden = hidden.detach()), or reset it in every step",
    ),
    (
        "modified by an inplace operation",
        "a tensor that the backward pass needs was changed in place",
        "replace the in-place operation (+=, relu_(), x[...] = ..., nn.ReLU(inplace=True)) by one that returns a new"
        " tensor; torch.autograd.set_detect_anomaly(True) shows which one it is",
    ),
    (
        "leaf Variable that requires grad is being used in an in-place",
        "a parameter is changed in place within the graph",
        "change parameters under torch.no_grad(), or compute a new tensor from them",
    ),
    (
        "grad can be implicitly created only for scalar outputs",
        "the loss is not a single number but one per sample or element (reduction='none')",
        "return its mean: loss.mean(), or reduction='mean'",
    ),
    (
        "does not require grad and does not have a grad_fn",
        "the loss does not depend on any trainable parameter",
        "compute the loss from the network's output by torch operations only; look for .detach(), .item(), no_grad",
    ),
    (
        "Expected more than 1 value per channel",
        "BatchNorm cannot normalise a single value per channel in training mode",
        "use batches of at least 2 samples, drop_last=True in the training loader, or GroupNorm or LayerNorm",
    ),
    (
        r"[Ee]xpected scalar type|to have dtype|[Ff]ound dtype|same dtype|type .* should be the same"
        r"|not implemented for '\w+'|scalar types?: |to be one of the following.*Long",
        "the dtype of a tensor is wrong",
        "convert it: class indices with .long(), inputs and targets of regression or binary losses with .float(); NumPy"
        " arrays are float64",
    ),
    (
        "Expected all tensors to be on the same device|is on cpu",
        "a tensor is on another device",
        "create tensors with device=self.device, and register constant ones with register_buffer",
    ),
    (
        "out of memory|can't allocate memory",
        "the memory does not suffice",
        "lower the batch size, with accumulate_grad_batches to match, or set precision to bf16-mixed",
    ),
)
STEP_FUNCTIONS = {
    "training_step": "training_step",
    "backward": "the backward pass",
    "optimizer_step": "the optimizer step",
    "step": "the optimizer step",
    "configure_gradient_clipping": "gradient clipping",
}


def first_line(error: BaseException) -> str:
    """Return the class of an exception and the first line of its text."""
    text = str(error).strip()
    if not text:
        return type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def advice_for(error: BaseException) -> tuple[str, str]:
    """Return the likely cause of an exception, empty if it is unknown, and what to change."""
    for pattern, cause, advice in KNOWN:
        if re.search(pattern, str(error)):
            return cause, advice
    return "", "the other checks need a training step that runs: repair this first"


def describe_failure(place: str, error: BaseException) -> tuple[str, str]:
    """Return message and advice for an exception.

    Args:
        place: what failed, such as a layer.
        error: the exception.
    """
    cause, advice = advice_for(error)
    message = f"fails in {place}: {first_line(error)}"
    if cause:
        message += f" ({cause})"
    return message, advice


def failed_function(error: BaseException) -> str:
    """Return the innermost part of a training step that an exception left: its forward, backward or optimizer part."""
    place = "the training step"
    for frame, _ in _frames(error):
        place = STEP_FUNCTIONS.get(frame.f_code.co_name, place)
    return place


def failure_of_preparation(error: Exception, module: Any, datamodule: Any) -> Finding | None:
    """Return the finding for an exception before the first training step, raised in a hook of the module or its data.

    Args:
        error: the exception that ended the fit.
        module: the LightningModule.
        datamodule: the LightningDataModule.

    Returns:
        None for mistakes in options and arguments, which are not findings about the module: the caller raises them.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return None
        cause = cause.__cause__ or cause.__context__
    owner, hook = _failed_hook(error, module, datamodule)
    if _is_mistake_in_arguments(error, owner):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    _, advice = advice_for(error)
    return Finding(
        "error",
        f"{hook} fails: {first_line(error)}",
        advice,
        details=(f"{last.filename}:{last.lineno}: {last.line}",),
        name="setup",
    )


def _failed_hook(error: Exception, module: Any, datamodule: Any) -> tuple[Any, str]:
    """Return the module or datamodule in whose code an exception was raised, or None, and the name of the hook."""
    for frame, _ in _frames(error):
        owner = frame.f_locals.get("self")
        if owner is module or owner is datamodule:
            return owner, f"{type(owner).__name__}.{frame.f_code.co_name}"
    # The loader reads the dataset without passing through the datamodule.
    if any(frame.f_code.co_name in ("__getitem__", "__getitems__", "__next__") for frame, _ in _frames(error)):
        return datamodule, f"the training data of {type(datamodule).__name__}"
    return None, f"the preparation of {type(module).__name__}"


def _is_mistake_in_arguments(error: Exception, owner: Any) -> bool:
    """Return whether Lightning, or one of zoo's own classes, refuses its arguments or files."""
    if isinstance(error, MisconfigurationException):
        return True
    of_user = owner is not None and type(owner).__module__.partition(".")[0] != "zoo"
    return not of_user and isinstance(error, (ValueError, OSError))


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield frames and line numbers of the traceback, outermost first."""
    yield from traceback.walk_tb(error.__traceback__)
