"""Replay of a training step under observation, without side effects."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torchmetrics import Metric

from zoo.callbacks.nan.advice import INTENTIONAL
from zoo.callbacks.nan.tensors import is_finite
from zoo.callbacks.nan.trace import Finding, Tracer
from zoo.callbacks.state_snapshot import StateSnapshot


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the global random number generators of Python, NumPy and torch, and of a CUDA device."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # a third of the time that the legacy tuple takes
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set what ``random_state`` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def side_effect_free_step(module: L.LightningModule, restore_buffers: Callable[[], None]) -> Iterator[None]:
    """Context for a training step that leaves logs, gradients, buffers, metrics and random states unchanged.

    Args:
        module: the module; its gradients are None within.
        restore_buffers: sets the buffers to their values before the original step.
    """
    state = random_state(module.device)
    gradients = [(weight, weight.grad) for weight in module.parameters()]
    metrics = StateSnapshot()
    loggers: list[L.LightningModule] = []
    for part in module.modules():
        if isinstance(part, Metric):
            metrics.add(part)
        elif isinstance(part, L.LightningModule):
            loggers.append(part)
    try:
        for weight, _ in gradients:
            weight.grad = None
        for part in loggers:
            # On the instance, so that deleting them uncovers the methods again.
            vars(part).update(log=_ignore, log_dict=_ignore)
        restore_buffers()
        yield
    finally:
        for part in loggers:
            vars(part).pop("log", None)
            vars(part).pop("log_dict", None)
        for weight, gradient in gradients:
            weight.grad = gradient
        metrics.restore()
        restore_buffers()
        set_random_state(state, module.device)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Take the place of ``log`` in a replay."""


def find_producer(
    module: nn.Module,
    batch: Any,
    step: Callable[[], Tensor],
    backward: Callable[[Tensor], Any],
) -> tuple[Finding | None, str]:
    """Run a step, and its backward pass if the loss is finite; return the first producer of a non-finite value.

    Args:
        module: the module, with gradients of None. Setting and restoring buffers and random states is up to the caller.
        batch: the batch of the step.
        step: returns the loss.
        backward: runs the backward pass of a loss.

    Returns:
        The finding, or None and a remark that says why there is none.
    """
    tracer = Tracer(module, batch)
    hooks = [
        register_module_forward_pre_hook(tracer.enter),
        register_module_forward_hook(tracer.leave, always_call=True),
    ]
    eager = nullcontext()
    # Only a process that has imported dynamo can have compiled anything, and importing it takes seconds.
    if "torch._dynamo" in sys.modules:
        eager = torch.compiler.set_stance("force_eager")
    try:
        with eager, torch.enable_grad(), tracer:
            loss = step()
            if is_finite(loss):
                backward(loss)
    except Exception as error:
        return None, f"The replay itself failed with {type(error).__name__}: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    results = [loss.detach()]
    results += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    finding = tracer.origin([tensor for tensor in results if not is_finite(tensor)])
    if finding is None:
        return None, "The replay of the batch stayed finite."
    if finding.intentional and finding.phase == "forward":
        finding.cause, finding.advice = INTENTIONAL
    if finding.kind == "activation" and tracer.is_only_output(loss, finding.module):
        finding.kind = "loss"
    return finding, ""
