"""Stopping when a metric no longer improves (Prechelt 1998, https://doi.org/10.1007/3-540-49430-8_3)."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import lightning.pytorch.callbacks as callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from zoo.optim.metric_mode import metric_mode, names


class EarlyStopping(callbacks.EarlyStopping):
    """Stop training when a validation metric has not improved for a while.

    A run that it has stopped trains nothing more when it is resumed, unless with more patience or another threshold.

    Args:
        monitor: the metric to watch.
        mode: whether lower (``min``) or higher (``max``) is better; null is max for accuracy and the like, else min.
        patience: validations without improvement before stopping.
        min_delta: the least change that counts as an improvement.
        stopping_threshold: stop as soon as the metric is this good.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        patience: int = 10,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 or more validations, got {patience}")
        super().__init__(
            monitor=monitor,
            mode=mode or metric_mode(monitor),
            patience=patience,
            min_delta=min_delta,
            stopping_threshold=stopping_threshold,
            check_on_train_epoch_end=False,
        )
        # Whether the run that is resumed has been stopped by this callback, under conditions that still hold.
        self.has_stopped = False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"stopping_threshold": self.stopping_threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        # Lightning restores the patience, so that another one would have no effect in a resumed run.
        self.patience = patience
        reason = self.stopping_reason
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            self.has_stopped = self.wait_count >= patience
        elif reason == EarlyStoppingReason.STOPPING_THRESHOLD:
            self.has_stopped = state_dict.get("stopping_threshold") == self.stopping_threshold
        else:
            self.has_stopped = reason != EarlyStoppingReason.NOT_STOPPED

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.has_stopped:
            trainer.should_stop = True

    def _validate_condition_metric(self, logs: dict[str, Any]) -> bool:
        if self.monitor not in logs:
            raise ValueError(
                f"early_stopping.monitor is {self.monitor!r}, which is not logged; there are {names(logs)}"
            )
        return True
