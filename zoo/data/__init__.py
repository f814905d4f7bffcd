"""Datasets, each a LightningDataModule."""

from zoo.data.base import DataModule, TensorSet
from zoo.data.digits import Digits
from zoo.data.synthetic import Quadrants, SignOfSum
from zoo.data.tabular import Tabular

__all__ = ["DataModule", "Digits", "Quadrants", "SignOfSum", "Tabular", "TensorSet"]
