"""Whether a file is still what was written: a digest in every file of weights that zoo writes, checked when it is read.

``torch.load`` believes a flipped bit: it does not look at the checksums in its archive. A cryptographic hash of the
whole file would take as long as reading it several times. Here each MiB is folded to 8 KiB by XOR, as fast as memory is
read, and what is left goes through SHA-256: any one bit, burst or block that differs changes the digest. It protects
against bad luck, not against somebody who computes a new digest.

- A checkpoint is a zip archive, whose comment at the end of the file holds the digest of all bytes before it.
- The folder of a sharded checkpoint holds the digests of its files in one more.
- A ``.safetensors`` file holds the digest of all other bytes in its metadata.
- Archives without a digest, of older versions and other programs, hold a CRC-32 of each record, which is checked.

Setting the environment variable ``ZOO_VERIFY_FILES=0`` skips all of this, for storage that checks by itself.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.files import write_json

SWITCH = "ZOO_VERIFY_FILES"
MARK = b"zoo-digest-1:"
HEX_SIZE = 32  # characters: 128 bits
TRAILER_SIZE = len(MARK) + HEX_SIZE
# The record that ends a zip archive, of which the last two bytes are the length of the comment behind it.
END_OF_ARCHIVE = b"PK\x05\x06"
END_SIZE = 22
DIGEST_KEY = "zoo_digest"  # in the metadata of .safetensors
SEALED_KEY = "sealed"  # in zoo's own part of them: there has to be a digest
FOLDER_DIGESTS = "zoo_digests.json"  # in the folder of a sharded checkpoint
WORDS = 1024  # of 8 bytes, that a block is folded to
ROWS = 128  # in a block of 1 MiB
BLOCK = WORDS * ROWS * 8
CHUNK = 16 * BLOCK  # read by one thread at a time
MAX_THREADS = 4

# Files that were found whole: device, inode, size and time of change.
_verified: set[tuple[int, int, int, int]] = set()


def digest(content: Any, start: int, stop: int, before: bytes = b"") -> str:
    """Return the digest of a part of a file.

    Args:
        content: the bytes, such as a file that is mapped into memory.
        start: first byte of the part.
        stop: end of the part.
        before: bytes to put before the part.
    """
    total = hashlib.sha256(before)
    whole = (stop - start) // BLOCK * BLOCK
    starts = range(start, start + whole, CHUNK)

    def fold(position: int) -> bytes:
        size = min(CHUNK, start + whole - position)
        words = np.frombuffer(content, np.uint64, size // 8, position)
        return np.bitwise_xor.reduce(words.reshape(-1, ROWS, WORDS), axis=1).tobytes()

    threads = min(MAX_THREADS, os.cpu_count() or 1, len(starts))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            for folded in pool.map(fold, starts):
                total.update(folded)
    else:
        for position in starts:
            total.update(fold(position))
    total.update(bytes(content[start + whole : stop]))
    total.update(struct.pack("<Q", stop - start))
    return total.hexdigest()[:HEX_SIZE]


# Writing --------------------------------------------------------------------------------------------------------------


def seal(path: Path) -> None:
    """Put a digest into a file that was just written by ``torch.save`` or safetensors; other files stay as they are."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if path.name.endswith(".safetensors") or _is_safetensors(path):
            _seal_safetensors(file, size)
            return
        if size < END_SIZE:
            return
        file.seek(size - END_SIZE)
        end = file.read(END_SIZE)
        if not end.startswith(END_OF_ARCHIVE) or not end.endswith(b"\0\0"):
            return
        file.seek(size - 2)
        file.write(struct.pack("<H", TRAILER_SIZE) + MARK)
        file.flush()
        with _mapped(file) as content:
            value = digest(content, 0, size + len(MARK))
        file.write(value.encode())


def placeholder() -> dict[str, str]:
    """Return the metadata that a ``.safetensors`` file needs before ``seal`` can put the digest there."""
    return {DIGEST_KEY: "0" * HEX_SIZE}


def _seal_safetensors(file: Any, size: int) -> None:
    with _mapped(file) as content:
        found = _digest_of_safetensors(content, size)
        if found is None:
            return
        position, _, value = found
    file.seek(position)
    file.write(value.encode())


# Reading --------------------------------------------------------------------------------------------------------------


