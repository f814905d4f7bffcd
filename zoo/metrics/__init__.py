"""Metrics of generated images, computed from features of an image classifier."""

from zoo.metrics.feature_metrics import FeatureMetrics, class_accuracy
from zoo.metrics.features import ClassifierFeatures, InceptionFeatures
from zoo.metrics.generation import FrechetDistance, PrecisionRecall, in_manifold

__all__ = [
    "ClassifierFeatures",
    "FeatureMetrics",
    "FrechetDistance",
    "InceptionFeatures",
    "PrecisionRecall",
    "class_accuracy",
    "in_manifold",
]
