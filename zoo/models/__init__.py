"""Architectures: each a plain network, and the same network as a LightningModule that trains."""

from zoo.models.efficientnet import EfficientNet, EfficientNetClassifier
from zoo.models.forecaster import GRUForecaster, GRUForecastNet, LSTMForecaster, LSTMForecastNet
from zoo.models.gru import GRU, GRUClassifier, GRURegressor, GRUTagger
from zoo.models.lstm import LSTM, LSTMClassifier, LSTMRegressor, LSTMTagger
from zoo.models.mlp import MLP, MLPClassifier, MLPRegressor
from zoo.models.resnet import ResNet, ResNetClassifier
from zoo.models.rnn import VanillaRNN, VanillaRNNClassifier, VanillaRNNRegressor, VanillaRNNTagger
from zoo.models.scratch_mlp import ScratchMLP, ScratchMLPClassifier
from zoo.models.seq2seq import Seq2Seq, Seq2SeqTranslator
from zoo.models.small_cnn import SmallCNN, SmallCNNClassifier
from zoo.models.vgg import VGG, VGGClassifier
from zoo.models.vit import ViT, ViTClassifier

__all__ = [
    "EfficientNet",
    "EfficientNetClassifier",
    "GRU",
    "GRUClassifier",
    "GRUForecastNet",
    "GRUForecaster",
    "GRURegressor",
    "GRUTagger",
    "LSTM",
    "LSTMClassifier",
    "LSTMForecastNet",
    "LSTMForecaster",
    "LSTMRegressor",
    "LSTMTagger",
    "MLP",
    "MLPClassifier",
    "MLPRegressor",
    "ResNet",
    "ResNetClassifier",
    "ScratchMLP",
    "ScratchMLPClassifier",
    "Seq2Seq",
    "Seq2SeqTranslator",
    "SmallCNN",
    "SmallCNNClassifier",
    "VGG",
    "VGGClassifier",
    "VanillaRNN",
    "VanillaRNNClassifier",
    "VanillaRNNRegressor",
    "VanillaRNNTagger",
    "ViT",
    "ViTClassifier",
]
