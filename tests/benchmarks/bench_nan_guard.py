"""A training step with `NaNGuard` against the same step without it, for ResNet-18 and a 4-layer GPT.

One Lightning run a net, in which the sides take turns step by step; a ratio is the median over turns. Beside it, for
comparison and without a target: the guard with `always_on`, and `torch.autograd.set_detect_anomaly`.
"""

import tempfile
from statistics import median
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from zoo.callbacks.nan.guard import NaNGuard

TARGET = 1.01
TURN = ["plain", "guard", "always_on", "guard", "plain", "anomaly"]  # plain and guard twice, in either order
WARM_UP = 2  # turns


class GPT(nn.Module):
    def __init__(self, vocab: int = 65, dim: int = 128, block: int = 64):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(block, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(block))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions.weight
        return self.head(self.blocks(x, mask=self.mask, is_causal=True)).flatten(0, 1)


class Task(L.LightningModule):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class TakeTurns(L.Callback):
    """Puts the next side in place at the end of every batch, and times from one end to the next."""

    def __init__(self):
        self.guards = {"guard": NaNGuard(), "always_on": NaNGuard(always_on=True)}
        self.times: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.guards["guard"].on_train_start(trainer, pl_module)
        self.arrange(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.times.append(1000 * (perf_counter() - self.start))
        self.guards["always_on"].on_train_end(trainer, pl_module)  # takes its hooks off the modules
        self.arrange(trainer, pl_module)

    def arrange(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        side = TURN[len(self.times) % len(TURN)]
        torch.autograd.set_detect_anomaly(side == "anomaly")
        guards = [self.guards[side]] if side in self.guards else []
        trainer.callbacks = [*guards, self]  # pyright: ignore[reportAttributeAccessIssue]
        if side == "always_on":
            self.guards[side].on_train_start(trainer, pl_module)
        self.start = perf_counter()


def compare(name: str, task: Task, batch: list[Tensor], turns: int) -> list[dict[str, Any]]:
    clock = TakeTurns()
    steps = len(TURN) * (turns + WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        try:
            trainer.fit(task, DataLoader([batch] * steps, batch_size=None))  # pyright: ignore[reportArgumentType]
        finally:
            torch.autograd.set_detect_anomaly(False)
    sides: dict[str, list[float]] = {side: [] for side in TURN}
    for turn in range(WARM_UP, turns + WARM_UP):
        times = clock.times[turn * len(TURN) : (turn + 1) * len(TURN)]
        for side, values in sides.items():
            mine = [time for time, whose in zip(times, TURN, strict=True) if whose == side]
            values.append(sum(mine) / len(mine))
    plain = sides.pop("plain")
    return [
        {
            "name": f"{name}, {side}",
            "ours_ms": median(values),
            "peer": "no guard",
            "peer_ms": median(plain),
            "ratio": median(a / b for a, b in zip(values, plain, strict=True)),
            "target": TARGET if side == "guard" else None,
        }
        for side, values in sides.items()
    ]


def run(turns: int = 15) -> list[dict[str, Any]]:
    images = [torch.randn(64, 3, 32, 32), torch.randint(10, (64,))]
    tokens = [torch.randint(65, (12, 64)), torch.randint(65, (12, 64))]
    resnet = compare("ResNet-18", Task(resnet18(num_classes=10)), images, turns)
    return resnet + compare("GPT", Task(GPT()), tokens, 3 * turns)


if __name__ == "__main__":
    for r in run():
        print("{name}: {ours_ms:.1f} ms, {peer}: {peer_ms:.1f} ms, ratio {ratio:.4f}, target {target}".format(**r))
