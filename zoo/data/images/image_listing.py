"""The image files of a folder: by class, by split, or all alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.images.folder_walk import LeftOut, find_images, is_hidden, loose_images
from zoo.distributed import say

FORMATS = "jpg, jpeg, png, tif, webp, gif, bmp or what else Pillow reads"
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass
class ImageListing:
    """The images of a folder.

    Args:
        root: the folder.
        files: paths within it, sorted.
        labels: class index of each; without classes, the index of the file.
        parts: split of each, ``train``, ``val`` or ``test``; empty where the folder has no splits.
        classes: names, sorted; empty where the images have no classes.
    """

    root: Path
    files: list[str]
    labels: list[int]
    parts: list[str]
    classes: list[str]

    def select(self, indices: list[int]) -> ImageListing:
        """Return the listing of some of the images, by their indices."""
        files = [self.files[i] for i in indices]
        labels = [self.labels[i] for i in indices]
        parts = [self.parts[i] for i in indices]
        return ImageListing(self.root, files, labels, parts, self.classes)

    def add(self, files: list[str], label: int, part: str) -> None:
        """Add files of one class and split."""
        self.files += files
        self.labels += [label] * len(files)
        self.parts += [part] * len(files)


def list_images(root: Path) -> ImageListing:
    """Return the images of a folder by class: ``root/cat/1.jpg``, or by split and class: ``root/train/cat/1.jpg``.

    Raises:
        ValueError: the folder is not laid out like this.
    """
    check_folder(root, "--data.root names a folder with a folder of images for each class")
    parts = _split_folders(root)
    left_out = LeftOut()
    names = {folder: subfolders(root / folder) for folder in parts}
    classes = set()
    for folder, inside in names.items():
        if parts[folder] in ("", "train"):
            classes.update(inside)
    listing = ImageListing(root, [], [], [], sorted(classes))
    for folder, inside in names.items():
        unknown = sorted(set(inside) - classes)
        if unknown:
            raise ValueError(f"{root / folder} has a class {unknown[0]!r} that training has not")
    for folder, part in sorted(parts.items()):
        _say_loose_images(root / folder, listing.classes)
        for label, name in enumerate(listing.classes):
            place = Path(folder) / name
            files = []
            if (root / place).is_dir():
                files = find_images(root, place, left_out)
            if not files and part in ("", "train"):
                raise ValueError(f"{root / place} holds no image ({FORMATS})")
            listing.add(files, label, part)
    if len(listing.classes) < 2:
        _raise_too_few_classes(root, listing.classes)
    left_out.say(root)
    return listing


def _say_loose_images(folder: Path, classes: Sequence[str]) -> None:
    """Print that images beside folders of classes are left out."""
    loose = loose_images(folder)
    if loose and len(classes) > 1:
        say(f"{folder}: {len(loose):,} images beside the class folders are left out; the first is {loose[0]}")


def _split_folders(root: Path) -> dict[str, str]:
    """Return the folders that are splits, with the split of each; the root itself where there is none for training."""
    parts = {}
    for name in subfolders(root):
        # A folder "train" without folders in it is a class, of images of trains.
        if name.lower() in SPLITS and subfolders(root / name):
            parts[name] = SPLITS[name.lower()]
    if "train" not in parts.values():
        return {"": ""}
    others = [name for name in subfolders(root) if name not in parts]
    if others:
        say(f"{root}: {', '.join(others)} left out, as the other folders are splits ({', '.join(sorted(parts))})")
    return parts


def _raise_too_few_classes(root: Path, classes: list[str]) -> None:
    has_loose_images = bool(loose_images(root))
    if classes:
        has = f"only one class folder, {classes[0]!r}"
    elif has_loose_images:
        has = "images but no class folders"
    else:
        has = "no images"
    advice = ""
    if has_loose_images:
        advice = "; --data.drop_labels true takes images without classes, --data.captions with texts"
    raise ValueError(f"{root} has {has}: each class needs a folder of its own, and there must be two or more{advice}")


def list_unlabelled_images(root: Path, option: str = "root", ignored: tuple[str, ...] = ()) -> ImageListing:
    """Return all images of a folder and of those below it, whatever these are called.

    Args:
        root: the folder.
        option: by which the user named it, for the error message.
        ignored: names of files that are no images and are not counted as left out.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    check_folder(root, f"--data.{option} names a folder of images")
    listing = ImageListing(root, [], [], [], [])
    left_out = LeftOut(ignored)
    for name in subfolders(root):
        if name.lower() in SPLITS:
            listing.add(find_images(root, Path(name), left_out), 0, SPLITS[name.lower()])
    if "train" not in listing.parts:
        listing = ImageListing(root, [], [], [], [])
        left_out = LeftOut(ignored)
        listing.add(find_images(root, Path(), left_out), 0, "")
    if not listing.files:
        raise ValueError(f"{root} holds no image ({FORMATS})")
    left_out.say(root)
    listing.labels = list(range(len(listing.files)))
    return listing


def check_folder(root: Path, hint: str) -> None:
    """Raise ValueError with a hint where this is no folder."""
    if root.is_dir():
        return
    problem = "does not exist"
    if root.exists():
        problem = "is a file"
    raise ValueError(f"{root} {problem}: {hint}")


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
