"""Callbacks that work on any LightningModule."""

from zoo.callbacks.attention_picture import AttentionPicture
from zoo.callbacks.checkpoints import RunCheckpoints
from zoo.callbacks.early_stopping import EarlyStopping
from zoo.callbacks.ema import EMA
from zoo.callbacks.embedding_picture import EmbeddingPicture
from zoo.callbacks.fine_tuning import FineTuning
from zoo.callbacks.gradients import GradientDiagnostics
from zoo.callbacks.lr_finder import LRFinder
from zoo.callbacks.mistake_pictures import MistakePictures
from zoo.callbacks.nan_guard import NaNGuard, NonFiniteError
from zoo.callbacks.phases import Phase
from zoo.callbacks.predictions import PredictionsFile
from zoo.callbacks.progress import Progress
from zoo.callbacks.sample_grid import SampleGrid
from zoo.callbacks.sample_measures import SampleMeasures
from zoo.callbacks.step_seed import StepSeed
from zoo.callbacks.text_samples import TextSamples
from zoo.callbacks.whiten import WhitenFirstLayer

__all__ = [
    "AttentionPicture",
    "EMA",
    "EarlyStopping",
    "EmbeddingPicture",
    "FineTuning",
    "GradientDiagnostics",
    "LRFinder",
    "NaNGuard",
    "NonFiniteError",
    "Phase",
    "PredictionsFile",
    "Progress",
    "RunCheckpoints",
    "SampleGrid",
    "SampleMeasures",
    "StepSeed",
    "TextSamples",
    "MistakePictures",
    "WhitenFirstLayer",
]
