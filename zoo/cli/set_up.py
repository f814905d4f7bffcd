"""Settings of a process before a command with torch runs: allowed imports, and which hints of Lightning are shown."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable

import torch

from zoo.cli.parser import allow_imports
from zoo.terminal import visible

# Hints of Lightning that do not apply to zoo, or repeat what zoo prints.
SILENCED = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Using `DistributedSampler` with the dataloaders.*",
    ".*`enable_checkpointing=.*",
    ".*your dataloader is not resumable.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*LeafSpec.*",
    ".*No positive samples in targets.*",
    ".*No negative samples in targets.*",
)


def set_up(allowed_imports: Iterable[str] = ()) -> None:
    """Prepare the process for a command.

    Args:
        allowed_imports: packages that class paths may name besides the default ones.
    """
    silence_hints()
    allow_imports(allowed_imports)


def silence_hints() -> None:
    """Silence hints of Lightning that do not apply to zoo, and print each warning in one line."""
    if torch.cuda.device_count() == 0:
        # Lightning sets this to 1, and then Adam looks for NVIDIA's library at every single step: 0.07 ms
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in SILENCED:
        warnings.filterwarnings("ignore", text)
    warnings.formatwarning = lambda message, *_, **__: f"zoo: warning: {visible(' '.join(str(message).split()))}\n"
