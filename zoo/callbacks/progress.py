"""Progress: a progress bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

REDRAW_SECONDS = 0.1
SECONDS_BETWEEN_EPOCH_LINES = 1.0
SECONDS_BETWEEN_BATCH_LINES = 60.0


class Progress(ProgressBar):
    """Progress bar with remaining time, loss and monitored metric.

    Without a terminal it prints one line per epoch, at most one a second, and one per minute within long epochs.

    Args:
        terminal: whether to draw a bar; null: if the output is a terminal.
    """

    def __init__(self, terminal: bool | None = None) -> None:
        super().__init__()
        if terminal is None:
            terminal = sys.stdout.isatty()
        self._terminal = terminal
        self._enabled = True
        self._bar: Any = None
        self._task: Any = None
        self._began = 0.0
        self._printed = 0.0
        self._drawn = 0.0
        self._first = 0
        self._steps = math.inf

    @property
    def is_enabled(self) -> bool:
        # LightningModule.print asks for it.
        return self._enabled

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
        now = time.monotonic()
        self._began = now
        self._printed = now
        self._drawn = now
        self._first = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._steps = _num_batches(trainer)
        self._open("training", self._steps)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        if self._bar is not None:
            if now - self._drawn > REDRAW_SECONDS:
                self._draw(trainer, pl_module)
                self._drawn = now
        elif self._enabled and now - self._printed > SECONDS_BETWEEN_BATCH_LINES:
            self._printed = now
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.print(_line(trainer, f"batch {done}/{_number(self._steps)}", self._left(done)), flush=True)

    # The metrics of an epoch are logged after on_train_epoch_end, so its line is printed when the next one starts.
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 > self._first:
            self._print_epoch(trainer, trainer.current_epoch, last=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        self._print_epoch(trainer, trainer.current_epoch, last=True)

    def _print_epoch(self, trainer: L.Trainer, epoch: int, last: bool) -> None:
        now = time.monotonic()
        if self._bar is not None or not self._enabled:
            return
        if now - self._printed >= SECONDS_BETWEEN_EPOCH_LINES or last:
            self._printed = now
            head = f"epoch {epoch}{_of_epochs(trainer)}"
            self.print(_line(trainer, head, f"{now - self._began:.1f} s"), flush=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    # Evaluation and prediction: a bar on a terminal, nothing otherwise ------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Within a fit, validation belongs to the bar of the training.
        if trainer.state.fn == "validate":
            self._open("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "validate":
            self._advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def on_test_end(self, *args: Any) -> None:
        self._close()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("prediction", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def on_predict_end(self, *args: Any) -> None:
        self._close()

    # The bar ----------------------------------------------------------------------------------------------------------

    def _open(self, description: str, total: float) -> None:
        """Draw a bar, on a terminal.

        Args:
            description: text before the bar.
            total: number of batches; may be infinite.
        """
        self._close()
        if not (self._terminal and self._enabled):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[numbers]}"),
            # On a console of its own: rich draws nothing while another program's bar is open on the shared one.
            console=Console(),
            transient=True,
        )
        self._bar.start()
        known_total = total if math.isfinite(total) else None
        self._task = self._bar.add_task(description, total=known_total, numbers="")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        self._task = None

    def _advance(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._bar is not None
        assert self._task is not None
        numbers: list[str] = []
        for name, value in self.get_metrics(trainer, pl_module).items():
            if name == "v_num":
                continue  # the version of the logger's folder
            numbers.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        self._bar.update(
            self._task,
            completed=trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            description=f"epoch {trainer.current_epoch + 1}{_of_epochs(trainer)}",
            numbers="  ".join(numbers),
        )

    def _left(self, done: int) -> str:
        """Return the remaining time as text, empty if it is unknown."""
        seconds_per_batch = (time.monotonic() - self._began) / max(1, done - self._first)
        left = (self._steps - done) * seconds_per_batch
        if not math.isfinite(left):
            return ""
        return f"{left / 60:.0f} min left"


def _line(trainer: L.Trainer, head: str, tail: str) -> str:
    """Return a line with the metrics of the progress bar between head and tail."""
    metrics = [f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()]
    return "  ".join([head, *metrics, tail])


def _of_epochs(trainer: L.Trainer) -> str:
    """Return a slash and the number of epochs; empty if it is unlimited."""
    if trainer.max_epochs is None or trainer.max_epochs <= 0:
        return ""
    return f"/{trainer.max_epochs}"


def _num_batches(trainer: L.Trainer) -> float:
    """Return the number of training batches of a fit, which may be infinite."""
    by_epochs = math.inf
    by_steps = math.inf
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        by_epochs = trainer.num_training_batches * trainer.max_epochs
    if trainer.max_steps > 0:
        by_steps = trainer.max_steps * trainer.accumulate_grad_batches
    return min(by_epochs, by_steps)


def _number(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "?"
