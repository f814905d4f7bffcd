"""Tiny healthy networks, modules and data, in plain Lightning: what the faults are planted into."""

from __future__ import annotations

import itertools
import pydoc_data.topics
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

PAD = 0


# Data -----------------------------------------------------------------------------------------------------------------


class Data(L.LightningDataModule):
    """Three splits of tensors, 70, 15 and 15 per cent."""

    def __init__(self, *tensors: Tensor, batch_size: int = 32) -> None:
        super().__init__()
        n = len(tensors[0])
        stops = [0, int(0.7 * n), int(0.85 * n), n]
        self.parts = [[t[a:b] for t in tensors] for a, b in itertools.pairwise(stops)]
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.parts[0]), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.parts[1]), self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.parts[2]), self.batch_size)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(n: int = 640, features: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of points, one a class."""
    y = torch.randint(classes, (n,), generator=generator(1))
    centres = torch.randn(classes, features, generator=generator(2))
    x = centres[y] + 0.7 * torch.randn(n, features, generator=generator(3))
    return (x - x.mean(0)) / x.std(0), y


def images(n: int = 480) -> tuple[Tensor, Tensor]:
    """Real digits of 8x8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data[:n]).float().view(-1, 1, 8, 8)
    return (x - x.mean()) / x.std(), torch.from_numpy(digits.target[:n]).long()


def text(n: int = 300, length: int = 16) -> Tensor:
    """Windows (n, length + 1) of real English, letters as 1 to 40; 0 is padding, which does not occur."""
    characters = "".join(pydoc_data.topics.topics[k] for k in ("assert", "class", "lambda", "for", "with")).lower()
    known = sorted(set(characters), key=characters.count, reverse=True)[:40]
    numbers = torch.tensor([1 + known.index(c) if c in known else 1 for c in characters])
    starts = torch.randint(len(numbers) - length - 1, (n,), generator=generator())
    return torch.stack([numbers[s : s + length + 1] for s in starts.tolist()])


def sentences(n: int = 480, length: int = 12) -> tuple[Tensor, Tensor]:
    """Tokens (n, length), padded on the right; the class is which of three sorts of token is the most frequent."""
    y = torch.randint(3, (n,), generator=generator(1))
    lengths = torch.randint(5, length + 1, (n,), generator=generator(2))
    random = torch.randint(1, 13, (n, length), generator=generator(3))
    own = 1 + 4 * y.unsqueeze(1) + random % 4
    x = torch.where(torch.rand(n, length, generator=generator(4)) < 0.6, own, random)
    return x.masked_fill(torch.arange(length) >= lengths.unsqueeze(1), PAD), y


def waves(n: int = 480, length: int = 12) -> tuple[Tensor, Tensor]:
    """Noisy sine waves (n, length, 2) of three frequencies, standardised."""
    y = torch.randint(3, (n,), generator=generator(1))
    phase = 6.28 * torch.rand(n, 1, 2, generator=generator(2))
    time = torch.arange(length).view(1, -1, 1)
    x = torch.sin(0.5 * (1 + y).view(-1, 1, 1) * time + phase)
    x = x + 0.2 * torch.randn(n, length, 2, generator=generator(3))
    return x / x.std(), y


def curve(n: int = 480) -> tuple[Tensor, Tensor]:
    """Numbers to predict, standardised, (n, 1)."""
    x = torch.randn(n, 6, generator=generator(1))
    y = x[:, :1] * 2 + x[:, 1:2].sin() - x[:, 2:3] + 0.1 * torch.randn(n, 1, generator=generator(2))
    return x, (y - y.mean()) / y.std()


# Networks -------------------------------------------------------------------------------------------------------------


def mlp(features: int = 8, outputs: int = 4, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def cnn(outputs: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(24 * 16, outputs),
    )


class Recurrent(nn.Module):
    """A GRU over (b, t, d), its last state classified."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 24, batch_first=batch_first)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.head(self.pool(states))

    def pool(self, states: Tensor) -> Tensor:
        return states[:, -1]


class Attention(nn.Module):
    """Self-attention with several heads and dropout."""

    def __init__(self, dim: int, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.drop = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        return x.view(b, t, self.heads, d // self.heads).transpose(1, 2)

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        weights = self.drop(self.weigh(scores.masked_fill(~allowed, -1e9)))
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), attention(dim)
        self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)),
        )

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Two causal blocks over tokens (b, t); logits (b, t, v)."""

    def __init__(
        self, vocab: int = 41, dim: int = 32, length: int = 16, attention: type[Attention] = Attention
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(16, dim)
        self.blocks = nn.ModuleList(Block(dim, attention) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.05)

    def allowed(self, t: int) -> Tensor:
        return torch.ones(t, t, dtype=torch.bool).tril()

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        h = self.tokens(x) + self.places(torch.arange(t))
        for block in self.blocks:
            h = block(h, self.allowed(t))
        return self.head(self.norm(h))


class Encoder(nn.Module):
    """One block over padded tokens (b, t), averaged over the real ones; logits (b, 3)."""

    pad_id = PAD

    def __init__(self, dim: int = 24, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.tokens, self.block, self.head = nn.Embedding(13, dim), Block(dim, attention), nn.Linear(dim, 3)

    def allowed(self, x: Tensor) -> Tensor:
        return (x != PAD)[:, None, None, :]

    def pool(self, h: Tensor, real: Tensor) -> Tensor:
        return (h * real).sum(1) / real.sum(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.tokens(x), self.allowed(x))
        return self.head(self.pool(h, (x != PAD).unsqueeze(-1)))


# Modules --------------------------------------------------------------------------------------------------------------


class Module(L.LightningModule):
    """A network, a loss and an optimizer.

    Args:
        net: the network.
        loss: from outputs and targets to a number.
        lr: learning rate.
        optimizer: class of the optimizer.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        lr: float = 3e-3,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.lr, self.optimizer = net, loss, lr, optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=self.lr)


class LanguageModel(Module):
    """Predicts the next of tokens (b, t + 1)."""

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens[:, :-1], tokens[:, 1:]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.split(batch[0])
        return self.loss(self(x).flatten(0, 1), y.flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))


class ByHand(Module):
    """The same with manual optimisation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def clear(self, optimizer: Any) -> None:
        optimizer.zero_grad()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, (x, y) = self.optimizers(), batch
        self.clear(optimizer)
        self.manual_backward(self.loss(self(x), y))
        optimizer.step()
