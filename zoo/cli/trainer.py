"""ZooTrainer: Lightning's Trainer with zoo's training loop, and with a stop before the first step."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L

from zoo._lightning import leave_fit, untested
from zoo.distributed import is_main_process


class ZooTrainer(L.Trainer):
    """Lightning's Trainer with zoo's training loop, and with a stop before the first step."""

    def use_fast_loop(self) -> None:
        """Train with zoo's loop if this version of Lightning was tested with it; else print that it is not used."""
        reason = untested("lightning")
        if reason is not None:
            if is_main_process():
                print(f"training loop: Lightning's own ({reason})")
            return
        from zoo.runs.fast_epoch_loop import FastEpochLoop

        FastEpochLoop.install(self)

    def run_at_start(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None,
        action: Callable[[L.Trainer, L.LightningModule], None],
    ) -> None:
        """Set up a real fit, call a function in place of the first step, and end the fit.

        Args:
            model: the module.
            datamodule: its data; None if the module has loaders of its own.
            action: called with the trainer and the module.
        """
        self.callbacks.append(StopAtStart(action))  # type: ignore[attr-defined]
        self.limit_val_batches = 0
        self.fit(model, datamodule=datamodule)


class StopAtStart(L.Callback):
    """Call a function when training would begin, with everything in place, and end the fit there.

    Args:
        action: called with the trainer and the module.
    """

    def __init__(self, action: Callable[[L.Trainer, L.LightningModule], None]) -> None:
        self.action = action

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.action(trainer, pl_module)
        leave_fit()
