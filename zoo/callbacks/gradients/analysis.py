"""What measured gradients mean: which belong together, how noisy they are, and what is wrong, in words."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

# Healthy nets stay well inside: these are for what surely needs a look.
VANISHING = 1e-4
EXPLODING = 1e3
UNIT_LIMIT = 0.95


@dataclass
class GradientStats:
    """One measurement. Layers are modules with parameters of their own, in the order of their definition."""

    step: int = 0
    norm: float = 0.0
    layers: dict[str, float] = field(default_factory=dict)
    """Norm of each layer's gradient."""
    rms: dict[str, float] = field(default_factory=dict)
    """Root mean square of the gradient's entries, for matrices and kernels alone: comparable between layers."""
    without_gradient: list[str] = field(default_factory=list)
    """Layers which no measurement so far found with a gradient other than 0, if there were two at least."""
    dead: dict[str, float] = field(default_factory=dict)
    """Share of each ReLU's units that gave 0 throughout."""
    saturated: dict[str, float] = field(default_factory=dict)
    """Share of each tanh's or sigmoid's outputs that were at an end of the range."""


def module_of(name: str) -> str:
    """The module whose parameter this is."""
    return name.rpartition(".")[0] or name


def group_into_blocks(names: Iterable[str], max_blocks: int) -> dict[str, list[str]]:
    """Groups parameter names by depth into at most so many blocks, in their order, without a setting.

    Begin with the root as one block and keep opening the block with the most parameters, as long as it holds more than
    its share, into its child modules. If they are too many, the two smallest neighbours are joined until they fit, and
    named by their ends ("encoder.0-2"); such a joint block is not opened again.
    """
    names = list(names)
    opened = [("", names)]  # path of the module, its parameters
    shut: set[str] = set()
    while True:
        room = max_blocks - len(opened) + 1
        for path, members in sorted(opened, key=lambda block: -len(block[1])):
            if path in shut or len(members) * max_blocks <= len(names):
                continue
            children = _children(path, members)
            joined = _join(children, room)
            if len(children) > 1 and len(joined) < 2:
                continue
            if [label for label, _ in joined] == [path]:
                continue
            where = next(i for i, block in enumerate(opened) if block[0] == path)
            opened[where : where + 1] = joined
            shut |= {label for label, _ in joined if label not in dict(children)}
            break
        else:
            return {path or "all": members for path, members in opened}


def _children(path: str, members: list[str]) -> list[tuple[str, list[str]]]:
    """The members by the next part of their module's path; the module's own parameters come under its own."""
    children: dict[str, list[str]] = {}
    depth = path.count(".") + 1 if path else 0
    for name in members:
        module = module_of(name).split(".")
        children.setdefault(".".join(module[: depth + 1]), []).append(name)
    return list(children.items())


def _join(children: list[tuple[str, list[str]]], room: int) -> list[tuple[str, list[str]]]:
    spans = [(label, label, members) for label, members in children]
    while len(spans) > max(room, 1):
        at = min(range(len(spans) - 1), key=lambda i: len(spans[i][2]) + len(spans[i + 1][2]))
        (first, _, some), (_, last, more) = spans[at : at + 2]
        spans[at : at + 2] = [(first, last, some + more)]
    return [
        (first if first == last else f"{first}-{last.rpartition('.')[2]}", members) for first, last, members in spans
    ]


def noise_scale_terms(small: float, big: float, batch: int, whole: int) -> tuple[float, float]:
    """Squared length of the true gradient, and the trace of its covariance for one sample (McCandlish, appendix A.1).

    `small` and `big` are the mean squared norms of gradients over `batch` and over `whole` samples. Both results are
    unbiased but rough: average each before dividing noise by signal.
    """
    signal = (whole * big - batch * small) / (whole - batch)
    noise = (small - big) / (1 / batch - 1 / whole)
    return signal, noise


def find_problems(stats: GradientStats) -> list[str]:
    """What is wrong, in words; nothing for a healthy net.

    Depth is read off the order of definition and slopes are compared with that of the last layer that has one, which
    is as a rule next to the loss.
    """
    problems = [f"layer {layer} receives no gradient" for layer in stats.without_gradient]
    rms = {name: slope for name, slope in stats.rms.items() if slope}
    broken = [name for name, slope in rms.items() if not math.isfinite(slope)]
    if broken:
        problems.append(f"exploding from {module_of(broken[-1])}, whose gradient is not finite")
    elif rms:
        names, last = list(rms), list(rms.values())[-1]
        huge = [name for name in names if rms[name] > EXPLODING * last]
        if huge:
            problems.append(f"exploding from {module_of(huge[-1])}")
        tiny = next(i for i, name in enumerate(names) if rms[name] >= VANISHING * last)
        # a single one may be small for reasons of its own
        if tiny > 1:
            problems.append(f"vanishing below {module_of(names[tiny])}")
    problems += [f"nearly all units of {name} are dead" for name, share in stats.dead.items() if share >= UNIT_LIMIT]
    problems += [f"nearly all of {name} is saturated" for name, share in stats.saturated.items() if share >= UNIT_LIMIT]
    return problems
