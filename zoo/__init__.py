"""zoo: architectures, datasets and callbacks for PyTorch Lightning."""

from typing import Any

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """``zoo.load`` and ``zoo.diagnose``, imported when used: ``import zoo`` costs nothing."""
    if name == "diagnose":
        from zoo.diagnosis import diagnose

        return diagnose
    if name == "load":
        from zoo.prediction import load

        return load
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
