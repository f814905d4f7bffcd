"""Base of data of texts as tokens, whose tokenizer goes into checkpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from zoo.data.base import DataModule
from zoo.text import Tokenizer


class TokenizedData(DataModule):
    """Data with one tokenizer: subclasses implement ``build_tokenizer()``."""

    fitted_names = ("tokenizer",)

    def build_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; called once, when it is first needed."""
        raise ValueError(f"{type(self).__name__} has no tokenizer: implement build_tokenizer()")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.build_tokenizer()

    def fitted_hparams(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.plain()}

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)
