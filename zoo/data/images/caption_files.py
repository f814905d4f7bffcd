"""Files of captions, as Hugging Face's ``imagefolder`` has them: ``metadata.jsonl`` or ``metadata.csv``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoo.data.images.captions import Caption
from zoo.data.images.folder_walk import walk_files
from zoo.data.text.encoding import read_text
from zoo.data.text.json_lines import parse_object, text_of
from zoo.data.text.text_files import read_texts

FILE_NAME = "file_name"  # the column by which Hugging Face's imagefolder finds an image


def read_captions(
    root: Path,
    name: str,
    column: str,
    files: Sequence[str],
    encoding: str | None = None,
) -> list[Caption]:
    """Return the captions of images, from the files of one name in a folder and those below it.

    An image has several texts where its line has a list of them, or where it has several lines.

    Args:
        root: the folder.
        name: of the files, ``.jsonl``, ``.csv`` or ``.tsv`` with columns ``file_name``, a path relative to the file's
            own folder, and ``column``.
        column: of the captions.
        files: paths of the images within the folder.
        encoding: of files without a byte order mark; null is UTF-8.
    """
    caption_files = sorted(Path(path) for path in walk_files(root) if os.path.basename(path) == name)
    if not caption_files:
        raise ValueError(f"{root} has no {name} to read captions from")
    captions: dict[str, list[str]] = {}
    for caption_file in caption_files:
        for image, texts in _read_rows(caption_file, column, encoding):
            path = _key(os.path.relpath(caption_file.parent / image.replace("\\", "/"), root))
            captions.setdefault(path, []).extend(texts)
    where = str(caption_files[0])
    if len(caption_files) > 1:
        where = f"the {len(caption_files)} files {name} in {root}"
    keys = [_key(file) for file in files]
    _check_matched(where, captions, keys)
    found: list[Caption] = []
    for key in keys:
        different = list(dict.fromkeys(captions[key]))
        if len(different) == 1:
            found.append(different[0])
        else:
            found.append(tuple(different))
    return found


def _key(path: str) -> str:
    """Return a path in the form in which paths are compared: macOS decomposes letters with accents, for one."""
    return unicodedata.normalize("NFC", os.path.normpath(path))


def _read_rows(path: Path, column: str, encoding: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of an image and its texts for each row of a file."""
    if path.suffix.lower() != ".jsonl":
        for text, image in zip(*read_texts(path, column, FILE_NAME, encoding=encoding), strict=True):
            yield image, [text]
        return
    empty = True
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        empty = False
        where = partial("{}, line {}".format, path, number)
        row = parse_object(line, where)
        values: Any = row.get(column)
        if not isinstance(values, list):
            values = [text_of(row, column, where, null=True)]
        elif not values:
            raise ValueError(f"{where()}: {column!r} is an empty list, not a text or several")
        texts = [text_of({column: value}, column, where).strip() for value in values]
        yield text_of(row, FILE_NAME, where), texts
    if empty:
        raise ValueError(f"{path} has no rows")


def _check_matched(where: str, captions: dict[str, list[str]], files: Sequence[str]) -> None:
    known = set(files)
    without_image = [path for path in captions if path not in known]
    if without_image:
        few = f"{len(without_image)} of {len(captions)}"
        raise ValueError(f"{where}: {few} captions have no image, the first is for {without_image[0]}")
    without_caption = [file for file in files if file not in captions]
    if without_caption:
        few = f"{len(without_caption)} of {len(files)}"
        raise ValueError(f"{where}: {few} images have no caption, the first is {without_caption[0]}")
