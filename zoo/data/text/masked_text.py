"""Texts for masked language modelling (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.csv_tables import check_format
from zoo.data.new_samples import NewSamples
from zoo.data.sampler import mix_seeds
from zoo.data.text.encoding import DEFAULT_ENCODING
from zoo.data.text.new_texts import collect_texts
from zoo.data.text.python_docs import sentences
from zoo.data.text.splits import split_texts
from zoo.data.text.subword import (
    SubwordData,
    SubwordTokens,
    TokenColumnsDataset,
    make_tokenizer,
    tokenize_texts,
    truncate,
)
from zoo.data.text.text_files import list_text_files, read_texts
from zoo.distributed import say
from zoo.text import Tokenizer

# What a token is: no part of the text, the first subword of a word, or a further one.
SPECIAL = 0
FIRST = 1
FURTHER = 2
IGNORE_INDEX = -100
MASKED = 0.8  # of the chosen tokens
MASKED_OR_RANDOM = 0.9


def mask_tokens(
    x: Tensor,
    kinds: Tensor,
    draws: Tensor,
    mask_id: int,
    ordinary: Tensor,
    share: float = 0.15,
    whole_word_mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mask tokens: of those chosen 80 % become the mask, 10 % a random token, 10 % are left unchanged.

    In a text of which nothing would be chosen, the token that came closest is.

    Args:
        x: token ids ``(b, t)``.
        kinds: SPECIAL (padding too), FIRST or FURTHER, ``(b, t)``.
        draws: uniform random numbers between 0 and 1, ``(3, b, t)``.
        mask_id: id of the mask token.
        ordinary: ids of the tokens to choose random ones from.
        share: fraction of the tokens that are chosen.
        whole_word_mask: choose all subwords of a word or none.

    Returns:
        The token ids with some of them masked, and the labels: the original ids of the chosen tokens, -100 elsewhere.
    """
    choice, action, replacement = draws
    text = kinds != SPECIAL
    if whole_word_mask:
        choice = _of_first_subword(choice, kinds)
    choice = choice.masked_fill(~text, 2.0)
    chosen = text & (choice < share)
    closest = choice == choice.min(1, keepdim=True).values
    chosen |= text & closest & ~chosen.any(1, keepdim=True)
    # A random number just below 1 may be rounded up to the number of tokens.
    index = (replacement * len(ordinary)).long().clamp_(max=len(ordinary) - 1)
    replaced = torch.where(action < MASKED_OR_RANDOM, ordinary[index], x)
    replaced = torch.where(action < MASKED, torch.full_like(x, mask_id), replaced)
    return torch.where(chosen, replaced, x), torch.where(chosen, x, IGNORE_INDEX)


def _of_first_subword(values: Tensor, kinds: Tensor) -> Tensor:
    """Return for every token the value of the first subword of its word, ``(b, t)``."""
    steps = torch.arange(kinds.shape[1]).expand_as(kinds)  # (b, t)
    first = torch.where(kinds == FIRST, steps, 0).cummax(1).values
    return values.gather(1, first)


