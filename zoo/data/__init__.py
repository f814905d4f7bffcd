"""Datasets, each a LightningDataModule."""

from zoo.data.base import BatchTensorDataset, DataModule
from zoo.data.images.base import ImageData, ImageDataset
from zoo.data.images.cifar import CIFAR10, CIFAR100
from zoo.data.images.digits import Digits
from zoo.data.images.image_folder import ImageFolder
from zoo.data.images.latents import Latents
from zoo.data.images.letters import Letters
from zoo.data.images.mnist import MNIST, FashionMNIST
from zoo.data.images.svhn import SVHN
from zoo.data.sequences import AddingProblem, CopyTask, SequenceDataset, SyntheticSequences
from zoo.data.series.timeseries import TimeSeries
from zoo.data.synthetic import Quadrants, SignOfSum
from zoo.data.tabular import Tabular
from zoo.data.text.classification import TextClassification
from zoo.data.text.corpus import PythonDocs, PythonSource, TextCorpus
from zoo.data.text.masked_text import MaskedText
from zoo.data.text.ner import NER
from zoo.data.text.sentiment import Sentiment
from zoo.data.text.translation import DateTranslation, ParallelText

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
    "ImageDataset",
    "Latents",
    "Letters",
    "MaskedText",
    "ParallelText",
    "PythonDocs",
    "PythonSource",
    "Quadrants",
    "SVHN",
    "Sentiment",
    "SequenceDataset",
    "SignOfSum",
    "SyntheticSequences",
    "Tabular",
    "BatchTensorDataset",
    "TextCorpus",
    "TimeSeries",
    "TextClassification",
]
