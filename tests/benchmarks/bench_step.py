"""A step of `zoo fit` against the training loop one would write by hand, over the same network, data and batches.

The loop: zero_grad, forward, loss, backward, clip, step, `loss.item()`, with a DataLoader over a TensorDataset.
Both run in this process, an epoch of one and an epoch of the other in turn; steady state, without the first epoch.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.cli import main as zoo
from zoo.data import Digits, Quadrants
from zoo.models import MLP, SmallCNN

CASES = {
    "MLP 2-64-64-4, batch 64": (
        ["--model", "MLPClassifier", "--model.hidden", "[64,64]", "--data", "Quadrants", "--data.samples", "32000"],
        lambda: MLP(2, [64, 64], 4),
        lambda: Quadrants(samples=32000),
    ),
    "small CNN 32-64-128-128-256, 8 px, batch 64": (
        ["--model", "SmallCNNClassifier", "--data", "Digits"],
        lambda: SmallCNN(1, 10),
        Digits,
    ),
}


class Plain:
    """The loop of the notes, an epoch at a time."""

    def __init__(self, net: nn.Module, data: Any) -> None:
        train = TensorDataset(*data.datasets["train"].tensors)
        self.net, self.loader = net, DataLoader(train, batch_size=64, shuffle=True)
        self.optimizer, self.loss = torch.optim.AdamW(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def epoch(self) -> float:
        """Seconds a step."""
        self.net.train()
        total, began = 0.0, time.perf_counter()
        for x, y in self.loader:
            self.optimizer.zero_grad()
            loss = self.loss(self.net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            total += loss.item()
        return (time.perf_counter() - began) / len(self.loader)


class InTurn(L.Callback):
    """Time an epoch of zoo, then run an epoch of the loop."""

    def __init__(self, plain: Plain) -> None:
        self.plain, self.pairs = plain, []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.began = None

    def on_train_batch_start(self, *args: Any) -> None:
        if self.began is None:  # behind the last epoch's checkpoint, which the loop does not write
            self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.pairs.append((self.ended - self.began) / trainer.num_training_batches)
        self.pairs[-1] = (self.pairs[-1], self.plain.epoch())

    def on_train_batch_end(self, *args: Any) -> None:
        self.ended = time.perf_counter()


def run(epochs: int = 12) -> list[dict[str, Any]]:
    results = []
    for name, (argv, net, data) in CASES.items():
        turns = InTurn(Plain(net(), data()))
        before = Path.cwd()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(folder)
            common = ["--trainer.max_epochs", str(epochs), "--trainer.gradient_clip_val", "1.0"]
            code = zoo(["fit", *argv, *common, "--trainer.accelerator", "cpu"], [turns])
            os.chdir(before)
        assert code == 0
        ours, peer = zip(*turns.pairs[1:], strict=True)
        ratio = statistics.median(a / b for a, b in turns.pairs[1:])
        medians = statistics.median(ours) * 1e3, statistics.median(peer) * 1e3
        results.append({"name": f"step: {name}", "ours_ms": medians[0], "peer": "plain loop", "peer_ms": medians[1],
                        "ratio": ratio, "target": 1.0})  # fmt: skip
    return results


if __name__ == "__main__":
    for row in run():
        print(row)
