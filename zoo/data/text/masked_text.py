"""Texts in which tokens are hidden (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import split_indices
from zoo.data.sampler import mix_seeds
from zoo.data.text.python_docs import sentences
from zoo.data.text.subword import SubwordData, TokenColumnsDataset, make_tokenizer, tokenize_texts, truncate
from zoo.data.text.text_files import read_texts
from zoo.distributed import say
from zoo.text import Tokenizer

SPECIAL, FIRST, FURTHER = 0, 1, 2  # what a token is: no part of the text, the first piece of a word, or a further one


def mask_tokens(
    x: Tensor,
    kinds: Tensor,
    draws: Tensor,
    mask_id: int,
    ordinary: Tensor,
    share: float = 0.15,
    whole_word_mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hide tokens: of those chosen 80 % become the mask, 10 % another token, 10 % stay what they are.

    A text of which nothing would be chosen has the token chosen that came closest.

    Args:
        x: tokens ``(b, t)``.
        kinds: SPECIAL (and padding), FIRST or FURTHER, ``(b, t)``.
        draws: numbers drawn evenly from 0 to 1, ``(3, b, t)``.
        mask_id: the token that hides.
        ordinary: tokens to draw others from.
        share: of the tokens that are chosen.
        whole_word_mask: choose all pieces of a word or none.

    Returns:
        The tokens with some of them hidden, and what the chosen ones were, -100 elsewhere.
    """
    lot, text = draws[0], kinds != SPECIAL
    if whole_word_mask:  # every piece has its word's lot
        steps = torch.arange(x.shape[1]).expand_as(x)
        lot = lot.gather(1, torch.where(kinds == FIRST, steps, 0).cummax(1).values)
    lot = lot.masked_fill(~text, 2.0)
    chosen = text & (lot < share)
    chosen |= text & ~chosen.any(1, keepdim=True) & (lot == lot.min(1, keepdim=True).values)
    other = ordinary[(draws[2] * len(ordinary)).long().clamp_(max=len(ordinary) - 1)]
    hidden = torch.where(draws[1] < 0.8, torch.full_like(x, mask_id), torch.where(draws[1] < 0.9, other, x))
    return torch.where(chosen, hidden, x), torch.where(chosen, x, -100)


class MaskedTextDataset(Dataset):
    """Texts of which other tokens are hidden each time; a batch is ``((x, lengths), y)``.

    Args:
        texts: tokens and kinds.
        seed: of fixed draws, the same for a text whenever it is asked for; null draws anew.
        how: arguments of ``mask_tokens``.
    """

    def __init__(self, texts: TokenColumnsDataset, seed: int | None, **how: Any) -> None:
        self.texts, self.seed, self.how = texts, seed, how
        self.lengths = texts.lengths

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample without a batch dimension."""
        (x, lengths), y = self.batch(torch.tensor([index]))
        return (x[0], lengths[0]), y[0]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        ((x, lengths, kinds),) = self.texts.batch(indices)
        x, y = mask_tokens(x, kinds, self._draws(indices, lengths), **self.how)
        return (x, lengths), y

    def _draws(self, indices: Tensor, lengths: Tensor) -> Tensor:
        if self.seed is None:
            return torch.rand(3, len(indices), int(lengths.max()))
        draws, generator = torch.zeros(3, len(indices), int(lengths.max())), torch.Generator()
        for row, (index, length) in enumerate(zip(indices.tolist(), lengths.tolist(), strict=True)):
            generator.manual_seed(mix_seeds(self.seed, index))
            draws[:, row, :length] = torch.rand(3, length, generator=generator)
        return draws


class MaskedText(SubwordData):
    """Texts in which a network has to guess hidden tokens: a file of one's own, or sentences of Python's documentation.

    A batch is ``((x, lengths), y)``: tokens ``(b, t)``, padded behind their ends, some of them hidden; lengths
    ``(b,)``; and what the hidden ones were, -100 elsewhere. Training hides other tokens in every epoch, validation and
    test the same ones always. A text stands in one split only, however often it occurs.

    Args:
        path: a file: ``.txt`` with a text a line, ``.csv``, ``.tsv`` or ``.jsonl``; or a folder of ``.txt`` files; null
            takes sentences of the documentation that Python carries.
        text: name of the column of the texts.
        mlm_probability: share of the tokens that are to be guessed: 80 % of them hidden, 10 % changed, 10 % as they
            are.
        whole_word_mask: hide all pieces of a word or none.
    """

    def __init__(
        self,
        path: str | None = None,
        text: str = "text",
        mlm_probability: float = 0.15,
        whole_word_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability is a share of the tokens, between 0 and 1: got {mlm_probability}")
        self.path, self.text, self.mlm_probability, self.whole_word_mask = path, text, mlm_probability, whole_word_mask

    def build_tokenizer(self) -> Tokenizer:
        found = make_tokenizer(self._tokenizer_option, lambda: self._texts["train"], self._vocab_size)
        if found.mask_id is None or found.pad_id is None:
            raise ValueError(
                f"{self._tokenizer_option} has no mask or no padding token: take wordpiece, or the tokenizer of a BERT"
            )
        return found

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        read = self._read()
        kept = list(dict.fromkeys(text for text in read if text.strip()))
        if len(kept) < len(read):
            say(f"{len(read) - len(kept):,} of {len(read):,} texts are empty or there twice, and left out")
        parts = split_indices(
            len(kept), [1 - self.val_split - self.test_split, self.val_split, self.test_split], self.seed
        )
        if not all(len(part) for part in parts):
            raise ValueError(f"{len(kept)} texts are too few for training, validation and test")
        return {s: [kept[i] for i in part.tolist()] for s, part in zip(("train", "val", "test"), parts, strict=True)}

    def _read(self) -> list[str]:
        if self.path is None:
            from pydoc_data.topics import topics

            return list(dict.fromkeys(sentence for page in topics.values() for sentence in sentences(page)))
        path = Path(self.path)
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no .txt files")
        return [text for file in files for text in read_texts(file, self.text, None)[0]]

    def splits(self) -> dict[str, Dataset]:
        tokenizer = self.tokenizer
        specials = set(tokenizer.engine.specials)
        ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in specials])
        how = {
            "mask_id": tokenizer.mask_id,
            "ordinary": ordinary,
            "share": self.mlm_probability,
            "whole_word_mask": self.whole_word_mask,
        }
        sets: dict[str, Dataset] = {}
        for split, texts in self._texts.items():
            found = truncate(tokenizer, tokenize_texts(tokenizer, texts), self.max_length, f"texts of {split}")
            columns = [ids for ids, _ in found], [_kinds(words) for _, words in found]
            both = TokenColumnsDataset(columns, padding=(tokenizer.pad_id or 0, SPECIAL))
            sets[split] = MaskedTextDataset(both, None if split == "train" else self.seed, **how)
        return sets


def _kinds(words: list[int | None]) -> list[int]:
    before = [None, *words[:-1]]
    return [SPECIAL if w is None else FIRST if w != b else FURTHER for w, b in zip(words, before, strict=True)]
