"""Metrics of generated images, computed from features of an image classifier."""

from zoo.metrics.features import ClassifierFeatures, InceptionFeatures
from zoo.metrics.generation import FrechetDistance, PrecisionRecall, in_manifold

__all__ = ["ClassifierFeatures", "FrechetDistance", "InceptionFeatures", "PrecisionRecall", "in_manifold"]
