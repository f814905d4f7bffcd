"""Weights of a checkpoint loaded into a module that is in double precision already."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.plugins import DoublePrecision


class LoadInDouble(L.Callback):
    """Convert a module to float64 before weights are loaded into it, where the trainer's precision is ``64-true``.

    Lightning loads a checkpoint first and converts the module afterwards: weights in float64 are rounded to float32 on
    the way, and a resumed run is another run. Logs nothing.
    """

    def __init__(self) -> None:
        self._hook: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(trainer.precision_plugin, DoublePrecision):
            return
        pl_module.double()
        # Once more when weights are loaded, as the module's own `setup` and `configure_model` are yet to come.
        self._remove_hook()
        self._hook = pl_module.register_load_state_dict_pre_hook(_to_double)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._remove_hook()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _to_double(module: Any, *_: Any) -> None:
    module.double()
