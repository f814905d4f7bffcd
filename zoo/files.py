"""Files and folders written whole or not at all, so that a kill at any moment leaves no half-written ones.

What is being written has a random name beside its place and is opened exclusively, so that nobody's link is followed.
Such files of processes that were killed are removed when the same place is next written to.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from zoo.errors import UserError

# Windows has no links that could be followed here.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# What a disk or its permissions refuse, rather than a mistake in the code.
DISK_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
# How torch and safetensors, which write in C++ and Rust, report the same.
DISK_MESSAGES = ("PytorchStreamWriter failed writing", "file write failed", "unexpected pos", "I/O error", "os error")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside a file, and rename it to that file unless an error was raised.

    Args:
        path: the file; replaced if it exists. Missing folders are made.

    Raises:
        UserError: the disk is full or may not be written to; the file is as it was.
    """
    path = Path(path)
    with one_line_for_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        temporary = temporary_path(path)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | NO_FOLLOW, 0o666))
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside a folder, and rename it to that folder unless an error was raised.

    Args:
        path: the folder: new or empty, as nothing can be renamed onto a folder with files. Missing parents are made.

    Raises:
        UserError: the disk is full or may not be written to; nothing is left.
    """
    path = Path(path)
    with one_line_for_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        temporary = temporary_path(path)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def open_without_links(path: str | Path, mode: str = "r", **options: Any) -> IO[Any]:
    """Open a file as ``open`` does, unless it is a link.

    Args:
        path: the file.
        mode: as for ``open``.
        options: of ``open``.
    """
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | NO_FOLLOW, 0o666), **options)


@contextmanager
def one_line_for_disk_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a UserError that names the file, whichever library raised them."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    except Exception as error:
        text = str(error)
        is_of_disk = any(words in text for words in DISK_MESSAGES)
        if isinstance(error, UserError) or not is_of_disk:
            raise
        raise UserError(f"cannot write {path}: {_reason(text)}") from error


def _reason(text: str) -> str:
    """Return what the system says in an error message of torch or safetensors, or its first line."""
    number = re.search(r"os error (\d+)", text)
    if number:
        return os.strerror(int(number[1]))
    if "PytorchStreamWriter" in text or "unexpected pos" in text:
        return "the disk is full or does not allow it"  # torch keeps the reason to itself
    return text.splitlines()[0]


# Temporary names ------------------------------------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    """Return a new name beside a file, hidden so that no search for results finds it, and impossible to guess."""
    owner = f"{_host()}-{os.getpid()}"
    return path.with_name(f"{_prefix(path)}{owner}-{secrets.token_hex(8)}")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that no longer run have left while they were writing a file or folder."""
    for left in path.parent.glob(f"{_escape(_prefix(path))}*"):
        owner = re.fullmatch(r"(\w+)-(\d+)-[0-9a-f]{16}(?:\.\d+)?", left.name.removeprefix(_prefix(path)))
        if owner is None or owner[1] != _host() or _is_running(int(owner[2])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}.new-"


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _host() -> str:
    # Two machines that share a disk have processes of the same numbers.
    return re.sub(r"\W", "", socket.gethostname())[:40] or "host"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
