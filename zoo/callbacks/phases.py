"""Phases of fine-tuning as pure functions: the current phase, and its trainable and frozen parameters and modules."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from zoo.adapters import network
from zoo.optim.param_kinds import output_head


@dataclass
class Phase:
    """A phase of fine-tuning: some layers are trainable and the others frozen.

    Args:
        until: end of the phase, counted from the start of the run: ``2 epochs`` or ``500 steps`` (optimizer steps);
            null in the last phase, and only there.
        train: trainable layers: ``all``, ``head``, or one or more regular expressions, each of which has to match the
            full name of a module, with all that it contains, or of a parameter of the network, such as ``layer4`` or
            ``blocks\\.(10|11)``. ``head`` is the module of that name, or else the layer that computes the output.
        lr_scale: factor on the learning rates.

    Raises:
        ValueError: for an ``lr_scale`` that is not positive, no layers, an invalid expression or an invalid ``until``.
    """

    until: str | None = None
    train: str | list[str] = "all"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(f"lr_scale of a phase must be above 0, got {self.lr_scale}")
        if not self.train:
            raise ValueError("a phase has to train something: set train to layers, head or all")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"train: {pattern!r} is not a regular expression: {error}") from error
        # Reading it checks ``until``.
        _ = self.end

    @property
    def patterns(self) -> list[str]:
        """``train`` as a list."""
        if isinstance(self.train, str):
            return [self.train]
        return self.train

    @property
    def end(self) -> tuple[str, int] | None:
        """``until`` as unit (``epoch`` or ``step``) and number, or None."""
        if self.until is None:
            return None
        match = re.fullmatch(r"\s*(\d+)\s*(epoch|step)s?\s*", self.until)
        if not match or int(match[1]) == 0:
            raise ValueError(f"until must be a number of epochs or steps, such as '2 epochs', got {self.until!r}")
        return match[2], int(match[1])

    def is_over(self, epoch: float, step: float) -> bool:
        """Return whether the phase has ended.

        Args:
            epoch: epochs done.
            step: optimizer steps done.
        """
        if self.end is None:
            return False
        unit, number = self.end
        if unit == "epoch":
            return epoch >= number
        return step >= number


def check_plan(plan: list[Phase]) -> None:
    """Raise a ValueError for a plan that is empty or has a phase without an end or without a step to train.

    Args:
        plan: the phases in order.
    """
    if not plan:
        raise ValueError("the plan of FineTuning is empty: give it at least one phase")
    *earlier, last = plan
    rule = "every phase but the last needs until, and the last has none"
    # Ends in epochs and in steps cannot be compared with each other, so each unit is checked on its own.
    reached: dict[str, int] = {}
    for i, phase in enumerate(earlier, 1):
        if phase.end is None:
            raise ValueError(f"{rule}; until is missing in phase {i} of {len(plan)}")
        unit, number = phase.end
        if number <= reached.get(unit, 0):
            raise ValueError(f"phase {i} lasts until {phase.until}, but that is over when it begins")
        reached[unit] = number
    if last.end is not None:
        raise ValueError(f"{rule}; until is '{last.until}' in the last phase")


def phase_at(plan: list[Phase], epoch: float, step: float) -> int:
    """Return the index of the current phase: the first that is not over.

    Args:
        plan: the phases; the last has no end.
        epoch: epochs done.
        step: optimizer steps done.
    """
    return next(i for i, phase in enumerate(plan) if not phase.is_over(epoch, step))


def matching_tensors(net: nn.Module, phase: Phase) -> set[Tensor]:
    """Return the parameters and buffers that match ``train`` of a phase; a tied parameter matches by any of its names.

    Args:
        net: the network.
        phase: the phase.

    Raises:
        ValueError: for an expression that matches nothing.
    """
    tensors: list[tuple[str, Tensor]] = [
        *net.named_parameters(remove_duplicate=False),
        *net.named_buffers(remove_duplicate=False),
    ]
    matched: set[Tensor] = set()
    for pattern in phase.patterns:
        matches = {tensor for name, tensor in tensors if _matches(pattern, name)}
        # A module that is called "head" comes before the layer that computes the output.
        if not matches and pattern == "head":
            matches = _head(net)
        if not matches:
            near = _nearest_names(pattern, [name for name, _ in tensors])
            raise ValueError(
                f"train: {pattern!r} matches nothing in {type(net).__name__}; the nearest names are {near}"
            )
        matched |= matches
    return matched


def _nearest_names(pattern: str, names: list[str]) -> str:
    known: set[str] = set()
    for name in names:
        known.update(_prefixes(name))
    return ", ".join(difflib.get_close_matches(pattern, sorted(known), n=3, cutoff=0.0))


def frozen_modules(net: nn.Module, trainable: set[Tensor]) -> list[nn.Module]:
    """Return the modules with parameters or buffers none of which is trainable, and all modules inside these.

    Args:
        net: the network.
        trainable: trainable parameters and buffers.
    """
    # A dictionary as an ordered set: modules inside of a frozen one are reached several times.
    frozen: dict[nn.Module, None] = {}
    for module in net.modules():
        tensors: set[Tensor] = {*module.parameters(), *module.buffers()}
        if tensors and tensors.isdisjoint(trainable):
            frozen.update(dict.fromkeys(module.modules()))
    return list(frozen)


def describe_plan(
    plan: list[Phase],
    module: nn.Module,
    epochs: float = math.inf,
    steps: float = math.inf,
) -> list[dict[str, Any]]:
    """Return the rows of the table that is printed before training: one per phase, and one for what is never trained.

    Args:
        plan: the phases.
        module: the LightningModule, or a network.
        epochs: epochs of the run.
        steps: optimizer steps of the run.

    Returns:
        Rows with ``phase`` (from 1, or ``never``), ``until``, ``train``, ``tensors`` and ``parameters`` (numbers of
        trainable ones), ``lr_scale``, and ``reached``: whether the run is long enough. The row ``never`` lists the
        largest modules that are never trained; parameters that the network itself freezes are not included.
    """
    net = network(module)
    last = phase_at(plan, epochs - 1, steps - 1)
    own = [p for p in net.parameters() if p.requires_grad]
    never: set[Tensor] = set(own)
    rows: list[dict[str, Any]] = []
    for i, phase in enumerate(plan):
        matched = matching_tensors(net, phase)
        trainable = [p for p in own if p in matched]
        reached = i <= last
        if reached:
            never.difference_update(trainable)
        rows.append(
            {
                "phase": i + 1,
                "until": phase.until,
                "train": ", ".join(phase.patterns),
                "tensors": len(trainable),
                "parameters": sum(p.numel() for p in trainable),
                "lr_scale": phase.lr_scale,
                "reached": reached,
            }
        )
    if never:
        rows.append(
            {
                "phase": "never",
                "until": None,
                "train": ", ".join(summarize_names(net, never)),
                "tensors": len(never),
                "parameters": sum(p.numel() for p in never),
                "lr_scale": None,
                "reached": None,
            }
        )
    return rows


def _prefixes(name: str) -> list[str]:
    """Return ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a parameter or a module around it."""
    if pattern == "all":
        return True
    return any(re.fullmatch(pattern, prefix) for prefix in _prefixes(name))


def _head(net: nn.Module) -> set[Tensor]:
    """Return the parameters and buffers of the output layer."""
    # What a network declares is right where the order of definition is not that of execution.
    declared = next(iter(getattr(net, "classifier_names", ())), None)
    name = declared or output_head(net)
    if name is None:
        raise ValueError(f"train: head: {type(net).__name__} has no output layer after its blocks; name layers instead")
    head = net.get_submodule(name)
    return {*head.parameters(), *head.buffers()}


def summarize_names(net: nn.Module, params: set[Tensor]) -> list[str]:
    """Return the names of the largest modules that consist of ``params``, and of the other parameters in ``params``.

    Args:
        net: the network.
        params: some of its parameters.
    """
    names: list[str] = []
    # Parents come before their children, so a child of a module in the list is skipped.
    for name, module in net.named_modules():
        own: set[Tensor] = {*module.parameters()}
        if name and own and own <= params and not _is_inside(name, names):
            names.append(name)
    rest = []
    for name, param in net.named_parameters():
        if param in params and not _is_inside(name, names):
            rest.append(name)
    return names + rest


def _is_inside(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