class MaskedTextDataset(Dataset):
    """Texts with masked tokens; a batch is ``((x, lengths), y)``.

    Args:
        texts: token ids and kinds.
        seed: of a mask that stays the same for a text whenever it is loaded; null masks other tokens each time.
        fills: whether a text that has mask tokens of its own is masked there alone.
        how: arguments of ``mask_tokens``.
    """

    def __init__(self, texts: TokenColumnsDataset, seed: int | None, fills: bool = False, **how: Any) -> None:
        self.texts = texts
        self.seed = seed
        self.fills = fills
        self.how = how
        self.lengths = texts.lengths

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return one sample without a batch dimension."""
        (x, lengths), y = self.batch(torch.tensor([index]))
        return (x[0], lengths[0]), y[0]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        ((x, lengths, kinds),) = self.texts.batch(indices)  # (b, t), (b,), (b, t)
        masked, y = mask_tokens(x, kinds, self._draws(indices, lengths), **self.how)
        if self.fills:
            is_mask = x == self.how["mask_id"]
            has_mask = is_mask.any(1, keepdim=True)  # (b, 1)
            masked = torch.where(has_mask, x, masked)
            y = torch.where(has_mask, torch.where(is_mask, x, IGNORE_INDEX), y)
        return (masked, lengths), y

    def _draws(self, indices: Tensor, lengths: Tensor) -> Tensor:
        """Return uniform random numbers ``(3, b, t)``."""
        shape = (3, len(indices), int(lengths.max()))
        if self.seed is None:
            return torch.rand(shape)
        draws = torch.zeros(shape)
        generator = torch.Generator()
        for row, (index, length) in enumerate(zip(indices.tolist(), lengths.tolist(), strict=True)):
            # By sample, so that the mask does not depend on what else is in the batch.
            generator.manual_seed(mix_seeds(self.seed, index))
            draws[:, row, :length] = torch.rand(3, length, generator=generator)
        return draws


class MaskedText(SubwordData):
    """Texts for masked language modelling: files of one's own, or sentences of Python's documentation.

    A batch is ``((x, lengths), y)``: tokens ``(b, t)``, padded behind their ends, some of them masked; lengths
    ``(b,)``; and labels ``(b, t)``, the ids of the masked tokens, -100 elsewhere. Training masks other tokens in every
    epoch, validation and test always the same ones. Equal texts are in the same split.

    Args:
        path: a file: ``.txt`` with a text a line, ``.csv``, ``.tsv`` or ``.jsonl``; or a folder of ``.txt`` files; null
            takes sentences of Python's documentation.
        text: name of the column of the texts.
        mlm_probability: fraction of the tokens that are to be predicted: 80 % of them masked, 10 % replaced, 10 % left
            unchanged.
        whole_word_mask: mask all subwords of a word or none.
        separator: separator of the columns of ``.csv``, such as ``;`` or ``tab``; null finds it out.
        encoding: encoding of the files, such as ``latin-1`` or ``cp1252``; a byte order mark takes precedence.
    """

    def __init__(
        self,
        path: str | None = None,
        text: str = "text",
        mlm_probability: float = 0.15,
        whole_word_mask: bool = False,
        separator: str | None = None,
        encoding: str = DEFAULT_ENCODING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability must be a fraction of the tokens between 0 and 1, got {mlm_probability}")
        separator = check_format(separator, encoding)
        self.path = path
        self.text = text
        self.mlm_probability = mlm_probability
        self.whole_word_mask = whole_word_mask
        self.separator = separator
        self.encoding = encoding

    def build_tokenizer(self) -> Tokenizer:
        tokenizer = make_tokenizer(self._tokenizer_option, lambda: self._texts["train"], self._vocab_size)
        if tokenizer.mask_id is None or tokenizer.pad_id is None:
            choices = "take wordpiece, or the tokenizer of a BERT"
            raise ValueError(f"{self._tokenizer_option} has no mask or no padding token: {choices}")
        return tokenizer

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        texts = self._read()
        kept = [text for text in texts if text.strip()]
        if len(kept) < len(texts):
            say(f"{len(texts) - len(kept):,} of {len(texts):,} texts are empty and left out")
        shares = {"train": 1 - self.val_split - self.test_split, "val": self.val_split, "test": self.test_split}
        parts = split_texts(kept, shares, self.seed)
        return {split: [kept[i] for i in part] for split, part in parts.items()}

    def _read(self) -> list[str]:
        if self.path is None:
            return _python_sentences()
        path = Path(self.path)
        files = [path]
        if path.is_dir():
            files = list_text_files(path, [path])
        if not files:
            raise ValueError(f"{path} holds no .txt files")
        found: list[str] = []
        for file in files:
            texts, _ = read_texts(file, self.text, None, None, self.encoding, self.separator)
            found += texts
        return found

    def read_samples(self, source: Any) -> NewSamples:
        """Read new texts; those with a mask token, such as ``[MASK]``, are filled in there, others as in validation.

        Args:
            source: a text or a list of texts; a DataFrame with the column of the texts; or as ``pathlib.Path``:
                ``.txt`` with a text a line, a folder of ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
        """
        found = collect_texts(source, [self.text], None, self.encoding, self.separator)
        dataset = self._masked_dataset(found.texts, "predict", self.seed, self._how())
        return NewSamples(dataset, found.columns, index=found.index)

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        if self._new_samples is None and self.predict_split == "test":
            return {self.text: self._texts["test"]}
        return super().predict_columns()

    def splits(self) -> dict[str, Dataset]:
        how = self._how()
        sets: dict[str, Dataset] = {}
        for split, texts in self._texts.items():
            seed = None if split == "train" else self.seed
            sets[split] = self._masked_dataset(texts, split, seed, how)
        return sets

    def _how(self) -> dict[str, Any]:
        """Return arguments of ``mask_tokens``."""
        tokenizer = self.tokenizer
        specials = set(tokenizer.engine.specials)
        ordinary = [i for i in range(len(tokenizer)) if i not in specials]
        return {
            "mask_id": tokenizer.mask_id,
            "ordinary": torch.tensor(ordinary),
            "share": self.mlm_probability,
            "whole_word_mask": self.whole_word_mask,
        }

    def _masked_dataset(self, texts: list[str], split: str, seed: int | None, how: dict[str, Any]) -> MaskedTextDataset:
        tokenizer = self.tokenizer
        tokens = tokenize_texts(tokenizer, texts)
        if split == "predict":
            tokens = [self._with_masks(text, row) for text, row in zip(texts, tokens, strict=True)]
        tokens = truncate(tokenizer, tokens, self.max_length, f"texts of {split}")
        ids = [row for row, _ in tokens]
        kinds = [_kinds(words) for _, words in tokens]
        columns = TokenColumnsDataset((ids, kinds), padding=(tokenizer.pad_id or 0, SPECIAL))
        return MaskedTextDataset(columns, seed, fills=split == "predict", **how)

    def _with_masks(self, text: str, tokens: SubwordTokens) -> SubwordTokens:
        """Return the tokens of a text whose mask tokens are such, and not the characters of their name."""
        tokenizer = self.tokenizer
        if tokenizer.names([tokenizer.mask_id or 0])[0] not in text:
            return tokens
        ids = tokenizer.encode(text, parse_special=True)
        if tokenizer.cls_id is not None:
            ids = [tokenizer.cls_id, *ids]
        if tokenizer.sep_id is not None:
            ids = [*ids, tokenizer.sep_id]
        return ids, [None] * len(ids)


def _python_sentences() -> list[str]:
    """Return the sentences of Python's documentation, each once."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for page in topics.values():
        found |= dict.fromkeys(sentences(page))
    return list(found)


def _kinds(words: list[int | None]) -> list[int]:
    """Return the kind of each token by the index of its word, None for special tokens."""
    kinds = []
    before = None
    for word in words:
        if word is None:
            kinds.append(SPECIAL)
        elif word == before:
            kinds.append(FURTHER)
        else:
            kinds.append(FIRST)
        before = word
    return kinds
