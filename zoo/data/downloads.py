"""Files of published datasets: downloaded once, whichever process comes first, and checked by MD5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zoo.files import open_without_links


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; the lock is gone when its holder is, however that ends.

    Args:
        path: of the lock, an empty file that stays.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_without_links(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # for processes forked meanwhile, too


def require_files(name: str, folder: Path, missing: Sequence[str], size: str) -> None:
    """Raise ValueError where files of a dataset are missing, with the option that downloads them.

    Args:
        name: of the dataset.
        folder: where its files should be.
        missing: names of those that are not there.
        size: of the whole download, such as ``170 MB``.
    """
    if not missing:
        return
    what = missing[0]
    if len(missing) > 1:
        what += f" and {len(missing) - 1} more"
    raise ValueError(
        f"{name}: {folder} lacks {what}; --data.download true downloads the dataset ({size}), "
        "--data.root names another folder"
    )


def fetch(name: str, urls: Sequence[str], folder: Path, file: str, md5: str, unpack: bool = False) -> None:
    """Download a file from the first of several URLs that has it, and check its MD5.

    Args:
        name: of the dataset.
        urls: where the file is published.
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
                download_and_extract_archive(url, str(folder), filename=file, md5=md5)
            else:
                download_url(url, str(folder), file, md5)
            return
        except (OSError, RuntimeError, EOFError) as error:  # no network, no such file, a wrong checksum, no room
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    raise ValueError(f"{name}: {file} could not be downloaded ({'; '.join(reasons)}); put it into {folder} by hand")
