"""A training step run once more, to be watched, that leaves nothing behind."""

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
from zoo.callbacks.nan.trace import Finding, Tracer, is_finite
from zoo.callbacks.state_snapshot import StateSnapshot


def random_state(device: torch.device) -> dict[str, Any]:
    numpy = np.random.get_state(legacy=False)  # a third of the time that the legacy tuple takes
    state = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def side_effect_free_step(module: L.LightningModule, restore_buffers: Callable[[], None]) -> Iterator[None]:
    """A training step inside leaves nothing behind: no logs, gradients, metric counts, used-up random numbers."""
    state, gradients = random_state(module.device), [(weight, weight.grad) for weight in module.parameters()]
    metrics = StateSnapshot()
    for sub in module.modules():
        if isinstance(sub, Metric):
            metrics.add(sub)
    loggers = [sub for sub in module.modules() if isinstance(sub, L.LightningModule)]
    try:
        for weight, _ in gradients:
            weight.grad = None
        for sub in loggers:
            vars(sub).update(log=lambda *args, **kwargs: None, log_dict=lambda *args, **kwargs: None)
        restore_buffers()
        yield
    finally:
        for sub in loggers:
            del sub.log, sub.log_dict
        for weight, gradient in gradients:
            weight.grad = gradient
        metrics.restore()
        restore_buffers()
        set_random_state(state, module.device)


def find_producer(
    module: nn.Module, batch: Any, step: Callable[[], Tensor], backward: Callable[[Tensor], Any]
) -> tuple[Finding | None, str]:
    """Runs the step, and backward if its loss is finite; returns the first producer, or none and a remark.

    The gradients are expected to be None; random state and buffers are the caller's to set and to restore.
    """
    tracer = Tracer(module, batch)
    hooks = [
        register_module_forward_pre_hook(tracer.enter),
        register_module_forward_hook(tracer.leave, always_call=True),
    ]
    # only a process that has loaded dynamo can have compiled anything, and loading it takes seconds
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
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
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    ends = [loss.detach(), *gradients]
    finding = tracer.origin([tensor for tensor in ends if not is_finite(tensor)])
    if finding and finding.intentional and finding.phase == "forward":
        finding.cause, finding.advice = INTENTIONAL
    if finding and finding.kind == "activation" and (finding.module, tracer.key(loss)) in tracer.lone_outputs:
        finding.kind = "loss"
    remark = "" if finding else "The replay of the batch stayed finite."
    return finding, remark
