"""A language task of a few numbers: sentences of unequal length, padded, and a loss that is a mean over tokens."""

import torch
from torch import Tensor, nn

from zoo.data import BatchTensorDataset, DataModule
from zoo.tasks import Task

PAD = 0


class Sentences(DataModule):
    """Tokens ``(b, 12)`` and, for each, the next one: 3 times it, modulo 11; padding is 0 in both.

    Args:
        samples: number of sentences.
    """

    def __init__(self, samples: int = 90, **kwargs) -> None:
        super().__init__(**kwargs)
        self.samples = samples

    def splits(self) -> dict[str, BatchTensorDataset]:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, 11, (self.samples, 12), generator=generator)
        lengths = torch.randint(1, 13, (self.samples, 1), generator=generator)
        padding = torch.arange(12) >= lengths
        whole = BatchTensorDataset(tokens.masked_fill(padding, PAD), (tokens * 3 % 11).masked_fill(padding, PAD))
        return {"train": whole, "val": whole}


class Tagger(Task):
    """An embedding and a linear layer; the loss is the mean over tokens that are no padding."""

    def __init__(self, **kwargs) -> None:
        super().__init__(net=nn.Sequential(nn.Embedding(11, 8), nn.Tanh(), nn.Linear(8, 11)), **kwargs)

    def num_items(self, batch: tuple[Tensor, Tensor]) -> int:
        return int((batch[1] != PAD).sum())

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        tokens, targets = batch
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), ignore_index=PAD)
