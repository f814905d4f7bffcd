"""Numbers of numpy as plain ones, as a checkpoint is read without any class but tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

# What holds tensors, and is left as it is.
TENSORS = ("state_dict", "optimizer_states", "ema_params", "raw_params")


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Replace numpy's scalars in a checkpoint that is being saved, in place: in hyperparameters and states.

    With one of them the file could be written, but not be read again.
    """
    for key, value in checkpoint.items():
        if key not in TENSORS:
            checkpoint[key] = plain(value)


def plain(value: Any) -> Any:
    """Return a value with plain numbers and texts in place of numpy's; the same object where there are none."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        items = {plain(key): plain(item) for key, item in value.items()}
        is_same = len(items) == len(value) and all(items.get(key) is item for key, item in value.items())
        has_plain_keys = not any(isinstance(key, np.generic) for key in value)
        return value if is_same and has_plain_keys else items
    if isinstance(value, (list, tuple)):
        new = [plain(item) for item in value]
        if all(item is old for item, old in zip(new, value, strict=True)):
            return value
        return new if isinstance(value, list) else tuple(new)
    return value
