"""Images in folders, by class, with texts, or alone: any size, any kind, decoded once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from zoo.data.base import say, split_indices
from zoo.data.images import image_cache
from zoo.data.images.base import ImageData, ImageDataset
from zoo.data.images.captions import CaptionedDataset, is_template, read_captions
from zoo.data.images.image_files import (
    ImageListing,
    Resizing,
    check_folder,
    decode,
    decode_all,
    inspect_images,
    list_images,
    list_unlabelled_images,
    reason,
)

SHOWN = 5  # unreadable files that are named
UNREADABLE_HINT = "cannot be read; --data.unreadable skip leaves such files out"


class ImageFileDataset(Dataset):
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
        self.reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        path = self.root / self.files[index]
        try:
            return torch.from_numpy(self.decode(path).copy()), self.labels[index]
        except Exception as error:  # a damaged file makes decoders raise anything
            if self.strict:
                raise ValueError(f"{path} ({reason(error, path)}) {UNREADABLE_HINT}") from None
            if index not in self.reported:  # once, not in every epoch; each worker has a list of its own
                say(f"{path} cannot be read and is left out ({reason(error, path)})")
            self.reported.add(index)
            return None

    def batch(self, indices: Tensor) -> Any:
        readable = [s for s in (self[i] for i in indices.tolist()) if s is not None]
        if not readable:
            raise ValueError(f"none of the {len(indices)} images of a batch can be read")
        return default_collate(readable)


class ImageFolder(ImageData):
    """Images in a folder for each class, such as ``root/cat/1.jpg``, of any size and any kind that Pillow reads.

    With ``captions: metadata.jsonl`` they need no classes: beside the images lies a file of that name, a line for each,
    ``{"file_name": "1.jpg", "text": "a cat"}``, as Hugging Face's ``imagefolder`` has it, or a ``metadata.csv``.

    With ``root/train/cat/1.jpg`` the folders ``train``, ``val`` and ``test`` are the splits, and validation is taken
    from the training images where there is no ``val``; otherwise the split is drawn from ``seed``, each class in the
    same shares. Images are decoded once: into memory if they take a quarter of what is free at most, else into a file
    that is mapped into memory and found again by the next run as long as the folder and the options stay the same.

    Args:
        root: the folder.
        val_split: share of the images kept for validation, where the folder does not say; 0 validates on the test.
        test_split: share of the images kept for the test, where the folder has no splits.
        resize: ``crop`` resizes the shorter side to ``image_size`` and cuts the middle out, ``stretch`` both sides.
        unreadable: ``skip`` leaves out files that cannot be read and names them, ``refuse`` stops at the first.
        cache: ``memory``, ``disk``, ``stream`` (workers decode each image every time), or ``auto``.
        cache_dir: folder of the caches; null is ``zoo/images`` in the user's cache.
        caption_column: name of the column of the texts in a file of captions.
        drop_labels: take all images below the folder alone, without classes; batches are images.
        predict_folder: new images for ``predict``, without classes.
    """

    caption_files: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        val_split: float = 0.1,
        test_split: float = 0.1,
        resize: Resizing = "crop",
        unreadable: Literal["skip", "refuse"] = "skip",
        cache: Literal["auto", "memory", "disk", "stream"] = "auto",
        cache_dir: str | None = None,
        caption_column: str = "text",
        drop_labels: bool = False,
        predict_folder: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if drop_labels and self.captions is not None:
            raise ValueError("drop_labels leaves images alone, and captions put texts beside them: give one of the two")
        if min(val_split, test_split) < 0 or val_split + test_split >= 1:
            raise ValueError(f"val_split and test_split are shares, got {val_split} and {test_split}")
        self.root, self.val_split, self.test_split = Path(root), val_split, test_split
        self.unreadable, self.cache = unreadable, cache
        self.resize: Resizing = resize
        self.cache_dir = Path(cache_dir) if cache_dir else image_cache.default_cache_dir()
        self.caption_column, self.drop_labels = caption_column, drop_labels
        self.predict_folder = Path(predict_folder) if predict_folder else None

    # Data spec ------------------------------------------------------------------------------------------------------------

    @cached_property
    def listing(self) -> ImageListing:
        """The images of the folder; where it is gone and only new ones are asked after, of theirs."""
        if self._root_is_missing:
            return list_unlabelled_images(Path(self.predict_folder or ""), "predict_folder")
        captioned = self.captions is not None and not is_template(self.captions)
        return list_unlabelled_images(self.root) if self.drop_labels or captioned else list_images(self.root)

    @property
    def _root_is_missing(self) -> bool:
        return self.predict_folder is not None and not self.root.exists()

    @cached_property
    def texts(self) -> list[str] | None:  # type: ignore[override]
        if self.captions is None or self._root_is_missing:
            return None
        if is_template(self.captions):
            return super().texts
        return read_captions(self.root, self.captions, self.caption_column, self.listing.files)

    @cached_property
    def _image_headers(self) -> tuple[int, tuple[int, int] | None, str]:
        return inspect_images(self.listing.root, self.listing.files)

    @property
    def class_names(self) -> list[str] | None:
        return self.listing.classes or None

    @property
    def num_classes(self) -> int | None:
        return len(self.listing.classes) or None

    @property
    def native_channels(self) -> int:  # type: ignore[override]
        return self._image_headers[0]

    @property
    def native_size(self) -> int | None:  # type: ignore[override]
        size = self._image_headers[1]
        return size[0] if size and size[0] == size[1] else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of each image as it is kept."""
        size = (self.side, self.side) if self.side else self._image_headers[1]
        if size is None:
            raise ValueError(
                f"the images in {self.root} differ in size ({self._image_headers[2]}): give --data.image_size"
            )
        return (1 if self.channels == 1 else self.native_channels, *size)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        mean, std = found = super().statistics
        self.hparams.update(mean=mean, std=std)  # into the checkpoint: new images need no others to be scaled by
        return found

    # Reading ----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage != "predict" and "train" not in self.__dict__.get("datasets", {"train": None}):
            del self.__dict__["datasets"]  # of new images alone
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        self._names: dict[str, list[str]] = {}
        sets: dict[str, Dataset] = {}
        predicting = self.trainer is not None and self.trainer.predicting
        if (
            self.predict_folder is None or not predicting or self.user_statistics is None
        ):  # given is how new images are scaled
            check_folder(self.root, "--data.root names a folder of images")
            sets = self._build_datasets(self.listing, self._split_rows)
        if self.predict_folder is not None:
            new = list_unlabelled_images(self.predict_folder, "predict_folder")
            sets |= self._build_datasets(new, lambda kept, _: {"predict": torch.arange(len(kept))})
        return sets

    def _build_datasets(
        self, found: ImageListing, split: Callable[[list[int], Tensor], dict[str, Tensor]]
    ) -> dict[str, Dataset]:
        """The datasets of a folder.

        Args:
            found: its images.
            split: rows of each dataset, given which images are kept, and their labels.
        """
        cache = self._choose_cache(found) if self.cache == "auto" else self.cache
        decoded = None if cache == "stream" else self._decode_images(found, cache)
        self._report_unreadable(found, unreadable := {} if decoded is None else decoded[1])
        kept = [i for i in range(len(found.files)) if i not in unreadable]
        labels = torch.tensor([found.labels[i] for i in kept], dtype=torch.long)
        rows = split(kept, labels)
        if decoded is not None or self.unreadable == "refuse":  # otherwise some may yet be left out
            self._names |= {name: [found.files[kept[i]] for i in part.tolist()] for name, part in rows.items()}
        make = partial(self._streaming_dataset, found) if decoded is None else partial(ImageDataset, decoded[0], labels)
        alone = self.drop_labels or found is not self.listing
        return {name: CaptionedDataset(make(part), None) if alone else make(part) for name, part in rows.items()}

    @property
    def predict_names(self) -> list[str] | None:
        """Files of the samples of ``predict``, in order; None where some may be left out while they are read."""
        split = "predict" if "predict" in self.datasets else "test"
        return self._names.get(split)

    def _choose_cache(self, found: ImageListing) -> str:
        need = len(found.files) * torch.Size(self.shape).numel()
        if need <= image_cache.free_memory() / 4:
            return "memory"
        place = next(p for p in (self.cache_dir, *self.cache_dir.parents) if p.is_dir())
        if need < 0.9 * shutil.disk_usage(place).free or (self.cache_dir / self._key(found)).is_dir():
            return "disk"
        say(f"{need / 1e9:.1f} GB of images fit neither into memory nor onto {place}: decoding them every time")
        return "stream"

    def _key(self, found: ImageListing) -> str:
        options = {"shape": self.shape, "resize": self.resize if self.side else None}
        return image_cache.cache_key(found.root, found.files, **options)

    def _decode_images(self, found: ImageListing, cache: str) -> tuple[Tensor, dict[int, str]] | None:
        """The images that can be read and the reasons of the others; None where ``auto`` finds no room for them."""
        root, files, shape = found.root, found.files, self.shape
        images = decode_all(root, files, shape[0], self.side, self.resize, f"decoding {root.name}")
        if cache == "memory":
            return image_cache.build_in_memory(len(files), shape, images)
        try:
            return image_cache.load_or_build(self.cache_dir, self._key(found), shape, images)
        except OSError as error:
            need = len(files) * torch.Size(shape).numel() / 1e9
            reason = f"the cache of {need:.2g} GB cannot be written to {self.cache_dir} ({error.strerror or error})"
            if self.cache == "disk":
                choices = "--data.cache_dir names another folder, --data.cache stream does without"
                raise ValueError(f"{reason}: {choices}") from None
            say(f"{reason}: decoding images every time")
            return None

    def _report_unreadable(self, found: ImageListing, unreadable: dict[int, str]) -> None:
        if not unreadable:
            return
        root, files = found.root, found.files
        named = [f"{files[i]} ({reason})" for i, reason in list(unreadable.items())[:SHOWN]]
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        if self.unreadable == "refuse":
            raise ValueError(f"{root / named[0]} {UNREADABLE_HINT}")
        left = f"{len(unreadable)} of {len(files)} images cannot be read and are left out"
        say(f"{root}: {left}: {', '.join(named)}{more}")

    def _streaming_dataset(self, found: ImageListing, rows: Tensor) -> ImageFileDataset:
        labels = torch.tensor(found.labels)[rows]
        read = partial(decode, channels=self.shape[0], size=self.side, how=self.resize)
        return ImageFileDataset(
            found.root, [found.files[i] for i in rows.tolist()], labels, read, self.unreadable == "refuse"
        )

    def _split_rows(self, kept: list[int], labels: Tensor) -> dict[str, Tensor]:
        """Split rows as the folder says, or at random, each class in the same shares."""
        parts = [self.listing.parts[i] for i in kept]
        rows = {n: torch.tensor([i for i, p in enumerate(parts) if p == n], dtype=torch.long) for n in set(parts)}
        classes = None if self.num_classes is None else labels
        if "train" not in rows:
            whole = rows.pop("", torch.empty(0, dtype=torch.long))
            shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
            drawn = split_indices(len(whole), shares, self.seed, classes)
            rows = dict(zip(("train", "val", "test"), drawn, strict=True))
        elif "val" not in rows and self.val_split:
            both = split_indices(len(rows["train"]), [1 - self.val_split, self.val_split], self.seed,
                                 None if classes is None else classes[rows["train"]])  # fmt: skip
            rows["train"], rows["val"] = (rows["train"][r] for r in both)
        rows = {name: rows[name] for name in ("train", "val", "test") if name in rows and len(rows[name])}
        if "val" not in rows and "test" in rows:
            rows["val"] = rows["test"]
        names, trained = self.class_names or [], rows.get("train", torch.empty(0, dtype=torch.long))
        if lacking := set(range(len(names))) - set(labels[trained].tolist()):
            name = names[min(lacking)]
            raise ValueError(f"{self.root}: no image of class {name!r} can be read or is left for training")
        if not len(trained):
            raise ValueError(f"{self.root}: no image can be read or is left for training")
        return {name: rows[name] for name in ("train", "val", "test") if name in rows}
