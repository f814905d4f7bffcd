"""Check that a run that is killed and resumed equals a run without interruption, bit for bit."""

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

from zoo.cli.argv import options
from zoo.errors import UserError

# The keys of a checkpoint that make up the state of training. `loops` is not among them: it counts attempts, too.
TRAINING_STATE = (
    "epoch",
    "global_step",
    "state_dict",
    "ema_params",
    "raw_params",
    "optimizer_states",
    "lr_schedulers",
    "train_running_mean",
    "callbacks",
)
MODEL_STATE = ("epoch", "global_step", "state_dict", "ema_params", "raw_params")
DELAYS = (0.0, 0.002, 0.01, 0.03)  # seconds into a step, to kill at different moments of it
# A crash, which is every second end, and the signals after which a run saves.
SIGNALS = ("SIGKILL", "SIGTERM", "SIGKILL", "SIGUSR1", "SIGKILL", "SIGHUP", "SIGKILL", "SIGINT")


class KillAt(L.Callback):
    """End the process by a signal during a step.

    Args:
        step: index of the batch, counted over all epochs from 1.
        delay: seconds after the batch begins.
        number: of the signal.
    """

    def __init__(self, step: int, delay: float = 0.0, number: int = signal.SIGKILL) -> None:
        self.step = step
        self.delay = delay
        self.number = number

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 < self.step:
            return
        self.step = sys.maxsize
        if self.delay == 0:
            os.kill(os.getpid(), self.number)
        else:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()


def run_in_fork(argv: Sequence[str], callbacks: Sequence[L.Callback] = (), log: Path | None = None) -> int:
    """Run a command in a forked process, which need not import torch again.

    Args:
        argv: the command and its options.
        callbacks: added to the trainer.
        log: file that the output is appended to; None drops it.

    Returns:
        The exit code, or minus the number of the signal that ended the process.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(log or os.devnull, "a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            from zoo.cli.main import main

            code = main(list(argv), callbacks)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


# Comparing ------------------------------------------------------------------------------------------------------------


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Return the first place where two trees of tensors and plain values differ, or None.

    Args:
        a: a tree of mappings, lists and tuples.
        b: another one.
        path: put before the place.
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return tensor_difference(a, b, path)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        only_one = sorted(str(key) for key in a.keys() ^ b.keys())
        if only_one:
            return f"{path}: only one of them has {only_one[0]}"
        pairs = []
        for key in a:
            pairs.append((f"{path}.{key}" if path else str(key), a[key], b[key]))
        return _first_difference(pairs)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} items"
        pairs = []
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            pairs.append((f"{path}[{i}]", x, y))
        return _first_difference(pairs)
    if a == b:
        return None
    return f"{path}: {a} and {b}"


def _first_difference(pairs: Sequence[tuple[str, Any, Any]]) -> str | None:
    for path, a, b in pairs:
        found = difference(a, b, path)
        if found is not None:
            return found
    return None


def tensor_difference(a: torch.Tensor, b: torch.Tensor, path: str) -> str | None:
    """Return how two tensors differ, or None; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{path}: {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
    if torch.equal(a, b):
        return None
    if a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()):
        return None
    largest = float((a.double() - b.double()).abs().max())
    return f"{path}: largest difference {largest:.3g}"


def compare_runs(a: Path, b: Path) -> str | None:
    """Return the first difference between two finished runs, or None: weights, optimizer, EMA, metrics."""
    for name, keys in (("last.ckpt", TRAINING_STATE), ("best.ckpt", MODEL_STATE)):
        one = a / "checkpoints" / name
        two = b / "checkpoints" / name
        if one.exists() != two.exists():
            return f"{name}: only one run has it"
        if not one.exists():
            continue
        found = difference(read_keys(one, keys), read_keys(two, keys))
        if found:
            return f"{name}: {found}"
    lines = [(run / "metrics.csv").read_text().splitlines() for run in (a, b)]
    found = difference(lines[0], lines[1])
    return f"metrics.csv: line {found}" if found else None


def read_keys(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read some keys of a checkpoint; None for those that are not there."""
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    return {key: checkpoint.get(key) for key in keys}


# The check ------------------------------------------------------------------------------------------------------------


def verify_resume(
    argv: Sequence[str],
    kills: int = 4,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> str | None:
    """Train once without interruption and once with kills and resumes; return the first difference, or None.

    Args:
        argv: options of ``zoo fit``, such as ``-c CONFIG``.
        kills: how many times the second run is ended, at random steps, by SIGKILL and in turn by SIGTERM, SIGUSR1,
            SIGHUP and Ctrl-C.
        seed: of the random steps.
        report: called with a line of text for each event.
    """
    if not hasattr(os, "fork"):
        raise UserError("zoo verify forks a process for each run, which this system cannot: use Linux, WSL or macOS")
    generator = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="zoo-verify-"))
    whole = folder / "whole"
    killed = folder / "killed"
    log = folder / "log"
    fit = ["fit", *argv]
    if not any("save_every" in arg for arg in argv):
        fit += ["--checkpoint.save_every", "3 steps"]
    try:
        code = run_in_fork([*fit, "--run_dir", str(whole)], log=log)
        if code != 0:
            raise ValueError(f"the run without kills ended with code {code}: {last_line(log)}")
        batches = count_batches(whole)
        steps = sorted(generator.sample(range(1, batches), min(kills, batches - 1)))
        report(f"{batches} batches; signals at {', '.join(str(step) for step in steps)}")
        for i, step in enumerate(steps, 1):
            name = SIGNALS[(i - 1 + seed) % len(SIGNALS)]
            number = getattr(signal, name)
            killer = KillAt(step, generator.choice(DELAYS), number)
            code = run_in_fork(begin_or_resume(fit, killed), [killer], log)
            # A signal other than SIGKILL ends the process at once when it comes after the run has finished.
            if code not in (-number, 128 + number, 0):
                raise ValueError(
                    f"the run to be ended by {name} at batch {step} ended with code {code}: {last_line(log)}"
                )
            report(f"  {name} {i} at batch {step}: {'stopped' if code else 'had finished before'}")
        code = run_in_fork(begin_or_resume(fit, killed), log=log)
        if code != 0:
            raise ValueError(f"the resumed run ended with code {code}: {last_line(log)}")
        return compare_runs(whole, killed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def begin_or_resume(fit: list[str], run: Path) -> list[str]:
    """Return the command that resumes a run, or begins it again if it has no checkpoint yet."""
    if any((run / "checkpoints").glob("*.ckpt")):
        command = ["fit", "--resume", str(run)]
        for package in options(fit, "--allow-import"):
            command += ["--allow-import", package]
        return command
    shutil.rmtree(run, ignore_errors=True)
    return [*fit, "--run_dir", str(run)]


def count_batches(run: Path) -> int:
    """Return the number of batches that a finished run trained on."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="meta")
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    if not log.exists():
        return "no output"
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
