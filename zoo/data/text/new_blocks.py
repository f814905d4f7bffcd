"""New texts as blocks of tokens, for language models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.text import Tokenizer

IGNORE_INDEX = -100


class NewBlocks(Dataset):
    """Texts in blocks of at most ``block_size`` tokens; a batch is ``(x, y)``, padded, with -100 in ``y``.

    A longer text has several blocks, one behind the other. Behind each text stands the end-of-text token, if there is
    one.

    Args:
        texts: the texts.
        tokenizer: of the corpus.
        block_size: tokens in a block.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, block_size: int) -> None:
        self.blocks: list[list[int]] = []
        self.text_of: list[int] = []  # index of the text of each block
        self.number: list[int] = []  # of each block within its text, from 1
        for index, ids in enumerate(tokenizer.encode_batch(list(texts))):
            ids = list(ids)
            if tokenizer.eos_id is not None:
                ids.append(tokenizer.eos_id)
            # The token behind a block is the first of the next one.
            for number, start in enumerate(range(0, max(len(ids) - 1, 1), block_size), 1):
                self.blocks.append(ids[start : start + block_size + 1])
                self.text_of.append(index)
                self.number.append(number)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.batch(torch.tensor([index]))
        return x[0], y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor(self.blocks[i]) for i in indices.tolist()]
        longest = max(max(len(row) - 1 for row in rows), 1)
        x = torch.zeros(len(rows), longest, dtype=torch.long)
        y = torch.full((len(rows), longest), IGNORE_INDEX)
        for i, row in enumerate(rows):
            length = len(row) - 1
            x[i, : max(length, 1)] = row[: max(length, 1)]
            y[i, :length] = row[1:]
        return x, y
