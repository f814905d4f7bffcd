"""Findings that the trace of a step alone does not give: the last optimizer step, and values not reproduced."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor, nn

from zoo.callbacks.nan.tensors import is_finite
from zoo.callbacks.nan.trace import Finding

HYPERPARAMETERS = ("lr", "eps", "weight_decay")  # of a parameter group, in the report on its optimizer


def blame_update(trainer: L.Trainer, module: nn.Module, finding: Finding, updated: bool) -> None:
    """Attribute a non-finite weight to the last optimizer step of this run, whose gradients were finite.

    Args:
        trainer: the trainer.
        module: the module.
        finding: a finding on a weight or buffer; changed in place.
        updated: whether all steps of this run were checked, and there was one.
    """
    weight = dict(module.named_parameters()).get(finding.operation)
    if weight is None:
        return  # a buffer, which no optimizer updates
    for optimizer in trainer.optimizers:
        state = optimizer.state.get(weight, {})
        broken = [name for name, value in state.items() if isinstance(value, Tensor) and not is_finite(value)]
        if not broken and not updated:
            continue
        for index, group in enumerate(optimizer.param_groups):
            if not any(weight is other for other in group["params"]):
                continue
            numbers = ", ".join(f"{key}={float(group[key]):g}" for key in HYPERPARAMETERS if key in group)
            advice = f"{type(optimizer).__name__}, group {index} ({numbers}): "
            if broken:
                advice += f"its {', '.join(broken)} for this weight is non-finite; "
            finding.kind = "optimizer state"
            finding.cause = "the last optimizer step broke the weight"
            finding.advice = (
                f"{advice}lower the learning rate or raise eps, and resume from a checkpoint written before this step."
            )


def unexplained(module: nn.Module, loss: Tensor, bad_gradients: list[str], remark: str) -> Finding:
    """Return the finding for a value that the replay did not reproduce.

    Args:
        module: the module.
        loss: the loss of the step.
        bad_gradients: names of the parameters with a non-finite gradient.
        remark: what happened in the replay.
    """
    finding = Finding("loss", "forward", "", type(module).__name__, "unknown")
    if is_finite(loss) and bad_gradients:
        # The last parameter of the network is the first to get its gradient in the backward pass.
        path = bad_gradients[-1].rpartition(".")[0]
        finding = Finding("gradient", "backward", path, type(module.get_submodule(path)).__name__, "unknown")
    finding.cause = "not reproduced"
    finding.advice = (
        f"{remark} Possible reasons: non-deterministic kernels, compiled code, state outside the buffers, or the sum "
        "over micro-batches or ranks. Try always_on: true, or train without compiling."
    )
    return finding


def names_of_bad_gradients(module: nn.Module) -> list[str]:
    """Return the names of parameters with a non-finite gradient."""
    names: list[str] = []
    for name, weight in module.named_parameters():
        gradient: Any = weight.grad
        if gradient is not None and not is_finite(gradient):
            names.append(name)
    return names
