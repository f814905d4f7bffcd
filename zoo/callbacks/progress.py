"""What a person sees while training: a bar on a terminal, plain lines without one."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar


class Progress(ProgressBar):
    """Show how far training is, the time left, the loss and the monitored metric.

    Without a terminal it prints a line for an epoch, at most one a second, and one a minute within long epochs.

    Args:
        terminal: draw a bar; null finds out whether the output is a terminal.
    """

    def __init__(self, terminal: bool | None = None) -> None:
        super().__init__()
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._enabled, self._bar, self._task = True, None, None
        self._began = self._printed = self._drawn = 0.0
        self._first = 0

    @property
    def is_enabled(self) -> bool:
        return self._enabled  # LightningModule.print asks

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.console.print(*args, **kwargs)
        elif self._enabled:
            print(*args, **kwargs)

    # Training ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._printed = self._drawn = time.monotonic()
        self._first = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._steps = self._all_batches(trainer)
        self._open("training", self._steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._drawn > 0.1:
            self._draw(trainer, pl_module)
            self._drawn = now
        elif self._bar is None and self._enabled and now - self._printed > 60:
            self._printed = now
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.print(self._line(trainer, f"batch {done}/{_number(self._steps)}", self._left(done)), flush=True)

    # The epoch's own numbers are logged after on_train_epoch_end, so its line comes with the start of the next.
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 > self._first:
            self._epoch_line(trainer, trainer.current_epoch, last=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        self._epoch_line(trainer, trainer.current_epoch, last=True)

    def _epoch_line(self, trainer: L.Trainer, epoch: int, last: bool) -> None:
        now = time.monotonic()
        if self._bar is None and self._enabled and (now - self._printed >= 1 or last):
            self._printed = now
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            self.print(self._line(trainer, f"epoch {epoch}{of}", f"{now - self._began:.1f} s"), flush=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    # Everything else: a bar on a terminal, nothing without ------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._open("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if args[0].state.fn == "validate":
            self._step()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_test_end(self, *args: Any) -> None:
        self._close()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("prediction", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_predict_end(self, *args: Any) -> None:
        self._close()

    # Helpers ----------------------------------------------------------------------------------------------------------

    def _open(self, what: str, total: float) -> None:
        self._close()
        if not (self._terminal and self._enabled):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        tail = (TimeRemainingColumn(), TextColumn("left  {task.fields[numbers]}"))
        # On a console of its own: rich draws nothing while another program's bar is open on the shared one.
        self._bar = Progress(*columns, *tail, console=Console(), transient=True)
        self._bar.start()
        self._task = self._bar.add_task(what, total=total if math.isfinite(total) else None, numbers="")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _step(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._bar is not None
        assert self._task is not None
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        metrics = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
        self._bar.update(
            self._task,
            completed=trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            description=f"epoch {trainer.current_epoch + 1}{of}",
            numbers="  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items()),
        )

    def _line(self, trainer: L.Trainer, head: str, tail: str) -> str:
        metrics = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
        return "  ".join([head, *(f"{k} {v:.4g}" for k, v in metrics.items()), tail])

    def _left(self, done: int) -> str:
        rate = (time.monotonic() - self._began) / max(1, done - self._first)
        left = (self._steps - done) * rate
        return f"{left / 60:.0f} min left" if math.isfinite(left) else ""

    @staticmethod
    def _all_batches(trainer: L.Trainer) -> float:
        per_epoch, epochs, steps = trainer.num_training_batches, trainer.max_epochs or -1, trainer.max_steps
        by_epochs = per_epoch * epochs if epochs > 0 else math.inf
        by_steps = steps * trainer.accumulate_grad_batches if steps > 0 else math.inf
        return min(by_epochs, by_steps)


def _number(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "?"
