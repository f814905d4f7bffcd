"""Texts of a corpus: which files there are, where validation begins, and their content in pieces."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl", ".ndjson")
JSON_LINES = (".jsonl", ".ndjson")
CHUNK_BYTES = 1 << 20  # bytes of text that are tokenised at once
MAX_LINE_BYTES = 64 << 20  # bytes without an end of line after which a text is cut anywhere


@dataclass(frozen=True)
class Text:
    """A file or a text in memory, or a part of one that begins and ends at ends of lines.

    Args:
        name: what it is called in messages.
        open: gives its bytes.
        start: byte at which the part begins.
        stop: byte behind its end.
        field: of the objects in its lines that hold the texts; null where the whole is one text.
        key: tells its content.
    """

    name: str
    open: Callable[[], BinaryIO]
    start: int
    stop: int
    field: str | None
    key: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Chunk:
    """Texts, or parts of texts, that are tokenised at once; whether each ends its text; bytes read for them."""

    texts: list[str]
    ends: list[bool]
    read: int


def from_file(path: Path, name: str, field: str) -> Text:
    stat = os.stat(path)
    key = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
    lines = path.suffix.lower() in JSON_LINES
    return Text(str(path), partial(open, path, "rb"), 0, stat.st_size, field if lines else None, key)


def from_memory(name: str, text: str) -> Text:
    content = text.encode()
    key = hashlib.sha256(content).hexdigest()
    return Text(name, partial(io.BytesIO, content), 0, len(content), None, key)


def find_texts(paths: str | list[str], field: str) -> list[Text]:
    """Find the files that paths, folders and patterns name, in order of their names.

    Args:
        paths: files, folders (whose text files are taken, at any depth) or patterns such as ``src/**/*.py``.
        field: of JSON lines.
    """
    found: dict[str, tuple[Path, str]] = {}
    for given in [paths] if isinstance(paths, str) else paths:
        path = Path(given)
        if path.is_file():
            files, root = [path], path.parent
        elif path.is_dir():
            files, root = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()], path
            files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
            if not files:
                pattern = f"{given.rstrip('/')}/**/*.py"
                raise ValueError(f"{given} holds no {', '.join(SUFFIXES)}; a pattern such as {pattern} names others")
        else:
            files = [Path(p) for p in sorted(glob.glob(given, recursive=True)) if Path(p).is_file()]
            root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            if not files:
                raise ValueError(f"no file matches {given}" if glob.has_magic(given) else f"no file or folder {given}")
        for file in files:
            found.setdefault(os.path.realpath(file), (file, file.relative_to(root).as_posix()))
    if not found:
        raise ValueError("no file is named: path takes files, folders or patterns such as 'texts/**/*.txt'")
    return [from_file(file, name, field) for file, name in found.values()]


def exclude(texts: list[Text], others: Iterable[Text]) -> list[Text]:
    """Those texts whose files are not among the others."""
    taken = {os.path.realpath(text.name) for text in others}
    return [text for text in texts if os.path.realpath(text.name) not in taken]


def split_tail(texts: list[Text], share: float) -> tuple[list[Text], list[Text]]:
    """Split off the last bytes: as whole texts where these make about that share, else at the end of a line.

    Args:
        texts: in order.
        share: of the bytes.
    """
    wanted_bytes, behind, i = share * sum(map(len, texts)), 0, len(texts)
    while i > 1 and behind + len(texts[i - 1]) <= wanted_bytes:
        i -= 1
        behind += len(texts[i])
    last = texts[i - 1]  # with it there would be too much
    if behind >= wanted_bytes / 2 and i < len(texts):
        return texts[:i], texts[i:]
    if i > 1 and behind + len(last) <= 1.5 * wanted_bytes:
        return texts[: i - 1], texts[i - 1 :]
    cut = _line_after(last, last.stop - round(wanted_bytes - behind))
    return [*texts[: i - 1], replace(last, stop=cut)], [replace(last, start=cut), *texts[i:]]


def _line_after(text: Text, at: int) -> int:
    """The first beginning of a line from a byte on; of a character, if there is none or it is JSON's last line."""
    with text.open() as file:
        file.seek(at)
        line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n") and at + len(line) < text.stop:
            return at + len(line)
        file.seek(text.start)
        head = file.read(at - text.start)
    if (end := head.rfind(b"\n")) >= 0 and (text.field is not None or len(head) - end < (text.stop - at) // 2):
        return text.start + end + 1
    if text.field is not None:
        raise ValueError(f"{text.name} has one line alone: nothing is left for validation")
    return at + next((i for i, byte in enumerate(line) if byte & 0xC0 != 0x80), 0)


# Content --------------------------------------------------------------------------------------------------------------


def chunks(texts: Iterable[Text], lines: bool, separator: str) -> Iterator[Chunk]:
    """Read texts in pieces of about a mebibyte; small ones are put together.

    Args:
        texts: in order.
        lines: whether large texts may be cut at ends of lines.
        separator: put between two texts, unless the first ends in it.
    """
    chunk, size, last = Chunk([], [], 0), 0, separator
    for text in texts:
        begins = True
        for part, ends, read in read_json_lines(text) if text.field is not None else read_parts(text, lines):
            if begins and part and last != separator[-1:]:
                part = separator + part
            last, begins = part[-1:] or last, ends
            chunk.texts.append(part)
            chunk.ends.append(ends)
            chunk.read += read
            size += len(part)
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = Chunk([], [], 0), 0
    if chunk.texts:
        yield chunk


def read_parts(text: Text, lines: bool) -> Iterator[tuple[str, bool, int]]:
    """A text's parts, whether each is the last, and the bytes of each."""
    with text.open() as file:
        file.seek(text.start)
        at, rest = text.start, b""
        while at < text.stop:
            wanted_bytes = text.stop - at - len(rest)
            fresh = file.read(min(CHUNK_BYTES, wanted_bytes) if lines else wanted_bytes)
            data = rest + fresh
            last = at + len(data) >= text.stop
            if not fresh and not last:
                raise ValueError(f"{text.name} became shorter while it was read")
            cut = len(data) if last else safe_cut(data) if lines else 0
            if not cut and len(data) > MAX_LINE_BYTES and lines:
                cut = next(i for i in range(len(data) - 1, 0, -1) if data[i] & 0xC0 != 0x80)
            rest = data[cut:]
            if cut or last:
                yield decode_bytes(data[:cut], text.name, at), last, cut
                at += cut
            if last:
                return


def safe_cut(data: bytes) -> int:
    """Where a text may be cut, or 0: behind the last end of a line between two that are not empty.

    There tokens end for sure. Where lines end in ``\\r\\n`` some tokenizers take both signs as one token at the end of
    a text alone, which is still the same text.
    """
    stop = len(data) - 1
    while (at := data.rfind(b"\n", 1, stop)) > 0:
        if not data[at - 1 : at].isspace() and not data[at + 1 : at + 2].isspace():
            return at + 1
        stop = at
    return data.rfind(b"\n", 0, len(data) - 1) + 1


def read_json_lines(text: Text) -> Iterator[tuple[str, bool, int]]:
    """The texts in the lines of JSON."""
    with text.open() as file:
        file.seek(text.start)
        at = text.start
        while at < text.stop:
            line = file.readline()
            if not line:
                raise ValueError(f"{text.name} became shorter while it was read")
            if line.strip() and (found := _field(text, line, at)):
                yield found, True, len(line)
            at += len(line)


def _field(text: Text, line: bytes, at: int) -> str:
    def where() -> str:
        with text.open() as file:
            return f"{text.name}, line {file.read(at).count(10) + 1}"

    try:
        row: Any = json.loads(decode_bytes(line, text.name, at))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where()} is not JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where()}: an object {{...}} needed, got {line[:40].decode(errors='replace').strip()}")
    if text.field not in row:
        raise ValueError(f"{where()} has no field {text.field!r}; it has {', '.join(row) or 'none'}")
    found = row[text.field]
    if not isinstance(found, str):
        raise ValueError(f"{where()}: {text.field!r} is {json.dumps(found)[:40]}, not a text")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where()}: {text.field!r} holds half of a surrogate pair, which is no character") from None
    return found


def decode_bytes(data: bytes, name: str, at: int) -> str:
    """Bytes as text, or what is wrong with them.

    Args:
        data: the bytes.
        name: of the file.
        at: where in the file they are.
    """
    if (zero := data.find(b"\0")) >= 0:
        raise ValueError(f"{name} is binary, not text: byte {at + zero:,} is zero")
    if at == 0:
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = f"byte {at + error.start:,}, 0x{data[error.start]:02x}"
        raise ValueError(f"{name} is not text in UTF-8 ({where})") from None
