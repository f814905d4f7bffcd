"""Metrics of generated images during training: Fréchet distance, precision and recall, accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo._lightning import log_global
from zoo.callbacks.best_and_last import BestAndLast
from zoo.metrics import ClassifierFeatures, FeatureMetrics, InceptionFeatures

# Number of images whose features are computed at a time.
FEATURE_BATCH_SIZE = 256


class GenerationMetrics(L.Callback):
    """Generate images in validation and test, and compare them with the real ones.

    Logs, with the prefix ``val/`` or ``test/``:

    - by features of a classifier: ``frechet_distance`` (lower is better), ``precision`` (fraction of generated images
      in the manifold of real ones) and ``recall`` (fraction of real images in the manifold of generated ones);
    - for class-conditional models ``sample_accuracy`` of the classifier on generated images and
      ``sample_accuracy_worst``, that of the class with the lowest one; for others ``sample_classes``, the number of
      classes that it predicts;
    - by features of Inception: ``fid``.

    Values are comparable only for the same numbers of generated and real images. Real images are those of the split. A
    classifier of the same dataset was not trained on them, but its best epoch may be chosen by those of validation.
    Works with any module that has ``sample(n, seed=..., ...)``, such as ``Diffusion``. EMA weights are used if there
    are any. Training continues as without this callback. Several processes share the work. Lightning's sanity check
    before training generates one image, so that unsupported options fail there.

    Args:
        classifier: checkpoint of a zoo classifier of such images, or a ``ClassifierFeatures``; null for none.
        inception: file with the weights of FID's Inception; null for none.
        n: number of generated images, more than ``neighbors``; rounded up to a multiple of the number of processes.
        every_n_validations: number of validations between measurements; 1 if ``checkpoint.monitor`` is one of these
            metrics.
        neighbors: k of precision and recall.
        steps: number of sampling steps.
        sampler: name of the sampler.
        guidance_scale: scale of classifier-free guidance; 1 is without guidance.
        texts: prompts for a text-conditional model, used in turn.
        seed: seed of the generated images.
        batch_size: number of images that are generated at a time.
    """

    def __init__(
        self,
        classifier: str | ClassifierFeatures | None = None,
        inception: str | None = None,
        n: int = 500,
        every_n_validations: int = 1,
        neighbors: int = 3,
        steps: int = 20,
        sampler: str = "dpm++",
        guidance_scale: float = 1.0,
        texts: list[str] | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        if classifier is None and inception is None:
            raise ValueError(
                "GenerationMetrics needs a classifier (a checkpoint of zoo) or inception (a file), or both"
            )
        if n < 1 or every_n_validations < 1 or batch_size < 1:
            raise ValueError(
                f"n, every_n_validations and batch_size must be at least 1: got {n=}, {every_n_validations=}, "
                f"{batch_size=}"
            )
        if not 1 <= neighbors < n:
            raise ValueError(f"neighbors must be at least 1 and less than n: got {neighbors=}, {n=}")
        self.classifier = classifier
        self.inception = inception
        self.n = n
        self.every_n_validations = every_n_validations
        self.neighbors = neighbors
        self.texts = texts
        self.seed = seed
        self.options: dict[str, Any] = {
            "steps": steps,
            "sampler": sampler,
            "guidance_scale": guidance_scale,
            "batch_size": batch_size,
        }
        # Generated images of the last measurement by label and predicted class, and the names of the classes.
        self.confusion: Tensor | None = None
        self.class_names: list[str] = []
        self._validations = 0
        self._feature_metrics: list[FeatureMetrics] = []

    # Hooks ------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        if not hasattr(pl_module, "sample"):
            name = type(pl_module).__name__
            raise ValueError(f"GenerationMetrics needs a model that generates images, and {name} has no sample()")
        self._feature_metrics = []
        if self.classifier is not None:
            features = self.classifier
            if not isinstance(features, ClassifierFeatures):
                features = ClassifierFeatures.load(features)
            check_classes(features, generated_classes(pl_module))
            self._feature_metrics.append(FeatureMetrics(features, "frechet_distance", self.neighbors))
            self.class_names = features.class_names or []
        if self.inception is not None:
            # Precision and recall are logged once, by the classifier's features if there is one.
            neighbors = self.neighbors if self.classifier is None else None
            self._feature_metrics.append(FeatureMetrics(InceptionFeatures(self.inception), "fid", neighbors))
        size = pl_module.hparams.get("image_size")
        channels = getattr(pl_module, "image_channels", None)
        if isinstance(size, int) and isinstance(channels, int):
            for feature_metrics in self._feature_metrics:
                feature_metrics.features.check((channels, size, size))
        if stage == "fit" and self.every_n_validations > 1:
            self._check_monitor(trainer)

    def _check_monitor(self, trainer: L.Trainer) -> None:
        """Raise an error where checkpoints are chosen by a metric that some validations do not log."""
        names = set()
        for feature_metrics in self._feature_metrics:
            names.update(f"val/{name}" for name in feature_metrics.names)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestAndLast) and callback.monitor in names:
                raise ValueError(
                    f"checkpoint.monitor is {callback.monitor!r}, which needs GenerationMetrics with "
                    "every_n_validations: 1"
                )

    # Not in on_validation_end: the raw weights are swapped back in before it.
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            self._try(pl_module)
            return
        if trainer.state.fn == "fit":
            self._validations += 1
            if self._validations % self.every_n_validations:
                return
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    # Measuring --------------------------------------------------------------------------------------------------------

    def _try(self, pl_module: L.LightningModule) -> None:
        """Generate one image and compute its features, so that options that do not work fail before training."""
        with torch.random.fork_rng(devices=[]):
            generated, _ = self._generate(pl_module, 0, 1)
        for feature_metrics in self._feature_metrics:
            feature_metrics.features(generated)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, value in self.compute(trainer, pl_module, stage).items():
            log_global(pl_module, f"{stage}/{name}", value)

    @torch.no_grad()
    def compute(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> dict[str, float]:
        """Return the metrics, the same on all processes.

        Args:
            trainer: the trainer, for its data and processes.
            pl_module: module that generates the images.
            stage: ``val`` or ``test``.
        """
        device = pl_module.device
        if device.type not in ("cpu", "cuda"):
            device = torch.device("cpu")  # others may lack float64
        n = -(-self.n // trainer.world_size)  # of this process, rounded up
        metrics: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            generated, labels = self._generate(pl_module, n * trainer.global_rank, n)
            for feature_metrics in self._feature_metrics:
                feature_metrics.to(device)
                if feature_metrics.stage != stage:
                    feature_metrics.reset(stage)
                    self._add_real(feature_metrics, trainer, stage, device, generated)
                self._add_generated(feature_metrics, generated, labels, device)
                metrics |= feature_metrics.compute(labels is not None)
                if feature_metrics.confusion is not None:
                    self.confusion = feature_metrics.confusion
                    if not self.class_names:
                        self.class_names = [str(i) for i in range(len(self.confusion))]
                feature_metrics.to("cpu")
        # Callbacks decide by them, which has to turn out the same on all processes, in spite of rounding.
        return trainer.strategy.broadcast(metrics)

    @staticmethod
    def _add_real(
        feature_metrics: FeatureMetrics,
        trainer: L.Trainer,
        stage: str,
        device: torch.device,
        generated: Float[Tensor, "n c h w"],
    ) -> None:
        is_empty = True
        for images in real_images(trainer, stage):
            feature_metrics.update(images.to(device), real=True)
            is_empty = False
        if is_empty:
            # All processes have to take part when states are gathered, those without real images too.
            feature_metrics.update(generated[:0].to(device), real=True)

    @staticmethod
    def _add_generated(
        feature_metrics: FeatureMetrics,
        generated: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"] | None,
        device: torch.device,
    ) -> None:
        for start in range(0, len(generated), FEATURE_BATCH_SIZE):
            rows = slice(start, start + FEATURE_BATCH_SIZE)
            batch_labels = None
            if labels is not None:
                batch_labels = labels[rows].to(device)
            feature_metrics.update(generated[rows].to(device), real=False, labels=batch_labels)

    def _generate(
        self,
        pl_module: Any,
        first: int,
        n: int,
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"] | None]:
        """Generate images, and return them with their labels if the model is class-conditional.

        Args:
            pl_module: module that generates them.
            first: index of the first image.
            n: number of images.
        """
        indices = range(first, first + n)
        options = dict(self.options)
        labels = None
        num_classes = getattr(pl_module, "num_classes", None)
        if num_classes:
            labels = torch.tensor([i % num_classes for i in indices])
            options["labels"] = labels.tolist()
        if self.texts:
            options["texts"] = [self.texts[i % len(self.texts)] for i in indices]
        if first:
            options["first"] = first
        return pl_module.sample(n, seed=self.seed, **options), labels


def generated_classes(module: Any) -> list[str] | None:
    """Return the names of the classes that a module generates; None if it is not class-conditional."""
    if not getattr(module, "num_classes", None):
        return None
    return getattr(module, "class_names", None)


def real_images(trainer: L.Trainer, stage: str) -> Iterator[Float[Tensor, "b c h w"]]:
    """Yield this process' images of a split in batches, with pixels in [0, 1].

    Args:
        trainer: the trainer, for its data.
        stage: ``val`` or ``test``.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loaders = getattr(trainer, f"{stage}_dataloaders")
    limits = getattr(trainer, f"num_{stage}_batches")
    source = getattr(data, "data", None)
    if isinstance(source, L.LightningDataModule):
        # A dataset of latents, made from the images of another dataset.
        data = source
        loaders = getattr(source, f"{stage}_dataloader")()
    loader = loaders
    if isinstance(loaders, (list, tuple)):
        loader = loaders[0]
    limit = None
    if limits[0] != float("inf"):
        limit = int(limits[0])
    mean = normalization_of(data, "mean")
    std = normalization_of(data, "std")
    for batch in islice(loader, limit):
        if data is not None:
            batch = data.on_after_batch_transfer(batch, 0)
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError("GenerationMetrics needs data with images (b, c, h, w)")
        pixels = x.float() * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)  # (b, c, h, w)
        yield pixels.clamp(0, 1)


def normalization_of(data: Any, name: str) -> list[float]:
    """Return ``mean`` or ``std`` of a datamodule; 0.5, of images in [-1, 1], if it does not say."""
    value = getattr(data, name, None)
    if isinstance(value, list):
        return value
    return [0.5]


def check_classes(features: ClassifierFeatures, names: list[str] | None) -> None:
    """Raise an error where a classifier has other classes than the model generates.

    Args:
        features: features of the classifier.
        names: names of the generated classes; None for unconditional samples.
    """
    own = features.class_names
    if names is None or own is None or list(names) == list(own):
        return
    if len(names) != len(own):
        raise ValueError(f"{features.name} has {len(own)} classes, but the model generates {len(names)}")
    for a, b in zip(own, names, strict=True):
        if a != b:
            raise ValueError(f"{features.name} has a class {a!r} where the model generates {b!r}")
