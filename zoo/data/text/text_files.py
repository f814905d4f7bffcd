"""Texts with labels from CSV, TSV, JSON lines, or folders by class."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from zoo.data.tabular import read_csv

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
FORMATS = (".csv", ".tsv", ".jsonl")
Texts = tuple[list[Any], list[str]]
"""Texts, or pairs of them, and their labels."""


def read_splits(path: Path, text: str, label: str, text_pair: str | None = None) -> dict[str, Texts]:
    """Read texts and labels by split.

    Args:
        path: a file, a folder with a folder of ``.txt`` files for each class, or a folder with ``train`` and, if there
            are such, ``val`` and ``test``, each of them one of the former.
        text: name of the column of the texts.
        label: name of the column of the labels.
        text_pair: name of the column of the second texts of pairs; null for single texts.

    Returns:
        By ``train``, ``val``, ``test``, or everything under the empty name.
    """
    inside = sorted(path.iterdir()) if path.is_dir() else []
    named = {SPLITS[p.stem]: p for p in inside if p.stem in SPLITS and (p.is_dir() or p.suffix in FORMATS)}
    if "train" not in named:
        return {"": read_texts(path, text, label, text_pair)}
    return {split: read_texts(p, text, label, text_pair) for split, p in named.items()}


def read_texts(path: Path, text: str, label: str | None, text_pair: str | None = None) -> Texts:
    """Read texts and labels of a file or of folders by class; without ``label`` the labels stay empty.

    With ``text_pair`` a text is a pair ``(first, second)``, of two columns.
    """
    if path.is_dir() and text_pair is None:
        return _read_folders(path)
    if not path.exists():
        raise ValueError(f"no file or folder {path}")
    if path.suffix == ".txt" and label is None and text_pair is None:
        return _lines(path), []
    if path.suffix not in FORMATS or path.is_dir():
        more = ", or .txt with a text a line" if label is None else ", or folders by class"
        what, more = ("texts", more) if text_pair is None else ("pairs of texts", "")
        raise ValueError(f"{what} are read from {', '.join(FORMATS)}{more}; got {path}")
    columns = _read_json_lines(path) if path.suffix == ".jsonl" else _read_table(path)
    for name in (name for name in (text, text_pair, label) if name):
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns)}")
    labels = columns[label] if label else []
    if "" in labels:
        raise ValueError(f"{path}: row {labels.index('') + 1} has no {label!r}")
    texts = columns[text] if text_pair is None else list(zip(columns[text], columns[text_pair], strict=True))
    return texts, labels


def _read_folders(path: Path) -> Texts:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(file, folder.name) for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise ValueError(f"{path} holds no folders of .txt files, one folder for each class")
    return [_read(file) for file, _ in files], [name for _, name in files]


def _read_table(path: Path) -> dict[str, list[str]]:
    csv.field_size_limit(2**31 - 1)  # texts may be long
    if path.suffix == ".csv":
        return read_csv(path)
    rows = [line.split("\t") for line in _lines(path) if line]
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows" + (" below its header" if rows else ""))
    for i, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}, row {i}: {len(row)} values for {len(rows[0])} columns")
    return {name.strip(): [row[i].strip() for row in rows[1:]] for i, name in enumerate(rows[0])}


def _read_json_lines(path: Path) -> dict[str, list[str]]:
    rows = []
    for i, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {i} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {i}: an object {{...}} needed, got {line[:40]}")
        if "\\ud" in line.lower():
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ValueError(f"{path}, line {i} holds half of a surrogate pair, which is no character") from None
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows")
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: ["" if row[name] is None else str(row[name]).strip() for row in rows] for name in names}


def _lines(path: Path) -> list[str]:
    return _read(path).removesuffix("\n").split("\n")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is binary, not text: character {text.index(chr(0)):,} is zero")
    return text
