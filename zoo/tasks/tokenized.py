"""Tasks on text: the tokenizer travels with the checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.losses.fitting import divisor
from zoo.tasks.base import Task
from zoo.text import Tokenizer

IGNORED = -100  # the target where no token is asked for


def asked_for(loss: nn.Module | None, y: Tensor) -> Tensor:
    """How many tokens are asked for, or what else the loss divides by: a tensor ``()``, which nobody waits for."""
    found = divisor(loss, y.flatten())
    return (y != IGNORED).sum() if found is None else found


class Tokenized(Task):
    """A task whose checkpoints hold the tokenizer of the data, and refuse data with another one."""

    tokenizer: Tokenizer | None = None  # from the data, or a checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if plain := checkpoint.get("tokenizer"):
            saved = Tokenizer.from_plain(plain)
            if self.tokenizer is not None and self.tokenizer != saved:
                raise ValueError("the data cuts or numbers its tokens differently from those of the checkpoint")
            self.tokenizer = saved
