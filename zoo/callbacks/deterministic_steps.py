"""Randomness as a function of the step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from zoo.data.sampler import mix_seeds


class DeterministicSteps(L.Callback):
    """Seed torch at the start of every batch from the seed of the run, the batch's number and the process.

    Dropout and augmentation then need nothing saved to go on after a resume as if nothing had happened.

    Args:
        seed: of the run; null takes what ``seed_everything`` was given, or 0.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.seed is None:
            from zoo.data.base import run_seed

            self.seed = run_seed()
        seed = mix_seeds(self.seed, trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.global_rank)
        # torch.manual_seed also asks after every device there might be, which takes as long as a small network's step
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
