"""All metrics of generated images that are computed from one kind of features."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.metrics.features import ClassifierFeatures, InceptionFeatures
from zoo.metrics.generation import FrechetDistance, PrecisionRecall


class FeatureMetrics(nn.Module):
    """Metrics from the features of one network: Fréchet distance, precision and recall, predicted classes.

    Real images are kept between evaluations of the same split; generated ones are not.

    Args:
        features: maps images with pixels in [0, 1] to features and to logits or None.
        distance: name of the Fréchet distance.
        neighbors: k of precision and recall; None computes neither.
    """

    def __init__(
        self,
        features: ClassifierFeatures | InceptionFeatures,
        distance: str,
        neighbors: int | None,
    ) -> None:
        super().__init__()
        self.features = features
        self.distance = distance
        self.neighbors = neighbors
        self.metrics = nn.ModuleDict()
        # The split that the real images are from, ``val`` or ``test``.
        self.stage: str | None = None
        self.confusion: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """Names of all metrics that ``compute`` may return."""
        names = [self.distance]
        if self.neighbors:
            names += ["precision", "recall"]
        if isinstance(self.features, ClassifierFeatures):
            names += ["sample_accuracy", "sample_accuracy_worst", "sample_classes"]
        return names

    def reset(self, stage: str) -> None:
        """Discard all images, real ones too, and begin with those of a split."""
        self.stage = stage
        self.metrics = nn.ModuleDict()

    def update(
        self,
        images: Float[Tensor, "n c h w"],
        real: bool,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Add images.

        Args:
            images: images with pixels in [0, 1].
            real: whether they are real or generated.
            labels: class that each generated image should have; None if they are not class-conditional.
        """
        features, logits = self.features(images)  # (n, d), (n, k)
        if not self.metrics:
            self._create_metrics(features, logits)
        self.metrics["distance"].update(features, real)  # type: ignore[operator]
        if "neighbors" in self.metrics:
            self.metrics["neighbors"].update(features, real)  # type: ignore[operator]
        if not real and logits is not None:
            predicted = logits.argmax(1)
            # Without labels only the predicted classes are counted.
            target = predicted if labels is None else labels
            self.metrics["classes"].update(predicted, target)  # type: ignore[operator]

    def _create_metrics(self, features: Tensor, logits: Tensor | None) -> None:
        self.metrics["distance"] = FrechetDistance(features.shape[1], reset_real_features=False)
        if self.neighbors:
            self.metrics["neighbors"] = PrecisionRecall(self.neighbors, reset_real_features=False)
        if logits is not None:
            self.metrics["classes"] = MulticlassConfusionMatrix(logits.shape[1])
        self.metrics.to(features.device)

    def compute(self, class_conditional: bool) -> dict[str, float]:
        """Return the metrics, and discard the generated images.

        Args:
            class_conditional: whether the generated images have labels.
        """
        values = {name: metric.compute() for name, metric in self.metrics.items()}  # type: ignore[operator]
        for metric in self.metrics.values():
            metric.reset()  # type: ignore[operator]
        results = {self.distance: values["distance"], **values.get("neighbors", {})}
        if "classes" in values:
            confusion = values["classes"].cpu()
            self.confusion = confusion
            if class_conditional:
                results.update(class_accuracy(confusion))
            else:
                results["sample_classes"] = (confusion.sum(0) > 0).sum()
        return {name: float(value) for name, value in results.items()}


def class_accuracy(confusion: Int[Tensor, "k k"]) -> dict[str, float]:
    """Return the accuracy of a classifier on generated images: of all, and of the class with the lowest one.

    Args:
        confusion: number of images by label and predicted class.
    """
    totals = confusion.sum(1)  # (k,)
    accuracies = (confusion.diagonal() / totals)[totals > 0]
    return {
        "sample_accuracy": float(confusion.trace() / confusion.sum()),
        "sample_accuracy_worst": float(accuracies.min()),
    }
