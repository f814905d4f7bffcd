"""Interpretation of gradient measurements: grouping into blocks, gradient noise scale, detection of problems."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

# Far outside of what healthy networks show: a finding beyond these needs attention for sure.
VANISHING = 1e-4
EXPLODING = 1e3
UNIT_LIMIT = 0.95

Block = tuple[str, list[str]]
"""Path of a module and the names of its parameters."""


@dataclass
class GradientStats:
    """Gradient statistics of one step. Layers are modules with parameters of their own, in order of definition."""

    step: int = 0
    norm: float = 0.0
    layers: dict[str, float] = field(default_factory=dict)
    """Gradient norm of each layer."""
    rms: dict[str, float] = field(default_factory=dict)
    """Root mean square of the gradient of each matrix or convolution kernel: comparable between layers."""
    without_gradient: list[str] = field(default_factory=list)
    """Layers whose gradient was 0 in all measurements so far, of which there have to be at least two."""
    dead: dict[str, float] = field(default_factory=dict)
    """Fraction of dead units of each ReLU: those that output 0 for the whole batch."""
    saturated: dict[str, float] = field(default_factory=dict)
    """Fraction of saturated outputs of each tanh or sigmoid."""


def module_of(name: str) -> str:
    """Return the path of the module that owns a parameter."""
    module = name.rpartition(".")[0]
    return module or name


def group_into_blocks(names: Iterable[str], max_blocks: int) -> dict[str, list[str]]:
    """Group parameter names into at most ``max_blocks`` blocks of neighbouring modules, in order of definition.

    Start from the root as the only block. Repeatedly replace the largest block that holds more than ``1 / max_blocks``
    of the parameters by its child modules. Where these are too many, the two smallest neighbours are merged until they
    fit, and named by their ends (``encoder.0-2``); a merged block is not split again.

    Args:
        names: names of parameters.
        max_blocks: maximum number of blocks.
    """
    names = list(names)
    blocks: list[Block] = [("", names)]
    merged: set[str] = set()
    while True:
        split = _split_largest(blocks, merged, len(names), max_blocks)
        if split is None:
            return {path or "all": members for path, members in blocks}
        blocks = split


def _split_largest(blocks: list[Block], merged: set[str], total: int, max_blocks: int) -> list[Block] | None:
    """Return the blocks with the largest divisible one split, or None if there is none; extends ``merged``."""
    room = max_blocks - len(blocks) + 1
    largest_first = sorted(blocks, key=lambda block: -len(block[1]))
    for block in largest_first:
        path, members = block
        if path in merged or len(members) * max_blocks <= total:
            continue
        children = _children(path, members)
        parts = _merge_neighbours(children, room)
        if len(children) > 1 and len(parts) < 2:
            continue
        if [label for label, _ in parts] == [path]:
            continue
        child_paths = dict(children)
        merged.update(label for label, _ in parts if label not in child_paths)
        where = blocks.index(block)
        return [*blocks[:where], *parts, *blocks[where + 1 :]]
    return None


def _children(path: str, members: list[str]) -> list[Block]:
    """Return the parameters by child module; those of the module itself are under its own path."""
    children: dict[str, list[str]] = {}
    depth = 0
    if path:
        depth = path.count(".") + 1
    for name in members:
        parts = module_of(name).split(".")
        child = ".".join(parts[: depth + 1])
        children.setdefault(child, []).append(name)
    return list(children.items())


def _merge_neighbours(children: list[Block], room: int) -> list[Block]:
    """Merge the two smallest neighbours until at most ``room`` blocks are left."""
    # (first path, last path, parameters)
    spans = [(label, label, members) for label, members in children]
    while len(spans) > max(room, 1):
        sizes = [len(members) for _, _, members in spans]
        at = min(range(len(spans) - 1), key=lambda i: sizes[i] + sizes[i + 1])
        first, _, left = spans[at]
        _, last, right = spans[at + 1]
        spans[at : at + 2] = [(first, last, left + right)]
    return [(_span_name(first, last), members) for first, last, members in spans]


def _span_name(first: str, last: str) -> str:
    if first == last:
        return first
    return f"{first}-{last.rpartition('.')[2]}"


def noise_scale_terms(small: float, big: float, batch: int, whole: int) -> tuple[float, float]:
    """Return estimates of the squared norm of the true gradient and of the trace of its per-sample covariance.

    The gradient noise scale is their quotient (McCandlish et al. 2018, appendix A.1). Both estimates are unbiased but
    of high variance: average each of them before dividing.

    Args:
        small: mean squared norm of gradients over ``batch`` samples.
        big: squared norm of the gradient over ``whole`` samples.
        batch: size of the small batch.
        whole: size of the big batch.
    """
    signal = (whole * big - batch * small) / (whole - batch)
    noise = (small - big) / (1 / batch - 1 / whole)
    return signal, noise


def find_problems(stats: GradientStats) -> list[str]:
    """Return a description of each problem; an empty list for a healthy network.

    Depth is taken from the order of definition. Gradients are compared with that of the last layer that has one, as
    it is usually next to the loss.
    """
    problems = [f"layer {layer} receives no gradient" for layer in stats.without_gradient]
    problems += _scale_problems(stats.rms)
    for name, fraction in stats.dead.items():
        if fraction >= UNIT_LIMIT:
            problems.append(f"nearly all units of {name} are dead")
    for name, fraction in stats.saturated.items():
        if fraction >= UNIT_LIMIT:
            problems.append(f"nearly all of {name} is saturated")
    return problems


def _scale_problems(all_rms: dict[str, float]) -> list[str]:
    """Return vanishing and exploding gradients."""
    rms = {name: value for name, value in all_rms.items() if value}
    if not rms:
        return []
    names = list(rms)
    not_finite = [name for name in names if not math.isfinite(rms[name])]
    if not_finite:
        return [f"exploding from {module_of(not_finite[-1])}, whose gradient is not finite"]
    problems = []
    last = rms[names[-1]]
    huge = [name for name in names if rms[name] > EXPLODING * last]
    if huge:
        problems.append(f"exploding from {module_of(huge[-1])}")
    first_healthy = next(i for i, name in enumerate(names) if rms[name] >= VANISHING * last)
    # The very first layer may have a small gradient for reasons of its own.
    if first_healthy > 1:
        problems.append(f"vanishing below {module_of(names[first_healthy])}")
    return problems
