"""Images in folders by class: any size, any kind, decoded once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from zoo.data import image_cache
from zoo.data.base import say, split_indices
from zoo.data.image_files import Resizing, decode, decode_all, listing, look, reason
from zoo.data.images import ImageData, ImageSet

SHOWN = 5  # unreadable files that are named
REFUSED = "cannot be read; --data.unreadable skip leaves such files out"


class FileSet(Dataset):
    """Image files that are decoded each time they are asked for; those that cannot be read are None.

    Args:
        root: folder.
        files: paths within it.
        labels: ``(n,)`` class numbers.
        decode: from a path to bytes ``(c, h, w)``.
        strict: whether to raise at a file that cannot be read.
    """

    def __init__(
        self, root: Path, files: list[str], labels: Tensor, decode: Callable[[Path], Any], strict: bool
    ) -> None:
        self.root, self.files, self.labels, self.decode, self.strict = root, files, labels, decode, strict
        self.told: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        path = self.root / self.files[index]
        try:
            return torch.from_numpy(self.decode(path).copy()), self.labels[index]
        except Exception as error:  # a damaged file makes decoders raise anything
            if self.strict:
                raise ValueError(f"{path} ({reason(error, path)}) {REFUSED}") from None
            if index not in self.told:  # once, not in every epoch; each worker has a list of its own
                say(f"{path} cannot be read and is left out ({reason(error, path)})")
            self.told.add(index)
            return None


class ImageFolder(ImageData):
    """Images in a folder for each class, such as ``root/cat/1.jpg``, of any size and any kind that Pillow reads.

    With ``root/train/cat/1.jpg`` the folders ``train``, ``val`` and ``test`` are the splits, and validation is taken
    from the training images where there is no ``val``; otherwise the split is drawn from ``seed``, each class in the
    same shares. Images are decoded once: into memory if they take a quarter of what is free at most, else into a file
    that is mapped into memory and found again by the next run as long as the folder and the options stay the same.

    Args:
        root: the folder.
        val_share: share of the images kept for validation, where the folder does not say; 0 validates on the test.
        test_share: share of the images kept for the test, where the folder has no splits.
        resize: ``crop`` resizes the shorter side to ``image_size`` and cuts the middle out, ``stretch`` both sides.
        unreadable: ``skip`` leaves out files that cannot be read and names them, ``refuse`` stops at the first.
        cache: ``memory``, ``disk``, ``stream`` (workers decode each image every time), or ``auto``.
        cache_dir: folder of the caches; null is ``zoo/images`` in the user's cache.
    """

    def __init__(
        self,
        root: str,
        val_share: float = 0.1,
        test_share: float = 0.1,
        resize: Resizing = "crop",
        unreadable: Literal["skip", "refuse"] = "skip",
        cache: Literal["auto", "memory", "disk", "stream"] = "auto",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share and test_share are shares, got {val_share} and {test_share}")
        self.root, self.val_share, self.test_share = Path(root), val_share, test_share
        self.unreadable, self.cache = unreadable, cache
        self.resize: Resizing = resize
        self.cache_dir = Path(cache_dir) if cache_dir else image_cache.default_folder()

    # Facts ------------------------------------------------------------------------------------------------------------

    @cached_property
    def listing(self) -> Any:
        return listing(self.root)

    @cached_property
    def _heads(self) -> tuple[int, tuple[int, int] | None, str]:
        return look(self.root, self.listing.files)

    @property
    def class_names(self) -> list[str]:
        return self.listing.classes

    @property
    def num_classes(self) -> int:
        return len(self.listing.classes)

    @property
    def native_channels(self) -> int:  # type: ignore[override]
        return self._heads[0]

    @property
    def native_size(self) -> int | None:  # type: ignore[override]
        size = self._heads[1]
        return size[0] if size and size[0] == size[1] else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of each image as it is kept."""
        size = (self.side, self.side) if self.side else self._heads[1]
        if size is None:
            raise ValueError(f"the images in {self.root} differ in size ({self._heads[2]}): give --data.image_size")
        return (1 if self.channels == 1 else self.native_channels, *size)

    # Reading ----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, Dataset]:
        found, way = self.listing, self._choose() if self.cache == "auto" else self.cache
        decoded = None if way == "stream" else self._decoded(way)
        if decoded is None:
            return self._parts(torch.tensor(found.labels), found.parts, self._streamed)
        images, unreadable = decoded
        self._tell(unreadable)
        kept = [i for i in range(len(found.files)) if i not in unreadable]
        labels = torch.tensor([found.labels[i] for i in kept], dtype=torch.long)
        return self._parts(labels, [found.parts[i] for i in kept], partial(ImageSet, images, labels))

    def _choose(self) -> str:
        need = len(self.listing.files) * torch.Size(self.shape).numel()
        if need <= image_cache.free_memory() / 4:
            return "memory"
        place = next(p for p in (self.cache_dir, *self.cache_dir.parents) if p.is_dir())
        if need < 0.9 * shutil.disk_usage(place).free or (self.cache_dir / self._key).is_dir():
            return "disk"
        say(f"{need / 1e9:.1f} GB of images fit neither into memory nor onto {place}: decoding them every time")
        return "stream"

    @property
    def _key(self) -> str:
        options = {"shape": self.shape, "resize": self.resize if self.side else None}
        return image_cache.key(self.root, self.listing.files, **options)

    def _decoded(self, way: str) -> tuple[Tensor, dict[int, str]] | None:
        """The images that can be read and the reasons of the others; None where ``auto`` finds no room for them."""
        shape, files = self.shape, self.listing.files
        images = decode_all(self.root, files, shape[0], self.side, self.resize, f"decoding {self.root.name}")
        if way == "memory":
            return image_cache.gathered(len(files), shape, images)
        try:
            return image_cache.cached(self.cache_dir, self._key, shape, images)
        except OSError as error:
            need = len(files) * torch.Size(shape).numel() / 1e9
            reason = f"the cache of {need:.2g} GB cannot be written to {self.cache_dir} ({error.strerror or error})"
            if self.cache == "disk":
                choices = "--data.cache_dir names another folder, --data.cache stream does without"
                raise ValueError(f"{reason}: {choices}") from None
            say(f"{reason}: decoding images every time")
            return None

    def _tell(self, unreadable: dict[int, str]) -> None:
        if not unreadable:
            return
        files = self.listing.files
        named = [f"{files[i]} ({reason})" for i, reason in list(unreadable.items())[:SHOWN]]
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        if self.unreadable == "refuse":
            raise ValueError(f"{self.root / named[0]} {REFUSED}")
        left = f"{len(unreadable)} of {len(files)} images cannot be read and are left out"
        say(f"{self.root}: {left}: {', '.join(named)}{more}")

    def _streamed(self, rows: Tensor) -> FileSet:
        files, labels = self.listing.files, torch.tensor(self.listing.labels)[rows]
        read = partial(decode, channels=self.shape[0], size=self.side, how=self.resize)
        return FileSet(self.root, [files[i] for i in rows.tolist()], labels, read, self.unreadable == "refuse")

    def _parts(self, labels: Tensor, parts: list[str], make: Callable[[Tensor], Dataset]) -> dict[str, Dataset]:
        """Split rows as the folder says, or at random, each class in the same shares."""
        rows = {n: torch.tensor([i for i, p in enumerate(parts) if p == n], dtype=torch.long) for n in set(parts)}
        if "train" not in rows:
            whole = rows.pop("", torch.empty(0, dtype=torch.long))
            shares = [1 - self.val_share - self.test_share, self.val_share, self.test_share]
            drawn = split_indices(len(whole), shares, self.seed, labels)
            rows = {name: r for name, r in zip(("train", "val", "test"), drawn, strict=True) if len(r)}
        if "val" not in rows and self.val_share:
            both = split_indices(len(rows["train"]), [1 - self.val_share, self.val_share], self.seed,
                                 labels[rows["train"]])  # fmt: skip
            rows["train"], rows["val"] = (rows["train"][r] for r in both)
        if "val" not in rows and "test" in rows:
            rows["val"] = rows["test"]
        lacking = set(range(self.num_classes)) - set(labels[rows["train"]].tolist())
        if lacking:
            name = self.class_names[min(lacking)]
            raise ValueError(f"{self.root}: no image of class {name!r} can be read or is left for training")
        return {name: make(rows[name]) for name in ("train", "val", "test") if name in rows}

    @staticmethod
    def collate(samples: list) -> Any:  # type: ignore[override]
        readable = [s for s in samples if s is not None]
        if not readable:
            raise ValueError(f"none of the {len(samples)} images of a batch can be read")
        return default_collate(readable)
