"""Text files as strings: byte order marks, other encodings than UTF-8, and bytes that are not text."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

DEFAULT_ENCODING = "utf-8"
# UTF-32's mark comes before that of UTF-16, which is the first half of it.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE_BYTES = 1000  # bytes by which UTF-16 without a byte order mark is recognized


def check_encoding(encoding: str) -> None:
    """Raise ValueError unless Python has a text encoding of this name."""
    try:
        b"a".decode(encoding)
    except (LookupError, ValueError) as error:
        # UTF-16 is an encoding, although a single byte is no text in it.
        if not isinstance(error, UnicodeDecodeError):
            known = "utf-8, latin-1, cp1252 or utf-16"
            raise ValueError(f"encoding must be a text encoding such as {known}, got {encoding!r}") from None


def find_encoding(data: bytes, encoding: str | None = None) -> tuple[str, int]:
    """Return the encoding of a file and the length of its byte order mark, 0 without one.

    Args:
        data: the first bytes of the file.
        encoding: of a file without a byte order mark; null is UTF-8.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return name, len(mark)
    return encoding or DEFAULT_ENCODING, 0


def is_utf8(encoding: str) -> bool:
    """Return whether this is one of the names of UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def is_text(path: Path) -> bool:
    """Return whether a file seems to be text, by its first bytes; an empty one does not."""
    with open(path, "rb") as file:
        sample = file.read(SAMPLE_BYTES)
    codec, skip = find_encoding(sample)
    decoder = codecs.getincrementaldecoder(codec)()  # which does not mind a character that is cut off
    try:
        text = decoder.decode(sample[skip:])
    except UnicodeDecodeError:
        return False
    return bool(text) and "\0" not in text


def decode_bytes(
    data: bytes,
    name: str,
    start: int = 0,
    encoding: str | None = None,
    lines_before: Callable[[], int] = lambda: 0,
) -> str:
    """Decode a file, or a part of it, without its byte order mark.

    Args:
        data: the bytes.
        name: name of the file, for messages.
        start: position of ``data`` in the file.
        encoding: of a file without a byte order mark; null is UTF-8, in a dataset that has no option for it.
        lines_before: gives the number of lines in front of ``data``, which only an error needs.

    Raises:
        ValueError: the bytes are not text in this encoding; the message has line and byte.
    """
    codec, skip = encoding or DEFAULT_ENCODING, 0
    if start == 0:
        codec, skip = find_encoding(data, encoding)
    try:
        text = data[skip:].decode(codec)
    except UnicodeDecodeError as error:
        at = skip + error.start
        line = lines_before() + data[:at].count(b"\n") + 1
        where = f"line {line:,}, byte {start + at:,}: 0x{data[at]:02x}"
        raise ValueError(f"{name} is not text in {codec.upper()} ({where}){_hint(data, encoding)}") from None
    if "\0" in text:
        at = start + data.find(b"\0")
        raise ValueError(f"{name} is binary, not text: byte {at:,} is zero{_hint(data, encoding)}")
    return text


def _hint(data: bytes, encoding: str | None) -> str:
    """Return how to read a file that is not text in UTF-8, where there is an option for it."""
    sample = data[:SAMPLE_BYTES]
    half = max(1, len(sample) // 2)
    # Latin letters have a zero byte in UTF-16: the second one if the low byte comes first.
    for codec, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if zeros.count(0) > 0.4 * half:
            guess = f"; it seems to be UTF-16 without a byte order mark: --data.encoding {codec}"
            return "; is it UTF-16 without a byte order mark?" if encoding is None else guess
    if encoding is None:
        return "; save it as UTF-8"
    return "; --data.encoding names its encoding, such as latin-1 or cp1252"


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the text of a file; lines end in ``\\n``, whatever they end in within the file.

    Args:
        path: the file.
        encoding: as in ``decode_bytes``.
    """
    if path.is_dir():
        raise ValueError(f"no file {path} (it is a folder)")
    if not path.is_file():
        raise ValueError(f"no file {path}")
    text = decode_bytes(path.read_bytes(), str(path), encoding=encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Return the lines of a text file without their ends."""
    return read_text(path, encoding).removesuffix("\n").split("\n")
