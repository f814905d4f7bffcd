"""Tasks on text: the tokenizer travels with the checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.integrity import verify
from zoo.losses.adapt import loss_weight_sum
from zoo.text import Tokenizer

IGNORE_INDEX = -100  # the target where no token is asked for


def num_targets(loss: nn.Module | None, y: Tensor) -> Tensor:
    """How many tokens are asked for, or what else the loss divides by: a tensor ``()``, which nobody waits for."""
    found = loss_weight_sum(loss, y.flatten())
    return (y != IGNORE_INDEX).sum() if found is None else found


def find_tokenizer(weights: str | Path) -> Tokenizer | None:
    """The tokenizer that came with weights: in a model directory, or in a checkpoint of zoo; or None."""
    path = Path(weights).expanduser()
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return Tokenizer.load(path)
    if path.suffix != ".ckpt":
        return None
    verify(path)
    plain = torch.load(path, "meta", weights_only=True, mmap=zipfile.is_zipfile(path)).get("tokenizer")
    return Tokenizer.from_plain(plain) if plain else None


class TextTask:  # a mixin in front of a Task, so that every task can have it
    """A task whose checkpoints hold the tokenizer of the data, and refuse data with another one."""

    tokenizer: Tokenizer | None = None  # from the data, or a checkpoint
    pretrained_tokenizer: Tokenizer | None = None  # that came with the weights it starts from

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Use that of the data, unless weights were trained with another one that is written in the same way."""
        theirs = self.pretrained_tokenizer
        if theirs is not None and type(theirs.engine) is type(tokenizer.engine) and theirs.source != tokenizer.source:
            raise ValueError(
                "the data cuts or numbers its tokens differently from those of the weights: take --data.tokenizer with "
                "the folder of the weights (`zoo export` writes one of a checkpoint)"
            )
        self.tokenizer = tokenizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if plain := checkpoint.get("tokenizer"):
            saved = Tokenizer.from_plain(plain)
            if self.tokenizer is not None and self.tokenizer != saved:
                raise ValueError("the data cuts or numbers its tokens differently from those of the checkpoint")
            self.tokenizer = saved
