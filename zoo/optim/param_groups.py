"""From a network and a few rules to an optimizer with named parameter groups."""

import difflib
import re
from collections.abc import Callable, Iterable
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


_FUSED_ON = ("cpu", "cuda", "mps", "xpu")


@dataclass
class ParamGroupRule:
    """Treats the parameters whose name matches differently from the rest; of several rules the first one wins.

    Args:
        match: regular expression, searched for in the parameter's name relative to the network, as in ``^head`` or
            ``layer[34]``; the empty one matches every name.
        lr_scale: factor on the learning rate.
        weight_decay: in place of the optimizer's own, for those parameters that decay at all.
        optimizer: in place of the task's, with its own options; the learning rate is the task's times ``lr_scale``.
        matrices: only hidden matrices: two-dimensional weights that are neither embeddings nor the output head's.
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
) -> Optimizer:
    """Builds the optimizer of a network, every parameter in exactly one named group.

    A tied parameter counts once, and matches by any of its names. Frozen parameters are included: without a gradient
    torch passes them over, and a plan may thaw them later. Biases, normalisation layers and embeddings get no weight
    decay. Each group has, beside torch's own entries, a ``name`` and its ``lr_scale``. Muon named for a whole network
    takes its hidden matrices, and AdamW the rest, with the same learning rate and weight decay.

    Args:
        net: the network.
        factory: builds the optimizer of all that no rule sends elsewhere.
        lr: learning rate where ``lr_scale`` is 1.
        param_groups: exceptions by name, the first match wins; several optimizers become one :class:`MultiOptimizer`.
        layer_decay: in (0, 1]; the learning rate shrinks by this factor from the head down, block by block, to the
            stem (Clark et al. 2020, https://arxiv.org/abs/2003.10555). On top of the rules.
        decay_all: apply weight decay to every parameter.

    Returns:
        The optimizer; its groups in the order in which the network defines their first parameter, one optimizer after
        the other.

    Raises:
        ValueError: the network has no parameters; a rule matches nothing, or gives decay to an optimizer without it;
            ``layer_decay`` is out of range or the network no stack of blocks; LBFGS is not alone.
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
        optimizer = factory(list(names), lr)
        optimizer.param_groups[0].update(name="rest", lr_scale=1.0)
        return optimizer

    rest_factory, matrices = factory, set[nn.Parameter]()
    if isinstance(sample, Muon):
        rest_factory = fused_by_default(partial(AdamW, weight_decay=sample.defaults["weight_decay"]))
        if not (matrices := hidden_matrices(net)):
            raise ValueError(f"Muon is for hidden matrices, of which {type(net).__name__} has none: take AdamW")
    rules = [*(param_groups or []), ParamGroupRule(match="")]  # the last rule takes the rest
    ids = layer_ids(net) if layer_decay is not None else {}
    samples: dict[OptimizerFactory, Optimizer] = {factory: sample}
    groups: dict[OptimizerFactory, dict[tuple[int, str], dict[str, Any]]] = {}
    for param, index in _assign_rules(net, names, rules).items():
        rule, name = rules[index], names[param][0]
        member_factory = rule.optimizer or (factory if param in matrices else rest_factory)
        if member_factory not in samples:
            samples[member_factory] = _sample_optimizer(member_factory, lr)
        decay, lr_scale = _weight_decay(rule, samples[member_factory], name, param), rule.lr_scale
        label = "rest" if index == len(rules) - 1 else rule.match or "*"
        label += " (matrices)" * (rule.matrices or (param in matrices and not rule.optimizer))
        if layer_decay is not None:
            label += f", layer {ids[name]}"
            lr_scale *= layer_decay ** (max(ids.values()) - ids[name])
        if decay and not decay_all and not all(is_decayed(net, alias, param) for alias in names[param]):
            label += ", no decay"
            decay = 0.0
        options = {"params": [], "name": label, "lr_scale": lr_scale, "lr": lr * lr_scale}
        if decay is not None:
            options["weight_decay"] = decay
        groups.setdefault(member_factory, {}).setdefault((index, label), options)["params"].append(param)

    members = [member_factory(list(own.values()), lr) for member_factory, own in groups.items()]
    return members[0] if len(members) == 1 else MultiOptimizer(members)


def _sample_optimizer(factory: OptimizerFactory, lr: float) -> Optimizer:
    """One throw-away optimizer, to learn its class and its defaults."""
    try:
        return factory([nn.Parameter(torch.zeros(1, 1))], lr)
    except TypeError as error:
        raise ValueError(f"an optimizer is built from parameters and a learning rate, but {error}") from error


def _weight_decay(rule: ParamGroupRule, optimizer: Optimizer, name: str, param: nn.Parameter) -> float | None:
    """The weight decay that a rule asks for; ``None`` where its optimizer knows none."""
    if isinstance(optimizer, LBFGS):
        raise ValueError(f"rule {rule.match!r}: LBFGS cannot share a network with another optimizer")
    if isinstance(optimizer, Muon) and param.ndim != 2:
        raise ValueError(f"rule {rule.match!r}: Muon is for hidden matrices, not for {name}: add matrices: true")
    if rule.weight_decay is not None and "weight_decay" not in optimizer.defaults:
        raise ValueError(f"rule {rule.match!r}: {type(optimizer).__name__} has no weight_decay")
    return optimizer.defaults.get("weight_decay") if rule.weight_decay is None else rule.weight_decay


def _assign_rules(
    net: nn.Module, names: dict[nn.Parameter, list[str]], rules: list[ParamGroupRule]
) -> dict[nn.Parameter, int]:
    """For every parameter the index of the first rule that matches; the last rule has to match all."""
    matrices = hidden_matrices(net)
    matching = [
        {p for p, aliases in names.items() if any(re.search(rule.match, a) for a in aliases)}
        & (matrices if rule.matrices else names.keys())
        for rule in rules
    ]
    assigned = {param: min(i for i, params in enumerate(matching) if param in params) for param in names}
    for i, rule in enumerate(rules[:-1]):
        if i in assigned.values():
            continue
        if matching[i]:
            raise ValueError(f"rule {rule.match!r} is never reached: earlier rules match all of its parameters")
        kind = " hidden matrix" if rule.matrices else " parameter"
        raise ValueError(
            f"rule {rule.match!r} matches no{kind}; the nearest names are {_closest_names(rule.match, names)}"
        )
    return assigned


def _closest_names(match: str, names: dict[nn.Parameter, list[str]]) -> str:
    everything = {alias.rsplit(".", cut)[0] for aliases in names.values() for alias in aliases for cut in range(4)}
    return ", ".join(difflib.get_close_matches(match, sorted(everything), n=3, cutoff=0.0))


def describe_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """One row per parameter group, for the table printed before anything trains.

    Args:
        optimizer: any; names and scales are there if :func:`build_optimizer` made it.

    Returns:
        Rows with ``name``, ``optimizer`` (class name), ``tensors``, ``parameters`` and ``trainable`` (elements, all and
        not frozen now), ``lr`` (the schedule's peak), ``lr_scale`` and ``weight_decay`` (``None`` where there is none).
    """
    members = optimizer.optimizers if isinstance(optimizer, MultiOptimizer) else [optimizer]
    return [
        {
            "name": group.get("name", "all"),
            "optimizer": type(member).__name__,
            "tensors": len(group["params"]),
            "parameters": sum(p.numel() for p in group["params"]),
            "trainable": sum(p.numel() for p in group["params"] if p.requires_grad),
            "lr": float(group.get("max_lr", group.get("initial_lr", group["lr"]))),
            "lr_scale": group.get("lr_scale", 1.0),
            "weight_decay": group.get("weight_decay"),
        }
        for member in members
        for group in member.param_groups
    ]


def fused_by_default(factory: OptimizerFactory) -> OptimizerFactory:
    """Makes a factory whose Adam or AdamW takes its whole step in one kernel, several times faster, also on a CPU.

    Gradients of fused optimizers can be clipped in mixed precision: it is left to the scaler to unscale them.

    Only where nobody chose otherwise (``fused``, ``foreach``, ``capturable`` or ``differentiable``) and all parameters
    allow it. Fused SGD is left out: its momentum fails on a layer that is thawed later (torch 2.15). So is Adagrad, as
    a checkpoint from a CPU would then not load on a GPU.

    Args:
        factory: builds the optimizer; any other kind passes unchanged.

    Returns:
        The factory, to be used in place of the given one.
    """

    def build(params: Iterable, lr: float) -> Optimizer:
        optimizer = factory(params, lr)
        for group in optimizer.param_groups if isinstance(optimizer, Adam) else []:
            chosen = [group[key] for key in ("fused", "foreach")] != [None, None]
            if not chosen and not group["capturable"] and not group["differentiable"]:
                group["fused"] = (
                    all(p.is_floating_point() and p.device.type in _FUSED_ON for p in group["params"]) or None
                )
        # A fused optimizer that unscales gradients by itself is one whose gradients Lightning refuses to clip.
        leave_unscaling_to_scaler(optimizer)
        return optimizer

    return build
