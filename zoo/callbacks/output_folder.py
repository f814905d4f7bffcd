"""The folder that a callback writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def output_folder(trainer: Any, dirpath: str | Path | None = None) -> Path:
    """Return the folder that the user gives a callback, or else that of the logger, or else of the trainer.

    All processes have to call it together, as ``log_dir`` is broadcast: call it in ``setup``, not where only the main
    process writes.

    Args:
        trainer: the trainer.
        dirpath: argument of the callback.
    """
    return Path(dirpath or trainer.log_dir or trainer.default_root_dir)
