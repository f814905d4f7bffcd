"""Weight initialization by rules: which layers, which distribution."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

Method = Literal[
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "trunc_normal",
    "normal",
    "orthogonal",
    "zeros",
    "ones",
    "constant",
]
BiasMethod = Literal["zeros", "ones", "constant", "normal", "trunc_normal"]
Filler = Callable[[Tensor], Tensor]
_CONSTANT = ("zeros", "ones", "constant")
# The last layer of a residual branch, by the names that Transformers use for it.
RESIDUAL_ENDS = (
    r"(?:^|[._])(?:attn|attention)\.(?:proj|c_proj|out_proj|o_proj|out)$"
    r"|(?:^|\.)(?:mlp|ffn|feed_forward)\.(?:fc2|c_proj|proj|out_proj|down_proj|down|out|w2|2|3)$"
    r"|\.linear2$"
)


@dataclass
class InitRule:
    """Initialization of all layers that match; rules are applied in order, so a later rule overrides an earlier one.

    Args:
        match: regular expression, searched for in the layer's name; the empty one matches every layer.
        types: class names of the layers, such as Linear or Conv2d (subclasses included); null matches every type.
        weight: distribution of the weights; null leaves them unchanged. Random distributions skip one-dimensional
            weights, the scales of normalization layers. Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming,
            https://arxiv.org/abs/1502.01852), Saxe et al. 2014 (orthogonal).
        bias: distribution of the biases: zeros, ones, constant, normal or trunc_normal; null leaves them unchanged.
        fan: mode of kaiming: preserve the variance of activations (fan_in) or of gradients (fan_out).
        nonlinearity: of kaiming: the function after the layer, as in ``torch.nn.init.calculate_gain``.
        gain: scaling factor of xavier and orthogonal.
        std: standard deviation of normal and trunc_normal; trunc_normal is truncated at two standard deviations.
        value: value of constant.
    """

    match: str = ""
    types: list[str] | None = None
    weight: Method | None = None
    bias: BiasMethod | None = None
    fan: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: str = "relu"
    gain: float = 1.0
    std: float = 0.02
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.weight is None and self.bias is None:
            raise ValueError(f"init rule {self.match!r} sets neither weight nor bias: give one of them a distribution")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"init rule {self.match!r} is not a regular expression: {error}") from error


def initialize(net: nn.Module, rules: list[InitRule]) -> list[str]:
    """Initialize a network in place by rules.

    Args:
        net: the network.
        rules: applied one after the other.

    Returns:
        The names of all parameters that were initialized, in the network's order.

    Raises:
        ValueError: a rule matches no layer, or names an unknown distribution.
    """
    done: set[str] = set()
    for rule in rules:
        names = _apply_rule(rule, net)
        if not names:
            kinds = f" of type {' or '.join(rule.types)}" if rule.types else ""
            raise ValueError(f"init rule {rule.match!r} matches no layer{kinds} in {type(net).__name__}")
        done.update(names)
    # A parameter that two layers share is named under both.
    return [name for name, _ in net.named_parameters(remove_duplicate=False) if name in done]


def zero_init_residual(net: nn.Module, match: str = RESIDUAL_ENDS) -> list[str]:
    """Zero the last layer of every residual branch, so that each block starts as the identity (Goyal et al. 2017).

    Source: https://arxiv.org/abs/1706.02677, section 5.1. The layers are identified by name: the output projection of
    attention, the last layer of an MLP, and the last of a block's ``bn1, bn2, ...``.

    Args:
        net: the network, modified in place.
        match: regular expression for the names of the last layers, to use instead of the usual names.

    Returns:
        The names of the zeroed parameters.

    Raises:
        ValueError: no layer matches.
    """
    ends = {name for name, _ in net.named_modules() if re.search(match, name)}
    if match == RESIDUAL_ENDS:
        ends |= _last_norms(net)
    rule = InitRule(weight="zeros", bias="zeros")
    zeroed: list[str] = []
    for end in sorted(ends):
        zeroed += _apply_to_layer(rule, end, net.get_submodule(end))
    if not zeroed:
        raise ValueError(f"{type(net).__name__} has no layer that matches {match!r}, so no residual branch to zero")
    return zeroed


def _last_norms(net: nn.Module) -> set[str]:
    """Return the ``bn`` with the highest number of every block that has more than one; a stem has only ``bn1``."""
    last: dict[str, str] = {}
    for name, _ in net.named_modules():
        numbered = re.fullmatch(r"((?:.+\.)?bn)(\d)", name)
        if numbered is not None:
            prefix, number = numbered.groups()
            last[prefix] = max(last.get(prefix, ""), number)
    return {prefix + number for prefix, number in last.items() if number > "1"}


def _apply_rule(rule: InitRule, net: nn.Module) -> list[str]:
    names: list[str] = []
    for name, module in net.named_modules():
        if re.search(rule.match, name) and _has_type(module, rule.types):
            names += _apply_to_layer(rule, name, module)
    return names


def _has_type(module: nn.Module, types: list[str] | None) -> bool:
    if types is None:
        return True
    return any(cls.__name__ in types for cls in type(module).__mro__)


def _apply_to_layer(rule: InitRule, layer: str, module: nn.Module) -> list[str]:
    """Initialize the parameters of a layer itself, not those of its children; return their names."""
    names = []
    for leaf, parameter in module.named_parameters(recurse=False):
        method = _method_for(rule, leaf, parameter)
        if method is None:
            continue
        _filler(rule, method)(parameter)
        names.append(f"{layer}.{leaf}" if layer else leaf)
    return names


def _method_for(rule: InitRule, leaf: str, parameter: Tensor) -> str | None:
    """Return the distribution of a parameter by its name: ``in_proj_weight`` and ``bias_hh_l0`` are covered too."""
    if "bias" in leaf:
        return rule.bias
    if "weight" not in leaf:
        return None
    if parameter.ndim < 2 and rule.weight not in _CONSTANT:
        return None  # the scale of a normalization layer
    return rule.weight


def _filler(rule: InitRule, method: str) -> Filler:
    kaiming = {"mode": rule.fan, "nonlinearity": rule.nonlinearity}
    bound = 2 * rule.std
    fillers: dict[str, Filler] = {
        "xavier_uniform": partial(nn.init.xavier_uniform_, gain=rule.gain),
        "xavier_normal": partial(nn.init.xavier_normal_, gain=rule.gain),
        "kaiming_uniform": partial(nn.init.kaiming_uniform_, **kaiming),
        "kaiming_normal": partial(nn.init.kaiming_normal_, **kaiming),
        "trunc_normal": partial(nn.init.trunc_normal_, std=rule.std, a=-bound, b=bound),
        "normal": partial(nn.init.normal_, std=rule.std),
        "orthogonal": partial(nn.init.orthogonal_, gain=rule.gain),
        "zeros": nn.init.zeros_,
        "ones": nn.init.ones_,
        "constant": partial(nn.init.constant_, val=rule.value),
    }
    if method not in fillers:
        raise ValueError(f"init method must be one of {', '.join(fillers)}, got {method!r}")
    return fillers[method]
