"""Callback slots: callbacks that have an option of their own, such as ``--ema``."""

from __future__ import annotations

from typing import Any

from zoo.callbacks import (
    EMA,
    EarlyStopping,
    FineTuning,
    GenerationMetrics,
    GradientDiagnostics,
    LoRA,
    LRFinder,
    NaNGuard,
)

# A key of its own for each callback lets two configs combine without one list of callbacks replacing the other.
# `zoo.catalog` reads this table from the source text: option: (class, help).
SLOTS: dict[str, tuple[Any, str]] = {
    "ema": (EMA, "keep an exponential moving average (EMA) of the weights, for validation and after training"),
    "nan_guard": (NaNGuard, "stop at the first non-finite value and name the operation that produced it"),
    "early_stopping": (EarlyStopping, "stop when a metric no longer improves"),
    "fine_tuning": (FineTuning, "freeze layers, and unfreeze them on a schedule"),
    "lora": (LoRA, "train low-rank updates (LoRA) of frozen weights, and save these alone"),
    "lr_finder": (LRFinder, "find the learning rate before training starts"),
    "gradients": (GradientDiagnostics, "log gradient norms, update ratios and dead units"),
    "generation_metrics": (GenerationMetrics, "compare generated images with real ones"),
}
