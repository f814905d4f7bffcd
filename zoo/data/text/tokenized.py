"""Data of texts as tokens: their tokenizer, which goes into checkpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from zoo.data.base import DataModule
from zoo.text import Tokenizer


class TokenizedData(DataModule):
    """What data of running texts and of texts one by one share."""

    def build_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that is wanted."""
        raise ValueError(f"{type(self).__name__} does not say what its tokens are: write build_tokenizer()")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.build_tokenizer()

    def fitted_hparams(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.plain()}

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)
