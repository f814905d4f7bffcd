"""Texts as subword tokens, for networks that read a whole text at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from zoo.data.sequences import SequenceDataset
from zoo.data.text.tokenized import TokenizedData
from zoo.data.text.truncation import report_truncated
from zoo.text import Tokenizer
from zoo.text.tokenizer import TrainedLevel
from zoo.weights.packages import model_folder

SubwordTokens = tuple[list[int], list[int | None]]
"""Token ids of a text, and for each the index of the word that it belongs to, None for special tokens."""
SubwordPairTokens = tuple[list[int], list[int]]
"""Token ids of a pair of texts, and for each its type: 1 in the second text, 0 in the first."""


class SubwordData(TokenizedData):
    """Base of data of single texts as subwords: its tokenizer goes into checkpoints.

    Args:
        tokenizer: ``wordpiece``, trained on the training texts, or a path: a ``tokenizer.json`` or a folder with one.
            A checkpoint brings its own.
        vocab_size: vocabulary size of a trained tokenizer; null for 8,000.
        max_length: maximum number of tokens of a text; longer texts are truncated.
        bucket_by_length: batch texts of similar lengths.
        val_split: fraction of the texts kept for validation, where there is no such file.
        test_split: fraction of the texts kept for the test, where there is no such file.
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
            raise ValueError(f"max_length must be 3 or more, as a text has two special tokens: got {max_length}")
        self._tokenizer_option = tokenizer
        self._vocab_size = vocab_size
        self.max_length = max_length
        self.bucket_by_length = bucket_by_length
        self.val_split = val_split
        self.test_split = test_split

    @property
    def pad_id(self) -> int | None:
        return self.tokenizer.pad_id

    def bucket_lengths(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        return self.datasets["train"].lengths  # type: ignore[attr-defined]


# Tokens ---------------------------------------------------------------------------------------------------------------


def make_tokenizer(
    option: str | dict[str, Any],
    texts: Callable[[], Iterable[str]],
    vocab_size: int | None,
    **options: Any,
) -> Tokenizer:
    """Return the tokenizer that an option names.

    Args:
        option: ``wordpiece`` or another level to train, a path to a published tokenizer (or its name, where a package
            ships it), or a tokenizer from a checkpoint.
        texts: returns the training texts.
        vocab_size: vocabulary size of a trained tokenizer; null for 8,000.
        options: further arguments of ``Tokenizer.train``.
    """
    if isinstance(option, dict):
        return Tokenizer.from_plain(option)
    if option in get_args(TrainedLevel):
        return Tokenizer.train(option, texts(), vocab_size, **options)  # type: ignore[arg-type]
    return Tokenizer.load(model_folder(option))


def tokenize_texts(tokenizer: Tokenizer, texts: Sequence[str] | Sequence[list[str]]) -> list[SubwordTokens]:
    """Cut texts, or sentences of words, into tokens, with the special tokens of a text around them."""
    is_words = bool(texts) and not isinstance(texts[0], str)
    encodings = _backend_of(tokenizer).encode_batch(list(texts), is_pretokenized=is_words)
    return [(encoding.ids, encoding.word_ids) for encoding in encodings]


def tokenize_pairs(
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    max_length: int,
    what: str,
) -> list[SubwordPairTokens]:
    """Cut pairs of texts into tokens, with the special tokens of a pair around and between them.

    Longer pairs are truncated as by ``longest_first`` of Hugging Face: the longer text loses its end, and at last both.

    Args:
        tokenizer: a tokenizer with special tokens for pairs.
        pairs: the pairs.
        max_length: maximum number of tokens of a pair.
        what: what the pairs are called in messages.
    """
    backend = _backend_of(tokenizer)
    num_special = backend.num_special_tokens_to_add(True)
    if not num_special:
        raise ValueError("pairs need a tokenizer that marks where the second text begins, as wordpiece and BERT's do")
    least = num_special + 2
    if max_length < least:
        raise ValueError(f"a pair has {num_special} special tokens: max_length starts at {least}, got {max_length}")
    found = [(encoding.ids, encoding.type_ids) for encoding in backend.encode_batch(list(pairs))]
    if not report_truncated([len(ids) for ids, _ in found], max_length, what):
        return found
    backend.enable_truncation(max_length, strategy="longest_first")
    # One by one: an encoding keeps what was cut off, in every combination, which takes memory.
    for i, (ids, _) in enumerate(found):
        if len(ids) > max_length:
            encoding = backend.encode(*pairs[i])
            found[i] = (encoding.ids, encoding.type_ids)
    backend.no_truncation()
    return found


def _backend_of(tokenizer: Tokenizer) -> Any:
    backend = getattr(tokenizer.engine, "backend", None)
    if backend is None or not hasattr(backend, "encode_batch"):
        level = tokenizer.level
        raise ValueError(f"a subword tokenizer is needed, wordpiece or a tokenizer.json: got tokens by {level}")
    return backend


def truncate(tokenizer: Tokenizer, texts: list[SubwordTokens], max_length: int, what: str) -> list[SubwordTokens]:
    """Truncate texts to a number of tokens, among which is the one that ends a text, and print how many there are.

    Args:
        tokenizer: the tokenizer of the texts.
        texts: the texts.
        max_length: maximum number of tokens of a text.
        what: what the texts are called in messages.
    """
    if not report_truncated([len(ids) for ids, _ in texts], max_length, what):
        return texts
    end = tokenizer.sep_id
    if end is None:
        end = tokenizer.eos_id
    found = []
    for ids, words in texts:
        if len(ids) > max_length and ids[-1] == end:
            ids = [*ids[: max_length - 1], ids[-1]]
            words = [*words[: max_length - 1], words[-1]]
        found.append((ids[:max_length], words[:max_length]))
    return found


# Datasets -------------------------------------------------------------------------------------------------------------


def concatenate(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return rows one behind the other ``(total,)``, and their lengths ``(n,)``."""
    values = [i for row in rows for i in row]
    lengths = [len(row) for row in rows]
    return torch.tensor(values), torch.tensor(lengths)


class TokenColumnsDataset(SequenceDataset):
    """Texts whose tokens have further numbers each; a batch is ``((x, lengths, *further), y)``, each ``(b, t)``.

    Args:
        columns: rows of token ids, and of each further number.
        padding: value of the padding of each column.
        targets: ``(n,)``; null for none.
    """

    def __init__(
        self,
        columns: Sequence[list[list[int]]],
        padding: Sequence[int],
        targets: Tensor | None = None,
    ) -> None:
        parts = [concatenate(rows) for rows in columns]
        values = torch.stack([part for part, _ in parts], 1)  # (total, columns)
        _, lengths = parts[0]
        super().__init__(values, lengths, targets, torch.tensor(padding))

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return one sample without a batch dimension."""
        inputs, *y = self.batch(torch.tensor([index]))
        return (tuple(part[0] for part in inputs), *(part[0] for part in y))

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        (values, lengths), *y = super().batch(indices)  # (b, t, columns), (b,)
        x, *further = values.unbind(2)  # (b, t) each
        return ((x, lengths, *further), *y)
