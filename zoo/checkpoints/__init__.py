"""Checkpoints: opened once, with EMA or raw weights, whichever version of zoo wrote them."""

from zoo.checkpoints.checkpoint import Checkpoint, is_url, load_upgraded, read_tensors
from zoo.checkpoints.ema_weights import Weights, load_ema, use_ema, use_raw, with_ema
from zoo.checkpoints.renames import FORMAT, FORMAT_KEY, mark_format, upgrade

__all__ = [
    "FORMAT",
    "FORMAT_KEY",
    "Checkpoint",
    "Weights",
    "is_url",
    "load_ema",
    "load_upgraded",
    "mark_format",
    "read_tensors",
    "upgrade",
    "use_ema",
    "use_raw",
    "with_ema",
]
