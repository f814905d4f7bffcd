"""The commit of a working directory, read from the files of ``.git`` without running anything.

``git`` runs programs that a repository configures: a file system monitor, clean filters, hooks. A run is recorded
wherever a project was unpacked, so its repository is not trusted, and every value here is checked or bounded.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

MAX_TEXT = 2**20  # bytes of a file with references, or of a commit
MAX_INDEX = 2**28
MAX_HASHED = 2**28  # bytes of all files that are compared by content, as their time says that they may differ
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REFERENCE = re.compile(r"refs/[\w./@+-]+")


class Repository(NamedTuple):
    """The places of a repository.

    Args:
        root: folder of the tracked files.
        own: folder of this working tree, with ``HEAD`` and ``index``.
        common: folder with the references and objects, which several working trees share.
    """

    root: Path
    own: Path
    common: Path


class Entry(NamedTuple):
    """A tracked file in the index.

    Args:
        name: path below the root.
        mode: kind and permissions.
        size: bytes when it was added.
        modified: seconds and nanoseconds when it was added.
        digest: hash of its content.
    """

    name: bytes
    mode: int
    size: int
    modified: tuple[int, int]
    digest: bytes


def find(folder: Path) -> Repository | None:
    """Return the repository that a folder is in, or None."""
    for root in (folder, *folder.parents):
        own = root / ".git"
        if own.is_file():  # of a further working tree, or of a submodule
            text = _read_text(own)
            if text is None or not text.startswith("gitdir: "):
                return None
            own = root / text.removeprefix("gitdir: ").strip()
        if not (own / "HEAD").is_file():
            continue
        common = _read_text(own / "commondir")
        return Repository(root, own, own / common.strip() if common else own)
    return None


def commit(repository: Repository) -> str | None:
    """Return the hash of the commit that is checked out; None before the first, or in an unknown format."""
    head = (_read_text(repository.own / "HEAD") or "").strip()
    for _ in range(5):  # a reference may name another
        if _HASH.fullmatch(head):
            return head
        name = head.removeprefix("ref: ")
        if name == head or not _REFERENCE.fullmatch(name) or ".." in name:
            return None
        head = _reference(repository, name)
    return None


def has_changes(repository: Repository, head: str) -> bool | None:
    """Return whether tracked files differ from a commit; None if the index cannot be read. Others are not counted.

    Args:
        repository: the repository.
        head: hash of the commit that is checked out.
    """
    try:
        index = repository.own / "index"
        if index.stat().st_size > MAX_INDEX:
            return None
        content = index.read_bytes()
        entries, end = _entries(content, len(head) // 2)
        left = MAX_HASHED
        for entry in entries:
            found = _state(repository.root, entry)
            if found is State.DIFFERENT:
                return True
            if found is State.PERHAPS:
                left -= entry.size
                if left < 0:
                    return None
                if _hash(repository.root / os.fsdecode(entry.name), len(entry.digest)) != entry.digest:
                    return True
        tree = _tree_of_index(content[end:], len(head) // 2)
    except (OSError, ValueError, IndexError, struct.error):
        return None
    if tree is None:  # something was added that is not committed
        return True
    committed = _tree_of_commit(repository, head)
    return committed is not None and committed != tree


# References -----------------------------------------------------------------------------------------------------------


def _reference(repository: Repository, name: str) -> str:
    for folder in (repository.own, repository.common):
        text = _read_text(folder / name)
        if text is not None:
            return text.strip()
    for line in (_read_text(repository.common / "packed-refs") or "").splitlines():
        digest, _, packed = line.partition(" ")
        if packed == name:
            return digest
    return ""


def _read_text(path: Path) -> str | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > MAX_TEXT:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


# The index (https://git-scm.com/docs/index-format) --------------------------------------------------------------------


def _entries(content: bytes, hash_size: int) -> tuple[list[Entry], int]:
    """Return the entries of an index, and where its extensions begin."""
    signature, version, count = struct.unpack_from(">4sII", content)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise ValueError("unknown index")
    at = 12
    name = b""
    entries = []
    for _ in range(count):
        begin = at
        _, _, seconds, nanoseconds, _, _, mode, _, _, size = struct.unpack_from(">10I", content, at)
        at += 40
        digest = content[at : at + hash_size]
        flags = struct.unpack_from(">H", content, at + hash_size)[0]
        at += hash_size + 2
        if flags & 0x4000:  # further flags follow
            at += 2
        kept = b""
        if version == 4:  # a name begins as the one before it
            removed, at = _offset(content, at)
            kept = name[: len(name) - removed]
        end = content.index(b"\0", at)
        name = kept + content[at:end]
        at = end + 1 if version == 4 else begin + (end - begin + 8) // 8 * 8
        entries.append(Entry(name, mode, size, (seconds, nanoseconds), digest))
    return entries, at


def _offset(content: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = content[at] & 0x7F
    while content[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (content[at] & 0x7F)
    return value, at + 1


def _tree_of_index(extensions: bytes, hash_size: int) -> bytes | None:
    """Return the hash of the tree that the index describes; None if it was changed since it was computed."""
    for kind, body in _extensions(extensions, hash_size):
        if kind != b"TREE":
            continue
        _, _, rest = body.partition(b"\0")
        counts, _, hashes = rest.partition(b"\n")
        if counts.startswith(b"-1"):
            return None
        return hashes[:hash_size]
    return None


def _extensions(content: bytes, hash_size: int) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content) - hash_size:
        kind, size = struct.unpack_from(">4sI", content, at)
        yield kind, content[at + 8 : at + 8 + size]
        at += 8 + size


# Contents -------------------------------------------------------------------------------------------------------------


class State(Enum):
    """Whether a file is as it was added: by its size and time, without reading it."""

    SAME = auto()
    PERHAPS = auto()
    DIFFERENT = auto()


def _state(root: Path, entry: Entry) -> State:
    is_submodule = stat.S_IFMT(entry.mode) == 0o160000
    path = root / os.fsdecode(entry.name)
    if is_submodule or ".." in path.parts:
        return State.SAME
    try:
        now = path.lstat()
    except OSError:
        return State.DIFFERENT
    if stat.S_IFMT(now.st_mode) != stat.S_IFMT(entry.mode) or now.st_size % 2**32 != entry.size:
        return State.DIFFERENT
    if divmod(now.st_mtime_ns, 10**9) == entry.modified:
        return State.SAME
    return State.PERHAPS


def _hash(path: Path, size: int) -> bytes:
    """Return git's hash of a file or link."""
    content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    digest = hashlib.sha256() if size == 32 else hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % len(content) + content)
    return digest.digest()


def _tree_of_commit(repository: Repository, head: str) -> bytes | None:
    """Return the hash of a commit's tree; None if the commit is packed together with others."""
    try:
        with (repository.common / "objects" / head[:2] / head[2:]).open("rb") as file:
            packed = file.read(MAX_TEXT)
        content = zlib.decompressobj().decompress(packed, MAX_TEXT)
    except (OSError, zlib.error):
        return None
    match = re.match(rb"commit \d+\0tree ([0-9a-f]{40,64})\n", content)
    return bytes.fromhex(match[1].decode()) if match else None
