"""Images in classes: held as bytes, augmented and normalised by whole batches on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo._lightning import forget_hyperparameter
from zoo.data.augment import Augmentation
from zoo.data.augment.base import LabelMixing
from zoo.data.augment.chain import Chain, output_size, resize, seeded
from zoo.data.base import BatchTensorDataset, DataModule, run_seed, say, split_indices
from zoo.data.images.captions import CaptionedDataset, captions_from_classes, check_captions
from zoo.data.sampler import mix_seeds

SAMPLE = 20_000  # images that a mean is taken over, at most


class ImageDataset(BatchTensorDataset):
    """Some rows of images and labels that are held once, in memory or in a file mapped into it.

    Args:
        images: ``(n, c, h, w)``.
        labels: ``(n,)`` class numbers.
        rows: which of them; null is all.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images, self.every = images, labels
        self.rows = torch.arange(len(labels)) if rows is None else rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.batch(torch.arange(len(self)))

    @property
    def labels(self) -> Tensor:
        return self.every[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.rows[index]
        return self.images[row], self.every[row]

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        rows = self.rows[indices]
        return self.images.index_select(0, rows), self.every.index_select(0, rows)


class ImageData(DataModule):
    """Images in classes. Subclasses write ``splits``, whose images are bytes, and set the data spec fields that they know.

    Batches leave the loader as bytes, a quarter of what floats would take to move; what the network gets is made of
    them where it is. A plain loop calls ``prepare`` itself.

    Args:
        image_size: side of the images in pixels, to which they are resized; null leaves them.
        channels: 1 (grey) or 3; null keeps what the images have.
        augment: what is done to training batches, in this order: classes of zoo.data.augment by name; transforms of
            torchvision by class path, which are applied image by image, so more slowly.
        mean: of each channel of pixels in [0, 1], taken off; null takes that of the training images.
        std: deviation of each channel, by which is divided; null takes that of the training images.
        captions: makes batches of images and texts, in place of class numbers: a text into which the name of the class
            is put for ``{}``, such as ``a photo of a {}``.
    """

    caption_files: ClassVar[bool] = False  # whether captions may be the name of a file, too
    native_channels: int  # of the images as they are stored
    native_size: int | None  # their side, if they are square
    default_mean: ClassVar[list[float] | None] = None
    default_std: ClassVar[list[float] | None] = None

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        augment: list[Augmentation | nn.Module] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        captions: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if captions is not None:
            check_captions(captions, self.caption_files)
            if mixing := [type(step).__name__ for step in augment or () if isinstance(step, LabelMixing)]:
                raise ValueError(f"{mixing[0]} mixes labels, and captions put texts in their place")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels is {channels}, but must be 1 (grey), 3, or null for what the images have")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size starts at 1, got {image_size}")
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
            raise ValueError(f"mean and std belong together, one number a channel; got mean={mean}, std={std}")
        self.side, self.channels, self.augment = image_size, channels, list(augment or [])
        self.captions = captions
        self.user_statistics = (list(mean), list(std)) if mean is not None and std is not None else None
        if any(isinstance(step, nn.Module) for step in self.hparams.get("augment") or ()):
            forget_hyperparameter(self, "augment")  # built in Python: checkpoints hold plain values only

    # Data spec ------------------------------------------------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        return self.channels or self.native_channels

    @property
    def image_size(self) -> int | None:
        """The side of the images that the network gets."""
        return output_size(self.augment) or self.side or self.native_size

    @property
    def mean(self) -> list[float]:
        return self.statistics[0]

    @property
    def std(self) -> list[float]:
        return self.statistics[1]

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel of the training pixels, in [0, 1]."""
        found = self.user_statistics
        if found is None and self.default_mean and self.default_std and self.in_channels >= self.native_channels:
            found = self.default_mean, self.default_std
        found = found or channel_statistics(self.datasets["train"])
        mean, std = (list(v) * self.in_channels if len(v) == 1 else list(v) for v in found)
        if len(mean) != self.in_channels:
            raise ValueError(f"mean and std have {len(mean)} numbers for images of {self.in_channels} channels")
        return mean, [s or 1.0 for s in std]

    @property
    def texts(self) -> list[str] | None:
        """What is said of images, by the numbers that stand beside them; None where these are their classes."""
        if self.captions is None:
            return None
        if (names := getattr(self, "class_names", None)) is None:
            raise ValueError(f"captions {self.captions!r} need names of classes, and {type(self).__name__} has none")
        return captions_from_classes(self.captions, names)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        texts = self.texts
        return {
            name: part if texts is None or isinstance(part, CaptionedDataset) else CaptionedDataset(part, texts)
            for name, part in self.splits().items()
        }

    def override_spec(self, name: str, value: Any) -> bool:
        """Give grey images three equal channels where the model asks for them."""
        if (name, value, self.native_channels, self.channels) != ("in_channels", 3, 1, None):
            return False
        say(f"{type(self).__name__}: grey images become three equal channels, as the model asks for in_channels 3")
        self.channels = 3
        self.__dict__.pop("statistics", None)
        return True

    def setup(self, stage: str) -> None:
        """Normalise as the weights that a model starts from were trained, unless the user says otherwise."""
        model = getattr(self.trainer, "lightning_module", None)
        if self.captions is not None and getattr(model, "num_classes", None) is not None:
            raise ValueError(f"captions put texts in the place of the class numbers that {type(model).__name__} needs")
        wanted = getattr(model, "preprocessing", None) or {}
        mean, std = wanted.get("mean"), wanted.get("std")
        if self.user_statistics is None and mean and std and len(mean) == len(std) == self.in_channels:
            say(f"{type(self).__name__}: images are normalised as the model asks for")
            self.user_statistics = list(mean), list(std)
            for made in ("statistics", "chain"):
                self.__dict__.pop(made, None)
        super().setup(stage)

    # From stored bytes to what the network takes ----------------------------------------------------------------------

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.augment, *self.statistics, getattr(self, "num_classes", None))

    def prepare(
        self, x: Shaped[Tensor, "b c h w"], y: Any = None, training: bool = False, epoch: int = 0
    ) -> tuple[Float[Tensor, "b d i j"], Any]:
        """Augment (in training) and normalise a batch as it comes from the loader.

        Args:
            x: images, bytes.
            y: their labels, which some augmentations mix, or texts.
            training: whether to augment.
            epoch: number of the epoch, by which flips may alternate.
        """
        with torch.no_grad():
            if self.in_channels == 3 and x.shape[1] == 1:
                x = x.expand(-1, 3, -1, -1)
            if self.side and min(x.shape[2:]) < self.side:
                x = resize(x, self.side)
            return self.chain(x, y, training, epoch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare a batch on its device; what is drawn follows from the run's seed and the batch's number."""
        x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        trainer, y = self.trainer, rest[0] if rest else None
        if trainer is None or not trainer.training:
            x, y = self.prepare(x, y)
        else:
            # The step's own seed is set only after this, so the draws have one of theirs; 1 keeps the two apart.
            number = trainer.fit_loop.epoch_loop.total_batch_idx + 2
            with seeded(mix_seeds(run_seed(), number, trainer.global_rank, 1), x.device):
                x, y = self.prepare(x, y, training=True, epoch=trainer.current_epoch)
        if trainer is not None:
            x = trainer.precision_plugin.convert_input(x)
        return x if not isinstance(batch, (tuple, list)) else (x, y, *rest[1:]) if rest else (x,)