def verify(path: str | Path) -> None:
    """Raise an error for a file that is not what was written.

    A file is read for this once in a process, unless it changes.

    Args:
        path: a checkpoint, or a file of weights.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(path)
    if os.environ.get(SWITCH) == "0" or not path.is_file():
        return
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key in _verified or state.st_size == 0:
        return
    with open(path, "rb") as file, _mapped(file) as content:
        size = len(content)
        if _is_header(content, size):
            _verify_safetensors(path, content, size)
        else:
            _verify_archive(path, content, size)
    _verified.add(key)


def forget() -> None:
    """Forget which files were found whole, so that they are read again."""
    _verified.clear()


def _verify_archive(path: Path, content: mmap.mmap, size: int) -> None:
    trailer = content[max(0, size - TRAILER_SIZE) : size]
    if trailer.startswith(MARK):
        if digest(content, 0, size - HEX_SIZE).encode() != trailer[len(MARK) :]:
            raise damaged(path, "its digest is of other content")
        return
    end = content[max(0, size - TRAILER_SIZE - END_SIZE) : max(0, size - TRAILER_SIZE)]
    if end.startswith(END_OF_ARCHIVE) and end.endswith(struct.pack("<H", TRAILER_SIZE)):
        raise damaged(path, "its digest cannot be read")
    try:
        is_archive = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # of an end that says that there are further files
        raise damaged(path, str(error)) from None
    if is_archive:
        _verify_checksums(path, content)


def _verify_checksums(path: Path, content: mmap.mmap) -> None:
    """Compare the records of a zip archive with the CRC-32 that it holds of each."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception as error:  # zipfile raises whatever a damaged archive brings it to
        raise damaged(path, str(error) or "its archive cannot be read") from None

    def is_whole(record: zipfile.ZipInfo) -> bool:
        if record.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing
            return True
        start = _start_of(record, content)
        if start is None or start + record.file_size > len(content):
            return False
        with memoryview(content) as view, view[start : start + record.file_size] as part:
            return zlib.crc32(part) == record.CRC

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for record, whole in zip(records, pool.map(is_whole, records), strict=True):
            if not whole:
                raise damaged(path, f"the checksum of {record.filename} is of other content")


def _start_of(record: zipfile.ZipInfo, content: mmap.mmap) -> int | None:
    """Return where the bytes of a record begin, behind its own header; None if that is not its header."""
    header = content[record.header_offset : record.header_offset + 30]
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        return None
    name_size, extra_size = struct.unpack("<HH", header[26:30])
    start = record.header_offset + 30
    name = content[start : start + name_size]
    if name.decode("utf-8", errors="replace") != record.orig_filename:
        return None
    return start + name_size + extra_size


def _verify_safetensors(path: Path, content: mmap.mmap, size: int) -> None:
    found = _digest_of_safetensors(content, size)
    if found is None:
        if f'\\"{SEALED_KEY}\\"'.encode() in content[8 : _header_end(content)]:
            raise damaged(path, "its digest cannot be read")
        return
    _, written, value = found
    if written != value:
        raise damaged(path, "its digest is of other content")


# Sharded checkpoints: folders, with the digests of their files in one more --------------------------------------------


def seal_folder(folder: Path) -> None:
    """Write the digests of all files in the folder of a sharded checkpoint into one more file."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != FOLDER_DIGESTS:
            digests[path.relative_to(folder).as_posix()] = _digest_of_file(path)
    write_json(folder / FOLDER_DIGESTS, digests)


def verify_folder(folder: Path) -> None:
    """Raise an error for a sharded checkpoint that is not what was written; one of an older version has no digests.

    Raises:
        UserError: a file is missing or damaged.
    """
    listing = folder / FOLDER_DIGESTS
    if os.environ.get(SWITCH) == "0" or not listing.is_file():
        return
    try:
        digests = dict(json.loads(listing.read_bytes()))
    except (ValueError, TypeError):
        raise damaged(listing, "it holds no digests") from None
    for name, value in digests.items():
        path = folder / name
        if not path.is_file():
            raise damaged(folder, f"there is no file {name}")
        if value != _digest_of_file(path):
            raise damaged(path, "its digest is of other content")


def _digest_of_file(path: Path) -> str:
    size = path.stat().st_size
    if size == 0:
        return digest(b"", 0, 0)
    with open(path, "rb") as file, _mapped(file) as content:
        return digest(content, 0, size)


def damaged(path: Path, why: str) -> UserError:
    """Return the error for a file that is not what was written."""
    return UserError(f"{path} is damaged: {why}")


# .safetensors: 8 bytes with the length of the header, the header in JSON, the tensors ---------------------------------


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return _is_header(file.read(9), path.stat().st_size)


def _is_header(content: Any, size: int) -> bool:
    start = bytes(content[:9])
    if len(start) < 9 or not start.endswith(b"{"):
        return False
    return 8 + int.from_bytes(start[:8], "little") <= size


def _header_end(content: Any) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _digest_of_safetensors(content: Any, size: int) -> tuple[int, str, str] | None:
    """Return position and value of the digest in a header, and what it should be; None where there is none."""
    end = _header_end(content)
    if end > size:
        return None
    header = bytearray(content[:end])
    key = json.dumps(DIGEST_KEY).encode() + b':"'
    position = header.find(key)
    if position < 0:
        return None
    position += len(key)
    written = bytes(header[position : position + HEX_SIZE]).decode("latin-1")
    header[position : position + HEX_SIZE] = b"0" * HEX_SIZE
    return position, written, digest(content, end, size, before=bytes(header))


def _mapped(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
