"""Image files of any format: their size, and their pixels as bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data.images.pixels import GREY_MODES, ROTATED_ORIENTATIONS, open_image, orientation_of, to_mode, upright
from zoo.data.images.resizing import DEFAULT_VIEW, ResizeView
from zoo.data.progress import progress_bar
from zoo.weights.preprocessing import resized_side

CHUNK = 1024  # images that are decoded ahead, at most


class ImageHeaders(NamedTuple):
    """What the headers of some image files say.

    Args:
        channels: 1 if all are grey, else 3.
        size: height and width if all are alike, else None.
        examples: sizes of one or two files, in words.
    """

    channels: int
    size: tuple[int, int] | None
    examples: str


def inspect_images(root: Path, files: Sequence[str], max_files: int = 1000) -> ImageHeaders:
    """Read the headers of some files, evenly spaced.

    Args:
        root: folder.
        files: paths within it.
        max_files: number of files to read.
    """
    sizes: dict[tuple[int, int], str] = {}
    all_grey = True
    step = -(-len(files) // max_files)
    for file in files[::step]:
        try:
            with open_image(root / file) as image:
                width, height = image.size
                size = (height, width)
                if orientation_of(image) in ROTATED_ORIENTATIONS:
                    size = (width, height)
                is_grey = image.mode.split(";")[0] in GREY_MODES
        except Exception:  # what is wrong with it is reported when it is decoded
            continue
        all_grey = all_grey and is_grey
        sizes.setdefault(size, file)
    words = [f"{file} has {width}x{height}" for (height, width), file in sizes.items()]
    channels = 3
    if all_grey and sizes:
        channels = 1
    size = None
    if len(sizes) == 1:
        (size,) = sizes
    return ImageHeaders(channels, size, ", ".join(words[:2]))


def decode(
    file: Path | bytes,
    channels: int,
    size: int | tuple[int, int] | None = None,
    view: ResizeView = DEFAULT_VIEW,
) -> np.ndarray:
    """Return the pixels of an image as bytes ``(channels, height, width)``, rotated as its EXIF data asks for.

    Args:
        file: its path, or its bytes.
        channels: 1 for grey, 3 for colour; transparency is dropped.
        size: height and width to resize to; null leaves the image.
        view: how to resize and crop.
    """
    with open_image(file) as opened:
        return pixels_of(opened, channels, size, view)


def pixels_of(image: Any, channels: int, size: int | tuple[int, int] | None, view: ResizeView) -> np.ndarray:
    """Return the pixels of an opened image, see :func:`decode`."""
    image = upright(to_mode(image, channels), orientation_of(image))
    if isinstance(size, tuple) and size[0] == size[1]:
        size = size[0]
    if isinstance(size, tuple):
        image = _fit(image, size, view)
    elif size is not None and (view.crop_pct != 1.0 or image.size != (size, size)):
        image = _resize(image, size, view)
    pixels = np.asarray(image)
    if channels == 1:
        return pixels[None]  # (1, h, w)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (3, h, w)


def _fit(image: Any, size: tuple[int, int], view: ResizeView) -> Any:
    """Return an image of a height and a width that differ."""
    from PIL import Image, ImageOps

    height, width = size
    if image.size == (width, height):
        return image
    method = Image.Resampling[view.interpolation.upper()]
    if view.resize == "stretch":
        return image.resize((width, height), method)
    return ImageOps.fit(image, (width, height), method)


def _resize(image: Any, size: int, view: ResizeView) -> Any:
    from PIL import Image

    side = resized_side(size, view.crop_pct)
    new_width = side
    new_height = side
    if view.resize == "crop":
        # Sizes and corners are rounded as by Resize and CenterCrop of torchvision.
        width, height = image.size
        shorter = min(width, height)
        if width > shorter:
            new_width = int(side * width / shorter)
        if height > shorter:
            new_height = int(side * height / shorter)
    image = image.resize((new_width, new_height), Image.Resampling[view.interpolation.upper()])
    left = round((new_width - size) / 2.0)
    top = round((new_height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def reason(error: Exception, path: Path) -> str:
    """Return why an image cannot be read, on one line and without its path, which is shown beside it."""
    text = " ".join(str(error).replace(str(path), "").split())
    return text.strip("' ") or type(error).__name__


def decode_all(
    root: Path,
    files: Sequence[str],
    channels: int,
    size: int | None,
    view: ResizeView,
    title: str,
) -> Iterator[np.ndarray | str]:
    """Decode images in order, several at a time, with a progress bar; for those that cannot be read, yield the reason.

    Args:
        root: folder.
        files: paths within it.
        channels: 1 or 3.
        size: height and width to resize to, or null.
        view: how to resize and crop.
        title: of the progress bar.
    """

    def decode_one(file: str) -> np.ndarray | str:
        try:
            return decode(root / file, channels, size, view)
        except Exception as error:  # a damaged file makes decoders raise anything
            return reason(error, root / file)

    threads = None
    if hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    with progress_bar(len(files), title) as advance, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), CHUNK):
            for result in pool.map(decode_one, files[start : start + CHUNK]):
                advance(1)
                yield result
