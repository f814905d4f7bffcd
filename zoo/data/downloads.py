"""Files of datasets: fetched once, whichever process comes first, and complaints of one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; the lock is gone when its holder is, however it ends.

    Args:
        path: of the lock, an empty file that stays.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # for processes forked meanwhile, too


def require_files(name: str, folder: Path, files: Sequence[str], what: str) -> None:
    """Say what is missing of a dataset, and how to get it.

    Args:
        name: of the dataset.
        folder: in which its files lie.
        files: that must be there.
        what: size of the download, in words.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{name}: {folder} lacks {missing[0]}{more}; --data.download true fetches {what}, "
            "--data.root names another folder"
        )


def fetch(name: str, urls: Sequence[str], folder: Path, file: str, md5: str, unpack: bool = False) -> None:
    """Download a file, from the first of several places that has it, and check it.

    Args:
        name: of the dataset.
        urls: where it is to be found.
        folder: where it goes.
        file: its name there.
        md5: its checksum.
        unpack: whether to extract the archive into the folder.
    """
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    reasons = []
    for url in urls:
        try:
            if unpack:
                return download_and_extract_archive(url, str(folder), filename=file, md5=md5)
            return download_url(url, str(folder), file, md5)
        except (OSError, RuntimeError, EOFError) as error:  # no network, no such file, a wrong checksum, no room
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    raise ValueError(f"{name}: {file} could not be fetched ({'; '.join(reasons)}); put it into {folder} by hand")
