"""Image files of any kind: which there are, what they hold, and their pixels as bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
KINDS = ", ".join(ending[1:] for ending in SUFFIXES)
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
GREY = ("1", "L", "LA", "I", "F")
ROTATED_ORIENTATIONS = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
Resizing = Literal["crop", "stretch"]


@dataclass
class ImageListing:
    """The images of a folder.

    Args:
        root: the folder.
        files: paths within it, sorted.
        labels: class number of each; without classes, the file's own number.
        parts: ``train``, ``val`` or ``test`` of each; empty where the folder leaves the split open.
        classes: names, sorted; none where all images of the folder are taken alike.
    """

    root: Path
    files: list[str]
    labels: list[int]
    parts: list[str]
    classes: list[str]


def list_images(root: Path) -> ImageListing:
    """Find the images of a folder by class, or say what is wrong with it."""
    check_folder(root, "--data.root names a folder with a folder of images for each class")
    inside = subfolders(root)
    parts = {name: SPLITS[name.lower()] for name in inside if name.lower() in SPLITS and subfolders(root / name)}
    if "train" not in parts.values():
        parts = {"": ""}
    names = {name: subfolders(root / name) for name in parts}
    own = sorted({c for name, classes in names.items() if parts[name] in ("", "train") for c in classes})
    for name, classes in names.items():
        if strange := set(classes) - set(own):
            raise ValueError(f"{root / name} has a class {sorted(strange)[0]!r} that training has not")
    found = ImageListing(root, [], [], [], own)
    for name, part in sorted(parts.items()):
        for label, kind in enumerate(own):
            files = find_images(root, Path(name) / kind) if (root / name / kind).is_dir() else []
            if not files and part in ("", "train"):
                raise ValueError(f"{root / name / kind} holds no image ({KINDS})")
            found.files += files
            found.labels += [label] * len(files)
            found.parts += [part] * len(files)
    if len(own) < 2:
        loose = any(f.suffix.lower() in SUFFIXES for f in root.iterdir())
        has = f"only one class folder, {own[0]!r}" if own else "images but no class folders" if loose else "no images"
        more = "; --data.drop_labels true takes images without classes, --data.captions with texts" if loose else ""
        raise ValueError(f"{root} has {has}: each class needs a folder of its own, and there must be two or more{more}")
    return found


def list_unlabelled_images(root: Path, option: str = "root") -> ImageListing:
    """Find all images of a folder and of those below it, whatever these are called, or say that there are none.

    Args:
        root: the folder.
        option: by which the user named it.
    """
    check_folder(root, f"--data.{option} names a folder of images")
    inside = [name for name in subfolders(root) if name.lower() in SPLITS]
    parts = {name: (SPLITS[name.lower()], find_images(root, Path(name))) for name in inside}
    if not any(part == "train" and files for part, files in parts.values()):
        parts = {"": ("", find_images(root, Path()))}
    found = ImageListing(root, [], [], [], [])
    for part, files in parts.values():
        found.files += files
        found.parts += [part] * len(files)
    if not found.files:
        raise ValueError(f"{root} holds no image ({KINDS})")
    found.labels = list(range(len(found.files)))
    return found


def check_folder(root: Path, hint: str) -> None:
    if not root.is_dir():
        raise ValueError(f"{root} {'is a file' if root.exists() else 'does not exist'}: {hint}")


def subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")


def find_images(root: Path, folder: Path) -> list[str]:
    """Paths, from ``root``, of all images in a folder and in those below it."""
    found = []
    for place, _, files in os.walk(root / folder, followlinks=True):
        found += [os.path.join(place, f) for f in files if f.lower().endswith(SUFFIXES) and f[0] != "."]
    return sorted(os.path.relpath(f, root) for f in found)


def inspect_images(root: Path, files: Sequence[str], most: int = 1000) -> tuple[int, tuple[int, int] | None, str]:
    """Look into the heads of some files, evenly spaced.

    Args:
        root: folder.
        files: paths within it.
        most: how many to look at.

    Returns:
        The channels (1 if all are grey), height and width if all are alike, and two that differ, in words.
    """
    from PIL import Image

    sizes: dict[tuple[int, int], str] = {}
    grey = True
    step = -(-len(files) // most)
    for file in files[::step]:
        try:
            with Image.open(root / file) as image:
                width, height = image.size
                turned = (
                    image.format in ("JPEG", "TIFF", "PNG", "WEBP")
                    and image.getexif().get(0x0112) in ROTATED_ORIENTATIONS
                )
                grey = grey and image.mode.split(";")[0] in GREY
        except Exception:  # what is wrong with it is told when it is decoded
            continue
        sizes.setdefault((width, height) if turned else (height, width), file)
    words = ", ".join(f"{file} has {w}x{h}" for (h, w), file in list(sizes.items())[:2])
    return (1 if grey and sizes else 3), (next(iter(sizes)) if len(sizes) == 1 else None), words


def decode(path: Path, channels: int, size: int | None = None, how: Resizing = "crop") -> np.ndarray:
    """Read an image, the right way up, as bytes ``(channels, height, width)``.

    Args:
        path: of the file.
        channels: 1 for grey, 3 for colour; transparency is dropped.
        size: side to resize to; null leaves the image.
        how: ``crop`` resizes the shorter side and cuts the middle out, ``stretch`` both sides.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        image = to_mode(opened, channels)
        if size is not None and image.size != (size, size):
            wide, high = image.size
            if how == "stretch":
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            else:  # sizes and corners rounded as by Resize and CenterCrop of torchvision
                short = min(wide, high)
                sides = tuple(size if side == short else int(size * side / short) for side in (wide, high))
                image = image.resize(sides, Image.Resampling.BILINEAR)
                left, top = (round((side - size) / 2.0) for side in sides)
                image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_mode(image: Any, channels: int) -> Any:
    """Turn any kind of image into 8-bit grey or colour."""
    if image.mode.startswith("I"):  # 16 bits a pixel, of which PIL would cut off what is above 255
        from PIL import Image

        deep = np.asarray(image).astype(np.float64)
        image = Image.fromarray((deep / (257 if deep.max(initial=0) > 255 else 1)).round().clip(0, 255).astype("uint8"))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode in ("P", "PA", "LA") and channels == 3:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def reason(error: Exception, path: Path) -> str:
    """Why an image cannot be read, on one line and without its path, which is told beside it."""
    return " ".join(str(error).replace(str(path), "").split()).strip("' ") or type(error).__name__


def decode_all(
    root: Path, files: Sequence[str], channels: int, size: int | None, how: Resizing, title: str
) -> Iterator[np.ndarray | str]:
    """Decode images in order, several at a time, with a progress bar; for those that cannot be read, the reason.

    Args:
        root: folder.
        files: paths within it.
        channels: 1 or 3.
        size: side to resize to, or null.
        how: of ``decode``.
        title: what the bar says.
    """
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    def one(file: str) -> np.ndarray | str:
        try:
            return decode(root / file, channels, size, how)
        except Exception as error:  # a damaged file makes decoders raise anything
            return reason(error, root / file)

    console = Console(stderr=True)
    bar = Progress(*Progress.get_default_columns()[:3], TimeRemainingColumn(), console=console, transient=True,
                   disable=not console.is_terminal or len(files) < 2000)  # fmt: skip
    with bar, ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        task = bar.add_task(title, total=len(files))
        for start in range(0, len(files), 1024):  # so that what waits to be taken stays small
            for result in pool.map(one, files[start : start + 1024]):
                bar.advance(task)
                yield result
