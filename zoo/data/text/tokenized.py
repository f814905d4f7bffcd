"""Data of texts as tokens: their tokenizer, which goes into checkpoints."""

from __future__ import annotations

from functools import cached_property

from zoo.data.base import DataModule
from zoo.text import Tokenizer


class TokenizedData(DataModule):
    """What data of running texts and of texts one by one share."""

    def build_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that is wanted."""
        raise ValueError(f"{type(self).__name__} does not say what its tokens are: write build_tokenizer()")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        found = self.build_tokenizer()
        self.hparams["tokenizer"] = found.plain()  # into the checkpoint
        return found

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)
