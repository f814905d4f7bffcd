"""Image datasets: held as bytes, augmented and normalised a batch at a time on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo._lightning import forget_hyperparameter
from zoo.data.augment import Augmentation
from zoo.data.augment.base import LabelMixing
from zoo.data.augment.chain import Chain, output_size, resize, seeded
from zoo.data.base import BatchTensorDataset, DataModule, run_seed
from zoo.data.images.captions import Caption, CaptionedDataset, captions_from_classes, check_captions
from zoo.data.images.new_images import NewImages, collect_images
from zoo.data.images.resizing import DEFAULT_VIEW, ResizeView, published_view
from zoo.data.images.statistics import channel_statistics
from zoo.data.images.statistics import stack_inputs as stack_inputs
from zoo.data.new_samples import NewSamples
from zoo.data.sampler import mix_seeds
from zoo.distributed import say
from zoo.errors import UserError

Statistics = tuple[list[float], list[float]]


class ImageDataset(BatchTensorDataset):
    """Images and labels: some rows of tensors that are held once, in memory or in a memory-mapped file.

    Args:
        images: ``(n, c, h, w)``.
        labels: ``(n,)`` class indices.
        rows: indices of the rows that belong to this dataset; null takes all.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        if rows is None:
            rows = torch.arange(len(labels))
        self.images = images
        self.all_labels = labels
        self.rows = rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.batch(torch.arange(len(self)))

    @property
    def labels(self) -> Tensor:
        return self.all_labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.rows[index]
        return self.images[row], self.all_labels[row]

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        rows = self.rows[indices]
        return self.images.index_select(0, rows), self.all_labels.index_select(0, rows)


