"""Architectures: each a plain network, and the same network as a LightningModule that trains."""

from zoo.models.mlp import MLP, MLPClassifier, MLPRegressor
from zoo.models.scratch_mlp import ScratchMLP, ScratchMLPClassifier
from zoo.models.small_cnn import SmallCNN, SmallCNNClassifier

__all__ = [
    "MLP",
    "MLPClassifier",
    "MLPRegressor",
    "ScratchMLP",
    "ScratchMLPClassifier",
    "SmallCNN",
    "SmallCNNClassifier",
]
