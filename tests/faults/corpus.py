"""The corpus: bugs planted one at a time into healthy modules, and modules that look odd and are sound.

A fault is a function that builds ``(module, data)``; ``@fault(check, words)`` says that the check's verdict must hold
one of these words. Nothing here is known to ``zoo.diagnosis``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L

Build = Callable[[], tuple[L.LightningModule, L.LightningDataModule]]


@dataclass(frozen=True)
class Fault:
    """A planted bug.

    Args:
        build: makes the module and its data.
        check: name of the check that must find it.
        words: of which its verdict must hold one.
    """

    build: Build
    check: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.build.__name__


FAULTS: list[Fault] = []
SOUND: list[Build] = []


def fault(check: str, *words: str) -> Callable[[Build], Build]:
    def plant(build: Build) -> Build:
        FAULTS.append(Fault(build, check, words))
        return build

    return plant


def sound(build: Build) -> Build:
    SOUND.append(build)
    return build
