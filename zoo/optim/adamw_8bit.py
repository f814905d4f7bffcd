"""AdamW with 8-bit states (Dettmers et al. 2021, https://arxiv.org/abs/2110.02861), by bitsandbytes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from zoo.errors import UserError


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose two moments take a byte each per parameter, by blocks of 256: a quarter of the memory.

    Constructing it gives the optimizer of bitsandbytes, whose states are plain tensors, as a checkpoint holds them.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        min_8bit_size: smaller parameters have moments in float32.

    Raises:
        UserError: bitsandbytes is not installed.
    """

    def __new__(
        cls,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ) -> Any:
        try:
            package = importlib.import_module("bitsandbytes")
        except ImportError:
            raise UserError("AdamW8bit needs the package bitsandbytes: pip install 'lightning-zoo[quant]'") from None
        options: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        return package.optim.AdamW8bit(params, lr=lr, min_8bit_size=min_8bit_size, **options)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ) -> None:
        """For the signature alone: ``__new__`` returns an optimizer of another class."""
        raise AssertionError
