"""Sources of new samples as a user names them: files, folders, patterns, ``-`` for stdin."""

from __future__ import annotations

import glob
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.data.images.folder_walk import LeftOut, find_images, is_hidden, is_image, walk_files
from zoo.data.images.pixels import readable_suffixes
from zoo.distributed import say
from zoo.errors import UserError

STDIN = "-"
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
TEXTS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
ARRAYS = (".npy", ".csv", ".tsv")


def find_images_of(sources: Any, what: str, others: Sequence[Path] = ()) -> list[Path]:
    """Return the image files that sources name, in their order; those of a folder are sorted.

    Args:
        sources: a path or several: files, folders, patterns.
        what: what the model reads, for messages.
        others: images that were found already.

    Raises:
        UserError: there is no such file, it is no image, or a folder has none.
    """
    found: list[Path] = []
    for source in as_list(sources):
        path = Path(source)
        if path.is_dir():
            left_out = LeftOut()
            names = find_images(path, Path(), left_out)
            left_out.say(path)
            if not names:
                raise UserError(f"{source} holds no image")
            found += [path / name for name in names]
            continue
        for file in _files(str(source)):
            if file.suffix.lower() not in readable_suffixes() and not is_image(str(file)):
                if not path.exists():  # one of a pattern
                    say(f"{file} is no image and is left out")
                    continue
                raise wrong_kind(file, what, [*others, *found])
            found.append(file)
    if not found:
        raise UserError(f"no image among {', '.join(map(str, as_list(sources)))}")
    return found


def find_files_of(sources: Any, suffixes: Sequence[str], what: str) -> list[Path]:
    """Return the files that sources name, in their order.

    Args:
        sources: a path or several: files, folders, patterns.
        suffixes: of the files that can be read; a folder is searched for them.
        what: what the model reads, for messages.

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    found: list[Path] = []
    for source in as_list(sources):
        path = Path(source)
        if path.is_dir():
            inside = sorted(Path(name) for name in walk_files(path))
            files = [file for file in inside if file.suffix.lower() in suffixes and not is_hidden(file.name)]
            if not files:
                raise UserError(f"{source} holds no {', '.join(suffixes)}: the model reads {what}")
            if len(files) < len(inside):
                say(f"{source}: {len(inside) - len(files):,} of {len(inside):,} files are left out")
            found += files
            continue
        for file in _files(str(source)):
            if file.suffix.lower() not in suffixes:
                raise wrong_kind(file, what, found)
            found.append(file)
    return found


def as_list(sources: Any) -> list[Any]:
    """Return one source or several as a list."""
    return list(sources) if isinstance(sources, (list, tuple)) else [sources]


def wrong_kind(file: Path, what: str, found: Sequence[Path]) -> UserError:
    """Return the error for a file that the model cannot read."""
    mixed = f"; the sources are of several kinds, as {found[0]} is one of these" if found else ""
    return UserError(f"{file} cannot be read by this model, which takes {what}{mixed}")


def refuse_urls(sources: Sequence[Any]) -> None:
    """Raise a UserError for a URL: what is fetched could be another file each time."""
    for source in sources:
        if re.match(r"\w+://", str(source)):
            raise UserError(f"{source} is a URL: download the file, and give its path")


def _files(source: str) -> Iterator[Path]:
    """Yield the file of this name, or the files that fit a pattern, sorted."""
    refuse_urls([source])
    path = Path(source)
    if path.exists() or path.is_symlink():
        yield path
        return
    if glob.has_magic(source):
        found = sorted(name for name in glob.glob(source, recursive=True) if os.path.isfile(name))
        if not found:
            raise UserError(f"no file fits the pattern {source}")
        yield from map(Path, found)
        return
    raise UserError(f"no file or folder {source}")


# Stdin ----------------------------------------------------------------------------------------------------------------


@contextmanager
def with_stdin(sources: Any, suffix_of: Callable[[bytes], str]) -> Iterator[list[Any]]:
    """Give sources with a temporary file in place of ``-``.

    Args:
        sources: one or several.
        suffix_of: returns the suffix of what was read.
    """
    sources = as_list(sources)
    if STDIN not in map(str, sources):
        yield sources
        return
    data = read_stdin()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{suffix_of(data)}"
        path.write_bytes(data)
        yield [path if str(source) == STDIN else source for source in sources]


def read_stdin() -> bytes:
    """Return what is piped into the process.

    Raises:
        UserError: nothing is, or several processes would share it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or os.environ.get("LOCAL_RANK", "0") != "0":
        raise UserError("- reads stdin, which several processes cannot share: write it to a file, or use one device")
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("- reads stdin, and nothing is piped into it")
    data = sys.stdin.buffer.read()
    if not data:
        raise UserError("- reads stdin, which is empty")
    return data


def table_suffix(data: bytes) -> str:
    """Return the suffix of a table by its content: Parquet, JSON lines, or else CSV."""
    if data[:4] == b"PAR1":
        return ".parquet"
    return ".jsonl" if data.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{") else ".csv"


def text_suffix(data: bytes) -> str:
    """Return the suffix of texts by their content: JSON lines, or else a text a line."""
    suffix = table_suffix(data)
    return ".txt" if suffix == ".csv" else suffix
