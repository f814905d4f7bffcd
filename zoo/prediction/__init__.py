"""Prediction of new samples with a checkpoint, without the data that it was trained on."""

from zoo.prediction.loading import load, load_with_data

__all__ = ["load", "load_with_data"]
