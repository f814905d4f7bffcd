"""Time to a loss: configs/gpt_docs_fast.yaml through ``zoo fit`` against the plain recipe in a plain PyTorch loop.

The plain recipe is nanoGPT's for characters on a CPU: 4 layers, width 128, 4 heads, blocks of 64, batches of 12, AdamW
with 1e-3 and betas 0.9 and 0.99, 100 steps of warmup and a cosine over 2,000, decay 0.1, gradients clipped at 1, in
float32. Its model and loop are written here. Both are judged by the same validation blocks of 64 characters; the time
that this takes, and the checkpoint behind it, is left out on both sides. The loss to reach is the plain recipe's after
its last step.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cli import main
from zoo.data import PythonDocs

CONFIG = Path(__file__).parent.parent.parent / "configs" / "gpt_docs_fast.yaml"
DIM, DEPTH, HEADS, BLOCK, BATCH = 128, 4, 4, 64, 12
Curve = list[tuple[int, float, float]]
"""Steps, seconds, validation loss."""


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(DIM, bias=False), nn.LayerNorm(DIM, bias=False)
        self.c_attn, self.c_proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.c_fc, self.mlp_proj = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(4 * DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class PlainGPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, DIM), nn.Embedding(BLOCK, DIM)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(DEPTH))
        self.ln_f, self.lm_head = nn.LayerNorm(DIM, bias=False), nn.Linear(DIM, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * DEPTH) if "proj" in name else 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@torch.no_grad()
def validation_loss(net: nn.Module, blocks: Any) -> float:
    total = 0.0
    for indices in torch.arange(len(blocks)).split(48):
        x, y = blocks.batch(indices)
        total += float(F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="sum"))
    return total / (len(blocks) * BLOCK)


def plain(data: PythonDocs, steps: int, every: int) -> Curve:
    torch.manual_seed(0)
    text, blocks = torch.from_numpy(data.datasets["train"].ids.astype("int64")), data.datasets["val"]  # type: ignore
    net = PlainGPT(data.vocab_size)
    groups = [
        {"params": [p for p in net.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99))
    curve: Curve = [(0, 0.0, validation_loss(net, blocks))]
    seconds, began = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        share = (step - 1 - 100) / (steps - 100)
        lr = 1e-3 * step / 101 if step <= 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = lr
        starts = torch.randint(len(text) - BLOCK, (BATCH,))
        x = torch.stack([text[i : i + BLOCK] for i in starts])
        y = torch.stack([text[i + 1 : i + 1 + BLOCK] for i in starts])
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % every == 0:
            seconds += time.perf_counter() - began
            curve.append((step, seconds, validation_loss(net, blocks)))
            began = time.perf_counter()
    return curve


class Clock(L.Callback):
    """Seconds of training, without those of validation, and what it found."""

    def __init__(self) -> None:
        self.curve: Curve = []
        self.seconds = self.began = 0.0
        self.judged = False

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.judged, self.began = False, time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self.seconds = 0.0
        else:
            self.curve.append((trainer.global_step, self.seconds, float(trainer.callback_metrics["val/loss"])))
        self.judged = True

    def on_train_batch_start(self, *_: Any) -> None:
        if self.judged:
            self.judged, self.began = False, time.perf_counter()


def fast(every: int) -> Curve:
    clock, here = Clock(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            code = main(["fit", "-c", str(CONFIG), "--trainer.val_check_interval", str(every)], [clock])
        finally:
            os.chdir(here)
    if code != 0:
        raise RuntimeError(f"zoo fit ended with code {code}")
    return clock.curve


def told(curve: Curve) -> str:
    return ", ".join(f"{loss:.3f} at {seconds:.1f} s" for _, seconds, loss in curve)


def run(steps: int = 2000, repeats: int = 2) -> list[dict[str, Any]]:
    data = PythonDocs(block_size=BLOCK, batch_size=BATCH)
    first = fast(10)
    theirs = plain(data, steps, steps // 8)
    curves = [first, *(fast(10) for _ in range(repeats - 1))]
    target, peer = theirs[-1][2], theirs[-1][1]
    reached = [next(((n, s) for n, s, loss in curve if loss <= target), None) for curve in curves]
    if None in reached:
        raise RuntimeError(f"loss {target:.4f} is not reached: {told(curves[reached.index(None)])}")
    took = statistics.median(seconds for _, seconds in reached)  # type: ignore[misc]
    name = f"time to val/loss {target:.3f}, {reached[0][0]} steps: {told(curves[0])}"  # type: ignore[index]
    other = f"plain loop, {steps} steps: {told(theirs)}"
    result = {"name": name, "ours_ms": took * 1e3, "peer": other, "peer_ms": peer * 1e3, "ratio": took / peer}
    return [{**result, "target": 0.1}]
