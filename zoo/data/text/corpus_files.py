"""The texts of a corpus: which files there are, and where validation begins."""

from __future__ import annotations

import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from zoo.data.text.encoding import DEFAULT_ENCODING, decode_bytes, find_encoding, is_text, is_utf8
from zoo.data.text.separators import NO_SEPARATORS, Separators
from zoo.distributed import say

SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl", ".ndjson")
JSON_LINES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 64 << 20  # bytes without an end of line after which a text is cut anywhere
SEARCH_BYTES = 1 << 20  # bytes in which validation looks for a separator to begin behind


@dataclass(frozen=True)
class Text:
    """A file or a text in memory, or a part of one that begins and ends at ends of lines.

    Args:
        name: name in messages.
        open: opens its bytes, in UTF-8.
        start: byte at which the part begins.
        stop: byte behind its end.
        field: name of the field that holds the texts, where each line is a JSON object; null for plain text.
        key: identifies its content.
        encoding: null where no option names another encoding for bytes that are not UTF-8.
    """

    name: str
    open: Callable[[], BinaryIO]
    start: int
    stop: int
    field: str | None
    key: str
    encoding: str | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def count_lines(self, stop: int) -> int:
        """Return the number of ends of lines in front of a byte."""
        lines = 0
        with self.open() as file:
            while stop > 0:
                data = file.read(min(stop, SEARCH_BYTES))
                if not data:
                    break
                lines += data.count(b"\n")
                stop -= len(data)
        return lines


def from_file(path: Path, name: str, field: str, encoding: str | None = None) -> Text:
    """Return a file as a text.

    Args:
        path: the file.
        name: name by which a cache knows it, wherever the folder is.
        field: name of the field that holds the texts, if they are JSON lines.
        encoding: of a file without a byte order mark; null is UTF-8, where there is no option for it.
    """
    stat = os.stat(path)
    key = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
    json_field = None
    if path.suffix.lower() in JSON_LINES:
        json_field = field
    with open(path, "rb") as file:
        codec, _ = find_encoding(file.read(4), encoding)
    if is_utf8(codec):
        return Text(str(path), partial(open, path, "rb"), 0, stat.st_size, json_field, key, encoding)
    # Whole in memory, as ends of lines and characters could not be found in other encodings byte by byte.
    size = len(_as_utf8(path, encoding))
    opener = partial(_open_as_utf8, path, encoding)
    return Text(str(path), opener, 0, size, json_field, f"{key}\0{codec}", DEFAULT_ENCODING)


def _as_utf8(path: Path, encoding: str | None) -> bytes:
    return decode_bytes(path.read_bytes(), str(path), encoding=encoding).encode()


def _open_as_utf8(path: Path, encoding: str | None) -> BinaryIO:
    return io.BytesIO(_as_utf8(path, encoding))


def from_memory(name: str, text: str) -> Text:
    """Return a string as a text."""
    content = text.encode()
    key = hashlib.sha256(content).hexdigest()
    return Text(name, partial(io.BytesIO, content), 0, len(content), None, key)


# Files ----------------------------------------------------------------------------------------------------------------


def find_texts(paths: str | list[str], field: str, encoding: str | None = None) -> list[Text]:
    """Find the files that paths, folders and patterns name, in order of their names.

    Args:
        paths: files, folders (whose text files are taken, at any depth) or patterns such as ``src/**/*.py``.
        field: name of the field that holds the texts of JSON lines.
        encoding: of files without a byte order mark; null is UTF-8, where there is no option for it.
    """
    if isinstance(paths, str):
        paths = [paths]
    found: dict[str, tuple[Path, str]] = {}
    for path in paths:
        root, files = _find_files(path)
        for file in files:
            name = file.relative_to(root).as_posix()
            found.setdefault(os.path.realpath(file), (file, name))
    if not found:
        raise ValueError("no file is named: path takes files, folders or patterns such as 'texts/**/*.txt'")
    return [from_file(file, name, field, encoding) for file, name in found.values()]


