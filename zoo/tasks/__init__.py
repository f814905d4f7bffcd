"""What a batch means and how it is optimised, for any network."""

from zoo.tasks.base import Task, need
from zoo.tasks.classification import Classifier
from zoo.tasks.regression import Regressor

__all__ = ["Classifier", "Regressor", "Task", "need"]
