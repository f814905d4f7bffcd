"""Recurrent networks: length buckets against padding, `zoo fit` against a plain loop, a written-out cell against steps.

All sides run in this process and take turns; ratios are medians over pairs of neighbours.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from zoo.cli import main as zoo
from zoo.data import TextClassification
from zoo.models import LSTM, VanillaRNN

SHAPE: dict[str, Any] = {"dim": 64, "bidirectional": True, "pooling": "max", "embed_dim": 64}


class NotesRNN(nn.Module):
    """As in the notes: two linear layers a time step."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.Wx = nn.Linear(input_dim, hidden_dim, bias=False)
        self.Wh = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, output_dim)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), self.Wh.in_features), []
        for t in range(x.shape[1]):
            h = self.tanh(self.Wx(x[:, t, :]) + self.Wh(h))
            outputs.append(h)
        return self.out(outputs[-1])


def median_row(name: str, pairs: list[tuple[float, float]], peer: str, target: float | None) -> dict[str, Any]:
    ours, theirs = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    medians = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    return {"name": name, "ours_ms": medians[0], "peer": peer, "peer_ms": medians[1], "ratio": ratio, "target": target}


def trainer_of(net: nn.Module) -> Callable[..., None]:
    """The plain loop's step: zero_grad, forward, loss, backward, clip, step, ``loss.item()``."""
    optimizer, loss_of = torch.optim.AdamW(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def step(inputs: Iterable[Tensor], y: Tensor) -> None:
        optimizer.zero_grad()
        loss = loss_of(net(*inputs), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def vanilla_steps(batch: int, steps: int, features: int, dim: int, rounds: int) -> list[tuple[float, float]]:
    """Forward, loss and backward; the optimizer's part is the same for both."""
    torch.manual_seed(0)
    nets = VanillaRNN(2, dim, input_dim=features), NotesRNN(features, dim, 2)
    x, y = torch.randn(batch, steps, features), torch.randint(0, 2, (batch,))
    pairs = []
    for _ in range(rounds):
        times = []
        for net in nets:
            net.zero_grad()
            began = time.perf_counter()
            nn.functional.cross_entropy(net(x), y).backward()
            times.append(time.perf_counter() - began)
        pairs.append((times[0], times[1]))
    return pairs[3:]


def text(**kwargs: Any) -> TextClassification:
    data = TextClassification(batch_size=32, **kwargs)
    with contextlib.redirect_stderr(io.StringIO()):
        data.setup("fit")
    return data


def buckets_and_padding(rounds: int) -> list[tuple[float, float]]:
    """An epoch of the same network in the same loop: batches by length, and all texts padded to the longest."""
    data = text()
    train: Any = data.datasets["train"]
    longest, nets = int(train.lengths.max()), [LSTM(5, vocab_size=data.vocab_size, pad_id=0, **SHAPE) for _ in range(2)]
    steps, pairs = [trainer_of(net) for net in nets], []

    def bucketed() -> None:
        for inputs, y in data.train_dataloader():
            steps[0](inputs, y)

    def padded() -> None:
        order = torch.randperm(len(train))
        for indices in order.split(32):
            (x, lengths), y = train.batch(indices)
            steps[1]((nn.functional.pad(x, (0, longest - x.shape[1])), lengths), y)

    for _ in range(rounds):
        times = []
        for epoch in (bucketed, padded):
            began = time.perf_counter()
            epoch()
            times.append(time.perf_counter() - began)
        pairs.append((times[0], times[1]))
    return pairs


class InTurn(L.Callback):
    """Time an epoch of zoo, then run the same batches in the plain loop."""

    def __init__(self, net: nn.Module) -> None:
        self.step, self.pairs = trainer_of(net), []
        self.data = text()
        self.loader = self.data.train_dataloader()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.began = None

    def on_train_batch_start(self, *args: Any) -> None:
        if self.began is None:
            self.began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert self.began is not None
        ours = (self.ended - self.began) / (trainer.num_training_batches - 1)
        self.loader.sampler.set_epoch(trainer.current_epoch)  # type: ignore[union-attr]
        began = time.perf_counter()
        for inputs, y in self.loader:
            self.step(inputs, y)
        self.pairs.append((ours, (time.perf_counter() - began) / len(self.loader)))


def fit_and_loop(epochs: int) -> list[tuple[float, float]]:
    turns = InTurn(LSTM(5, vocab_size=text().vocab_size, pad_id=0, **SHAPE))
    model = ["--model", "LSTMClassifier", *(f"--model.{k}={v}" for k, v in SHAPE.items())]
    common = ["--trainer.max_epochs", str(epochs), "--trainer.gradient_clip_val", "1.0", "--trainer.accelerator", "cpu"]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        data = ["--data", "TextClassification", "--data.batch_size", "32"]
        code = zoo(["fit", *model, *data, *common], [turns])
        os.chdir(before)
    assert code == 0
    return turns.pairs[1:]


def run(rounds: int = 15) -> list[dict[str, Any]]:
    rows = []
    for batch, steps, features, dim in ((64, 50, 16, 32), (64, 50, 16, 128), (64, 200, 2, 64), (64, 200, 2, 128)):
        name = f"vanilla RNN, forward and backward: batch {batch}, {steps} steps, {features} features, width {dim}"
        pairs = vanilla_steps(batch, steps, features, dim, rounds + 3)
        rows.append(median_row(name, pairs, "a Linear a step (notes)", 1 / 3))
    epochs = max(3, rounds // 5)
    name = "two-way LSTM, an epoch of sentences of the documentation: buckets"
    rows.append(median_row(name, buckets_and_padding(epochs), "padding to the longest", 0.5))
    name = "two-way LSTM, step of zoo fit, same batches"
    rows.append(median_row(name, fit_and_loop(2 * epochs), "plain loop", 1.0))
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
