"""New texts for prediction: lines of a file, files of a folder, columns of a table, or texts in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.data.csv_tables import CSVTable
from zoo.data.new_rows import columns_of, of_columns, of_dataframe, read_file
from zoo.data.new_samples import is_dataframe
from zoo.data.sources import TEXTS, find_files_of, text_suffix, with_stdin
from zoo.data.text.encoding import read_lines, read_text
from zoo.distributed import say
from zoo.errors import UserError

READS = "texts: .txt (a text a line), folders of .txt (a text a file), .jsonl, .csv, .tsv or .parquet"


@dataclass
class NewTexts:
    """New texts, or pairs of texts.

    Args:
        texts: a text, or a tuple of two, of each sample.
        columns: what identifies each of them.
        labels: their true labels; null where they are not known.
        index: of a DataFrame.
    """

    texts: list[Any] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    labels: list[str] | None = None
    index: Any = None


def collect_texts(
    source: Any,
    names: Sequence[str] = ("text",),
    label: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> NewTexts:
    """Return the texts that a source names; empty ones are left out of files, and a line says so.

    Args:
        source: paths on the command line; in memory a text, a list of texts or pairs, or a DataFrame. A path in memory
            is a ``pathlib.Path``.
        names: names of the column of the texts, or of both columns of pairs.
        label: name of the column of the labels; where it is there, the truth is known.
        encoding: of text files.
        separator: of CSV files.

    Raises:
        UserError: there are no texts.
    """
    if is_dataframe(source):
        found = _of_table(of_dataframe(source), names, label, keep_empty=True)
        found.columns.pop("row")
        found.index = source.index
        return found
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, dict) for item in source):
        return _of_table(of_columns(columns_of(source), "the table"), names, label, keep_empty=True)
    if isinstance(source, str):
        source = [source]
    if isinstance(source, Path) or _all(source, Path):
        with with_stdin(source, text_suffix) as sources:
            return _of_files(sources, names, label, encoding, separator)
    wanted = "a text" if len(names) == 1 else "a pair of texts"
    if not isinstance(source, (list, tuple)) or not source:
        raise UserError(f"texts are needed, in a list or a pathlib.Path; got {type(source).__name__}")
    texts = []
    for item in source:
        text = item if len(names) == 1 else tuple(item)
        parts = (text,) if len(names) == 1 else text
        if len(parts) != len(names) or not all(isinstance(part, str) for part in parts):
            raise UserError(f"{wanted} is needed for each sample, got {item!r:.80}")
        texts.append(text)
    return NewTexts(texts, _text_columns(texts, names))


def _all(source: Any, kind: type) -> bool:
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(item, kind) for item in source)


def _of_files(
    sources: Sequence[Any],
    names: Sequence[str],
    label: str | None,
    encoding: str | None,
    separator: str | None,
) -> NewTexts:
    parts = []
    for source in sources:
        if Path(source).is_dir() and len(names) == 1:
            texts = [file for file in find_files_of(source, TEXTS, READS) if file.suffix.lower() == ".txt"]
            if texts:
                say(f"{source}: {len(texts):,} files, each a text")
                parts.append((str(source), _of_folder(texts, encoding)))
                continue
        for file in find_files_of(source, TEXTS, READS):
            if file.suffix.lower() == ".txt":
                if len(names) > 1:
                    raise UserError(f"pairs of texts are read from .csv, .tsv, .jsonl or .parquet; got {file}")
                parts.append((str(file), _of_lines(file, encoding)))
            else:
                parts.append((str(file), _of_table(read_file(file, separator, encoding), names, label)))
    return _concatenate(parts)


def _of_lines(file: Path, encoding: str | None) -> NewTexts:
    lines = read_lines(file, encoding)
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise UserError(f"{file} has no text")
    if len(kept) < len(lines):
        say(f"{file}: {len(lines) - len(kept):,} of {len(lines):,} lines are empty and left out")
    texts = [line for _, line in kept]
    return NewTexts(texts, {"row": [number for number, _ in kept], "text": list(texts)})


def _of_folder(files: Sequence[Path], encoding: str | None) -> NewTexts:
    texts = [(str(file), read_text(file, encoding).strip()) for file in files]
    kept = [(file, text) for file, text in texts if text]
    if len(kept) < len(texts):
        say(f"{len(texts) - len(kept):,} of {len(texts):,} files are empty and left out")
    if not kept:
        raise UserError("all files are empty")
    found = [text for _, text in kept]
    return NewTexts(found, {"file": [file for file, _ in kept], "text": list(found)})


def _of_table(table: CSVTable, names: Sequence[str], label: str | None, keep_empty: bool = False) -> NewTexts:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise UserError(f"{table.path} has no column {missing[0]!r}; it has {', '.join(list(table.columns)[:12])}")
    unused = [name for name in table.columns if name not in (*names, label)]
    if unused:
        say(f"{table.path}: columns that the model does not use: {', '.join(unused[:12])}")
    parts = [[str(cell) for cell in table.columns[name]] for name in names]
    texts: list[Any] = list(parts[0]) if len(names) == 1 else list(zip(*parts, strict=True))
    kept = [i for i in range(len(texts)) if keep_empty or all(part[i] for part in parts)]
    if len(kept) < len(texts):
        say(f"{table.path}: {len(texts) - len(kept):,} of {len(texts):,} rows have no text and are left out")
    if not kept:
        raise UserError(f"{table.path} has no text")
    found = [texts[i] for i in kept]
    labels = None
    if label is not None and label in table.columns:
        labels = [str(table.columns[label][i]) for i in kept]
        labels = labels if all(labels) else None
    return NewTexts(found, {"row": [table.rows[i] for i in kept], **_text_columns(found, names)}, labels)


def _text_columns(texts: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    if len(names) == 1:
        return {names[0]: list(texts)}
    return {name: [text[i] for text in texts] for i, name in enumerate(names)}


def _concatenate(parts: Sequence[tuple[str, NewTexts]]) -> NewTexts:
    if len(parts) == 1:
        return parts[0][1]
    found = NewTexts(columns={"file": []}, labels=[])
    columns: dict[str, None] = {"file": None}
    for _, part in parts:
        columns |= dict.fromkeys(part.columns)
    found.columns = {name: [] for name in columns}
    for source, part in parts:
        n = len(part.texts)
        found.texts += part.texts
        for name in columns:
            default = [source] * n if name == "file" else [None] * n
            found.columns[name] += part.columns.get(name, default)
        if part.labels is None:
            found.labels = None
        elif found.labels is not None:
            found.labels += part.labels
    return found
