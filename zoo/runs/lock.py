"""One process for a run folder: a second one that would train there is refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from zoo.errors import UserError
from zoo.files import NO_FOLLOW

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
# Open files by run folder, with the process that opened them: a fork inherits the file, but not the lock.
_held: dict[Path, tuple[int, int]] = {}


def lock(folder: Path) -> None:
    """Lock a run folder until ``unlock`` or the end of this process, however it ends.

    Args:
        folder: of the run.

    Raises:
        UserError: another process has it.
    """
    if fcntl is None:
        return
    key = folder.resolve()
    if key in _held and _held[key][1] == os.getpid():
        return
    path = folder / NAME
    while True:
        file = _open(path)
        try:
            # Not flock: worker processes would inherit it, and outlive a training that is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(file, 200).decode(errors="replace").strip()
            os.close(file)
            by = f" ({owner})" if owner and owner.isprintable() else ""
            raise UserError(f"another process is training in {folder}{by}: wait for it, or begin a new run") from None
        except OSError:  # a file system without locks
            os.close(file)
            return
        if _is_there(file, path):
            break
        os.close(file)  # the process that had it has just removed it
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[key] = (file, os.getpid())


def unlock_all() -> None:
    """Unlock all run folders that this process has locked."""
    for folder in list(_held):
        unlock(folder)


def unlock(folder: Path) -> None:
    """Unlock a run folder that this process has locked."""
    key = folder.resolve()
    file, owner = _held.pop(key, (None, None))
    if file is not None and owner == os.getpid():
        (key / NAME).unlink(missing_ok=True)
        os.close(file)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {path.parent}: {error.strerror}") from None


def _is_there(file: int, path: Path) -> bool:
    """Return whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
