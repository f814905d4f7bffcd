"""DeterministicSteps: random numbers as a function of seed and step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from zoo.data.sampler import mix_seeds


class DeterministicSteps(L.Callback):
    """Seed torch at the start of every training batch from the seed of the run, the batch index and the rank.

    Dropout and augmentation then continue exactly after a resume, without any random state in the checkpoint. Logs
    nothing.

    Args:
        seed: seed of the run; null for that of ``seed_everything``, or 0.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.seed is None:
            from zoo.data.base import run_seed

            self.seed = run_seed()
        seed = mix_seeds(self.seed, trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.global_rank)
        # torch.manual_seed also asks every kind of device, which takes as long as the step of a small network.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
