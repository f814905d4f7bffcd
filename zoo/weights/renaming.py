"""Names of parameters from one library's to another's, by a table that is read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def rename_keys(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename by the beginnings of names, whole parts of them at a time; what no entry knows keeps its name.

    Args:
        state: tensors by name.
        table: from old to new beginnings, ``{}`` standing for a number: ``{"blocks.{}.norm1": "layers.{}.ln_1"}``.
    """
    patterns = [
        (re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?![^.])"), new) for old, new in table.items()
    ]

    def name(old: str) -> str:
        for pattern, new in patterns:
            if found := pattern.match(old):
                return new.format(*found.groups()) + old[found.end() :]
        return old

    return {name(old): tensor for old, tensor in state.items()}


def invert(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}
