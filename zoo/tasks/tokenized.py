"""Tasks on text, whose checkpoints contain the tokenizer."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.integrity import verify
from zoo.losses.adapt import loss_weight_sum
from zoo.text import Tokenizer

IGNORE_INDEX = -100  # target at positions that the loss ignores


def num_targets(loss: nn.Module | None, y: Tensor) -> Tensor:
    """Return the number of targets that are not ignored, or the sum of their class weights.

    Args:
        loss: the loss, which may weight classes.
        y: targets of any shape.

    Returns:
        A tensor ``()``, so that the device is not synchronised.
    """
    weight_sum = loss_weight_sum(loss, y.flatten())
    if weight_sum is not None:
        return weight_sum
    return (y != IGNORE_INDEX).sum()


def find_tokenizer(weights: str | Path) -> Tokenizer | None:
    """Return the tokenizer in a model directory or in a checkpoint of zoo; None if there is none."""
    path = Path(weights).expanduser()
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return Tokenizer.load(path)
    if path.suffix != ".ckpt":
        return None
    verify(path)
    # On the meta device, so that no weights are read.
    checkpoint = torch.load(path, "meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    plain = checkpoint.get("tokenizer")
    if not plain:
        return None
    return Tokenizer.from_plain(plain)


class TextTask:
    """Mixin for tasks on text: checkpoints contain the tokenizer of the data, and data with another one is refused.

    It stands before the task among the base classes, so that any task can have it.
    """

    # Tokenizer of the data, or of the checkpoint that was loaded.
    tokenizer: Tokenizer | None = None
    # Tokenizer of the published weights from which training starts.
    pretrained_tokenizer: Tokenizer | None = None

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Set the tokenizer of the data.

        Args:
            tokenizer: the tokenizer.

        Raises:
            ValueError: the weights were trained with another tokenizer, and both are stored in the same form.
        """
        pretrained = self.pretrained_tokenizer
        if pretrained is not None:
            comparable = type(pretrained.engine) is type(tokenizer.engine)
            if comparable and pretrained.source != tokenizer.source:
                raise ValueError(
                    "the tokenizer of the data differs from that of the weights: give --data.tokenizer the folder of"
                    " the weights (`zoo export` writes one for a checkpoint)"
                )
        self.tokenizer = tokenizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        plain = checkpoint.get("tokenizer")
        if not plain:
            return
        saved = Tokenizer.from_plain(plain)
        if self.tokenizer is not None and self.tokenizer != saved:
            raise ValueError("the tokenizer of the data differs from that of the checkpoint")
        self.tokenizer = saved
