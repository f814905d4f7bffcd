"""Layers of torch.nn by name, so that a network's hyperparameters stay plain strings and dicts."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import Tensor, nn

LayerSpec = str | dict[str, Any]
ALIASES = {
    "Swish": "SiLU",
    "none": "Identity",
    "batch": "BatchNorm1d",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm1d",
}


def build(spec: LayerSpec, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a layer of torch.nn from its name, or from ``{class_path: name, init_args: {...}}``.

    Args:
        spec: ``GELU``, ``{class_path: LeakyReLU, init_args: {negative_slope: 0.2}}``; case counts, ``torch.nn.`` may
            stand before it, and Swish is SiLU.
        args: positional arguments of the layer, such as its width.
        kwargs: defaults for arguments that the layer has and ``spec`` does not give; others are left out.
    """
    name, given = (spec, {}) if isinstance(spec, str) else (spec.get("class_path", ""), spec.get("init_args") or {})
    name = str(name).removeprefix("torch.nn.")
    cls = getattr(nn, ALIASES.get(name, name), None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        known = [k for k, v in vars(nn).items() if inspect.isclass(v) and issubclass(v, nn.Module)] + list(ALIASES)
        by_lower = {k.lower(): k for k in known}
        close = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, 3)]
        raise ValueError(f"torch.nn has no layer {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    if cls is nn.Identity:
        return cls()
    accepted = inspect.signature(cls).parameters
    try:
        return cls(*args, **({k: v for k, v in kwargs.items() if k in accepted} | given))
    except TypeError as error:
        raise ValueError(f"torch.nn.{cls.__name__} cannot be built with {args} and {given}: {error}") from None


def norm(spec: LayerSpec, width: int) -> nn.Module:
    """A normalisation of ``width`` channels by name; GroupNorm without ``num_groups`` takes up to 32 that divide it."""
    name = (spec if isinstance(spec, str) else str(spec.get("class_path", ""))).removeprefix("torch.nn.")
    if ALIASES.get(name, name) == "GroupNorm":
        given = {} if isinstance(spec, str) else spec.get("init_args") or {}
        groups = given.get("num_groups") or next(g for g in range(min(32, width), 0, -1) if width % g == 0)
        rest = {k: v for k, v in given.items() if k != "num_groups"}
        return build({"class_path": "GroupNorm", "init_args": rest}, groups, width)
    return build(spec, width, affine=True)


def activation(spec: LayerSpec) -> nn.Module:
    """An activation by name; Softmax, where asked for, runs over the features (dimension 1)."""
    return build(spec, dim=1)


class Stack(nn.Sequential):
    """Layers one after the other, as a list: any network of torch.nn's layers from YAML.

    Args:
        layers: the layers, each as ``{class_path: torch.nn.Linear, init_args: {...}}``.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
