"""The digest of an ``.onnx`` file, which has no check of its own: in its metadata, of all other bytes."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

from zoo.checkpoints.integrity import DIGEST_KEY, HEX_SIZE, SWITCH, damaged, digest

PLACEHOLDER = {DIGEST_KEY: "0" * HEX_SIZE}
# An entry of the metadata in protobuf: field 1 is the key, field 2 the value, each behind its length.
ENTRY = b"\x0a" + bytes([len(DIGEST_KEY)]) + DIGEST_KEY.encode() + b"\x12" + bytes([HEX_SIZE])


def seal_onnx(path: Path) -> None:
    """Put the digest where a file has its placeholder."""
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            position = content.rfind(ENTRY) + len(ENTRY)
            value = _digest(content, position)
        file.seek(position)
        file.write(value.encode())


def verify_onnx(path: Path) -> bool:
    """Return whether a file has a digest of zoo.

    Raises:
        UserError: it is of other content.
    """
    if os.environ.get(SWITCH) == "0" or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.rfind(ENTRY)
        if position < 0:
            return False
        position += len(ENTRY)
        written = content[position : position + HEX_SIZE]
        if _digest(content, position).encode() != written:
            raise damaged(path, "its digest is of other content")
    return True


def _digest(content: mmap.mmap, position: int) -> str:
    """Return the digest of all bytes but those of the digest itself."""
    before = digest(content, 0, position)
    after = digest(content, position + HEX_SIZE, len(content))
    return hashlib.sha256((before + after).encode()).hexdigest()[:HEX_SIZE]
