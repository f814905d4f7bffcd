"""Image folders: by class, with captions, or images alone; of any size and format, decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import split_indices, split_train_val_test
from zoo.data.images import image_cache
from zoo.data.images.base import ImageData
from zoo.data.images.caption_files import read_captions
from zoo.data.images.captions import Caption, CaptionedDataset, is_template
from zoo.data.images.image_files import ImageHeaders, inspect_images
from zoo.data.images.image_listing import ImageListing, check_folder, list_images, list_unlabelled_images
from zoo.data.images.image_reader import Caching, ImageReader, ReadImages
from zoo.data.images.resizing import DEFAULT_VIEW, Interpolation, ResizeView, Resizing
from zoo.data.text.encoding import check_encoding
from zoo.distributed import say

Rows = dict[str, Tensor]  # indices of the images of each split


class ImageFolder(ImageData):
    """Images in a folder for each class, such as ``root/cat/1.jpg``, of any size and any format that Pillow reads.

    Files are recognised by suffix or content; what else lies in the folders is counted and left out. Values of 16 bits
    are divided by 257, whether an image is dark or bright.

    With ``captions: metadata.jsonl`` they need no classes: beside the images lies a file of that name, a line for each,
    ``{"file_name": "1.jpg", "text": "a cat"}``, as in Hugging Face's ``imagefolder``, or a ``metadata.csv``. Of several
    texts of an image, in a list or in several lines, one is drawn anew in each epoch of training; in validation and
    test it is the first.

    With ``root/train/cat/1.jpg`` the folders ``train``, ``val`` and ``test`` are the splits, and validation images are
    taken from the training images where there is no ``val``; otherwise the images are split at random by ``seed``, each
    class in the same shares. Images are decoded once: into memory if they take at most a quarter of what is free, else
    into a memory-mapped file that the next run uses again as long as the folder and the options stay the same.

    Args:
        root: the folder.
        val_split: share of the images kept for validation, where the folder has no ``val``; 0 validates on the test
            images.
        test_split: share of the images kept for the test, where the folder has no splits.
        resize: ``crop`` resizes the shorter side to ``image_size`` and crops the centre, ``stretch`` resizes both; null
            crops training images, and follows the model's published weights in evaluation.
        interpolation: filter of the resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``; null takes
            bilinear, and in evaluation that of the model's published weights.
        crop_pct: share of the resized side that the central crop keeps in evaluation, above 0 and up to 1; null takes
            that of the model's published weights, or 1.
        unreadable: ``skip`` leaves out files that cannot be read and names them, ``refuse`` stops at the first.
        cache: ``memory``, ``disk``, ``stream`` (workers decode each image every time), or ``auto``.
        cache_dir: folder of the caches; null is ``zoo/images`` in the user's cache.
        caption_column: name of the column of the captions in a file of captions.
        encoding: text encoding of files of captions without a byte order mark; null is UTF-8.
        drop_labels: take all images below the folder alone, without classes; batches are images.
        predict_folder: new images for ``predict``, without classes.
    """

    fitted_names = ("mean", "std")

    caption_files: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        val_split: float = 0.1,
        test_split: float = 0.1,
        resize: Resizing | None = None,
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        unreadable: Literal["skip", "refuse"] = "skip",
        cache: Literal["auto", "memory", "disk", "stream"] = "auto",
        cache_dir: str | None = None,
        caption_column: str = "text",
        encoding: str | None = None,
        drop_labels: bool = False,
        predict_folder: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if drop_labels and self.captions is not None:
            raise ValueError("drop_labels returns images alone, and captions add texts to them: give one of the two")
        if min(val_split, test_split) < 0 or val_split + test_split >= 1:
            raise ValueError(f"val_split and test_split are shares, got {val_split} and {test_split}")
        self.root = Path(root)
        self.val_split = val_split
        self.test_split = test_split
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is a share above 0 and up to 1, got {crop_pct}")
        self.resize: Resizing | None = resize
        self.interpolation: Interpolation | None = interpolation
        self.crop_pct = crop_pct
        self.published_view = DEFAULT_VIEW
        self.unreadable = unreadable
        self.cache: Caching = cache
        self.cache_dir = Path(cache_dir) if cache_dir else image_cache.default_cache_dir()
        self.caption_column = caption_column
        if encoding is not None:
            check_encoding(encoding)
        self.encoding = encoding
        self.drop_labels = drop_labels
        self.predict_folder = Path(predict_folder) if predict_folder else None
        self._names: dict[str, list[str]] = {}

    # Data spec --------------------------------------------------------------------------------------------------------

    @cached_property
    def listing(self) -> ImageListing:
        """The images of the folder; where it is gone and only new images are predicted, these."""
        if self.predict_folder is not None and self._root_is_missing:
            return list_unlabelled_images(self.predict_folder, "predict_folder")
        has_caption_file = self.captions is not None and not is_template(self.captions)
        if self.drop_labels or has_caption_file:
            return list_unlabelled_images(self.root, ignored=(str(self.captions),))
        return list_images(self.root)

    @property
    def _root_is_missing(self) -> bool:
        return self._predicts_new and not self.root.exists()

    @property
    def _predicts_new(self) -> bool:
        return self.predict_folder is not None or self._new_samples is not None

    def _num_mixed_classes(self) -> int | None:
        return None if self._reads_no_root else self.num_classes

    @property
    def _reads_no_root(self) -> bool:
        """Whether the folder of training is gone, and what a checkpoint keeps of it takes its place."""
        return not self.root.exists() and (bool(self._kept_images) or self.user_statistics is not None)

    @cached_property
    def texts(self) -> Sequence[Caption] | None:  # type: ignore[override]
        if self.captions is None or self._root_is_missing:
            return None
        if is_template(self.captions):
            return super().texts
        return read_captions(self.root, self.captions, self.caption_column, self.listing.files, self.encoding)

    @cached_property
    def _headers(self) -> ImageHeaders:
        return inspect_images(self.listing.root, self.listing.files)

    @property
    def class_names(self) -> list[str] | None:
        return self.listing.classes or None

    @property
    def num_classes(self) -> int | None:
        return len(self.listing.classes) or None

    @property
    def native_channels(self) -> int:  # type: ignore[override]
        if self._kept_images:
            return self._kept_images["channels"]
        if self._reads_no_root and not self._predicts_new:
            mean, _ = self.user_statistics or ([], [])
            return len(mean)
        return self._headers.channels

    @property
    def native_size(self) -> int | None:  # type: ignore[override]
        if self._kept_images or self._reads_no_root:
            height, width = self._kept_images.get("size") or (None, None)
            return height if height == width else None
        size = self._headers.size
        if size is None or size[0] != size[1]:
            return None
        return size[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(c, h, w)`` of each image as it is kept."""
        # Grey images that the model sees in three channels are kept as one.
        channels = 1 if self.channels == 1 else self.native_channels
        if self.side:
            return channels, self.side, self.side
        size = self._headers.size
        if size is None:
            examples = self._headers.examples
            raise ValueError(f"the images in {self.root} differ in size ({examples}): give --data.image_size")
        return (channels, *size)

    def fitted_hparams(self) -> dict[str, Any]:
        # With these in the checkpoint, new images can be normalised without the training images.
        return {"mean": self.mean, "std": self.std}

    def _stored_kind(self) -> dict[str, Any]:
        if self._kept_images or self._reads_no_root:
            return super()._stored_kind()
        channels, *size = self.shape
        return {"channels": min(channels, self.in_channels), "size": size}

    # Datasets ---------------------------------------------------------------------------------------------------------

    @property
    def new_view(self) -> ResizeView:
        return self.eval_view

    @property
    def train_view(self) -> ResizeView:
        """How training images are resized."""
        return ResizeView(self.resize or "crop", self.interpolation or "bilinear")

    @property
    def eval_view(self) -> ResizeView:
        """How images are resized and cropped for validation, test and prediction."""
        published = self.published_view
        crop_pct = self.crop_pct
        if crop_pct is None:
            # A crop among the augmentations is the user's own margin.
            has_own_crop = self.side is not None and self.image_size != self.side
            crop_pct = 1.0 if has_own_crop else published.crop_pct
        return ResizeView(self.resize or published.resize, self.interpolation or published.interpolation, crop_pct)

    def follow_view(self, view: ResizeView) -> None:
        before = self.eval_view
        self.published_view = view
        if self.eval_view == before:
            return
        if self.side is None:
            say("ImageFolder: images keep their own size; --data.image_size resizes them as the weights ask for")
        else:
            say(f"ImageFolder: in evaluation images are resized as the model's weights ask for ({self.eval_view})")
            self.reset_datasets()

    def reader(self, view: ResizeView) -> ImageReader:
        strict = self.unreadable == "refuse"
        return ImageReader(self.shape, self.side, view, strict, self.cache, self.cache_dir)

    def splits(self) -> dict[str, Dataset]:
        check_folder(self.root, "--data.root names a folder of images")
        images = self.reader(self.train_view).read(self.listing)
        datasets: dict[str, Dataset] = {}
        for split, rows in self._split_rows(images).items():
            dataset = images.dataset(rows)
            if split != "train":
                dataset = self._eval_dataset(images, rows)
            if self.drop_labels:
                dataset = CaptionedDataset(dataset, None)
            datasets[split] = dataset
            self._remember_names(split, images, rows)
        return datasets

    def predict_dataset(self) -> Dataset | None:
        if self.predict_folder is None:
            return None
        images = self.reader(self.eval_view).read(list_unlabelled_images(self.predict_folder, "predict_folder"))
        rows = torch.arange(len(images.labels))
        self._remember_names("predict", images, rows)
        return CaptionedDataset(images.dataset(rows), None)

    @property
    def predict_names(self) -> list[str] | None:
        """Files of the samples of ``predict``, in order; None where some may be left out while they are read."""
        split = self.predict_split
        _ = self.dataset(split)
        return self._names.get(split)

    def _eval_dataset(self, images: ReadImages, rows: Tensor) -> Dataset:
        """Return the dataset of some images, read once more where evaluation resizes or crops them otherwise."""
        if self.eval_view == self.train_view or self.side is None:
            return images.dataset(rows)
        listing = self.listing
        if images.names is not None:  # some files may have been left out
            indices = {file: i for i, file in enumerate(listing.files)}
            listing = listing.select([indices[file] for file in images.names])
        again = self.reader(self.eval_view).read(listing.select(rows.tolist()))
        return again.dataset(torch.arange(len(again.labels)))

    def _remember_names(self, split: str, images: ReadImages, rows: Tensor) -> None:
        if images.names is not None:
            self._names[split] = [images.names[i] for i in rows.tolist()]

    # Splits -----------------------------------------------------------------------------------------------------------

    def _split_rows(self, images: ReadImages) -> Rows:
        """Split images as the folder does, or at random, each class in the same shares."""
        classes = None if self.num_classes is None else images.labels
        rows = rows_by_part(images.parts)
        if not rows:
            n = len(images.labels)
            rows = split_train_val_test(n, self.val_split, self.test_split, self.seed, classes)
        elif "val" not in rows and self.val_split:
            train = rows["train"]
            shares = [1 - self.val_split, self.val_split]
            train_classes = None if classes is None else classes[train]
            kept, held_out = split_indices(len(train), shares, self.seed, train_classes)
            rows["train"] = train[kept]
            rows["val"] = train[held_out]
        rows = {split: part for split, part in rows.items() if len(part)}
        if "val" not in rows and "test" in rows:
            rows["val"] = rows["test"]
        self._check_training_rows(rows, images.labels)
        return {split: rows[split] for split in ("train", "val", "test") if split in rows}

    def _check_training_rows(self, rows: Rows, labels: Tensor) -> None:
        """Raise ValueError where there is nothing to train on, at all or of a class."""
        if "train" not in rows:
            missing = "no image"
            classes = self.class_names or []
            if classes:
                missing = f"no image of class {classes[0]!r}"
            raise ValueError(f"{self.root}: {missing} can be read or is left for training")
        present = set(labels[rows["train"]].tolist())
        for label, name in enumerate(self.class_names or []):
            if label not in present:
                raise ValueError(f"{self.root}: no image of class {name!r} can be read or is left for training")


def rows_by_part(parts: list[str]) -> Rows:
    """Return the indices of the images of each split that a folder has; empty where it has none."""
    rows: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        if part:
            rows.setdefault(part, []).append(i)
    return {part: torch.tensor(indices, dtype=torch.long) for part, indices in rows.items()}
