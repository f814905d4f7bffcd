"""Caches on disk of what is computed from files: a folder for each content, whole or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from zoo.data.downloads import locked
from zoo.files import remove_abandoned, temporary_path


def user_folder(kind: str) -> Path:
    """Return the folder of the user's caches of a kind, such as ``images``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "zoo" / kind


def ensure(place: Path, write: Callable[[Path], None]) -> None:
    """Build a folder if it is not there; of several processes one builds it, and the others wait.

    Args:
        place: the folder. It is known to be whole by its ``index.json``.
        write: puts all files, ``index.json`` among them, into the folder that it is given.
    """
    if (place / "index.json").is_file():
        return
    with locked(place.with_name(f"{place.name}.lock")):
        if not (place / "index.json").is_file():  # another process may have built it while this one waited
            _build(place, write)


def _build(place: Path, write: Callable[[Path], None]) -> None:
    remove_abandoned(place)
    new = temporary_path(place)
    new.mkdir()
    try:
        write(new)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
