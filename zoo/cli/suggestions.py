"""``did you mean X?``: the nearest allowed names for a misspelt one. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from zoo.catalog.shipped_configs import shipped_configs

# Names that libraries give to the same thing.
SYNONYMS = (
    {"path", "file", "folder", "root", "data_dir"},
    {"lr", "learning_rate"},
)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``; did you mean X?`` for the names close to a misspelt one, or an empty string.

    Args:
        name: the misspelt name.
        known: the allowed names.
        prefix: put before each suggestion.
    """
    names = sorted(set(known) - {name})
    # `Adamw` is AdamW: without this, Adam and RAdam are closer to it.
    matches = [known for known in names if known.lower() == name.lower()][:2]
    if not matches:
        matches = _beginnings_and_synonyms(name, names)
    if not matches:
        matches = difflib.get_close_matches(name, names, 2)
    if not matches:
        matches = _matches_of_last_part(name, names)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(prefix + match for match in matches)}?"


def _beginnings_and_synonyms(name: str, names: list[str]) -> list[str]:
    """Return names that begin with this one (``--seed`` is ``--seed_everything``, not ``--data.seed``), or synonyms."""
    synonyms: set[str] = set()
    for group in SYNONYMS:
        if name in group:
            synonyms = group
    matches = [known for known in names if known.startswith(f"{name}_") or known in synonyms]
    return matches[:2]


def _matches_of_last_part(name: str, names: list[str]) -> list[str]:
    """Compare the last parts only, for a misspelt key deep in a config."""
    by_last_part = {known.rpartition(".")[2]: known for known in names}
    matches = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 2)
    return [by_last_part[match] for match in matches]


def near_config(path: str) -> str:
    """Return ``; did you mean -c FILE?`` for configs with a name close to that of a path, or an empty string."""
    files = {name: name for name in shipped_configs()}
    for folder in (Path(path).parent, Path("configs")):
        for file in sorted(folder.glob("*.y*ml")):
            files[file.stem] = str(file)
    stem = Path(path).name.removesuffix(".yaml").removesuffix(".yml")
    matches = [stem] if stem in files else difflib.get_close_matches(stem, files, 2, cutoff=0.7)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(f'-c {files[match]}' for match in matches)}?"
