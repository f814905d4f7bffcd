"""What torchmetrics lacks: how like real images made ones are, by the features of a network that tells images apart."""

from zoo.metrics.features import ClassifierFeatures, InceptionFeatures
from zoo.metrics.generation import FrechetDistance, PrecisionRecall, in_manifold

__all__ = ["ClassifierFeatures", "FrechetDistance", "InceptionFeatures", "PrecisionRecall", "in_manifold"]