def _find_files(given: str) -> tuple[Path, list[Path]]:
    """Return the files of one path, and the folder that their names are relative to."""
    path = Path(given)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, _files_of_folder(path)
    files = [Path(match) for match in sorted(glob.glob(given, recursive=True)) if Path(match).is_file()]
    if not files and glob.has_magic(given):
        raise ValueError(f"no file matches {given}")
    if not files:
        raise ValueError(f"no file or folder {given}")
    root = takewhile(lambda part: not glob.has_magic(part), path.parts)
    return Path(*root), files


def _files_of_folder(folder: Path) -> list[Path]:
    files = []
    others = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES:
            files.append(path)
        elif is_text(path):
            others.append(path)
    suffixes = ", ".join(SUFFIXES)
    if not files:
        pattern = f"{folder}/**/*.py"
        raise ValueError(f"{folder} holds no {suffixes}; a pattern such as {pattern} names others")
    if others:
        counts = f"{len(others):,} of {len(files) + len(others):,} text files are left out, as they are no {suffixes}"
        say(f"{folder}: {counts}; the first is {others[0].relative_to(folder)}")
    return files


def exclude(texts: list[Text], others: Iterable[Text]) -> list[Text]:
    """Return the texts whose files are not among the others."""
    taken = {os.path.realpath(text.name) for text in others}
    return [text for text in texts if os.path.realpath(text.name) not in taken]


# Validation -----------------------------------------------------------------------------------------------------------


def split_tail(
    texts: list[Text],
    share: float,
    separators: Separators = NO_SEPARATORS,
) -> tuple[list[Text], list[Text]]:
    """Split off the last texts, or the end of the last one.

    Whole texts are taken where these make about that share of the bytes. Else one is cut: behind a separator if there
    is one near, or at the end of a line.

    Args:
        texts: in order.
        share: fraction of the bytes to split off.
        separators: what stands between texts within a file.
    """
    target = share * sum(map(len, texts))
    taken = 0  # bytes of the texts from i on
    i = len(texts)
    while i > 1 and taken + len(texts[i - 1]) <= target:
        i -= 1
        taken += len(texts[i])
    last = texts[i - 1]  # with it there would be too much
    if taken >= target / 2 and i < len(texts):
        return texts[:i], texts[i:]
    if i > 1 and taken + len(last) <= 1.5 * target:
        return texts[: i - 1], texts[i - 1 :]
    cut = _line_after(last, last.stop - round(target - taken))
    cut = _separator_after(last, cut, separators)
    head = replace(last, stop=cut)
    tail = replace(last, start=cut)
    return [*texts[: i - 1], head], [tail, *texts[i:]]


def _line_after(text: Text, at: int) -> int:
    """Return the first beginning of a line from a byte on.

    Where there is none, or it is the last one of JSON lines, the nearest before it; else the beginning of a character.
    """
    with text.open() as file:
        file.seek(at)
        line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n") and at + len(line) < text.stop:
            return at + len(line)
        file.seek(text.start)
        head = file.read(at - text.start)
    end = head.rfind(b"\n")
    near = len(head) - end < (text.stop - at) // 2
    if end >= 0 and (near or text.field is not None):
        return text.start + end + 1
    if text.field is not None:
        raise ValueError(f"{text.name} has one line alone: nothing is left for validation")
    starts = (i for i, byte in enumerate(line) if is_first_byte(byte))
    return at + next(starts, 0)


def _separator_after(text: Text, at: int, separators: Separators) -> int:
    """Return the first byte behind a separator from a byte on, or that byte where no separator is near."""
    if not separators.names or text.field is not None:
        return at
    with text.open() as file:
        file.seek(at)
        data = file.read(min(SEARCH_BYTES, (text.stop - at) // 2))
    match = separators.bytes_pattern.search(data)
    if match is None or match.end() == len(data):
        return at
    return at + match.end()


def is_first_byte(byte: int) -> bool:
    """Return whether a byte of UTF-8 is the first one of a character."""
    return byte & 0xC0 != 0x80
