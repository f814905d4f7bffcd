"""EMA or raw weights for validation, test and prediction, chosen by the user."""

from __future__ import annotations

from typing import Any

import lightning as L

from zoo.checkpoints import Weights, load_ema


class WeightChoice(L.Callback):
    """Load EMA or raw weights of a checkpoint into any LightningModule, from a file or sharded.

    Logs nothing.

    Args:
        weights: ``auto`` takes EMA weights where there are any, ``ema`` requires them, ``raw`` takes the trained ones.
    """

    def __init__(self, weights: Weights = "auto") -> None:
        self.weights = weights

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning has loaded the weights in `state_dict` by now.
        averages = checkpoint.get("ema_params", {})
        if self.weights == "ema" and not averages:
            raise ValueError("weights='ema', but this checkpoint holds no EMA weights")
        if self.weights == "raw":
            load_ema(pl_module, checkpoint.get("raw_params", {}))
        else:
            load_ema(pl_module, averages)


def has_weight_choice(trainer: Any) -> bool:
    """Return whether a trainer has a ``WeightChoice``, which then alone decides."""
    return any(isinstance(callback, WeightChoice) for callback in trainer.callbacks)
