"""Initialisation by rules: which layers, which distribution."""

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
_CONSTANT = ("zeros", "ones", "constant")
# The layers that end a residual branch, as transformers name them.
RESIDUAL_ENDS = (
    r"(?:^|[._])(?:attn|attention)\.(?:proj|c_proj|out_proj|o_proj|out)$"
    r"|(?:^|\.)(?:mlp|ffn|feed_forward)\.(?:fc2|c_proj|proj|out_proj|down_proj|down|out|w2|2|3)$"
    r"|\.linear2$"
)


@dataclass
class InitRule:
    """How to initialise the layers that match; rules are applied in order, so a later one has the last word.

    Args:
        match: regular expression, searched for in the layer's name; the empty one matches all.
        types: class names, such as Linear or Conv2d (subclasses too); ``None`` takes every layer.
        weight: distribution of the weights, ``None`` to leave them. Random ones pass over vectors: the scales of
            normalisation layers. Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming,
            https://arxiv.org/abs/1502.01852), Saxe et al. 2014 (orthogonal).
        bias: distribution of the biases: zeros, ones, constant, normal or trunc_normal; ``None`` to leave them.
        fan: kaiming: keep the variance of activations (fan_in) or of gradients (fan_out).
        nonlinearity: kaiming: what follows the layer, as in ``torch.nn.init.calculate_gain``.
        gain: factor for xavier and orthogonal.
        std: standard deviation of normal and trunc_normal; the latter is cut at two of them.
        value: of constant.
    """

    match: str = ""
    types: list[str] | None = None
    weight: Method | None = None
    bias: Literal["zeros", "ones", "constant", "normal", "trunc_normal"] | None = None
    fan: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: str = "relu"
    gain: float = 1.0
    std: float = 0.02
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.weight is None and self.bias is None:
            raise ValueError(f"init rule {self.match!r} sets neither weight nor bias")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"init rule {self.match!r} is not a regular expression: {error}") from error


def initialize(net: nn.Module, rules: list[InitRule]) -> list[str]:
    """Initialises a network in place.

    Args:
        net: the network.
        rules: applied one after the other.

    Returns:
        The names of all parameters that were set, in the network's order.

    Raises:
        ValueError: a rule matches nothing, or names an unknown method.
    """
    done: set[str] = set()
    for rule in rules:
        names = [
            name
            for prefix, module in net.named_modules()
            if re.search(rule.match, prefix) and _is_one_of(module, rule.types)
            for name in _apply(rule, prefix, module)
        ]
        if not names:
            kinds = f" of type {' or '.join(rule.types)}" if rule.types else ""
            raise ValueError(f"init rule {rule.match!r} finds no layer{kinds} in {type(net).__name__} to initialise")
        done.update(names)
    return [name for name, _ in net.named_parameters(remove_duplicate=False) if name in done]


def zero_init_residual(net: nn.Module, match: str = RESIDUAL_ENDS) -> list[str]:
    """Zeroes the last layer of every residual branch, so that blocks begin as the identity (Goyal et al. 2017).

    Source: https://arxiv.org/abs/1706.02677, section 5.1. Found by name: attention's output projection and the MLP's
    last layer, and the last of a block's ``bn1, bn2, ...``.

    Args:
        net: the network.
        match: regular expression for the names of layers that end a branch, in place of the usual ones.

    Returns:
        The names of the parameters that were zeroed.

    Raises:
        ValueError: no such layer is found.
    """
    ends = {name for name, _ in net.named_modules() if re.search(match, name)}
    if match == RESIDUAL_ENDS:
        ends |= _last_norms(net)
    zeroed = [
        name
        for end in sorted(ends)
        for name in _apply(InitRule(weight="zeros", bias="zeros"), end, net.get_submodule(end))
    ]
    if not zeroed:
        raise ValueError(f"{type(net).__name__} has no layer that matches {match!r}, so no residual branch to zero")
    return zeroed


def _last_norms(net: nn.Module) -> set[str]:
    """In every block with ``bn1`` and ``bn2``: the one with the highest number. A stem has ``bn1`` alone."""
    last: dict[str, str] = {}
    for name, _ in net.named_modules():
        if numbered := re.fullmatch(r"((?:.+\.)?bn)(\d)", name):
            last[numbered[1]] = max(last.get(numbered[1], ""), numbered[2])
    return {prefix + number for prefix, number in last.items() if number > "1"}


def _is_one_of(module: nn.Module, types: list[str] | None) -> bool:
    return types is None or any(cls.__name__ in types for cls in type(module).__mro__)


def _apply(rule: InitRule, prefix: str, module: nn.Module) -> list[str]:
    """Sets the module's own parameters, not its children's, and names them."""
    names = []
    for leaf, param in module.named_parameters(recurse=False):
        method = rule.bias if "bias" in leaf else rule.weight if "weight" in leaf else None
        if method is None or ("weight" in leaf and param.ndim < 2 and method not in _CONSTANT):
            continue
        _filler(rule, method)(param)
        names.append(f"{prefix}.{leaf}" if prefix else leaf)
    return names


def _filler(rule: InitRule, method: str) -> Callable[[Tensor], Tensor]:
    kaiming = {"mode": rule.fan, "nonlinearity": rule.nonlinearity}
    fillers: dict[str, Callable[[Tensor], Tensor]] = {
        "xavier_uniform": partial(nn.init.xavier_uniform_, gain=rule.gain),
        "xavier_normal": partial(nn.init.xavier_normal_, gain=rule.gain),
        "kaiming_uniform": partial(nn.init.kaiming_uniform_, **kaiming),
        "kaiming_normal": partial(nn.init.kaiming_normal_, **kaiming),
        "trunc_normal": partial(nn.init.trunc_normal_, std=rule.std, a=-2 * rule.std, b=2 * rule.std),
        "normal": partial(nn.init.normal_, std=rule.std),
        "orthogonal": partial(nn.init.orthogonal_, gain=rule.gain),
        "zeros": nn.init.zeros_,
        "ones": nn.init.ones_,
        "constant": partial(nn.init.constant_, val=rule.value),
    }
    if method not in fillers:
        raise ValueError(f"init method is {method!r}, but must be one of {', '.join(fillers)}")
    return fillers[method]
