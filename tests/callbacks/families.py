"""One tiny net of each family with a `slot` in the middle, the faults planted there, and runs that must fail."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from zoo.callbacks.nan.guard import NaNGuard, NonFiniteError

BATCH, TIME, DIM, CLASSES = 4, 6, 8, 3
SICK_STEP = 2  # the batch, counted from 0, at which a planted fault breaks out


class MLP(nn.Module):
    shape = (DIM,)

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(DIM, DIM)
        self.slot: nn.Module = nn.Identity()
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.slot(self.stem(x).relu()))


class ConvNet(nn.Module):
    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, DIM, 3, padding=1), nn.BatchNorm2d(DIM), nn.ReLU(inplace=True))
        self.slot: nn.Module = nn.Identity()
        self.block = nn.Sequential(nn.Conv2d(DIM, DIM, 3, padding=1), nn.BatchNorm2d(DIM))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.slot(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 6))
        out = self.block(x)
        out += x  # in place, as in ResNet
        return self.head(out.mean((2, 3)))


class Recurrent(nn.Module):
    shape = (TIME, DIM)

    def __init__(self):
        super().__init__()
        self.stem = nn.LSTM(DIM, DIM, batch_first=True)
        self.slot: nn.Module = nn.Identity()
        self.rnn = nn.RNN(DIM, DIM, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.slot(self.stem(x)[0]))[0][:, -1])


class Transformer(nn.Module):
    """Its attention writes -inf over the future, as healthy as can be."""

    shape = (TIME, DIM)

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.drop = nn.Dropout(0.1)
        self.slot: nn.Module = nn.Identity()
        self.block = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(DIM, CLASSES)
        self.register_buffer("mask", torch.full((TIME, TIME), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        future = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
        scores = (q @ k.mT / DIM**0.5).masked_fill(future, float("-inf"))
        x = self.slot(x + self.drop(scores.softmax(-1) @ v))
        return self.head(self.block(x, src_mask=self.mask, is_causal=True).mean(1))


FAMILIES = [MLP, ConvNet, Recurrent, Transformer]


class Fault(nn.Module):
    """Identity until the sick step, then `harm`; the count is a buffer, so that a replay finds it as it was."""

    step: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        return self.harm(x) if self.step == SICK_STEP + 1 else x

    @abstractmethod
    def harm(self, x: Tensor) -> Tensor: ...


class ExpOverflow(Fault):
    def harm(self, x: Tensor) -> Tensor:
        return x + torch.exp(x.abs() * 1e4 + 100)


class LogOfZero(Fault):
    def harm(self, x: Tensor) -> Tensor:
        return x * torch.log(x.relu() * 0)


class Division(Fault):
    def harm(self, x: Tensor) -> Tensor:
        return x / (x - x)


class RootAtZero(Fault):
    def harm(self, x: Tensor) -> Tensor:
        return x + torch.sqrt((x * 0).square())


class MaskByArithmetic(Fault):
    def harm(self, x: Tensor) -> Tensor:
        keep = torch.ones_like(x)
        return x + (1 - keep) * float("-inf")


class HalfOverflow(Fault):
    def harm(self, x: Tensor) -> Tensor:
        return ((x.abs() + 1).half() * 60000.0 * 4.0).float()


class BrainFloatOverflow(Fault):
    def harm(self, x: Tensor) -> Tensor:
        big = (x.abs() + 1).bfloat16() * 1e38
        return (big @ torch.ones(DIM, DIM, dtype=torch.bfloat16)).float()


class Explosion(Fault):
    """A recurrence that multiplies by 50, 30 times."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(DIM, DIM)
        self.cell.weight.data = 50 * torch.eye(DIM)

    def harm(self, x: Tensor) -> Tensor:
        x = x.abs() + 1
        for _ in range(30):
            x = self.cell(x).relu()
        return x


class BadVariance(nn.Module):
    """A frozen batch norm whose running variance has gone wrong."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)
        self.norm.running_var -= 3  # pyright: ignore[reportOperatorIssue]

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return self.norm(x.reshape(-1, DIM)).view_as(x)


class Task(L.LightningModule):
    """A classifier around any of the nets, whose loss may be made to overflow at the sick step."""

    def __init__(self, net: nn.Module, optimizer: str = "Adam", inf_loss: bool = False):
        super().__init__()
        self.net, self.optimizer, self.inf_loss = net, optimizer, inf_loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        if self.inf_loss and batch_idx == SICK_STEP:
            loss = loss * 1e30 * 1e30
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-2)


def batches(net: nn.Module, n: int = 5, nan_sample: int | None = None) -> DataLoader:
    """The same n batches every time; one sample of the sick batch holds a NaN if asked."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, BATCH, *net.shape, generator=generator)  # pyright: ignore
    y = torch.randint(CLASSES, (n, BATCH), generator=generator)
    if nan_sample is not None:
        x[SICK_STEP, nan_sample].flatten()[1] = float("nan")
    return DataLoader(list(zip(x, y, strict=True)), batch_size=None)  # pyright: ignore[reportArgumentType]


def trainer_with(guard: NaNGuard | None, folder: Path, **kwargs: Any) -> L.Trainer:
    callbacks = [*([guard] if guard else []), *kwargs.pop("callbacks", [])]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    more = {"enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder}
    return L.Trainer(callbacks=callbacks, **quiet, **more, **kwargs)  # pyright: ignore[reportArgumentType]


def caught(task: L.LightningModule, loader: DataLoader, folder: Path, **kwargs: Any) -> dict[str, Any]:
    """The report of a run that must fail."""
    guard = kwargs.pop("guard", None) or NaNGuard()
    with pytest.raises(NonFiniteError) as error:
        trainer_with(guard, folder, **kwargs).fit(task, loader)
    report = json.loads((folder / "nan_report.json").read_text())
    assert report["advice"] in str(error.value)
    assert "\n" not in str(error.value)
    return report


def named(report: dict[str, Any]) -> tuple[str, str, str]:
    return report["module"], report["kind"], report["phase"]
