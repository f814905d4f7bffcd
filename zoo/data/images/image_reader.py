"""The images of a listing as datasets: decoded once into memory or a memory-mapped file, or each time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from zoo.data.images import image_cache
from zoo.data.images.base import ImageDataset
from zoo.data.images.image_files import decode, decode_all, reason
from zoo.data.images.image_listing import ImageListing
from zoo.data.images.resizing import ResizeView
from zoo.distributed import say

MAX_NAMED = 5  # unreadable files that are named
UNREADABLE_HINT = "cannot be read; --data.unreadable skip leaves such files out"
Caching = Literal["auto", "memory", "disk", "stream"]
Decoded = tuple[Tensor, dict[int, str]]  # images (n, c, h, w), and why files cannot be read, by their index


class ImageFileDataset(Dataset):
    """Image files that are decoded each time they are read; a sample that cannot be read is None.

    Args:
        root: folder.
        files: paths within it.
        labels: ``(n,)`` class indices.
        decode: from a path to bytes ``(c, h, w)``.
        strict: whether to raise for a file that cannot be read.
    """

    def __init__(
        self,
        root: Path,
        files: list[str],
        labels: Tensor,
        decode: Callable[[Path], Any],
        strict: bool,
    ) -> None:
        self.root = root
        self.files = files
        self.labels = labels
        self.decode = decode
        self.strict = strict
        self.reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        path = self.root / self.files[index]
        try:
            pixels = self.decode(path)
            return torch.from_numpy(pixels.copy()), self.labels[index]
        except Exception as error:  # a damaged file makes decoders raise anything
            if self.strict:
                raise ValueError(f"{path} ({reason(error, path)}) {UNREADABLE_HINT}") from None
            if index not in self.reported:  # once, not in every epoch; each worker has a set of its own
                say(f"{path} cannot be read and is left out ({reason(error, path)})")
            self.reported.add(index)
            return None

    def batch(self, indices: Tensor) -> Any:
        samples = [self[i] for i in indices.tolist()]
        readable = [sample for sample in samples if sample is not None]
        if not readable:
            raise ValueError(f"none of the {len(indices)} images of a batch can be read")
        return default_collate(readable)


@dataclass
class ReadImages:
    """The images of a listing that can be read, as far as that is known.

    Args:
        labels: ``(n,)`` labels of these.
        parts: the split of each, as in the listing.
        names: their files; null where some may yet be left out while they are read.
        dataset: makes a dataset of some of them, by their indices.
    """

    labels: Tensor
    parts: list[str]
    names: list[str] | None
    dataset: Callable[[Tensor], Dataset]


@dataclass
class ImageReader:
    """Reads the images of a listing.

    Args:
        shape: ``(c, h, w)`` of each image.
        side: height and width to resize to; null leaves the images.
        view: how to resize and crop them.
        strict: whether to raise for a file that cannot be read, rather than to leave it out.
        cache: ``memory``, ``disk``, ``stream``, or ``auto``.
        cache_dir: folder of the caches on disk.
    """

    shape: tuple[int, int, int]
    side: int | None
    view: ResizeView
    strict: bool
    cache: Caching
    cache_dir: Path

    def read(self, listing: ImageListing) -> ReadImages:
        """Decode the images of a listing, or prepare to decode them each time."""
        cache = self.cache
        if cache == "auto":
            cache = self.choose_cache(listing)
        decoded = None
        if cache != "stream":
            decoded = self._decode(listing, cache)
        if decoded is None:
            return self._read_as_stream(listing)
        images, unreadable = decoded
        if unreadable:
            self._report_unreadable(listing, unreadable)
        kept = [i for i in range(len(listing.files)) if i not in unreadable]
        labels = torch.tensor([listing.labels[i] for i in kept], dtype=torch.long)
        parts = [listing.parts[i] for i in kept]
        names = [listing.files[i] for i in kept]
        return ReadImages(labels, parts, names, partial(ImageDataset, images, labels))

    def _read_as_stream(self, listing: ImageListing) -> ReadImages:
        labels = torch.tensor(listing.labels, dtype=torch.long)
        decoder = partial(decode, channels=self.shape[0], size=self.side, view=self.view)

        def dataset(rows: Tensor) -> ImageFileDataset:
            files = [listing.files[i] for i in rows.tolist()]
            return ImageFileDataset(listing.root, files, labels[rows], decoder, self.strict)

        names = listing.files if self.strict else None
        return ReadImages(labels, listing.parts, names, dataset)

    def choose_cache(self, listing: ImageListing) -> Caching:
        """Return what ``auto`` means: memory, if it is large enough, else the disk, else no cache."""
        need = self._num_bytes(listing)
        if need <= image_cache.free_memory() / 4:
            return "memory"
        folder = next(path for path in (self.cache_dir, *self.cache_dir.parents) if path.is_dir())
        # The key is computed last, as it takes a system call for each file.
        if need < 0.9 * shutil.disk_usage(folder).free or (self.cache_dir / self.key(listing)).is_dir():
            return "disk"
        say(f"{need / 1e9:.1f} GB of images fit neither into memory nor onto {folder}: decoding them every time")
        return "stream"

    def key(self, listing: ImageListing) -> str:
        """Return the name of the cache on disk for these files at this size."""
        options = {"shape": self.shape, "resize": None}
        if self.side:
            options |= self.view.cache_options()
        return image_cache.cache_key(listing.root, listing.files, **options)

    def _num_bytes(self, listing: ImageListing) -> int:
        return len(listing.files) * torch.Size(self.shape).numel()

    def _decode(self, listing: ImageListing, cache: Caching) -> Decoded | None:
        """Decode all images; return None where ``auto`` finds no room for them on disk."""
        title = f"decoding {listing.root.name}"
        images = decode_all(listing.root, listing.files, self.shape[0], self.side, self.view, title)
        if cache == "memory":
            return image_cache.build_in_memory(len(listing.files), self.shape, images)
        try:
            return image_cache.load_or_build(self.cache_dir, self.key(listing), self.shape, images)
        except OSError as error:
            size = f"{self._num_bytes(listing) / 1e9:.2g} GB"
            problem = f"the cache of {size} cannot be written to {self.cache_dir} ({error.strerror or error})"
            if self.cache == "disk":
                advice = "--data.cache_dir names another folder, --data.cache stream does without"
                raise ValueError(f"{problem}: {advice}") from None
            say(f"{problem}: decoding images every time")
            return None

    def _report_unreadable(self, listing: ImageListing, unreadable: dict[int, str]) -> None:
        """Name files that cannot be read, or raise ValueError for the first."""
        reasons = [f"{listing.files[i]} ({why})" for i, why in unreadable.items()]
        if self.strict:
            raise ValueError(f"{listing.root / reasons[0]} {UNREADABLE_HINT}")
        named = ", ".join(reasons[:MAX_NAMED])
        if len(reasons) > MAX_NAMED:
            named += f" and {len(reasons) - MAX_NAMED} more"
        count = f"{len(reasons)} of {len(listing.files)}"
        say(f"{listing.root}: {count} images cannot be read and are left out: {named}")
