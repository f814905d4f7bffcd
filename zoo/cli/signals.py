"""Signals that end a command: a fit finishes its step and saves; everything else stops at once and cleans up.

Ctrl-C sends SIGINT, a scheduler SIGTERM or SIGUSR1, and a terminal that is closed SIGHUP. Lightning handles SIGTERM by
itself, with exit code 0 and without a checkpoint, and SIGUSR1 under SLURM: both are replaced here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import lightning as L

from zoo._lightning import cluster_environment
from zoo.distributed import is_main_process
from zoo.errors import Stopped
from zoo.runs.run_folder import slurm_job

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two


class StopSignals(L.Callback):
    """Handle the signals of ``NAMES`` while it is entered as a context; logs nothing.

    Attributes:
        received: number of the first signal; None before it.
        save: what finishes the step and saves, where that is possible; None stops at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.save: Callable[[], None] | None = None
        self._requeue_signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._previous[number] = signal.getsignal(number)
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python, which cannot be restored.
            if handler is not None:
                signal.signal(number, handler)
        self._previous = {}

    def _install(self) -> None:
        for number, previous in self._previous.items():
            # `nohup` ignores SIGHUP, a shell SIGINT in background jobs: that stays.
            if previous is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None or self.save is None:
            self.received = self.received or number
            raise Stopped(self.received)
        self.received = number
        if is_main_process():
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            print(
                f"\n{name}: finishing this step and saving a checkpoint; once more stops at once",
                file=sys.stderr,
            )
        self.save()

    # Lightning has installed its own handlers before these hooks.
    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._take_over(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over(trainer)

    def _take_over(self, trainer: L.Trainer) -> None:
        environment = cluster_environment(trainer)
        if getattr(environment, "auto_requeue", False):
            self._requeue_signal = getattr(environment, "requeue_signal", None) or signal.SIGUSR1
        self._install()

    def requeue(self) -> None:
        """Under SLURM, put the job back into the queue after the signal that announces the end of its time."""
        if self.received is None or self.received != self._requeue_signal or not is_main_process():
            return
        job = slurm_job()
        command = shutil.which("scontrol")
        if job is None or command is None:
            print("zoo: the job is not requeued: there is no scontrol or no job", file=sys.stderr)
            return
        done = subprocess.run([command, "requeue", job], capture_output=True, text=True)
        if done.returncode == 0:
            print(f"zoo: requeued SLURM job {job}, which resumes this run", file=sys.stderr)
        else:
            print(f"zoo: scontrol requeue {job} failed: {done.stderr.strip()}", file=sys.stderr)


def is_requeued() -> bool:
    """Return whether SLURM has started this job again."""
    return os.environ.get("SLURM_RESTART_COUNT", "0").strip() not in ("", "0")
