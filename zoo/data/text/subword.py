"""Texts as pieces of words, for networks that read a whole text at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from zoo.data.sequences import SequenceDataset
from zoo.data.text.tokenized import TokenizedData
from zoo.distributed import say
from zoo.text import Tokenizer
from zoo.text.tokenizer import TrainedLevel
from zoo.weights.packages import model_folder

SubwordTokens = tuple[list[int], list[int | None]]
"""Tokens of a text, and of each the number of the word it belongs to, None for special ones."""
SubwordPairTokens = tuple[list[int], list[int]]
"""Tokens of a pair of texts, and of each its type: 1 in the second text, 0 in the first."""


class SubwordData(TokenizedData):
    """What data of texts in pieces of words share: the tokenizer, which goes into checkpoints, and data spec fields
    about it.

    Args:
        tokenizer: ``wordpiece``, learned from the training texts, or a path: a ``tokenizer.json`` or a folder with
            one. A checkpoint brings its own.
        vocab_size: how many tokens are learned; null for 8,000.
        max_length: tokens of a text that are kept; the rest is left out.
        bucket_by_length: put texts of similar length into a batch.
        val_split: share of the texts kept for validation, where there is no such file.
        test_split: share of the texts kept for the test, where there is no such file.
    """

    def __init__(
        self,
        tokenizer: str | dict[str, Any] = "wordpiece",
        vocab_size: int | None = None,
        max_length: int = 128,
        bucket_by_length: bool = True,
        val_split: float = 0.1,
        test_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 3:
            raise ValueError(f"max_length must be 3 or more, two of them the ends of a text: got {max_length}")
        self._tokenizer_option, self._vocab_size, self.max_length, self.bucket_by_length = (
            tokenizer,
            vocab_size,
            max_length,
            bucket_by_length,
        )
        self.val_split, self.test_split = val_split, test_split

    @property
    def pad_id(self) -> int | None:
        return self.tokenizer.pad_id

    def bucket_lengths(self) -> Tensor | None:
        return self.datasets["train"].lengths if self.bucket_by_length else None  # type: ignore[attr-defined]


def make_tokenizer(
    option: str | dict[str, Any], texts: Callable[[], Iterable[str]], vocab_size: int | None, **options: Any
) -> Tokenizer:
    """What a token is.

    Args:
        option: ``wordpiece`` or another level to be learned, a path to a published one (or its
            name, where a package ships it), or one out of a checkpoint.
        texts: gives those that a level is learned from.
        vocab_size: how many tokens are learned; null for 8,000.
        options: of ``Tokenizer.train``.
    """
    if isinstance(option, dict):
        return Tokenizer.from_plain(option)
    if option in get_args(TrainedLevel):
        return Tokenizer.train(option, texts(), vocab_size, **options)  # type: ignore[arg-type]
    return Tokenizer.load(model_folder(option))


def tokenize_texts(tokenizer: Tokenizer, texts: Sequence[str] | Sequence[list[str]]) -> list[SubwordTokens]:
    """Cut texts, or sentences of words, into tokens between the special ones that belong around a text."""
    found = _backend_of(tokenizer).encode_batch(
        list(texts), is_pretokenized=bool(texts) and not isinstance(texts[0], str)
    )
    return [(one.ids, one.word_ids) for one in found]


def tokenize_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_length: int, what: str
) -> list[SubwordPairTokens]:
    """Cut pairs of texts into tokens, with the special ones that belong around and between them.

    In a pair with too many, the longer text loses its end, and at last both: what Hugging Face calls ``longest_first``.
    How often that was is said.
    """
    backend = _backend_of(tokenizer)
    special = backend.num_special_tokens_to_add(True)
    if not special:
        raise ValueError("pairs need a tokenizer that marks where the second text begins, as wordpiece and BERT's do")
    if max_length < special + 2:
        raise ValueError(f"a pair has {special} special tokens: max_length starts at {special + 2}, got {max_length}")
    found = [(one.ids, one.type_ids) for one in backend.encode_batch(list(pairs))]
    if not (longer := [i for i, (ids, _) in enumerate(found) if len(ids) > max_length]):
        return found
    counts = f"{len(longer):,} of {len(found):,} {what} are longer than max_length={max_length} tokens"
    say(f"{counts} (the longest has {max(len(ids) for ids, _ in found):,}): their ends are left out")
    backend.enable_truncation(max_length, strategy="longest_first")
    for i in longer:  # one by one: what is cut off comes along, in every combination
        one = backend.encode(*pairs[i])
        found[i] = (one.ids, one.type_ids)
    backend.no_truncation()
    return found


def _backend_of(tokenizer: Tokenizer) -> Any:
    backend = getattr(tokenizer.engine, "backend", None)
    if backend is None or not hasattr(backend, "encode_batch"):
        raise ValueError(f"pieces of words are needed, wordpiece or a tokenizer.json: got tokens by {tokenizer.level}")
    return backend


def truncate(tokenizer: Tokenizer, texts: list[SubwordTokens], max_length: int, what: str) -> list[SubwordTokens]:
    """Keep as many tokens as a text may have, with the one that ends it; say how often that was not all."""
    longer = [len(ids) for ids, _ in texts if len(ids) > max_length]
    if not longer:
        return texts
    found = f"{len(longer):,} of {len(texts):,} {what} are longer than max_length={max_length} tokens"
    say(f"{found} (the longest has {max(longer):,}): their ends are left out")
    end = tokenizer.sep_id if tokenizer.sep_id is not None else tokenizer.eos_id

    def shorter(ids: list[int], words: list[int | None]) -> SubwordTokens:
        if len(ids) <= max_length or ids[-1] != end:
            return ids[:max_length], words[:max_length]
        return [*ids[: max_length - 1], ids[-1]], [*words[: max_length - 1], words[-1]]

    return [shorter(*text) for text in texts]


def concatenate(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows one behind the other, and their lengths."""
    return torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows])


class TokenColumnsDataset(SequenceDataset):
    """Texts of which each token has further numbers; a batch is ``((x, lengths, *further), y)``, each ``(b, t)``.

    Args:
        columns: rows of tokens, and of each further number.
        padding: what fills them behind the ends.
        targets: ``(n,)``; null for none.
    """

    def __init__(
        self, columns: Sequence[list[list[int]]], padding: Sequence[int], targets: Tensor | None = None
    ) -> None:
        parts = [concatenate(rows) for rows in columns]
        super().__init__(torch.stack([values for values, _ in parts], 1), parts[0][1], targets, torch.tensor(padding))

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample without a batch dimension."""
        inputs, *y = self.batch(torch.tensor([index]))
        return (tuple(part[0] for part in inputs), *(part[0] for part in y))

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        (both, lengths), *y = super().batch(indices)
        x, *further = both.unbind(2)
        return ((x, lengths, *further), *y)
