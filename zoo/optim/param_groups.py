"""Optimizers with named parameter groups, built from a network and a few rules."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Adam, AdamW, Muon, Optimizer

from zoo._torch import leave_unscaling_to_scaler
from zoo.optim.multi_optimizer import MultiOptimizer
from zoo.optim.param_kinds import hidden_matrices, is_decayed, layer_ids, param_names

OptimizerFactory = Callable[[Iterable, float], Optimizer]
"""Builds an optimizer from parameters (or groups) and a learning rate: ``torch.optim.AdamW`` or a ``partial`` of it."""


# Devices for which torch has a fused Adam.
_FUSED_ON = ("cpu", "cuda", "mps", "xpu")


@dataclass
class ParamGroupRule:
    """A parameter group by regular expression; of several rules the first that matches a name counts.

    Args:
        match: regular expression, searched for in the parameter's name relative to the network, such as ``^head`` or
            ``layer[34]``; the empty one matches every name.
        lr_scale: factor on the learning rate.
        weight_decay: replaces the optimizer's own, for those parameters that decay at all.
        optimizer: replaces the task's, with its own options; its learning rate is the task's times ``lr_scale``.
        matrices: match only hidden matrices, which are two-dimensional weights of neither embeddings nor the output
            head.
    """

    match: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    optimizer: OptimizerFactory | None = None
    matrices: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"rule {self.match!r} is not a regular expression: {error}") from error
        if self.lr_scale < 0:
            raise ValueError(f"rule {self.match!r}: lr_scale is {self.lr_scale}, but must be at least 0")


def build_optimizer(
    net: nn.Module,
    factory: OptimizerFactory,
    lr: float,
    param_groups: list[ParamGroupRule] | None = None,
    layer_decay: float | None = None,
    decay_all: bool = False,
    left_out: Collection[nn.Parameter] = (),
) -> Optimizer:
    """Build the optimizer of a network, with every parameter in exactly one named group.

    A tied parameter counts once and matches by any of its names. Frozen parameters are included: torch skips
    parameters without a gradient, and a fine-tuning plan may unfreeze them later. Biases, normalization layers and
    embeddings get no weight decay. Each group has, beside torch's own entries, a ``name`` and its ``lr_scale``.
    Muon given for a whole network takes its hidden matrices; AdamW takes the rest with the same learning rate and
    weight decay.

    Args:
        net: the network.
        factory: builds the optimizer of all parameters that no rule sends elsewhere.
        lr: learning rate where ``lr_scale`` is 1.
        param_groups: exceptions by name; the first match wins. Several optimizers become one :class:`MultiOptimizer`.
        layer_decay: in (0, 1]; the learning rate shrinks by this factor from the head down, block by block, to the
            stem (Clark et al. 2020, https://arxiv.org/abs/2003.10555). Applied on top of the rules.
        decay_all: apply weight decay to every parameter.
        left_out: parameters that are never trained, such as the base of an adapter.

    Returns:
        The optimizer. Its groups are in the order in which the network defines their first parameter, one optimizer
        after the other.

    Raises:
        ValueError: the network has no parameters; a rule matches nothing, or sets weight decay for an optimizer
            without it; ``layer_decay`` is out of range or the network is no stack of blocks; LBFGS is combined with
            another optimizer.
    """
    names = param_names(net)
    if not names:
        raise ValueError(f"{type(net).__name__} has no parameters to optimise")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}, but must be above 0 and at most 1")
    sample = _sample_optimizer(factory, lr)
    if isinstance(sample, LBFGS):
        if param_groups or layer_decay is not None:
            raise ValueError("LBFGS treats all parameters alike: it takes neither param_groups nor layer_decay")
        return _single_group_optimizer(factory, [p for p in names if p not in left_out], lr)

    rest_factory = factory
    muon_params: set[nn.Parameter] = set()
    if isinstance(sample, Muon):
        rest_factory = fused_by_default(partial(AdamW, weight_decay=sample.defaults["weight_decay"]))
        muon_params = hidden_matrices(net)
        if not muon_params:
            raise ValueError(f"Muon is for hidden matrices, of which {type(net).__name__} has none: take AdamW")

    rules = [*(param_groups or []), ParamGroupRule(match="")]  # the last rule takes the rest
    depths = layer_ids(net) if layer_decay is not None else {}
    samples: dict[OptimizerFactory, Optimizer] = {factory: sample}
    # optimizer -> (index of the rule, label) -> group; dictionaries keep the order of the network
    groups: dict[OptimizerFactory, dict[tuple[int, str], dict[str, Any]]] = {}
    for param, index in _assign_rules(net, names, rules).items():
        if param in left_out:
            continue
        rule = rules[index]
        name = names[param][0]
        by_muon = param in muon_params
        member = rule.optimizer
        if member is None:
            member = factory if by_muon else rest_factory
        if member not in samples:
            samples[member] = _sample_optimizer(member, lr)

        label = "rest" if index == len(rules) - 1 else rule.match or "*"
        if rule.matrices or (by_muon and rule.optimizer is None):
            label += " (matrices)"
        lr_scale = rule.lr_scale
        if layer_decay is not None:
            label += f", layer {depths[name]}"
            lr_scale *= layer_decay ** (max(depths.values()) - depths[name])
        weight_decay = _weight_decay(rule, samples[member], name, param)
        if weight_decay and not decay_all and not all(is_decayed(net, alias, param) for alias in names[param]):
            label += ", no decay"
            weight_decay = 0.0

        member_groups = groups.setdefault(member, {})
        if (index, label) not in member_groups:
            group = {"params": [], "name": label, "lr_scale": lr_scale, "lr": lr * lr_scale}
            if weight_decay is not None:
                group["weight_decay"] = weight_decay
            member_groups[index, label] = group
        member_groups[index, label]["params"].append(param)

    members = [member(list(own.values()), lr) for member, own in groups.items()]
    if len(members) == 1:
        return members[0]
    return MultiOptimizer(members)


def _single_group_optimizer(factory: OptimizerFactory, params: list[nn.Parameter], lr: float) -> Optimizer:
    """Build an optimizer that knows one group only."""
    optimizer = factory(params, lr)
    optimizer.param_groups[0].update(name="rest", lr_scale=1.0)
    return optimizer


def _sample_optimizer(factory: OptimizerFactory, lr: float) -> Optimizer:
    """Build one throw-away optimizer, to learn its class and its defaults."""
    try:
        return factory([nn.Parameter(torch.zeros(1, 1))], lr)
    except TypeError as error:
        raise ValueError(f"an optimizer is built from parameters and a learning rate, but {error}") from error


def _weight_decay(rule: ParamGroupRule, optimizer: Optimizer, name: str, param: nn.Parameter) -> float | None:
    """Return the weight decay that a rule asks for; None where its optimizer has none."""
    if isinstance(optimizer, LBFGS):
        raise ValueError(f"rule {rule.match!r}: LBFGS cannot share a network with another optimizer")
    if isinstance(optimizer, Muon) and param.ndim != 2:
        raise ValueError(f"rule {rule.match!r}: Muon is for hidden matrices, not for {name}: add matrices: true")
    if rule.weight_decay is None:
        return optimizer.defaults.get("weight_decay")
    if "weight_decay" not in optimizer.defaults:
        raise ValueError(f"rule {rule.match!r}: {type(optimizer).__name__} has no weight_decay")
    return rule.weight_decay


def _assign_rules(
    net: nn.Module, names: dict[nn.Parameter, list[str]], rules: list[ParamGroupRule]
) -> dict[nn.Parameter, int]:
    """Return for every parameter the index of the first rule that matches; the last rule has to match all."""
    matrices = hidden_matrices(net)
    assigned: dict[nn.Parameter, int] = {}
    matched = [0] * len(rules)  # parameters that each rule would take if it were the first
    for param, aliases in names.items():
        for index, rule in enumerate(rules):
            if rule.matrices and param not in matrices:
                continue
            if not any(re.search(rule.match, alias) for alias in aliases):
                continue
            matched[index] += 1
            assigned.setdefault(param, index)
    for index, rule in enumerate(rules[:-1]):
        if index in assigned.values():
            continue
        if matched[index]:
            raise ValueError(f"rule {rule.match!r} is never reached: earlier rules match all of its parameters")
        kind = "hidden matrix" if rule.matrices else "parameter"
        nearest = _closest_names(rule.match, names)
        raise ValueError(f"rule {rule.match!r} matches no {kind}; the nearest names are {nearest}")
    return assigned


def _closest_names(match: str, names: dict[nn.Parameter, list[str]]) -> str:
    """Return the names of parameters and modules that look most like a pattern."""
    known: set[str] = set()
    for aliases in names.values():
        for alias in aliases:
            # the parameter and the modules around it
            known.update(alias.rsplit(".", levels)[0] for levels in range(4))
    return ", ".join(difflib.get_close_matches(match, sorted(known), n=3, cutoff=0.0))


def describe_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return one row per parameter group, for the table printed before training.

    Args:
        optimizer: any optimizer; names and scales are there if :func:`build_optimizer` made it.

    Returns:
        Rows with ``name``, ``optimizer`` (class name), ``tensors``, ``parameters`` and ``trainable`` (numbers of
        elements, all and not frozen now), ``lr`` (the schedule's peak), ``lr_scale`` and ``weight_decay`` (None where
        there is none).
    """
    members = optimizer.optimizers if isinstance(optimizer, MultiOptimizer) else [optimizer]
    rows = []
    for member in members:
        for group in member.param_groups:
            params = group["params"]
            peak = group.get("max_lr", group.get("initial_lr", group["lr"]))
            rows.append(
                {
                    "name": group.get("name", "all"),
                    "optimizer": type(member).__name__,
                    "tensors": len(params),
                    "parameters": sum(p.numel() for p in params),
                    "trainable": sum(p.numel() for p in params if p.requires_grad),
                    "lr": float(peak),
                    "lr_scale": group.get("lr_scale", 1.0),
                    "weight_decay": group.get("weight_decay"),
                }
            )
    return rows


def fused_by_default(factory: OptimizerFactory) -> OptimizerFactory:
    """Return a factory whose Adam or AdamW uses torch's fused kernel, several times faster, also on a CPU.

    Fused is chosen only where the user chose nothing (``fused``, ``foreach``, ``capturable`` or ``differentiable``)
    and all parameters allow it. SGD is left out: its fused momentum fails on a layer that is unfrozen later (torch
    2.15). So is Adagrad, as a checkpoint from a CPU would then not load on a GPU.

    Args:
        factory: builds the optimizer; any other class passes unchanged.

    Returns:
        The factory to use in place of the given one.
    """

    def build(params: Iterable, lr: float) -> Optimizer:
        optimizer = factory(params, lr)
        if isinstance(optimizer, Adam):
            for group in optimizer.param_groups:
                if _may_be_fused(group):
                    group["fused"] = True
        # Lightning refuses to clip gradients that a fused optimizer unscales by itself, so the scaler does it.
        leave_unscaling_to_scaler(optimizer)
        return optimizer

    return build


def _may_be_fused(group: dict[str, Any]) -> bool:
    """Whether a group of Adam leaves the implementation open, and its parameters allow the fused one."""
    if group["fused"] is not None or group["foreach"] is not None:
        return False
    if group["capturable"] or group["differentiable"]:
        return False
    return all(p.is_floating_point() and p.device.type in _FUSED_ON for p in group["params"])
