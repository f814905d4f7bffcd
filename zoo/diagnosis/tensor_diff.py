"""Comparing two runs of the same module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.diagnosis.recorder import Recorder, main_output


def values_differ(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two outputs differ by more than rounding, in what both of them cover."""
    if x.ndim != y.ndim:
        return True
    common = tuple(slice(0, min(a, b)) for a, b in zip(x.shape, y.shape, strict=True))
    x, y = x[common].detach().float(), y[common].detach().float()
    return bool(x.numel()) and float((x - y).abs().max()) > tolerance * float(x.abs().max())


def same_values(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shape and type."""
    return x.numel() == y.numel() and torch.equal(x.detach().double().flatten(), y.detach().double().flatten())


def first_differing_module(
    one: Recorder, two: Recorder, select: Callable[[Tensor], Tensor | None], tolerance: float = 1e-5
) -> str:
    """Name the module in which two runs begin to differ, inner ones first.

    Args:
        one: a run.
        two: another one.
        select: the part of an output that should be equal; None where it does not have that part.
        tolerance: relative to the largest number.
    """

    def changed(a: object, b: object) -> bool:
        pair = main_output(a), main_output(b)
        parts = [select(t) for t in pair if t is not None]
        return len(parts) == 2 and all(p is not None for p in parts) and values_differ(*parts, tolerance)  # type: ignore

    for a, b in zip(one.finished, two.finished, strict=False):
        if a.path != b.path:
            break
        if changed(a.output, b.output):
            if not changed(a.args, b.args) or any(True for _ in a.module.children()):
                return a.name
            # what came in differed already, and no module made it: code between modules did
            parent = a.path.rpartition(".")[0]
            return f"{parent or 'the module'}, in its own code before {a.name}"
    return "code outside the layers"