class ImageData(DataModule):
    """Images for classification. Subclasses implement ``splits`` with images as bytes, and set ``num_classes`` and so
    on.

    Batches leave the loader as bytes, a quarter of the size of floats; they are augmented and normalised on the device.
    A training loop without Lightning calls ``prepare`` itself.

    Args:
        image_size: height and width in pixels to which the images are resized; null leaves them.
        channels: 1 (grey) or 3; null keeps what the images have.
        augment: augmentations of training batches, in this order: classes of zoo.data.augment by name; transforms of
            torchvision by class path, which are applied image by image, so more slowly.
        mean: mean of each channel for normalisation, of pixels in [0, 1]; null takes that of the training images.
        std: standard deviation of each channel for normalisation; null takes that of the training images.
        captions: makes batches of images and texts instead of class labels: a template such as ``a photo of a {}``,
            with ``{}`` for the class name.
    """

    caption_files: ClassVar[bool] = False  # whether captions may also be the name of a file
    native_channels: int  # channels of the images as they are stored
    native_size: int | None  # their height and width, if these are equal
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
        augment = list(augment or [])
        if captions is not None:
            check_captions(captions, self.caption_files)
            for step in augment:
                if isinstance(step, LabelMixing):
                    raise ValueError(f"{type(step).__name__} mixes labels, which captions replace by texts: drop one")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels is {channels}, but must be 1 (grey), 3, or null for what the images have")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size starts at 1, got {image_size}")
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
            raise ValueError(f"mean and std belong together, one number a channel; got mean={mean}, std={std}")
        self.side = image_size
        self.channels = channels
        self.augment = augment
        self.captions = captions
        self.user_statistics: Statistics | None = None
        if mean is not None and std is not None:
            self.user_statistics = list(mean), list(std)
        self._train_statistics: Statistics | None = None
        # What a checkpoint keeps of the training images: see `state_dict`.
        self._kept_images: dict[str, Any] = {}
        self._chain: Chain | None = None
        if any(isinstance(step, nn.Module) for step in self.hparams.get("augment") or ()):
            forget_hyperparameter(self, "augment")  # built in Python: checkpoints hold plain values only

    # Data spec --------------------------------------------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        """Channels of the images that the network gets."""
        return self.channels or self.native_channels

    @property
    def image_size(self) -> int | None:
        """Height and width of the images that the network gets."""
        return output_size(self.augment) or self.side or self.native_size

    def override_spec(self, name: str, value: Any) -> bool:
        """Repeat grey images to three channels where the model has ``in_channels=3``."""
        is_grey = self.native_channels == 1 and self.channels is None
        if name != "in_channels" or value != 3 or not is_grey:
            return False
        say(f"{type(self).__name__}: grey images become three equal channels, as the model asks for in_channels 3")
        self.channels = 3
        self._chain = None
        return True

    # Normalisation ----------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> list[float]:
        return self.statistics[0]

    @property
    def std(self) -> list[float]:
        return self.statistics[1]

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel that images are normalised by, of pixels in [0, 1]."""
        mean, std = self._stored_statistics()
        if len(mean) == 1:
            mean = mean * self.in_channels
            std = std * self.in_channels
        if len(mean) != self.in_channels:
            raise ValueError(f"mean and std have {len(mean)} numbers for images of {self.in_channels} channels")
        return list(mean), [value or 1.0 for value in std]  # a constant channel is divided by 1

    def _stored_statistics(self) -> Statistics:
        """Return the statistics of the user or the model, else those known of the dataset, else the measured ones."""
        if self.user_statistics is not None:
            return self.user_statistics
        # Those of a colour dataset do not hold for its grey images.
        if self.default_mean and self.default_std and self.in_channels >= self.native_channels:
            return self.default_mean, self.default_std
        if self._kept_images and len(self._kept_images["mean"]) == self.in_channels:
            return self._kept_images["mean"], self._kept_images["std"]
        if self._train_statistics is None:
            self._train_statistics = self.measure_statistics()
        return self._train_statistics

    def measure_statistics(self) -> Statistics:
        """Return mean and standard deviation of each channel of the training pixels, in [0, 1]."""
        return channel_statistics(self.datasets["train"])

    def use_statistics(self, mean: list[float], std: list[float]) -> None:
        """Normalise by this mean and standard deviation from now on."""
        self.user_statistics = list(mean), list(std)
        self._chain = None

    def setup(self, stage: str) -> None:
        """Normalise as in the pretraining of the model's weights, unless the user gave mean and std."""
        model = getattr(self.trainer, "lightning_module", None)
        self.follow_model(model)
        super().setup(stage)

    def follow_model(self, model: Any) -> None:
        """Normalise and resize as in the pretraining of a model's weights, as ``setup`` does with a Trainer."""
        if self.captions is not None and getattr(model, "num_classes", None) is not None:
            raise ValueError(f"captions replace the class labels that {type(model).__name__} needs: drop captions")
        preprocessing = getattr(model, "preprocessing", None) or {}
        mean = preprocessing.get("mean")
        std = preprocessing.get("std")
        if self.user_statistics is None and mean and std and len(mean) == len(std) == self.in_channels:
            say(f"{type(self).__name__}: images are normalised as the model asks for")
            self.use_statistics(mean, std)
        view = published_view(preprocessing)
        if view is not None:
            self.follow_view(view)

    def follow_view(self, view: ResizeView) -> None:
        """Resize and crop evaluation images as the model's published weights ask for; say where that is not done."""
        if view != DEFAULT_VIEW:
            say(
                f"{type(self).__name__}: images are not resized as the model's weights ask for ({view}); ImageFolder "
                "does so with the same images as files"
            )

    # Captions ---------------------------------------------------------------------------------------------------------

    @property
    def texts(self) -> Sequence[Caption] | None:
        """The captions, by the number that stands for each in the datasets; None where that is the class label."""
        if self.captions is None:
            return None
        class_names = getattr(self, "class_names", None)
        if class_names is None:
            raise ValueError(f"captions {self.captions!r} need class names, and {type(self).__name__} has none")
        return captions_from_classes(self.captions, class_names)

    @property
    def predict_names(self) -> list[str] | None:
        """Files of the samples of ``predict``, in order; None where they are not files."""
        return None

    def build_datasets(self) -> dict[str, Dataset]:
        texts = self.texts
        datasets = self.splits()
        if texts is None:
            return datasets
        captioned: dict[str, Dataset] = {}
        for name, dataset in datasets.items():
            captioned[name] = CaptionedDataset(dataset, texts, draw=name == "train")
        return captioned

    # New images -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return also what new images are prepared by: statistics, channels and size of the training images."""
        state = super().state_dict()
        if self._datasets is None and not self._kept_images:
            return state
        mean, std = self.statistics
        return {**state, "images": {"mean": mean, "std": std, **self._stored_kind()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        kept = state_dict.get("images")
        if isinstance(kept, dict) and {"mean", "std", "channels", "size"} <= kept.keys():
            self._kept_images = kept

    def _stored_kind(self) -> dict[str, Any]:
        """Return channels and size of images as they are stored, before augmentation and normalisation."""
        if self._kept_images:
            return {name: self._kept_images[name] for name in ("channels", "size")}
        size = None if self.side is None else [self.side, self.side]
        if size is None and self.native_size is not None:
            size = [self.native_size, self.native_size]
        return {"channels": min(self.native_channels, self.in_channels), "size": size}

    def read_samples(self, source: Any) -> NewSamples:
        """Read new images.

        Args:
            source: paths of files, folders or patterns; images of Pillow; arrays ``(h, w, c)`` or ``(b, h, w, c)``,
                tensors ``(c, h, w)`` or ``(b, c, h, w)``, bytes or floats from 0 to 1.
        """
        items, names = collect_images(source)
        if not items:
            raise UserError("no images to predict")
        images = self.new_images(items)
        images.say_changes()
        columns = {"file": names} if names else {}
        return NewSamples(images, columns, prepare=self._prepare_new, failed=images.failed)

    def new_images(self, items: Sequence[Any]) -> NewImages:
        """Return new images as the dataset of a split has them."""
        kind = self._stored_kind()
        size = None
        if kind["size"] is not None:
            height, width = kind["size"]
            size = (height, width)
        if self.side is not None:  # by an option, perhaps another than that of training
            size = (self.side, self.side)
        return NewImages(items, kind["channels"], size, self.new_view)

    @property
    def new_view(self) -> ResizeView:
        """How new images are resized and cropped."""
        return DEFAULT_VIEW

    def _prepare_new(self, x: Tensor) -> Tensor:
        prepared, _ = self.prepare(x)
        return prepared

    # From stored bytes to the input of the network --------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """The augmentations, and the normalisation after them."""
        if self._chain is None:
            mean, std = self.statistics
            self._chain = Chain(self.augment, mean, std, self._num_mixed_classes())
        return self._chain

    def _num_mixed_classes(self) -> int | None:
        """Return the number of classes for augmentations that mix labels."""
        return getattr(self, "num_classes", None)

    def prepare(
        self,
        x: Shaped[Tensor, "b c h w"],
        y: Any = None,
        training: bool = False,
        epoch: int = 0,
    ) -> tuple[Float[Tensor, "b d i j"], Any]:
        """Augment (in training) and normalise a batch as it comes from the loader.

        Args:
            x: images, bytes.
            y: their labels, which some augmentations mix, or texts.
            training: whether to augment.
            epoch: index of the epoch, by which flips may alternate.
        """
        with torch.no_grad():
            if self.in_channels == 3 and x.shape[1] == 1:
                x = x.expand(-1, 3, -1, -1)  # (b, 3, h, w)
            if self.side and min(x.shape[2:]) < self.side:
                x = resize(x, self.side)
            return self.chain(x, y, training, epoch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare a batch on its device."""
        if not isinstance(batch, (tuple, list)):
            x, _ = self._prepare_in_trainer(batch, None)
            return x
        x, *rest = batch
        if not rest:
            x, _ = self._prepare_in_trainer(x, None)
            return (x,)
        x, y = self._prepare_in_trainer(x, rest[0])
        return (x, y, *rest[1:])

    def _prepare_in_trainer(self, x: Tensor, y: Any) -> tuple[Tensor, Any]:
        """Prepare a batch with random numbers that follow from the run's seed and the index of the batch."""
        trainer = self.trainer
        if trainer is None:
            return self.prepare(x, y)
        if not trainer.training:
            x, y = self.prepare(x, y)
        else:
            # The step's own seed is set only after this, so augmentation has one of its own: the 1 makes it differ.
            step = trainer.fit_loop.epoch_loop.total_batch_idx + 2
            with seeded(mix_seeds(run_seed(), step, trainer.global_rank, 1), x.device):
                x, y = self.prepare(x, y, training=True, epoch=trainer.current_epoch)
        return trainer.precision_plugin.convert_input(x), y
