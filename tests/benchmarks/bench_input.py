"""Images a second from the data to what a network takes, against the usual pipeline of one image at a time and kornia.

Both sides give batches of 128 normalised float32 tensors, in turn in this process. Augmentation is that of the notes:
random crop with a padding of 4, flip, colour jitter of 0.2, rotation by 10 degrees, normalisation. The usual pipeline
is torchvision's transforms on PIL images in a DataLoader. Times are milliseconds for 1,000 images.

The limit: a batch of 32 px is 0.4 MB of bytes that become 1.6 MB of floats, some 0.2 ms to move once; the rotation's
pixels (grid_sample) take 0.33 ms, and three changes of colour are three passes to and fro at the least, 0.5 ms: about
1 ms on one thread. Measured there: 2.7 ms (crop 0.17, flip 0.11, colour 1.23, rotation 0.52, normalisation 0.14,
the rest conversion), so 48,000 images/s. Without kornia its row is left out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from tests.fake_data import pictures
from zoo.data import ImageDataset, ImageFolder
from zoo.data.augment import ColorJitter, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, RandomRotation
from zoo.data.images.base import ImageData

MEAN, STD, BATCH = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 128


class InMemory(ImageData):
    """Photograph-like images of 32 px."""

    num_classes, native_channels, native_size = 10, 3, 32

    def splits(self) -> dict[str, Any]:
        x, y = pictures(4096, 10, 32)
        return {"train": ImageDataset(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y))}


class AsPIL(Dataset):
    """The same as torchvision's CIFAR10 gives them: an array is made an image, and transformed."""

    def __init__(self, n: int, transform: Callable) -> None:
        (self.x, self.y), self.transform = pictures(n, 10, 32), transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[i])), int(self.y[i])


def ours(data: ImageData) -> int:
    """Take an epoch; return the number of images."""
    n = 0
    for x, y in data.train_dataloader():
        x, y = data.prepare(x, y, training=True)
        n += len(x)
    return n


def theirs(loader: DataLoader, batched: Callable[[Tensor], Tensor] = lambda x: x) -> int:
    n = 0
    for x, *_ in loader:
        n += len(batched(x))
    return n


def in_turn(
    name: str, peer: str, ours: Callable[[], int], theirs: Callable[[], int], rounds: int, target: float
) -> dict[str, Any]:
    """Run both once to warm up, then in turn; the ratio is the median of the pairs'."""
    sides: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for side, run in zip(sides, (ours, theirs), strict=True):
            began = time.perf_counter()
            n = run()
            if i:
                side.append((time.perf_counter() - began) / n * 1e6)
    ratio = statistics.median(a / b for a, b in zip(*sides, strict=True))
    medians = [statistics.median(side) for side in sides]
    return {"name": name, "ours_ms": medians[0], "peer": peer, "peer_ms": medians[1], "ratio": ratio, "target": target}


def run(rounds: int = 7) -> list[dict[str, Any]]:
    notes = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ColorJitter(0.2, 0.2, 0.2), T.RandomRotation(10)]
    pil = T.Compose([*notes, T.ToTensor(), T.Normalize(MEAN, STD)])
    steps = [RandomCrop(32, padding=4), RandomHorizontalFlip(), ColorJitter(0.2, 0.2, 0.2), RandomRotation(10)]
    data = InMemory(batch_size=BATCH, augment=steps, mean=MEAN, std=STD)
    name, rows = "input: 32 px, augmentation of the notes", []
    for workers in (0, 2):
        loader = DataLoader(AsPIL(2048, pil), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        peer = f"torchvision on PIL images, {workers} workers"
        rows.append(in_turn(name, peer, partial(ours, data), partial(theirs, loader), rounds, 0.1))
        del loader
    if (kornia := of_kornia()) is not None:
        set_ = data.datasets["train"]
        loader = DataLoader(torch.utils.data.TensorDataset(*set_.tensors), BATCH, shuffle=True)
        rows.append(in_turn(name, "kornia, whole batches", partial(ours, data), partial(theirs, loader, kornia),
                            rounds, 0.5))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows += from_jpegs(Path(folder), rounds)
    return rows


def of_kornia() -> Callable[[Tensor], Tensor] | None:
    """The same augmentation by kornia, if it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kornia.augmentation as K
    except ImportError:
        print("kornia is not installed, so it is not compared with: pip install kornia")
        return None
    chain = torch.nn.Sequential(
        K.RandomCrop((32, 32), padding=4), K.RandomHorizontalFlip(), K.ColorJitter(0.2, 0.2, 0.2, p=1.0),
        K.RandomRotation(10, p=1.0), K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )  # fmt: skip
    return lambda x: chain(x.float() / 255)


def from_jpegs(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Second and later epochs over a folder of JPEGs of 128 to 192 px, cropped to 64 px."""
    for i in range(1024):
        x, _ = pictures(1, 4, 128 + 16 * (i % 5), seed=i)
        path = folder / "photos" / str(i % 4)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0]).save(path / f"{i}.jpg", quality=90)
    usual = T.Compose([T.Resize(72), T.CenterCrop(72), T.RandomResizedCrop(64), T.RandomHorizontalFlip(), T.ToTensor(),
                       T.Normalize(MEAN, STD)])  # fmt: skip
    steps = [RandomResizedCrop(64), RandomHorizontalFlip()]
    rows = []
    for workers in (0, 2):
        data = ImageFolder(str(folder / "photos"), image_size=72, augment=steps, mean=MEAN, std=STD, batch_size=BATCH,
                           val_split=0, test_split=0)  # fmt: skip
        files = torchvision.datasets.ImageFolder(str(folder / "photos"), usual)
        loader = DataLoader(files, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        rows.append(in_turn("input: folder of JPEGs, from the second epoch on", f"ImageFolder, {workers} workers",
                            partial(ours, data), partial(theirs, loader), rounds, 0.5))  # fmt: skip
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
