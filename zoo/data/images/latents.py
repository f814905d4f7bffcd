"""Cached latents of images, computed once by the autoencoder of a latent diffusion model."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from zoo._lightning import forget_hyperparameter
from zoo.data import disk_cache
from zoo.data.base import DataModule
from zoo.data.images import image_cache, latent_cache
from zoo.data.images.base import ImageData
from zoo.data.images.captions import Caption, CaptionedDataset
from zoo.data.images.image_reader import ImageFileDataset
from zoo.data.images.latent_cache import Latent
from zoo.data.images.new_images import NewImages
from zoo.data.images.resizing import ResizeView
from zoo.data.new_samples import NewSamples
from zoo.data.progress import progress_bar
from zoo.data.spec import DataSpec

VERSION = 1  # of the files


class Moments(NamedTuple):
    """Mean and log variance of latents, which take the place of images in a batch.

    Args:
        mean: ``(b, c, h, w)``.
        logvar: ``(b, c, h, w)``.
    """

    mean: Tensor
    logvar: Tensor


class LatentEncoder(Protocol):
    """A model that encodes images to latents, as ``LatentDiffusion`` with an autoencoder does."""

    device: torch.device
    encoder_key: str  # hash of the encoder's weights

    @abstractmethod
    def moments(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], Float[Tensor, "b d i j"]]:
        """Return means and log variances of the latents of images."""


class LatentDataset(Dataset):
    """Latents of a split with what else belongs to each image; loaded or computed when first needed.

    Args:
        load: loads or computes them.
    """

    def __init__(self, load: Callable[[], Latent]) -> None:
        self.load = load

    @cached_property
    def stored(self) -> Latent:
        return self.load()

    def __len__(self) -> int:
        return len(self.stored.moments)

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        num_views = self.stored.moments.shape[1]
        rows = indices
        if num_views > 1:  # one view of each image, at random
            rows = indices * num_views + torch.randint(num_views, indices.shape)
        moments = self.stored.moments.flatten(0, 1)  # (n * v, 2c, h, w)
        mean, logvar = moments.index_select(0, rows).chunk(2, 1)  # (b, c, h, w) each
        rest = [_take(part, indices) for part in self.stored.rest]
        return (Moments(mean, logvar), *(rest or [None]))


def _take(part: Any, indices: Tensor) -> Any:
    if isinstance(part, Tensor):
        return part[indices]
    return [part[i] for i in indices.tolist()]


class Latents(DataModule):
    """Cached latents of another dataset's images, for a latent diffusion model: each image is encoded only once.

    Mean and variance of the latents are kept, from which training samples anew each time, so that it goes as it would
    with the images. They lie in memory-mapped files that the next run uses again as long as images, their normalisation
    and the weights of the encoder stay the same. The model computes them when they are first needed.

    Args:
        data: the images; they are encoded by ``batch_size`` of it, and its ``seed`` splits them.
        flip: also keep the latents of mirrored training images; training takes one or the other at random.
        cache_dir: folder of the files; null is ``zoo/latents`` in the user's cache.
    """

    def __init__(self, data: ImageData, flip: bool = False, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data.augment:
            names = ", ".join(type(step).__name__ for step in data.augment)
            raise ValueError(
                f"latents are computed of images without augmentation: take augment ({names}) out of the data; "
                "--data.flip true also keeps mirrored images"
            )
        self.data = data
        self.flip = flip
        self.cache_dir = Path(cache_dir) if cache_dir else disk_cache.user_folder("latents")
        self._fingerprints: dict[str, str] = {}
        if isinstance(self.hparams.get("data"), ImageData):
            forget_hyperparameter(self, "data")  # built in Python: checkpoints hold plain values only

    # What the images know ---------------------------------------------------------------------------------------------

    def spec(self) -> DataSpec:
        return self.data.spec()

    def override_spec(self, name: str, value: Any) -> bool:
        return self.data.override_spec(name, value)

    @property
    def mean(self) -> list[float]:
        return self.data.mean

    @property
    def std(self) -> list[float]:
        return self.data.std

    @property
    def texts(self) -> Sequence[Caption] | None:
        return self.data.texts

    @property
    def predict_names(self) -> list[str] | None:
        return self.data.predict_names

    # Datasets ---------------------------------------------------------------------------------------------------------

    def check_model(self, model: Any) -> None:
        if getattr(model, "autoencoder", None) is None:
            raise ValueError(
                f"Latents need the autoencoder of a latent diffusion model, and this {type(model).__name__} has none: "
                f"give it one (--model.autoencoder), or take {type(self.data).__name__} itself as data"
            )

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.check_model(self.trainer.lightning_module)
        self.data.trainer = self.trainer
        self.data.setup(stage)
        self.reset_datasets()  # which may hold latents of another model
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        for dataset in self.data.datasets.values():
            if isinstance(dataset, CaptionedDataset):
                dataset.draw = False  # texts are stored beside the latents: of several, the first
        return {split: LatentDataset(partial(self._load, split)) for split in self.data.datasets}

    def predict_dataset(self) -> Dataset | None:
        if self.data.predict_split == "test":
            return None
        return LatentDataset(partial(self._load, "predict"))

    # New images -------------------------------------------------------------------------------------------------------

    def read_samples(self, source: Any) -> NewSamples:
        """Read new images, which the model encodes itself; see ``ImageData.read_samples``."""
        samples = self.data.read_samples(source)
        if isinstance(samples.dataset, NewImages) and samples.prepare is not None:
            samples.dataset.complete = samples.prepare
            samples.prepare = None
        return samples

    def predict_samples(self, samples: NewSamples | None) -> None:
        super().predict_samples(samples)
        self.data.predict_samples(samples)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "data": self.data.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "data" in state_dict:
            self.data.load_state_dict(state_dict["data"])

    # Computing and loading --------------------------------------------------------------------------------------------

    def _load(self, split: str) -> Latent:
        if self.trainer is None:
            raise ValueError(
                "Latents are computed by the model of a trainer: use trainer.fit(model, data), for example"
            )
        model: LatentEncoder = self.trainer.lightning_module  # type: ignore[assignment]
        key = self._key(split, model)
        return latent_cache.load_or_build(self.cache_dir, key, lambda: self._encode(split, model))

    def _key(self, split: str, model: LatentEncoder) -> str:
        """Return a hash of everything that the latents depend on."""
        data = self.data
        if split not in self._fingerprints:  # this may take a second for each gigabyte
            self._fingerprints[split] = fingerprint(data.dataset(split), data.ordered_loader(split))
        normalisation = [data.in_channels, data.image_size, data.mean, data.std]
        parts = [VERSION, self._fingerprints[split], model.encoder_key, normalisation, self._num_views(split)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _num_views(self, split: str) -> int:
        return 2 if self.flip and split == "train" else 1

    def _encode(self, split: str, model: LatentEncoder) -> Iterator[Latent]:
        """Yield the latents of a split in order, with a progress bar."""
        n = len(self.data.dataset(split))  # type: ignore[arg-type]
        with progress_bar(n, f"encoding {split}") as advance:
            for batch in self.data.ordered_loader(split):
                x, *rest = _as_tuple(batch)
                x, _ = self.data.prepare(x.to(model.device))
                views = [x, x.flip(-1)][: self._num_views(split)]
                moments = [torch.cat(model.moments(view), 1).cpu() for view in views]  # (b, 2c, h, w) each
                yield Latent(torch.stack(moments, 1), rest)
                advance(len(x))


def fingerprint(data: Dataset, batches: Iterable[Any]) -> str:
    """Return a hash of samples: of files by name, size and modification time, of anything else by their content.

    Args:
        data: the samples.
        batches: all of them.
    """
    files = data
    texts = None
    if isinstance(data, CaptionedDataset):
        files = data.images
        texts = data.texts
    if isinstance(files, ImageFileDataset):
        decoding: dict[str, Any] = dict(getattr(files.decode, "keywords", {}))
        view = decoding.pop("view", None)
        if isinstance(view, ResizeView):
            decoding |= view.cache_options()
        options = {**decoding, "labels": files.labels.tolist(), "texts": texts}
        return image_cache.cache_key(files.root, files.files, **options)
    hashes: list[Any] = []  # one for each part of a batch, so that the batch size does not matter
    for batch in batches:
        for i, part in enumerate(_as_tuple(batch)):
            if i == len(hashes):
                hashes.append(hashlib.sha256(_kind(part)))
            hashes[i].update(_content(part))
    return " ".join(part.hexdigest() for part in hashes)


def _as_tuple(batch: Any) -> tuple[Any, ...] | list[Any]:
    if isinstance(batch, (tuple, list)):
        return batch
    return (batch,)


def _kind(part: Any) -> bytes:
    if isinstance(part, Tensor):
        return f"{part.dtype} {tuple(part.shape[1:])}".encode()
    return b"text"


def _content(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.contiguous().numpy()
    return "".join(map(json.dumps, part)).encode()
