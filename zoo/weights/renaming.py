"""Renaming of parameters between libraries, by a table that is read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def rename_keys(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Return a state dict with keys renamed by their beginnings, whole parts at a time; unknown keys stay.

    Args:
        state: tensors by name.
        table: from old to new beginnings, ``{}`` standing for a number: ``{"blocks.{}.norm1": "layers.{}.ln_1"}``.
    """
    patterns = []
    for old, new in table.items():
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?![^.])"  # up to a dot or the end
        patterns.append((re.compile(pattern), new))
    return {_rename(key, patterns): tensor for key, tensor in state.items()}


def _rename(key: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in patterns:
        match = pattern.match(key)
        if match:
            return new.format(*match.groups()) + key[match.end() :]
    return key


def invert(table: Mapping[str, str]) -> dict[str, str]:
    """Return the table for the other direction."""
    return {new: old for old, new in table.items()}
