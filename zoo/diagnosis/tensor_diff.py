"""Comparison of two runs of the same module: whether outputs differ, and where the difference begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.diagnosis.recorder import Call, Recorder, main_output

Select = Callable[[Tensor], Tensor | None]


def values_differ(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> bool:
    """Return whether two outputs differ by more than rounding, in the region that both of them cover.

    Args:
        x: an output.
        y: another output, which may have other sizes.
        tolerance: relative to the largest magnitude in ``x``.
    """
    if x.ndim != y.ndim:
        return True
    common = tuple(slice(0, min(a, b)) for a, b in zip(x.shape, y.shape, strict=True))
    first = x[common].detach().float()
    second = y[common].detach().float()
    if not first.numel():
        return False
    largest = float((first - second).abs().max())
    return largest > tolerance * float(first.abs().max())


def same_values(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors hold the same numbers in the same order, whatever their shapes and dtypes."""
    if x.numel() != y.numel():
        return False
    return torch.equal(x.detach().double().flatten(), y.detach().double().flatten())


def first_differing_module(one: Recorder, two: Recorder, select: Select, tolerance: float = 1e-5) -> str:
    """Return the name of the module where two runs begin to differ, inner modules first.

    Args:
        one: a run.
        two: another run.
        select: returns the part of an output that should be equal; None for outputs without that part.
        tolerance: relative to the largest magnitude.
    """
    for a, b in zip(one.finished, two.finished, strict=False):
        if a.path != b.path:
            break
        if not _changed(a.output, b.output, select, tolerance):
            continue
        has_children = any(True for _ in a.module.children())
        if has_children or not _changed(a.args, b.args, select, tolerance):
            return a.name
        return _code_before(a)
    return "code outside the layers"


def _changed(a: object, b: object, select: Select, tolerance: float) -> bool:
    """Return whether the selected parts of two outputs exist and differ."""
    parts: list[Tensor] = []
    for value in (a, b):
        output = main_output(value)
        part = None if output is None else select(output)
        if part is None:
            return False
        parts.append(part)
    return values_differ(parts[0], parts[1], tolerance)


def _code_before(call: Call) -> str:
    """Name the code between modules: the input of this call differed although no module had a different output."""
    parent = call.path.rpartition(".")[0] or "the module"
    return f"{parent}, in its own code before {call.name}"
