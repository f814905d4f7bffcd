"""Build ``torch.nn`` layers by name, so that the hyperparameters of a network stay plain strings and dicts."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, TypeGuard

from torch import Tensor, nn

LayerSpec = str | dict[str, Any]

# Short names, and what other libraries call a layer.
ALIASES = {
    "Swish": "SiLU",
    "none": "Identity",
    "batch": "BatchNorm1d",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm1d",
}
MAX_GROUPS = 32  # the number of groups in the paper of GroupNorm


def build(spec: LayerSpec, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a layer of ``torch.nn``, built from its name or from ``{class_path: name, init_args: {...}}``.

    Args:
        spec: ``GELU`` or ``{class_path: LeakyReLU, init_args: {negative_slope: 0.2}}``. Names are case-sensitive, may
            begin with ``torch.nn.``, and may be an alias such as Swish for SiLU.
        args: positional arguments of the layer, such as its number of features.
        kwargs: default keyword arguments. ``spec`` overrides them, and those that the layer does not accept are
            ignored.

    Raises:
        ValueError: ``torch.nn`` has no such layer, or the layer does not accept the arguments.
    """
    name, init_args = parse_spec(spec)
    cls = _layer_class(name)
    if cls is nn.Identity:
        return cls()
    accepted = inspect.signature(cls).parameters
    arguments = {key: value for key, value in kwargs.items() if key in accepted}
    arguments |= init_args
    try:
        return cls(*args, **arguments)
    except TypeError as error:
        raise ValueError(f"torch.nn.{cls.__name__} cannot be built with {args} and {init_args}: {error}") from None


def norm(spec: LayerSpec, channels: int) -> nn.Module:
    """Return a normalization layer by name.

    GroupNorm without ``num_groups`` gets the largest number of groups, up to 32, that divides ``channels``.

    Args:
        spec: as in :func:`build`.
        channels: number of channels (or features) to normalize.
    """
    name, init_args = parse_spec(spec)
    if ALIASES.get(name, name) != "GroupNorm":
        return build(spec, channels, affine=True)
    options = dict(init_args)
    groups = options.pop("num_groups", None) or _largest_group_count(channels)
    return build({"class_path": "GroupNorm", "init_args": options}, groups, channels)


def activation(spec: LayerSpec) -> nn.Module:
    """Return an activation by name; Softmax normalizes over the features (dimension 1) unless ``dim`` is given."""
    return build(spec, dim=1)


class Stack(nn.Sequential):
    """Sequential network from a list of layers, so that YAML can describe any stack of ``torch.nn`` layers.

    Args:
        layers: the layers in order, each as ``{class_path: torch.nn.Linear, init_args: {...}}``.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def parse_spec(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    """Return the name of a layer, without ``torch.nn.``, and its ``init_args``."""
    if isinstance(spec, str):
        name = spec
        init_args = {}
    else:
        name = str(spec.get("class_path", ""))
        init_args = spec.get("init_args") or {}
    return name.removeprefix("torch.nn."), init_args


def _layer_class(name: str) -> type[nn.Module]:
    cls = getattr(nn, ALIASES.get(name, name), None)
    if _is_layer(cls):
        return cls
    known = [key for key, value in vars(nn).items() if _is_layer(value)]
    known += ALIASES
    # Match without regard to case, as Gelu and gelu are the usual mistakes.
    by_lower = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 3)
    message = f"torch.nn has no layer {name!r}"
    if close:
        message += f"; did you mean {', '.join(by_lower[key] for key in close)}?"
    raise ValueError(message)


def _is_layer(value: Any) -> TypeGuard[type[nn.Module]]:
    # Not DataParallel, which stands among the layers, but starts threads on devices.
    return inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__.startswith("torch.nn.modules.")


def _largest_group_count(channels: int) -> int:
    groups = min(MAX_GROUPS, channels)
    while channels % groups:
        groups -= 1
    return groups
