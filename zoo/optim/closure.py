"""Closures of optimizers."""

from collections.abc import Callable
from typing import Any

import torch


def evaluate_closure(closure: Callable[[], Any] | None) -> Any:
    """Evaluate a closure with gradients enabled and return its loss; None where there is no closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
