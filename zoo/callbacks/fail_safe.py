"""Hooks of monitoring callbacks that never end a training by an error of their own."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


class FailSafeCallback:
    """Mixin for callbacks that only observe a training: after an error of their own, they switch themselves off."""

    switched_off = False

    def release(self) -> None:
        """Remove all hooks and references to the training; called once, when the callback switches itself off."""

    def switch_off(self, action: str, error: Exception) -> None:
        """Observe nothing from now on, and say so in one line.

        Args:
            action: what failed, such as the name of a hook.
            error: the exception.
        """
        self.switched_off = True
        lines = str(error).splitlines()
        reason = type(error).__name__
        if lines:
            reason += f": {lines[0]}"
        # Not on the main process alone: a rank that no longer observes has to say so itself.
        warnings.warn(
            f"{type(self).__name__} is off for the rest of this run, training continues: {action} failed, {reason}",
            stacklevel=3,
        )
        self.release()


def fail_safe(*deliberate: type[Exception]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for methods of a ``FailSafeCallback``: on an error, warn and switch the callback off.

    A method of a callback that is off does nothing and returns None.

    Args:
        deliberate: exceptions by which the callback ends a training on purpose.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(self: FailSafeCallback, *args: Any, **kwargs: Any) -> Any:
            if self.switched_off:
                return None
            try:
                return method(self, *args, **kwargs)
            except deliberate:
                raise
            except Exception as error:
                self.switch_off(method.__name__, error)
                return None

        return guarded

    return decorate
