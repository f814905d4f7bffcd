"""What a batch means and how it is optimised, for any network."""

from zoo.tasks.base import Task, need
from zoo.tasks.classification import Classifier
from zoo.tasks.distillation import Distiller
from zoo.tasks.forecasting import Forecaster
from zoo.tasks.metric_learning import MetricLearner
from zoo.tasks.regression import Regressor
from zoo.tasks.tagging import Tagger
from zoo.tasks.translation import Translator

__all__ = [
    "Classifier",
    "Distiller",
    "Forecaster",
    "MetricLearner",
    "Regressor",
    "Tagger",
    "Task",
    "Translator",
    "need",
]
