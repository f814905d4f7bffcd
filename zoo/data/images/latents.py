"""Latents of images, made once by the autoencoder of a model and kept."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from zoo._lightning import forget_hyperparameter
from zoo.data import disk_cache
from zoo.data.base import SPEC_FIELDS, DataModule
from zoo.data.images import image_cache, latent_cache
from zoo.data.images.base import ImageData
from zoo.data.images.captions import CaptionedDataset
from zoo.data.images.image_folder import ImageFileDataset
from zoo.data.images.latent_cache import Latent
from zoo.data.sampler import ShardedBatchSampler

VERSION = 1


class Moments(NamedTuple):
    """Normal distributions of latents, which stand in a batch where images would.

    Args:
        mean: ``(b, c, h, w)``.
        logvar: logarithms of the variances, of the same shape.
    """

    mean: Tensor
    logvar: Tensor


class LatentEncoder(Protocol):
    """A model that makes latents of images, as ``LatentDiffusion`` with an autoencoder does."""

    device: torch.device
    encoder_key: str  # of the weights that make them

    @abstractmethod
    def moments(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], Float[Tensor, "b d i j"]]:
        """Means and logarithms of the variances of the latents of images."""


class LatentDataset(Dataset):
    """Latents of a split with what belongs to each image, made or found when the first is asked for.

    Args:
        find: makes or finds them.
    """

    def __init__(self, find: Callable[[], Latent]) -> None:
        self.find = find

    @cached_property
    def stored(self) -> Latent:
        return self.find()

    def __len__(self) -> int:
        return len(self.stored.moments)

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        views = self.stored.moments.shape[1]
        rows = indices if views == 1 else indices * views + torch.randint(views, indices.shape)
        moments = self.stored.moments.flatten(0, 1).index_select(0, rows)
        rest = [p[indices] if isinstance(p, Tensor) else [p[i] for i in indices.tolist()] for p in self.stored.rest]
        return (Moments(*moments.chunk(2, 1)), *(rest or [None]))


class Latents(DataModule):
    """Latents of another dataset's images, for a model with an autoencoder: it sees each image once, not each epoch.

    What is kept are mean and variance of the latents, of which training draws anew each time, so that it goes as it
    would with the images. They lie in files that are mapped into memory and found again by the next run, as long as
    images, their scaling and the weights of the encoder stay the same. The model makes them when they are first needed.

    Args:
        data: the images; they are encoded by ``batch_size`` of it, and its ``seed`` splits them.
        flip: keep those of mirrored training images, too; training takes one or the other by chance.
        cache_dir: folder of the files; null is ``zoo/latents`` in the user's cache.
    """

    def __init__(self, data: ImageData, flip: bool = False, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data.augment:
            names = ", ".join(type(step).__name__ for step in data.augment)
            raise ValueError(
                f"latents are kept of images as they are: take augment ({names}) out of the data; "
                "--data.flip true keeps mirrored images, too"
            )
        self.data, self.flip = data, flip
        self.cache_dir = Path(cache_dir) if cache_dir else disk_cache.user_folder("latents")
        self._fingerprints: dict[str, str] = {}
        if isinstance(self.hparams.get("data"), ImageData):
            forget_hyperparameter(self, "data")  # built in Python: checkpoints hold plain values only

    def __getattr__(self, name: str) -> Any:
        if name in (*SPEC_FIELDS, "mean", "std", "texts", "predict_names"):  # those of the images
            return getattr(self.data, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def override_spec(self, name: str, value: Any) -> bool:
        return self.data.override_spec(name, value)

    def check_model(self, model: Any) -> None:
        if getattr(model, "autoencoder", None) is None:
            raise ValueError(
                f"Latents are what a model's autoencoder makes of images, and this {type(model).__name__} has none: "
                f"give it one (--model.autoencoder), or take {type(self.data).__name__} itself as data"
            )

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.check_model(self.trainer.lightning_module)
        self.data.trainer = self.trainer
        self.data.setup(stage)
        self.__dict__.pop("datasets", None)  # which may be of another model
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        return {name: LatentDataset(partial(self._find, name)) for name in self.data.datasets}

    # Making and finding -----------------------------------------------------------------------------------------------

    def _find(self, split: str) -> Latent:
        if self.trainer is None:
            raise ValueError("Latents are made by the model of a trainer: give them to trainer.fit(model, data), say")
        model: LatentEncoder = self.trainer.lightning_module  # type: ignore[assignment]
        return latent_cache.load_or_build(
            self.cache_dir, self._key(split, model), lambda: self._encode_split(split, model)
        )

    def _key(self, split: str, model: LatentEncoder) -> str:
        """A name for latents by all that they follow from."""
        if split not in self._fingerprints:  # this may take a second for each gigabyte
            self._fingerprints[split] = fingerprint(self.data.datasets[split], self._unshuffled_loader(split))
        scaling = [self.data.in_channels, self.data.image_size, self.data.mean, self.data.std]
        parts = [VERSION, self._fingerprints[split], model.encoder_key, scaling, self._views(split)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _views(self, split: str) -> int:
        return 2 if self.flip and split == "train" else 1

    def _unshuffled_loader(self, split: str) -> Any:
        shard = ShardedBatchSampler(len(self.data.datasets[split]), self.data.batch_size)  # type: ignore[arg-type]
        return self.data._loader(split, shard, seeded=False)

    def _encode_split(self, split: str, model: LatentEncoder) -> Iterator[Latent]:
        """Latents of a split in order, with a progress bar."""
        n = len(self.data.datasets[split])  # type: ignore[arg-type]
        with latent_cache.progress(n, f"encoding {split}") as advance:
            for batch in self._unshuffled_loader(split):
                x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
                x, _ = self.data.prepare(x.to(model.device))
                views = [x, x.flip(-1)][: self._views(split)]
                yield Latent(torch.stack([torch.cat(model.moments(view), 1).cpu() for view in views], 1), rest)
                advance(len(x))


def fingerprint(data: Dataset, batches: Any) -> str:
    """A hash of samples: of files by name, size and time of change, of anything else by every number and letter.

    Args:
        data: the samples.
        batches: gives all of them.
    """
    files, texts = (data.images, data.texts) if isinstance(data, CaptionedDataset) else (data, None)
    if isinstance(files, ImageFileDataset):
        options = dict(getattr(files.decode, "keywords", {}), labels=files.labels.tolist(), texts=texts)
        return image_cache.cache_key(files.root, files.files, **options)
    digests: list[Any] = []  # one for each part of a batch, so that sizes of batches do not matter
    for batch in batches:
        for i, part in enumerate(batch if isinstance(batch, (tuple, list)) else (batch,)):
            tensor = isinstance(part, Tensor)
            if i == len(digests):
                digests.append(hashlib.sha256(f"{part.dtype} {tuple(part.shape[1:])}".encode() if tensor else b"text"))
            digests[i].update(part.contiguous().numpy() if tensor else "".join(map(json.dumps, part)).encode())
    return " ".join(digest.hexdigest() for digest in digests)
