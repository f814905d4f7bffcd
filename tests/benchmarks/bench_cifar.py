"""Seconds until `zoo fit -c configs/airbench_cifar10.yaml` is as good as the notes' small CNN after 5 of its 50 epochs.

The other side is the notes' recipe as it is: their network, torchvision's transforms on PIL images in a DataLoader of 4
workers, AdamW under OneCycleLR of 50 epochs, label smoothing, clipping, float32 (their autocast and scaler are CUDA's).
Both train on all 50,000 images and validate on the 10,000 of the test part, as the notes do; zoo every half epoch.
Seconds count from the command (zoo: reading of config and data included) or from the building of loaders and network
(the notes' loop) to the end of a validation, with all validations before.

``ZOO_CIFAR10`` names a folder with CIFAR-10: ``cifar-10-batches-py``, or images as ``train/<class>/*`` and
``test/<class>/*``. ``ZOO_CIFAR10_EPOCHS`` (5) shortens the other side, for a look at the whole.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from zoo.cli import main as zoo
from zoo.data import CIFAR10, ImageFolder
from zoo.models import SmallCNN

CONFIG = Path(__file__).parents[2] / "configs" / "airbench_cifar10.yaml"
EPOCHS, OF = int(os.environ.get("ZOO_CIFAR10_EPOCHS", "5")), 50
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Curve = list[tuple[float, float]]  # seconds and accuracy


class AsPIL(Dataset):
    """What torchvision's CIFAR10 does: an array is made an image, and transformed."""

    def __init__(self, x: Tensor, y: Tensor, transform: Callable) -> None:
        self.x, self.y, self.transform = x.permute(0, 2, 3, 1).numpy(), y.tolist(), transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[i])), self.y[i]


class Watch(L.Callback):
    """Note accuracy and seconds at each validation."""

    def __init__(self) -> None:
        self.curve, self.began = Curve(), time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.curve.append((time.perf_counter() - self.began, accuracy))
        print(f"zoo: {self.curve[-1][0]:.0f} s {accuracy:.4f}", flush=True)


def ours(root: Path) -> Curve:
    """The config as it is, but for where the data are and what is validated on, and when."""
    watch, before = Watch(), Path.cwd()
    data = ["--data.root", str(root), "--data.val_split", "0", "--trainer.val_check_interval", "0.5"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as err:
        os.chdir(folder)
        code = zoo(["fit", "-c", str(CONFIG), *data], [watch])
        os.chdir(before)
    assert code == 0, err.getvalue()
    return watch.curve


def theirs(root: Path) -> Curve:
    """The training loop of the notes."""
    (x, y), (test_x, test_y) = (CIFAR10(str(root)).read(part) for part in ("train", "test"))
    torch.manual_seed(0)
    began, curve = time.perf_counter(), Curve()
    end = [T.ToTensor(), T.Normalize(MEAN, STD)]
    steps = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ColorJitter(0.2, 0.2, 0.2), T.RandomRotation(10)]
    train = DataLoader(AsPIL(x, y, T.Compose([*steps, *end])), 128, shuffle=True, num_workers=4)
    val = DataLoader(AsPIL(test_x, test_y, T.Compose(end)), 256, num_workers=4)
    net, criterion = SmallCNN(3, 10), nn.CrossEntropyLoss(label_smoothing=0.1)  # the notes' by default
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, steps_per_epoch=len(train), epochs=OF)
    for _ in range(EPOCHS):
        net.train()
        correct = 0
        for images, labels in train:
            optimizer.zero_grad()
            out = net(images)
            loss = criterion(out, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            correct += (out.argmax(1) == labels).sum().item()
        net.eval()
        with torch.no_grad():
            right = sum((net(images).argmax(1) == labels).sum().item() for images, labels in val)
        curve.append((time.perf_counter() - began, right / len(test_y)))
        print(f"notes: {curve[-1][0]:.0f} s {curve[-1][1]:.4f}", flush=True)
    return curve


def found(folder: Path, scratch: Path) -> Path | None:
    """Where CIFAR-10 lies in the published files; made of images if they are what there is."""
    if (folder / "cifar-10-batches-py" / "test_batch").is_file():
        return folder
    if not all((folder / part).is_dir() for part in ("train", "test")):
        return None
    images = ImageFolder(str(folder), val_split=0)
    out = scratch / "cifar-10-batches-py"
    out.mkdir()
    for part, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
        x, y = (t.numpy() for t in images.datasets[part].tensors)  # type: ignore[attr-defined]
        for i, name in enumerate(names):
            content = {"data": np.ascontiguousarray(x[i :: len(names)]).reshape(-1, 3072),
                       "labels": y[i :: len(names)].tolist()}  # fmt: skip
            (out / name).write_bytes(pickle.dumps(content, protocol=2))
    (out / "batches.meta").write_bytes(pickle.dumps({"label_names": images.class_names}, protocol=2))
    return scratch


def reached(curve: Curve, bar: float) -> float:
    """Seconds to the first accuracy that is no less; infinite where there is none."""
    return next((seconds for seconds, accuracy in curve if accuracy >= bar), float("inf"))


def told(side: str, curve: Curve) -> str:
    return f"{side}: " + ", ".join(f"{accuracy:.3f} at {seconds:.0f} s" for seconds, accuracy in curve)


def run() -> list[dict[str, Any]]:
    given = os.environ.get("ZOO_CIFAR10", "")
    with tempfile.TemporaryDirectory() as scratch:
        root = found(Path(given).resolve(), Path(scratch)) if given else None
        if root is None:
            needed = "a folder with cifar-10-batches-py, or with train/<class> and test/<class> of images"
            print(f"bench_cifar needs ZOO_CIFAR10={needed}; got {given or 'nothing'}")
            return []
        mine, notes = ours(root), theirs(root)
    bar = notes[-1][1]
    seconds = reached(mine, bar), notes[-1][0]
    curves = told("zoo", mine), told("the notes' loop", notes)
    name = f"CIFAR-10 to {bar:.1%}, the notes' accuracy after {EPOCHS} of {OF} epochs"
    row = {"name": name, "ours_ms": seconds[0] * 1e3, "peer": "notes' float32 loop", "peer_ms": seconds[1] * 1e3}
    row |= {"ratio": seconds[0] / seconds[1], "target": 0.25}
    return [row | {"note": f"Validation accuracy: {curves[0]}; {curves[1]}."}]


if __name__ == "__main__":
    for row in run():
        print(row)
