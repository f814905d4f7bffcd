"""Datasets, each a LightningDataModule."""

from zoo.data.base import DataModule, TensorSet
from zoo.data.cifar import CIFAR10, CIFAR100
from zoo.data.corpus import PythonDocs, PythonSource, TextCorpus
from zoo.data.digits import Digits
from zoo.data.image_folder import ImageFolder
from zoo.data.images import ImageData, ImageSet
from zoo.data.latents import Latents
from zoo.data.letters import Letters
from zoo.data.masked_text import MaskedText
from zoo.data.mnist import MNIST, FashionMNIST
from zoo.data.ner import NER
from zoo.data.sentiment import Sentiment
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
    "NER",
    "AddingProblem",
    "CopyTask",
    "DataModule",
    "DateTranslation",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageSet",
    "Latents",
    "Letters",
    "MaskedText",
    "ParallelText",
    "PythonDocs",
    "PythonSource",
    "Quadrants",
    "Sentiment",
    "SequenceSet",
    "SignOfSum",
    "SyntheticSequences",
    "Tabular",
    "TensorSet",
    "TextCorpus",
    "TimeSeries",
    "TextClassification",
]
