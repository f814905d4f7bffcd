"""What a batch means and how it is optimised, for any network."""

from zoo.tasks.base import Task, need
from zoo.tasks.classification import Classifier
from zoo.tasks.distillation import Distiller
from zoo.tasks.metric_learning import MetricLearner
from zoo.tasks.regression import Regressor

__all__ = ["Classifier", "Distiller", "MetricLearner", "Regressor", "Task", "need"]
