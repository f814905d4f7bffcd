"""What every step of an optimizer begins with."""

from collections.abc import Callable
from typing import Any

import torch


def evaluate_closure(closure: Callable[[], Any] | None) -> Any:
    """The loss that a closure computes, together with its gradients; ``None`` where there is no closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
