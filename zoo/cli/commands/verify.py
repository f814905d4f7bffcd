"""Proof that a run that is killed and resumed equals the one that was never killed, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from zoo.errors import UserError

# What of a checkpoint makes up the state of training. `loops` counts attempts too, which a kill adds to.
STATE = (
    "epoch",
    "global_step",
    "state_dict",
    "ema_params",
    "optimizer_states",
    "lr_schedulers",
    "train_running_mean",
    "callbacks",
)


class KillAt(L.Callback):
    """End the process with SIGKILL some time into a step, wherever it is by then.

    Args:
        step: number of the batch, counted over all epochs.
        delay: seconds after the batch has begun.
    """

    def __init__(self, step: int, delay: float = 0.0) -> None:
        self.step, self.delay = step, delay

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 >= self.step:
            if self.delay == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            self.step = sys.maxsize


def in_a_process(argv: Sequence[str], callbacks: Sequence[L.Callback] = (), log: Path | None = None) -> int:
    """Run a command in a forked process, which has everything imported already; return its exit code or -signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(log or os.devnull, "a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            from zoo.cli.lightning_cli import main

            code = main(list(argv), callbacks)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Name the first place where two trees of tensors and plain values differ, or return None."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{path}: {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
        equal = torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)
        return None if equal else f"{path}: largest difference {float((a.double() - b.double()).abs().max()):.3g}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if only := sorted(map(str, a.keys() ^ b.keys())):
            return f"{path}: only one of them has {only[0]}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{path}.{k}" if path else str(k)))), None)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} items"
        return next(
            (d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := difference(x, y, f"{path}[{i}]"))), None
        )
    return None if a == b else f"{path}: {a} and {b}"


def compare_runs(a: Path, b: Path) -> str | None:
    """Name the first thing that differs between two finished runs: weights, optimizer, averages, metrics."""
    for name in ("last.ckpt", "best.ckpt"):
        files = [run / "checkpoints" / name for run in (a, b)]
        if files[0].exists() != files[1].exists():
            return f"{name}: only one run has it"
        if files[0].exists():
            one, two = (torch.load(f, weights_only=True, map_location="cpu") for f in files)
            keys = STATE if name == "last.ckpt" else ("epoch", "global_step", "state_dict", "ema_params")
            found = difference({k: one.get(k) for k in keys}, {k: two.get(k) for k in keys})
            if found:
                return f"{name}: {found}"
    one, two = ((run / "metrics.csv").read_text().splitlines() for run in (a, b))
    found = difference(one, two)
    return f"metrics.csv: line {found}" if found else None


def resume(argv: Sequence[str], kills: int = 4, seed: int = 0, say: Callable[[str], None] = print) -> str | None:
    """Train once straight through and once with kills and resumes; return the first difference, or None.

    Args:
        argv: options of ``zoo fit``: ``-c CONFIG`` and what else.
        kills: how many times the second run is killed, at random steps.
        seed: of the random steps.
        say: told what happens.
    """
    if not hasattr(os, "fork"):
        raise UserError("zoo verify forks a process for each run, which this system cannot: use Linux, WSL or macOS")
    random_ = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="zoo-verify-"))
    whole, broken, log = folder / "whole", folder / "killed", folder / "log"
    try:
        often = [] if any("save_every" in a for a in argv) else ["--checkpoint.save_every", "3 steps"]
        code = in_a_process(["fit", *argv, *often, "--run_dir", str(whole)], log=log)
        if code != 0:
            raise ValueError(f"the run without kills ended with code {code}: {_tail(log)}")
        steps = batches(whole)
        points = sorted(random_.sample(range(1, steps), min(kills, steps - 1)))
        say(f"{steps} batches; killing at {', '.join(map(str, points))}")
        for i, point in enumerate(points):
            resumable = any((broken / "checkpoints").glob("*.ckpt"))
            if not resumable:
                shutil.rmtree(broken, ignore_errors=True)
            start = ["fit", "--resume", str(broken)] if resumable else ["fit", *argv, *often, "--run_dir", str(broken)]
            code = in_a_process(start, [KillAt(point, random_.choice((0.0, 0.002, 0.01, 0.03)))], log)
            if code not in (-signal.SIGKILL, 0):
                raise ValueError(f"the run to be killed at batch {point} ended with code {code}: {_tail(log)}")
            say(f"  kill {i + 1} at batch {point}: {'killed' if code else 'was done before'}")
        again = any((broken / "checkpoints").glob("*.ckpt"))
        last = ["fit", "--resume", str(broken)] if again else ["fit", *argv, *often, "--run_dir", str(broken)]
        code = in_a_process(last, log=log)
        if code != 0:
            raise ValueError(f"the resumed run ended with code {code}: {_tail(log)}")
        return compare_runs(whole, broken)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def batches(run: Path) -> int:
    """How many batches a finished run trained on."""
    loops = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="meta")["loops"]
    return loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    return lines[-1] if lines else "no output"
