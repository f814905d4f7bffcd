"""Datamodules that are fitted to their training rows, and keep that in checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

from zoo.data.base import DataModule
from zoo.distributed import say


class FittedDataModule(DataModule):
    """DataModule whose argument ``fitted`` holds what was computed from the training rows: scales, categories, splits.

    It is saved with the hyperparameters and in the state of the datamodule. With a checkpoint it is the checkpoint's,
    so that other files are encoded as the training rows were. A subclass implements ``_own_fit``.
    """

    fitted_names = ("fitted",)
    fitted_type: ClassVar[Any]  # with `plain()` and `from_plain()`
    without_fitted: ClassVar[str]  # what a checkpoint without it lacks, and what is done about that
    file: str | None
    name: str | None
    _own_fit: Any  # a cached property: what the training rows give

    @property
    def _source(self) -> str:
        """Name of the data in messages."""
        return self.file or str(self.name)

    def _keep(self, fitted: dict[str, Any] | None) -> None:
        """Store the argument ``fitted``; null fits to the training rows when that is needed."""
        self._kept = None if fitted is None else self.fitted_type.from_plain(fitted)
        self._trains = False

    @property
    def fitted(self) -> Any:
        """What the data are encoded by: that of the checkpoint, else fitted to the training rows."""
        return self._kept or self._own_fit

    def _forget_fit(self) -> None:
        """Drop whatever was computed with another ``fitted``."""
        self.reset_datasets()

    def fitted_hparams(self) -> dict[str, Any]:
        return {"fitted": self.fitted.plain()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "fitted": self.fitted.plain()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        kept = state_dict.get("fitted")
        own = self._kept or vars(self).get("_own_fit")
        if kept is None:
            say(f"the checkpoint has no {self.without_fitted} {self._source}")
        elif own is None or kept != own.plain():
            self._kept = self.fitted_type.from_plain(kept)
            self._forget_fit()

    def setup(self, stage: str) -> None:
        # Of other data than those of training all samples are evaluated, but some are trained on.
        trains = stage == "fit"
        if self._kept is not None and trains != self._trains:
            self.reset_datasets()
        self._trains = trains
        super().setup(stage)
