"""A plan of fine-tuning as pure functions: which phase is in force, what it trains, and what that leaves still."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from zoo.optim.param_kinds import output_head


@dataclass
class Phase:
    """A stretch of training in which some layers learn and the rest is frozen.

    Args:
        until: where it ends, counted from the start of the run: ``2 epochs`` or ``500 steps`` (updates of the weights);
            null in the last phase, and only there.
        train: what learns: ``all``, ``head``, or one or more regular expressions, each for the whole name of a module
            or parameter of the network; all inside that module is meant, so ``layer4`` or ``blocks\\.(10|11)``.
            ``head`` is the module of that name, or else the layer that computes the output.
        lr_scale: factor on the learning rates.
    """

    until: str | None = None
    train: str | list[str] = "all"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(f"lr_scale of a phase must be above 0, got {self.lr_scale}")
        if not self.train:
            raise ValueError("a phase has to train something: give it layers, head or all")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"train: {pattern!r} is not a regular expression: {error}") from error
        _ = self.end

    @property
    def patterns(self) -> list[str]:
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def end(self) -> tuple[str, int] | None:
        """``until`` as unit and number."""
        if self.until is None:
            return None
        match = re.fullmatch(r"\s*(\d+)\s*(epoch|step)s?\s*", self.until)
        if not match or int(match[1]) == 0:
            raise ValueError(f"until is a number of epochs or steps, such as '2 epochs', got {self.until!r}")
        return match[2], int(match[1])

    def is_over(self, epoch: float, step: float) -> bool:
        return self.end is not None and (epoch if self.end[0] == "epoch" else step) >= self.end[1]


def check_plan(plan: list[Phase]) -> None:
    """Refuse a plan in which a phase has no end or no time."""
    if not plan:
        raise ValueError("the plan of FineTuning is empty: give it at least one phase")
    reached: dict[str, int] = {}
    for i, phase in enumerate(plan, 1):
        if (phase.end is None) != (i == len(plan)):
            until = f"'{phase.until}' in the last phase" if phase.until else f"missing in phase {i} of {len(plan)}"
            raise ValueError(f"every phase but the last says until when; until is {until}")
        unit, number = phase.end or ("", 0)
        if phase.end and number <= reached.get(unit, 0):
            raise ValueError(f"phase {i} lasts until {phase.until}, but that is over when it begins")
        reached[unit] = number


def phase_at(plan: list[Phase], epoch: float, step: float) -> int:
    """Return the index of the phase in force: the first that is not over.

    Args:
        plan: the phases; the last has no end.
        epoch: epochs done.
        step: updates of the weights done.
    """
    return next(i for i, phase in enumerate(plan) if not phase.is_over(epoch, step))


def matching_tensors(net: nn.Module, phase: Phase) -> set[Tensor]:
    """Return the parameters and buffers that a phase names; a tied parameter counts under all its names."""
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    everything: set[Tensor] = set()
    for pattern in phase.patterns:
        matches = {tensor for name, tensor in tensors if pattern == "all" or _matches(pattern, name)}
        if not matches and pattern == "head":
            matches = _head(net)
        if not matches:
            known = sorted({prefix for name, _ in tensors for prefix in _prefixes(name)})
            near = ", ".join(difflib.get_close_matches(pattern, known, n=3, cutoff=0.0))
            raise ValueError(
                f"train: {pattern!r} matches nothing in {type(net).__name__}; the nearest names are {near}"
            )
        everything |= matches
    return everything


def frozen_modules(net: nn.Module, learning: set[Tensor]) -> list[nn.Module]:
    """Return the modules that hold parameters or buffers of which none learns, and all modules inside these."""
    frozen = [m for m in net.modules() if (held := {*m.parameters(), *m.buffers()}) and held.isdisjoint(learning)]
    return list(dict.fromkeys(inner for module in frozen for inner in module.modules()))


def describe_plan(
    plan: list[Phase], module: nn.Module, epochs: float = math.inf, steps: float = math.inf
) -> list[dict[str, Any]]:
    """One row per phase, and a last one for what is never trained, for the table printed before anything trains.

    Args:
        plan: the phases.
        module: the LightningModule, or a network.
        epochs: length of the run.
        steps: length of the run, in updates of the weights.

    Returns:
        Rows with ``phase`` (from 1, or ``never``), ``until``, ``train``, ``tensors`` and ``parameters`` (how many of
        them learn), ``lr_scale``, and ``reached``: whether the run is long enough. What is never trained is told by the
        names of its largest modules; parameters that the network itself keeps frozen do not count.
    """
    net, last = network(module), phase_at(plan, epochs - 1, steps - 1)
    own = [p for p in net.parameters() if p.requires_grad]
    learning = [[p for p in own if p in named] for named in (matching_tensors(net, phase) for phase in plan)]
    rows = [
        {
            "phase": i + 1,
            "until": phase.until,
            "train": ", ".join(phase.patterns),
            "tensors": len(learning[i]),
            "parameters": sum(p.numel() for p in learning[i]),
            "lr_scale": phase.lr_scale,
            "reached": i <= last,
        }
        for i, phase in enumerate(plan)
    ]
    never = set[Tensor](own).difference(*learning[: last + 1])
    if never:
        names, size = ", ".join(summarize_names(net, never)), sum(p.numel() for p in never)
        row = {"phase": "never", "until": None, "train": names, "tensors": len(never), "parameters": size}
        rows.append({**row, "lr_scale": None, "reached": None})
    return rows


def network(module: nn.Module) -> nn.Module:
    """``module.net`` where there is one, else the module itself."""
    net = getattr(module, "net", None)
    return net if isinstance(net, nn.Module) else module


def _prefixes(name: str) -> list[str]:
    """``a``, ``a.b``, ``a.b.c`` of ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _matches(pattern: str, name: str) -> bool:
    return any(re.fullmatch(pattern, prefix) for prefix in _prefixes(name))


def _head(net: nn.Module) -> set[Tensor]:
    name = next(iter(getattr(net, "classifier_names", ())), None) or output_head(net)
    if name is None:
        raise ValueError(
            f"train: head: {type(net).__name__} has no output layer behind its blocks; name layers instead"
        )
    head = net.get_submodule(name)
    return {*head.parameters(), *head.buffers()}


def summarize_names(net: nn.Module, params: set[Tensor]) -> list[str]:
    """The names of the largest modules that consist of ``params``, and of parameters beside these."""
    names: list[str] = []

    def inside(name: str) -> bool:
        return any(name.startswith(f"{outer}.") for outer in names)

    for name, module in net.named_modules():
        held: set[Tensor] = {*module.parameters()}
        if name and held and held <= params and not inside(name):
            names.append(name)
    return names + [name for name, param in net.named_parameters() if param in params and not inside(name)]
