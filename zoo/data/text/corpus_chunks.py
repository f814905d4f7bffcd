"""The content of a corpus in pieces that are tokenized at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from zoo.data.text.corpus_files import MAX_LINE_BYTES, Text, is_first_byte
from zoo.data.text.encoding import decode_bytes
from zoo.data.text.json_lines import parse_object, text_of
from zoo.data.text.separators import NO_SEPARATORS, TextSplitter

CHUNK_BYTES = 1 << 20  # bytes of text that are tokenized at once
Part = tuple[str, bool, int]
"""A part of a text, whether the text ends with it, and the number of bytes read for it."""


@dataclass
class Chunk:
    """Texts, or parts of texts, that are tokenized at once.

    Args:
        texts: the texts.
        ends: for each, whether a text ends with it.
        read: number of bytes read for them.
    """

    texts: list[str] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    read: int = 0


def chunks(
    texts: Iterable[Text],
    lines: bool,
    between: str,
    splitter: TextSplitter | None = None,
) -> Iterator[Chunk]:
    """Read texts in pieces of about a mebibyte; small ones are put together.

    Args:
        texts: in order.
        lines: whether large texts may be cut at ends of lines.
        between: put between two texts, unless the first ends in it.
        splitter: cuts the texts of a file at separators, and counts them; null for none.
    """
    if splitter is None:
        splitter = TextSplitter(NO_SEPARATORS)
    chunk = Chunk()
    size = 0
    last = between  # the last character so far
    for text in texts:
        begins = True
        for part, ends, read in read_text_parts(text, lines):
            chunk.read += read
            for piece in splitter.split(part, ends):
                content = piece.text
                if begins and content and last != between[-1:]:
                    content = between + content
                last = content[-1:] or last
                begins = piece.ends
                chunk.texts.append(content)
                chunk.ends.append(piece.ends)
                size += len(content)
            if size >= CHUNK_BYTES:
                yield chunk
                chunk = Chunk()
                size = 0
    if chunk.texts:
        yield chunk


def read_text_parts(text: Text, lines: bool) -> Iterator[Part]:
    """Return the texts in JSON lines, or the parts of a plain text."""
    if text.field is not None:
        return read_json_lines(text, text.field)
    return read_parts(text, lines)


def read_parts(text: Text, lines: bool) -> Iterator[Part]:
    """Yield the parts of a plain text.

    Args:
        text: the text.
        lines: whether it may be cut at ends of lines; else it is one part.
    """
    if not len(text):
        yield "", True, 0
    with text.open() as file:
        file.seek(text.start)
        at = text.start
        rest = b""  # read already, but not yet yielded
        while at < text.stop:
            size = text.stop - at - len(rest)
            if lines:
                size = min(CHUNK_BYTES, size)
            fresh = file.read(size)
            data = rest + fresh
            last = at + len(data) >= text.stop
            if not fresh and not last:
                raise ValueError(f"{text.name} became shorter while it was read")
            cut = len(data)
            if not last:
                cut = _find_cut(data) if lines else 0
            rest = data[cut:]
            if cut or last:
                part = decode_bytes(data[:cut], text.name, at, text.encoding, partial(text.count_lines, at))
                yield part, last, cut
                at += cut
            if last:
                return


def _find_cut(data: bytes) -> int:
    """Return where the text read so far may be cut, or 0 to read more of it."""
    cut = safe_cut(data)
    if cut or len(data) <= MAX_LINE_BYTES:
        return cut
    return next(i for i in range(len(data) - 1, 0, -1) if is_first_byte(data[i]))


def safe_cut(data: bytes) -> int:
    """Return where a text may be cut, or 0: behind the last end of a line between two that are not empty.

    There tokens end for sure. Where lines end in ``\\r\\n`` some tokenizers take both characters as one token only at
    the end of a text, which is still the same text.
    """
    stop = len(data) - 1
    at = data.rfind(b"\n", 1, stop)
    while at > 0:
        if not data[at - 1 : at].isspace() and not data[at + 1 : at + 2].isspace():
            return at + 1
        stop = at
        at = data.rfind(b"\n", 1, stop)
    return data.rfind(b"\n", 0, len(data) - 1) + 1


def read_json_lines(text: Text, field_name: str) -> Iterator[Part]:
    """Yield the texts in JSON lines, empty ones too."""
    with text.open() as file:
        file.seek(text.start)
        at = text.start
        while at < text.stop:
            line = file.readline()
            if not line:
                raise ValueError(f"{text.name} became shorter while it was read")
            if line.strip():
                yield _text_in_line(text, field_name, line, at), True, len(line)
            at += len(line)


def _text_in_line(text: Text, field_name: str, line: bytes, at: int) -> str:
    def where() -> str:
        return f"{text.name}, line {text.count_lines(at) + 1}"

    decoded = decode_bytes(line, text.name, at, text.encoding, partial(text.count_lines, at))
    return text_of(parse_object(decoded, where), field_name, where)
