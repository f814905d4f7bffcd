"""Texts with labels from CSV, TSV, JSON lines, or folders by class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoo.data.csv_tables import read_table
from zoo.data.text.encoding import read_lines, read_text
from zoo.data.text.json_lines import label_of, parse_object, text_of
from zoo.distributed import say

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
FORMATS = (".csv", ".tsv", ".jsonl")
Texts = tuple[list[Any], list[str]]
"""Texts, or pairs of them, and their labels."""


def read_splits(
    path: Path,
    text: str,
    label: str,
    text_pair: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> dict[str, Texts]:
    """Read texts and labels by split.

    Args:
        path: a file, a folder with a folder of ``.txt`` files for each class, or a folder with ``train`` and, if there
            are such, ``val`` and ``test``, each of them one of the former.
        text: name of the column of the texts.
        label: name of the column of the labels.
        text_pair: name of the column of the second texts of pairs; null for single texts.
        encoding: of files without a byte order mark; null is UTF-8, in a dataset that has no option for it.
        separator: between the columns of ``.csv``; null finds it out.

    Returns:
        By ``train``, ``val``, ``test``, or everything under the empty name.
    """
    named: dict[str, Path] = {}
    if path.is_dir():
        named = find_split_files(path, FORMATS, folders=True)
    if "train" not in named:
        named = {"": path}
    return {split: read_texts(file, text, label, text_pair, encoding, separator) for split, file in named.items()}


def find_split_files(folder: Path, suffixes: Sequence[str], folders: bool = False) -> dict[str, Path]:
    """Return the files of a folder that are named after splits, such as ``train.csv`` and ``dev.csv``.

    Args:
        folder: the folder.
        suffixes: of files that can be read; others are left out, which is printed.
        folders: whether folders are taken too.

    Raises:
        ValueError: there are two files of one split.
    """
    found: dict[str, Path] = {}
    left_out = []
    for file in sorted(folder.iterdir()):
        split = SPLITS.get(file.stem)
        if split is None:
            continue
        if file.suffix.lower() not in suffixes and not (folders and file.is_dir()):
            left_out.append(file.name)
            continue
        if split in found:
            raise ValueError(f"{folder} has two files for {split}: {found[split].name} and {file.name}; keep one")
        found[split] = file
    if "train" in found and left_out:
        say(f"{folder}: {', '.join(left_out)} left out, as {', '.join(suffixes)} are read")
    return found


def read_texts(
    path: Path,
    text: str,
    label: str | None,
    text_pair: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> Texts:
    """Read texts and labels of a file or of folders by class; without ``label`` the labels stay empty.

    With ``text_pair`` a text is a pair ``(first, second)``, of two columns.
    """
    suffix = path.suffix.lower()
    if path.is_dir() and text_pair is None:
        return _read_folders(path, encoding)
    if not path.exists():
        raise ValueError(f"no file or folder {path}")
    if suffix == ".txt" and label is None and text_pair is None:
        return read_lines(path, encoding), []
    if suffix not in FORMATS or path.is_dir():
        what = "texts" if text_pair is None else "pairs of texts"
        raise ValueError(f"{what} are read from {', '.join(FORMATS)}{_other_formats(label, text_pair)}; got {path}")
    text_names = [text]
    if text_pair is not None:
        text_names.append(text_pair)
    columns, numbers = _read_columns(path, text_names, label, encoding, separator)
    labels: list[str] = []
    if label:
        labels = columns[label]
    if "" in labels:
        raise ValueError(f"{path}, row {numbers[labels.index('')]} has no {label!r}")
    if text_pair is None:
        return columns[text], labels
    return list(zip(columns[text], columns[text_pair], strict=True)), labels


def _other_formats(label: str | None, text_pair: str | None) -> str:
    if text_pair is not None:
        return ""
    if label is None:
        return ", or .txt with a text a line"
    return ", or folders by class"


# Folders --------------------------------------------------------------------------------------------------------------


def list_text_files(root: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the ``.txt`` files of folders, and print how many other files there are.

    Args:
        root: what the folders belong to, for the message.
        folders: they are not searched any deeper.
    """
    files = []
    others = []
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.name.startswith(".") or file.is_dir():
                continue
            if file.suffix.lower() == ".txt":
                files.append(file)
            else:
                others.append(file)
    if files and others:
        counts = f"{len(others):,} of {len(files) + len(others):,} files are not .txt and left out"
        say(f"{root}: {counts}, the first is {others[0].relative_to(root)}")
    return files


def _read_folders(path: Path, encoding: str | None) -> Texts:
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    files = list_text_files(path, folders)
    if not files:
        raise ValueError(f"{path} holds no folders of .txt files, one folder for each class")
    labels = [file.parent.name for file in files]
    without = [folder.name for folder in folders if folder.name not in set(labels)]
    if without:
        say(f"{path}: no .txt files, and so no class, in {', '.join(without)}")
    return [read_text(file, encoding) for file in files], labels


# Tables ---------------------------------------------------------------------------------------------------------------


Columns = tuple[dict[str, list[str]], list[int]]
"""The columns of a table by their names, as text without surrounding space, and the number of each row in the file."""


def _read_columns(
    path: Path,
    texts: list[str],
    label: str | None,
    encoding: str | None,
    separator: str | None,
) -> Columns:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_json_lines(path, texts, label, encoding)
    if suffix == ".csv":
        table = read_table(path, separator, encoding)
        columns, rows = table.columns, table.rows
    else:
        columns, rows = _read_tsv(path, encoding)
    for name in (*texts, label):
        if name and name not in columns:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns)}")
    return columns, rows


def _read_tsv(path: Path, encoding: str | None) -> Columns:
    """Read a table with tabs between the columns; quotes are part of the text, as in the files of GLUE."""
    rows = {number: line.split("\t") for number, line in _filled_lines(path, encoding).items()}
    if not rows:
        raise ValueError(f"{path} has no rows")
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows below its header")
    first = next(iter(rows))
    header = [name.strip() for name in rows.pop(first)]
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path} has two columns {name!r}: rename one")
    for number, row in rows.items():
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} values for {len(header)} columns")
    columns = {name: [row[column].strip() for row in rows.values()] for column, name in enumerate(header)}
    return columns, list(rows)


def _read_json_lines(path: Path, texts: list[str], label: str | None, encoding: str | None) -> Columns:
    columns: dict[str, list[str]] = {name: [] for name in texts}
    if label and label not in texts:
        columns[label] = []
    lines = _filled_lines(path, encoding)
    if not lines:
        raise ValueError(f"{path} has no rows")
    for number, line in lines.items():
        where = partial("{}, line {}".format, path, number)
        row = parse_object(line, where)
        for name in texts:
            columns[name].append(text_of(row, name, where, null=True).strip())
        if label and label not in texts:
            columns[label].append(label_of(row, label, where).strip())
    return columns, list(lines)


def _filled_lines(path: Path, encoding: str | None) -> dict[int, str]:
    """Return the lines that are not empty by their numbers from 1, and print how many are, but for the end."""
    lines = read_text(path, encoding).rstrip("\n").split("\n")
    filled = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if filled and len(filled) < len(lines):
        say(f"{path}: {len(lines) - len(filled):,} of {len(lines):,} lines are empty and left out")
    return filled
