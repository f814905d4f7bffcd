"""A training step on images of 32 pixels: `zoo fit` as it is fastest here, against the usual float32 loop.

The loop: torchvision's or timm's network (the notes' for the small CNN), zero_grad, forward, loss, backward, clip,
step, `loss.item()`, AdamW. zoo: the same network, batch and optimizer with ``precision: bf16-mixed`` (weights and
optimizer stay float32) and ``channels_last``, nothing compiled. Both run in this process, an epoch of one and an epoch
of the other in turn, without the first. A row's name says what share of the CPU's peak in matrix products, measured
here in the precision of each, the step's arithmetic reaches: zoo's / the loop's.

The limit: with matrix units for bf16 (AMX) the products of the ViT take a sixth of float32's time, and what is left are
passes over activations, which move half the bytes: a fifth to a third in all. Chosen by measurement on a CPU with AMX,
times the float32 loop's, small CNN / ResNet-18 / ViT-Ti: channels-last alone 0.80 / 0.90 / 0.96; bf16-mixed 0.45 / 0.43
/ 0.81; both 0.30 / 0.37 / 0.79; weights in bf16 too 0.31 / 0.36 / 0.74. Half of the ViT's time was torch's fused
attention, backward in bf16; as two products it comes to 0.43. torch.compile takes that to 0.40, after minutes of
compiling: left out. ``tests/models/test_precision.py`` shows that bf16 costs no accuracy.
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
import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from zoo.cli import main as zoo
from zoo.data import BatchTensorDataset, DataModule
from zoo.models import SmallCNN

BATCH, STEPS = 64, 6
AMX = Path("/proc/cpuinfo").exists() and "amx_bf16" in Path("/proc/cpuinfo").read_text()
FAST = ["--trainer.precision", "bf16-mixed", "--model.channels_last", "true"]


class Noise(DataModule):
    """Random images of 32 pixels in 10 classes, made once: neither side pays for data."""

    num_classes, in_channels, image_size = 10, 3, 32

    def splits(self) -> dict[str, BatchTensorDataset]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH * STEPS, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (len(x),), generator=generator)
        return {"train": BatchTensorDataset(x, y), "val": BatchTensorDataset(x[:1], y[:1])}


def resnet18() -> nn.Module:
    """torchvision's with the stem for 32 pixels, as everyone trains it on CIFAR."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


CASES: dict[str, tuple[list[str], Any]] = {
    "small CNN": (["SmallCNNClassifier", *FAST], lambda: SmallCNN(3, 10)),
    "ResNet-18": (["ResNetClassifier", "--model.stem", "cifar", *FAST], resnet18),
    "ViT-Ti/4": (
        ["ViTClassifier", "--model.patch_size", "4", *FAST],
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10),
    ),
}


class Loop:
    """The usual loop, an epoch at a time."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.loss = net, nn.CrossEntropyLoss()
        self.loader = DataLoader(TensorDataset(*Noise().splits()["train"].tensors), batch_size=BATCH, shuffle=True)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def epoch(self) -> float:
        """Seconds a step, without the first."""
        self.net.train()
        times = []
        for x, y in self.loader:
            began = time.perf_counter()
            self.optimizer.zero_grad()
            loss = self.loss(self.net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            loss.item()
            times.append(time.perf_counter() - began)
        return statistics.mean(times[1:])


class InTurn(L.Callback):
    """Time the steps of zoo's epoch without the first, each up to the start of the next; then run one of the loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.pairs, self.starts = loop, [], []

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if len(self.starts) == STEPS:
            ours = (time.perf_counter() - self.starts[1]) / (STEPS - 1)
            self.pairs.append((ours, self.loop.epoch()))
            self.starts = []


def peak(dtype: torch.dtype, n: int = 2048, times: int = 6) -> float:
    """Floating-point operations a second in a product of two square matrices."""
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def operations(net: nn.Module) -> int:
    """Of a step forward and backward over a batch, additions and multiplications counted apart."""
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() * BATCH // 2


def run(epochs: int = 5) -> list[dict[str, Any]]:
    peaks = {dtype: peak(dtype) for dtype in (torch.bfloat16, torch.float32)}
    results = []
    for name, (argv, net) in CASES.items():
        loop = Loop(net())
        turns, work = InTurn(loop), operations(loop.net)
        before = Path.cwd()
        data = ["--data", "tests.benchmarks.bench_vision_step.Noise", "--data.batch_size", str(BATCH)]
        common = ["--trainer.max_epochs", str(epochs), "--trainer.gradient_clip_val", "1.0", "--trainer.accelerator"]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(folder)
            allowed = ["--allow-import", "tests"]
            code = zoo(["fit", "--model", *argv, *data, *common, "cpu", *allowed], [turns])
            os.chdir(before)
        assert code == 0
        ours, peer = zip(*turns.pairs[1:], strict=True)
        ratio = statistics.median(a / b for a, b in turns.pairs[1:])
        seconds = statistics.median(ours), statistics.median(peer)
        shares = work / seconds[0] / peaks[torch.bfloat16], work / seconds[1] / peaks[torch.float32]
        results.append({"name": f"{name}, 32 px, batch {BATCH}: {shares[0]:.0%} / {shares[1]:.0%} of the peaks",
                        "ours_ms": seconds[0] * 1e3, "peer": "float32 loop", "peer_ms": seconds[1] * 1e3,
                        "ratio": ratio, "target": 0.4 if AMX else 0.8})  # fmt: skip
    return results


if __name__ == "__main__":
    for row in run():
        print(row)
