"""What exact resume costs an epoch of the small CNN (20 steps of 64 digits), by clocks inside a real `zoo fit`.

Timed are the sampler while it yields an epoch's batches of indices, what DeterministicSteps and BestAndLast do in
every step,
and the checkpoints at the end of the epoch: `last.ckpt` and, when it improved, `best.ckpt`. The same run has
Lightning's own ModelCheckpoint twice, one for the best (``save_top_k=1``) and one for the last of every epoch, so that
each epoch gives a pair.

An epoch's time is that of its training steps alone, without validation and writing. The last row is the share of all
that plain Lightning does not pay: sampler, steps, and what our writing takes longer than theirs, where it does.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.callbacks import BestAndLast, DeterministicSteps
from zoo.cli import main as zoo
from zoo.data.sampler import ResumableBatchSampler

HOOKS = {
    "on_train_batch_start": "step",
    "on_train_batch_end": "step",
    "on_validation_end": "write",
    "on_train_epoch_end": "write",
    "on_train_epoch_start": "write",
}
TARGET = 0.01


class Clocks(L.Callback):
    """Times the hooks of the callbacks beside it, and each epoch's steps."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.epochs: list[Counter[str]] = []
        self.began = 0.0

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self.now[name] += 1e3 * (time.perf_counter() - began)  # type: ignore[assignment]
            return result

        return call

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for hook, when in HOOKS.items():
                if isinstance(callback, (BestAndLast, DeterministicSteps)):
                    setattr(callback, hook, self.timed(when, getattr(callback, hook)))
                elif isinstance(callback, ModelCheckpoint):
                    setattr(callback, hook, self.timed("theirs", getattr(callback, hook)))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if index == 0:  # by now the epoch before has written all its checkpoints
            self.epochs.append(self.now)
            self.now, self.began = Counter(), time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.now["epoch"] = 1e3 * (time.perf_counter() - self.began)  # type: ignore[assignment]


@contextlib.contextmanager
def timed_order(clocks: Clocks) -> Iterator[None]:
    plain = ResumableBatchSampler.__iter__

    def order(sampler: ResumableBatchSampler) -> Iterator:
        batches = plain(sampler)
        step = clocks.timed("order", lambda: next(batches, None))
        while (item := step()) is not None:
            yield item

    ResumableBatchSampler.__iter__ = order  # type: ignore[method-assign]
    try:
        yield
    finally:
        ResumableBatchSampler.__iter__ = plain  # type: ignore[method-assign]


def run(epochs: int = 15) -> list[dict[str, Any]]:
    clocks, before = Clocks(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), timed_order(clocks):
        os.chdir(folder)
        theirs = [ModelCheckpoint("best", monitor="val/accuracy", mode="max"), ModelCheckpoint("last")]
        argv = ["fit", "--model", "SmallCNNClassifier", "--data", "Digits", "--trainer.accelerator", "cpu"]
        code = zoo([*argv, "--trainer.max_epochs", str(epochs)], [clocks, *theirs])
        os.chdir(before)
    assert code == 0
    pairs = clocks.epochs[2:]  # the first entry is what was before the first epoch, the second that one itself

    def row(name: str, peer: str, cost: Callable[[Counter], float], target: float | None) -> dict[str, Any]:
        times = [(cost(e), e["theirs"] if peer == "ModelCheckpoint" else e["epoch"]) for e in pairs]
        return {"name": name, "ours_ms": median(a for a, _ in times), "peer": peer,
                "peer_ms": median(b for _, b in times), "ratio": median(a / b for a, b in times),
                "target": target}  # fmt: skip

    def beyond(e: Counter) -> float:
        return e["order"] + e["step"] + max(0.0, e["write"] - e["theirs"])

    return [
        row("resume: order of the samples", "the epoch", lambda e: e["order"], None),
        row("resume: DeterministicSteps and BestAndLast in every step", "the epoch", lambda e: e["step"], None),
        row("resume: writing best and last", "ModelCheckpoint", lambda e: e["write"], None),
        row("resume: all that Lightning does not pay", "the epoch", beyond, TARGET),
    ]


if __name__ == "__main__":
    for row in run():
        print(row)
