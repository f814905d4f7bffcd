"""Texts as pieces of words, for networks that read a whole text at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from zoo.data.base import say
from zoo.packages import model_folder
from zoo.text import Tokenizer
from zoo.text.tokenizer import TrainedLevel

Pieces = tuple[list[int], list[int | None]]
"""Tokens of a text, and of each the number of the word it belongs to, None for special ones."""


def tokenizer_of(
    wanted: str | dict[str, Any], texts: Callable[[], Iterable[str]], vocab_size: int | None, **options: Any
) -> Tokenizer:
    """What a token is.

    Args:
        wanted: ``wordpiece`` or another level to be learned, a path to a published one (or its
            name, where a package ships it), or one out of a checkpoint.
        texts: gives those that a level is learned from.
        vocab_size: how many tokens are learned; null for 8,000.
        options: of ``Tokenizer.train``.
    """
    if isinstance(wanted, dict):
        return Tokenizer.from_plain(wanted)
    if wanted in get_args(TrainedLevel):
        return Tokenizer.train(wanted, texts(), vocab_size, **options)  # type: ignore[arg-type]
    return Tokenizer.load(model_folder(wanted))


def pieces(tokenizer: Tokenizer, texts: Sequence[str] | Sequence[list[str]]) -> list[Pieces]:
    """Cut texts, or sentences of words, into tokens between the special ones that belong around a text."""
    own = getattr(tokenizer.engine, "own", None)
    if own is None or not hasattr(own, "encode_batch"):
        raise ValueError(f"pieces of words are needed, wordpiece or a tokenizer.json: got tokens by {tokenizer.level}")
    found = own.encode_batch(list(texts), is_pretokenized=bool(texts) and not isinstance(texts[0], str))
    return [(one.ids, one.word_ids) for one in found]


def cut(tokenizer: Tokenizer, texts: list[Pieces], max_length: int, what: str) -> list[Pieces]:
    """Keep as many tokens as a text may have, with the one that ends it; say how often that was not all."""
    longer = [len(ids) for ids, _ in texts if len(ids) > max_length]
    if not longer:
        return texts
    found = f"{len(longer):,} of {len(texts):,} {what} are longer than max_length={max_length} tokens"
    say(f"{found} (the longest has {max(longer):,}): their ends are left out")
    end = tokenizer.sep_id if tokenizer.sep_id is not None else tokenizer.eos_id

    def shorter(ids: list[int], words: list[int | None]) -> Pieces:
        if len(ids) <= max_length or ids[-1] != end:
            return ids[:max_length], words[:max_length]
        return [*ids[: max_length - 1], ids[-1]], [*words[: max_length - 1], words[-1]]

    return [shorter(*text) for text in texts]


def packed(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows one behind the other, and their lengths."""
    return torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows])
