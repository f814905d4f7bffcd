"""Callbacks that work on any LightningModule."""

from zoo.callbacks.attention_entropy import AttentionEntropy
from zoo.callbacks.best_and_last import BestAndLast
from zoo.callbacks.deterministic_steps import DeterministicSteps
from zoo.callbacks.early_stopping import EarlyStopping
from zoo.callbacks.ema import EMA
from zoo.callbacks.fine_tuning import FineTuning
from zoo.callbacks.generation_metrics import GenerationMetrics
from zoo.callbacks.gradients.diagnostics import GradientDiagnostics
from zoo.callbacks.lora import LoRA
from zoo.callbacks.lr_finder import LRFinder
from zoo.callbacks.nan.guard import NaNGuard, NonFiniteError
from zoo.callbacks.phases import Phase
from zoo.callbacks.plots.attention_maps import AttentionMaps
from zoo.callbacks.plots.embedding_plot import EmbeddingPlot
from zoo.callbacks.plots.image_samples import ImageSamples
from zoo.callbacks.plots.misclassified_images import MisclassifiedImages
from zoo.callbacks.prediction_writer import PredictionWriter
from zoo.callbacks.progress import Progress
from zoo.callbacks.text_samples import TextSamples
from zoo.callbacks.whiten import WhitenFirstLayer

__all__ = [
    "AttentionEntropy",
    "AttentionMaps",
    "EMA",
    "EarlyStopping",
    "EmbeddingPlot",
    "FineTuning",
    "GradientDiagnostics",
    "LoRA",
    "LRFinder",
    "NaNGuard",
    "NonFiniteError",
    "Phase",
    "PredictionWriter",
    "Progress",
    "BestAndLast",
    "ImageSamples",
    "GenerationMetrics",
    "DeterministicSteps",
    "TextSamples",
    "MisclassifiedImages",
    "WhitenFirstLayer",
]
