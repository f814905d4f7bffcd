"""Datasets, each a LightningDataModule."""

from zoo.data.base import DataModule, TensorSet
from zoo.data.cifar import CIFAR10, CIFAR100
from zoo.data.digits import Digits
from zoo.data.image_folder import ImageFolder
from zoo.data.images import ImageData, ImageSet
from zoo.data.mnist import MNIST, FashionMNIST
from zoo.data.sequences import AddingProblem, CopyTask, SequenceSet, SyntheticSequences
from zoo.data.synthetic import Quadrants, SignOfSum
from zoo.data.tabular import Tabular
from zoo.data.text import TextClassification
from zoo.data.timeseries import TimeSeries
from zoo.data.translation import DateTranslation, ParallelText

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "AddingProblem",
    "CopyTask",
    "DataModule",
    "DateTranslation",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageSet",
    "ParallelText",
    "Quadrants",
    "SequenceSet",
    "SignOfSum",
    "SyntheticSequences",
    "Tabular",
    "TensorSet",
    "TimeSeries",
    "TextClassification",
]
