"""What a batch means and how it is optimised, for any network."""

from zoo.tasks.autoencoder import Autoencoder
from zoo.tasks.base import Task, require
from zoo.tasks.classification import Classifier
from zoo.tasks.diffusion import Diffusion
from zoo.tasks.distillation import Distiller
from zoo.tasks.entities import EntityTagger
from zoo.tasks.forecasting import Forecaster
from zoo.tasks.language import LanguageModel
from zoo.tasks.masked_language import MaskedLanguageModel
from zoo.tasks.metric_learning import MetricLearner
from zoo.tasks.regression import Regressor
from zoo.tasks.tagging import Tagger
from zoo.tasks.translation import Translator

__all__ = [
    "Autoencoder",
    "Classifier",
    "Diffusion",
    "Distiller",
    "EntityTagger",
    "Forecaster",
    "LanguageModel",
    "MaskedLanguageModel",
    "MetricLearner",
    "Regressor",
    "Tagger",
    "Task",
    "Translator",
    "require",
]
