"""How like real images those are that a model makes: Fréchet distance, precision, recall, what a classifier says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.callbacks.best_and_last import BestAndLast
from zoo.metrics import ClassifierFeatures, FrechetDistance, InceptionFeatures, PrecisionRecall

FEATURE_BATCH_SIZE = 256  # images whose features are computed together


class GenerationMetrics(L.Callback):
    """Let a model that makes images make some in a validation or test, and compare them with the real ones of it.

    Logs, with ``val/`` or ``test/`` before it, by the features of a classifier ``frechet_distance`` (near 0 is good),
    ``precision`` (the share of the samples that lie among real images) and ``recall`` (of the real images that lie
    among samples); where samples are made by class ``sample_accuracy``, the share that it recognises, and
    ``sample_accuracy_worst``, of the class it recognises least, else ``sample_classes``, how many classes it sees; by
    those of Inception ``fid``. Compare values of as many samples and real images only. Real images are those of the
    split: a classifier that was trained on the same data has not learned of them, but chose its best epoch by those of
    the validation. Works with any module that has ``sample(n, seed=..., ...)``, as ``Diffusion`` has; where there are
    averages of the weights, these make them. Training goes on as if nothing were measured. Several processes share
    the work. One sample is made in Lightning's check before training, so that a wish that cannot be met is told then.

    Args:
        classifier: checkpoint of a classifier of such images that zoo has trained, ``ClassifierFeatures``, or null.
        inception: file with the weights of FID's Inception, or null.
        n: samples, more than ``neighbors``, rounded up to as many for each process.
        every_n_validations: validations from one measuring to the next; what decides about checkpoints takes 1.
        neighbors: k of precision and recall.
        steps: of the sampler.
        sampler: its name.
        guidance_scale: 1 is the condition alone, above 1 exaggerates it.
        texts: what to make images of, one after the other, where the model reads texts.
        seed: of the noise.
        batch_size: samples made at a time.
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
                f"n, every_n_validations and batch_size start at 1: got {n=}, {every_n_validations=}, {batch_size=}"
            )
        if not 1 <= neighbors < n:
            raise ValueError(f"neighbors starts at 1, and n must be more: got {neighbors=}, {n=}")
        self.classifier, self.inception = classifier, inception
        self.n, self.every_n_validations, self.neighbors, self.texts, self.seed = (
            n,
            every_n_validations,
            neighbors,
            texts,
            seed,
        )
        self.options: dict[str, Any] = {
            "steps": steps, "sampler": sampler, "guidance_scale": guidance_scale, "batch_size": batch_size,
        }  # fmt: skip
        self.confusion: Tensor | None = None  # samples of the last measuring by class that was asked for and class seen
        self.class_names: list[str] = []  # the classifier's
        self._validations = 0
        self._feature_metrics: list[FeatureMetrics] = []

    # Hooks ------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        if not hasattr(pl_module, "sample"):
            name = type(pl_module).__name__
            raise ValueError(f"GenerationMetrics is for models that make images, and {name} makes none")
        self._feature_metrics = []
        classes = getattr(pl_module, "num_classes", None)
        if self.classifier is not None:
            own = self.classifier
            own = own if isinstance(own, ClassifierFeatures) else ClassifierFeatures.load(own)
            check_classes(own, getattr(pl_module, "class_names", None) if classes else None)
            self._feature_metrics.append(FeatureMetrics(own, "frechet_distance", self.neighbors))
            self.class_names = own.class_names or []
        if self.inception is not None:
            neighbors = self.neighbors if self.classifier is None else None
            self._feature_metrics.append(FeatureMetrics(InceptionFeatures(self.inception), "fid", neighbors))
        size, channels = pl_module.hparams.get("image_size"), getattr(pl_module, "image_channels", None)
        for feature_metrics in self._feature_metrics if isinstance(size, int) and isinstance(channels, int) else []:
            feature_metrics.features.check((channels, size, size))  # type: ignore[arg-type]
        names = [f"val/{name}" for feature_metrics in self._feature_metrics for name in feature_metrics.names]
        monitored = [c.monitor for c in trainer.callbacks if isinstance(c, BestAndLast)]  # type: ignore[attr-defined]
        if stage == "fit" and self.every_n_validations > 1 and (waits := [name for name in monitored if name in names]):
            raise ValueError(
                f"checkpoint.monitor is {waits[0]!r}, which needs GenerationMetrics with every_n_validations: 1"
            )

    # Before the end of a validation, where averages make way for the trained weights again.
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            with torch.random.fork_rng(devices=[]):
                generated, _ = self._generate(pl_module, 0, 1)
            for feature_metrics in self._feature_metrics:
                feature_metrics.features(generated)
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

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, value in self.compute(trainer, pl_module, stage).items():
            pl_module.log(f"{stage}/{name}", value, batch_size=1)

    @torch.no_grad()
    def compute(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> dict[str, float]:
        """What is logged, the same in all processes."""
        device = pl_module.device if pl_module.device.type in ("cpu", "cuda") else torch.device("cpu")  # with float64
        share = -(-self.n // trainer.world_size)
        metrics: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            generated, labels = self._generate(pl_module, share * trainer.global_rank, share)
            for feature_metrics in self._feature_metrics:
                feature_metrics.to(device)
                if feature_metrics.stage != stage:
                    feature_metrics.reset(stage)
                    some = [feature_metrics.update(images.to(device), True) for images in real_images(trainer, stage)]
                    if not some:  # in this process; what it has seen is put together with the others' all the same
                        feature_metrics.update(generated[:0].to(device), True)
                for rows in torch.arange(share).split(FEATURE_BATCH_SIZE):
                    feature_metrics.update(
                        generated[rows].to(device), False, None if labels is None else labels[rows].to(device)
                    )
                metrics |= feature_metrics.compute(labels is not None)
                if feature_metrics.confusion is not None:
                    self.confusion = feature_metrics.confusion
                    self.class_names = self.class_names or [str(i) for i in range(len(feature_metrics.confusion))]
                feature_metrics.to("cpu")
        return trainer.strategy.broadcast(metrics)  # for decisions by them are to be the same everywhere

    def _generate(self, pl_module: Any, first: int, n: int) -> tuple[Float[Tensor, "n c h w"], Tensor | None]:
        """Samples from a number on, and of which classes they should be, where they are made by class."""
        numbers, options, labels = range(first, first + n), dict(self.options), None
        if classes := getattr(pl_module, "num_classes", None):
            labels = torch.tensor([i % classes for i in numbers])
            options["labels"] = labels.tolist()
        if self.texts:
            options["texts"] = [self.texts[i % len(self.texts)] for i in numbers]
        if first:
            options["first"] = first
        return pl_module.sample(n, seed=self.seed, **options), labels


class FeatureMetrics(nn.Module):
    """One way to look at images, and what it has seen of real and made ones.

    Args:
        features: from images with pixels from 0 to 1 to features and logits, or None for these.
        distance: by which name its Fréchet distance is logged.
        neighbors: k of precision and recall; null leaves them out.
    """

    def __init__(self, features: ClassifierFeatures | InceptionFeatures, distance: str, neighbors: int | None) -> None:
        super().__init__()
        self.features, self.distance, self.neighbors = features, distance, neighbors
        self.metrics = nn.ModuleDict()
        self.stage: str | None = None  # of which the real images are
        self.confusion: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """What may be logged."""
        more = ["precision", "recall"] if self.neighbors else []
        classes = ["accuracy", "accuracy_worst", "classes"] if isinstance(self.features, ClassifierFeatures) else []
        return [self.distance, *more, *(f"sample_{name}" for name in classes)]

    def reset(self, stage: str) -> None:
        """Forget everything; real images of a split are to come."""
        self.stage, self.metrics = stage, nn.ModuleDict()

    def update(self, images: Float[Tensor, "n c h w"], real: bool, labels: Int[Tensor, " n"] | None = None) -> None:
        """Take images in; of made ones perhaps with their classes."""
        features, logits = self.features(images)
        if not self.metrics:
            self.metrics["distance"] = FrechetDistance(features.shape[1], reset_real_features=False)
            if self.neighbors:
                self.metrics["neighbors"] = PrecisionRecall(self.neighbors, reset_real_features=False)
            if logits is not None:
                self.metrics["classes"] = MulticlassConfusionMatrix(logits.shape[1])
            self.metrics.to(images.device)
        for name, metric in self.metrics.items():
            if name != "classes":
                metric.update(features, real)  # type: ignore[operator]
            elif not real and logits is not None:
                seen = logits.argmax(1)
                metric.update(seen, seen if labels is None else labels)  # type: ignore[operator]

    def compute(self, by_class: bool) -> dict[str, float]:
        """The measures by now; real images are remembered for the next."""
        values = {name: metric.compute() for name, metric in self.metrics.items()}  # type: ignore[operator]
        for metric in self.metrics.values():
            metric.reset()  # type: ignore[operator]
        named = {self.distance: values["distance"], **values.get("neighbors", {})}
        if (counts := values.get("classes")) is not None:
            self.confusion = counts = counts.cpu()
            named |= class_accuracy(counts) if by_class else {"sample_classes": (counts.sum(0) > 0).sum()}
        return {name: float(value) for name, value in named.items()}


def class_accuracy(counts: Int[Tensor, "k k"]) -> dict[str, float]:
    """Which share of samples is recognised, of all and of the class that is recognised least.

    Args:
        counts: samples by the class that was asked for and the class seen.
    """
    each = (counts.diagonal() / counts.sum(1))[counts.sum(1) > 0]
    return {"sample_accuracy": float(counts.trace() / counts.sum()), "sample_accuracy_worst": float(each.min())}


def real_images(trainer: L.Trainer, stage: str) -> Iterator[Float[Tensor, "b c h w"]]:
    """This process' images of a split, with pixels from 0 to 1.

    Args:
        trainer: with data.
        stage: ``val`` or ``test``.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loaders, limits = getattr(trainer, f"{stage}_dataloaders"), getattr(trainer, f"num_{stage}_batches")
    if isinstance(source := getattr(data, "data", None), L.LightningDataModule):  # whose latents the model is given
        data, loaders = source, getattr(source, f"{stage}_dataloader")()
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    mean, std = (v if isinstance(v := getattr(data, name, None), list) else [0.5] for name in ("mean", "std"))
    for batch in islice(loader, None if limits[0] == float("inf") else int(limits[0])):
        batch = batch if data is None else data.on_after_batch_transfer(batch, 0)
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError("GenerationMetrics compares with images (b, c, h, w), and the data has others")
        yield (x.float() * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)).clamp(0, 1)


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
    a, b = next((a, b) for a, b in zip(own, names, strict=True) if a != b)
    raise ValueError(f"{features.name} has a class {a!r} where the model generates {b!r}")