class DownloadableImages(ImageData, ABC):
    """A published set of images with a training and a test part, in the files that torchvision reads.

    Args:
        root: folder with the files, as torchvision lays them out.
        download: fetch files that are missing.
        val_split: share of the training images kept for validation; 0 validates on the test images.
    """

    def __init__(self, root: str = "data", download: bool = False, val_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= val_split < 1:
            raise ValueError(f"val_split is a share in [0, 1), got {val_split}")
        self.root, self.download, self.val_split = Path(root), download, val_split

    @abstractmethod
    def find(self) -> None:
        """See that all files are there, fetch those that are not, or say which is missing."""

    @abstractmethod
    def read(self, part: str) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Images and labels of ``train`` or ``test``."""

    def splits(self) -> dict[str, Dataset]:
        self.find()
        parts = {part: self._fit(*self.read(part)) for part in ("train", "test")}
        images, labels = parts["train"]
        if self.val_split == 0:
            found = {"train": ImageDataset(images, labels), "val": ImageDataset(*parts["test"])}
        else:
            rows = split_indices(len(labels), [1 - self.val_split, self.val_split], self.seed, labels)
            found = {name: ImageDataset(images, labels, r) for name, r in zip(("train", "val"), rows, strict=True)}
        return {**found, "test": ImageDataset(*parts["test"])}

    def _fit(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take colour and pixels off now that will not be needed; what is added waits for the device."""
        if self.in_channels < images.shape[1]:
            from torchvision.transforms.v2.functional import rgb_to_grayscale

            images = rgb_to_grayscale(images)
        if self.side and min(images.shape[2:]) > self.side:
            images = torch.cat([resize(part, self.side) for part in images.split(4096)])
        return images, labels


def channel_statistics(data: Dataset, sample: int = SAMPLE) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over all pixels of images, bytes counting from 0 to 1.

    Args:
        data: whose samples begin with an image ``(c, h, w)``.
        sample: of larger sets so many images, evenly spaced, are looked at.
    """
    n = len(data)  # type: ignore[arg-type]
    picked = torch.arange(n) if n <= sample else torch.linspace(0, n - 1, sample).long()
    total, squares, pixels = torch.zeros(1), torch.zeros(1), 0
    for part in picked.split(512):
        x = stack_inputs(data, part)
        x = x.double() / (1 if x.is_floating_point() else 255)
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
        pixels += x.numel() // x.shape[1]
    mean = total / pixels
    return mean.tolist(), (squares / pixels - mean.square()).clamp(min=0).sqrt().tolist()


def stack_inputs(data: Dataset, indices: Tensor) -> Tensor:
    """The images of some samples, without those that cannot be read."""
    if (batch := getattr(data, "batch", None)) is not None:
        found = batch(indices)
        return found[0] if isinstance(found, (tuple, list)) else found
    samples: Sequence[Any] = [data[i] for i in indices.tolist()]
    return torch.stack([s[0] for s in samples if s is not None])
