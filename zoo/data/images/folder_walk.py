"""The image files below a folder, by name and content, and what else lies there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.images.pixels import readable_suffixes
from zoo.distributed import say

# Left by file managers and tools; nobody takes them for data.
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
SYSTEM_FOLDERS = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
# Formats with a signature at the beginning, by which files with other suffixes are recognised.
SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",  # TIFF
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",  # JPEG 2000
)
MAX_SUFFIXES = 5  # of what is left out, that are named


@dataclass
class LeftOut:
    """Files that are no images, by suffix.

    Args:
        ignored: names of files that are known to be something else, such as a file of captions.
        suffixes: numbers of files.
        images: number of image files.
        first: path of the first file that is left out.
    """

    ignored: tuple[str, ...] = ()
    suffixes: Counter[str] = field(default_factory=Counter)
    images: int = 0
    first: str = ""

    def add(self, path: str) -> None:
        """Count a file, unless it is known to be something else."""
        name = os.path.basename(path)
        # Hugging Face's imagefolder has the texts and labels of images in files of this name.
        if name in self.ignored or os.path.splitext(name)[0] == "metadata":
            return
        self.first = self.first or path
        self.suffixes[os.path.splitext(name)[1].lower() or "without a suffix"] += 1

    def say(self, root: Path) -> None:
        """Print how many files are left out, if any."""
        n = self.suffixes.total()
        if not n:
            return
        counts = [f"{count:,} {suffix}" for suffix, count in self.suffixes.most_common(MAX_SUFFIXES)]
        if len(self.suffixes) > MAX_SUFFIXES:
            counts.append("others")
        total = f"{n:,} of {n + self.images:,} files"
        say(f"{root}: {total} are no images and are left out ({', '.join(counts)}); the first is {self.first}")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder belongs to the system or a tool, not to the data."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES + SYSTEM_FOLDERS


def is_image(path: str) -> bool:
    """Return whether a file is named as an image, or begins as one."""
    if path.lower().endswith(readable_suffixes()):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def find_images(root: Path, folder: Path, left_out: LeftOut | None = None) -> list[str]:
    """Return the paths, relative to ``root``, of all images in a folder and in those below it, sorted.

    Args:
        root: the folder that paths are relative to.
        folder: path of the folder to search, relative to ``root``.
        left_out: where to count the files that are no images; null does not count.
    """
    left_out = left_out or LeftOut()
    paths = []
    for path in walk_files(root / folder):
        relative = os.path.relpath(path, root)
        if os.path.isfile(path) and is_image(path):
            paths.append(relative)
        else:
            left_out.add(relative)
    left_out.images += len(paths)
    return sorted(paths)


def loose_images(folder: Path) -> list[str]:
    """Return the names of the images that lie in a folder itself."""
    names = []
    for entry in os.scandir(folder):
        if not is_hidden(entry.name) and os.path.isfile(entry.path) and is_image(entry.path):
            names.append(entry.name)
    return sorted(names)


def walk_files(folder: str | Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the files below a folder, links among them, without hidden ones; a link to a folder above ends there."""
    stat = os.stat(folder)
    identity = (stat.st_dev, stat.st_ino)
    if identity in above:
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        # DirEntry.is_dir raises an error for a link to itself.
        if os.path.isdir(entry.path):
            yield from walk_files(entry.path, (*above, identity))
        else:
            yield entry.path
