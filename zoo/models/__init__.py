"""Architectures: each a plain network, and the same network as a LightningModule that trains."""

from zoo.models.airbench import Airbench, AirbenchClassifier
from zoo.models.autoencoder_kl import AutoencoderKL, AutoencoderKLModule
from zoo.models.bert import BERT
from zoo.models.bert_embedder import BERTEmbedder
from zoo.models.bert_modules import (
    BERTClassifier,
    BERTForMaskedLM,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTMaskedLM,
    BERTTokenClassifier,
)
from zoo.models.clip_text import CLIPTextEncoder
from zoo.models.convnext import ConvNeXt, ConvNeXtClassifier
from zoo.models.efficientnet import EfficientNet, EfficientNetClassifier
from zoo.models.forecaster import GRUForecaster, GRUForecastNet, LSTMForecaster, LSTMForecastNet
from zoo.models.gpt import GPT, GPTLanguageModel
from zoo.models.gru import GRU, GRUClassifier, GRURegressor, GRUTagger
from zoo.models.latent_diffusion import LatentDiffusion
from zoo.models.llama import LLaMA, LLaMALanguageModel
from zoo.models.lstm import LSTM, LSTMClassifier, LSTMRegressor, LSTMTagger
from zoo.models.mlp import MLP, MLPClassifier, MLPRegressor
from zoo.models.resnet import ResNet, ResNetClassifier
from zoo.models.rnn import VanillaRNN, VanillaRNNClassifier, VanillaRNNRegressor, VanillaRNNTagger
from zoo.models.scratch_mlp import ScratchMLP, ScratchMLPClassifier
from zoo.models.seq2seq import Seq2Seq, Seq2SeqTranslator
from zoo.models.small_cnn import SmallCNN, SmallCNNClassifier
from zoo.models.unet import UNet
from zoo.models.vgg import VGG, VGGClassifier
from zoo.models.vit import ViT, ViTClassifier

__all__ = [
    "BERT",
    "BERTClassifier",
    "BERTEmbedder",
    "BERTMaskedLM",
    "BERTTokenClassifier",
    "Airbench",
    "AirbenchClassifier",
    "AutoencoderKL",
    "AutoencoderKLModule",
    "ConvNeXt",
    "ConvNeXtClassifier",
    "EfficientNet",
    "EfficientNetClassifier",
    "GPT",
    "GPTLanguageModel",
    "GRU",
    "GRUClassifier",
    "GRUForecastNet",
    "GRUForecaster",
    "GRURegressor",
    "GRUTagger",
    "LLaMA",
    "LLaMALanguageModel",
    "LSTM",
    "LSTMClassifier",
    "LSTMForecastNet",
    "LSTMForecaster",
    "LSTMRegressor",
    "LSTMTagger",
    "LatentDiffusion",
    "MLP",
    "MLPClassifier",
    "MLPRegressor",
    "BERTForMaskedLM",
    "ResNet",
    "ResNetClassifier",
    "ScratchMLP",
    "ScratchMLPClassifier",
    "Seq2Seq",
    "Seq2SeqTranslator",
    "SmallCNN",
    "SmallCNNClassifier",
    "BERTForSequenceClassification",
    "CLIPTextEncoder",
    "BERTForTokenClassification",
    "UNet",
    "VGG",
    "VGGClassifier",
    "VanillaRNN",
    "VanillaRNNClassifier",
    "VanillaRNNRegressor",
    "VanillaRNNTagger",
    "ViT",
    "ViTClassifier",
]
