"""Autoencoders of digits, hardly trained."""

from pathlib import Path

import lightning as L
import torch

from zoo.data import Digits
from zoo.models import AutoencoderKLModule


def trained_autoencoders(folder: Path) -> list[str]:
    """Train two for a few steps, from different seeds, and return their checkpoints."""
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = AutoencoderKLModule(channels=[16, 16], in_channels=1, image_size=8)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, limit_train_batches=2, limit_val_batches=1, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, Digits(mean=[0.5], std=[0.5]))
        paths.append(str(folder / f"{seed}.ckpt"))
        trainer.save_checkpoint(paths[-1])
    return paths
