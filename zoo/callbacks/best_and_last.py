"""Two checkpoints a run can be trusted with: the best, and really the last."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo._lightning import accumulates, begin_validation, end_restart, epoch_done, restart_validation, validates_next
from zoo.callbacks.output_folder import output_folder
from zoo.checkpoints import load_ema, mark_format, read_tensors, upgrade
from zoo.checkpoints.integrity import seal, seal_folder
from zoo.checkpoints.plain_values import make_plain
from zoo.errors import UserError
from zoo.files import one_line_for_disk_errors, temporary_path
from zoo.optim.metric_mode import metric_mode, names

# Names of the validation loss in modules that are not zoo's.
USUAL_LOSSES = ("val/loss", "val_loss", "valid/loss", "valid_loss", "validation_loss")


class BestAndLast(Checkpoint):
    """Keep ``best.ckpt`` (by a metric), ``last.ckpt``, and ``previous.ckpt``, the last before it.

    Each is written beside its place and renamed, so that a kill at any moment leaves whole files. They are taken only
    where a resumed run can go on bit for bit: between epochs, after a full accumulation window, or when the fit is
    interrupted in a validation, which a resumed run begins again.

    Args:
        monitor: metric of the best checkpoint; null is the task's own (``val/accuracy`` of a classifier), or
            ``val/loss`` or ``val_loss``, whichever the module logs.
        mode: whether ``min`` or ``max`` is better; null knows by the metric's name.
        save_every: also save within epochs: ``500 steps``, ``5 min``, ``30 s``, ``1 h``; null saves at epoch ends.
        dirpath: folder of the files; null is ``checkpoints`` in the run folder.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        save_every: str | None = None,
        dirpath: str | None = None,
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.monitor_given = monitor is not None
        self.every_steps, self.every_seconds = parse_interval(save_every)
        self.dirpath = Path(dirpath) if dirpath else None
        self.best: float | None = None
        self._warned = False
        self.interrupted = False
        self._saved_step, self._saved_time = 0, time.monotonic()
        self._improved = False
        self._between_epochs = False
        # While a checkpoint is saved in the middle of a validation, which a resumed run begins again.
        self._within_validation = False
        self._was_read = False

    def interrupt(self) -> None:
        """Stop the fit after this step, with a checkpoint; also from a signal handler."""
        self.interrupted = True

    @property
    def best_path(self) -> Path | None:
        path = self._folder / "best.ckpt" if self.dirpath else None
        return path if path and path.exists() else None

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None
        return self.dirpath

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = output_folder(trainer) / "checkpoints"
        if self.monitor is None:
            self.monitor = getattr(pl_module, "monitor", "val/loss")
            self.mode = self.mode or getattr(pl_module, "monitor_mode", None)
        self.mode = self.mode or metric_mode(self.monitor)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        if self._between_epochs:
            # Lightning would take the batches of the epoch before for those of the one to come, and skip it.
            trainer.fit_loop.epoch_loop.restarting = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not at the end of the epoch before: there the plateau schedule and the log are still to come.
        if trainer.global_step > self._saved_step:
            self.save(trainer, between_epochs=True)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        # While this is set Lightning leaves out the plateau schedule, for want of metrics; this epoch will have them.
        end_restart(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        ends = trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps
        timed = self.every_steps or self.every_seconds
        if not (ends or timed or self.interrupted or trainer.world_size > 1):
            return  # nearly every step
        if accumulates(trainer):
            return
        stop = self._should_stop(trainer)
        should_save = stop or ends or self._save_is_due(trainer)
        if epoch_done(trainer) or validates_next(trainer):
            return  # saved after that
        if should_save:
            self.save(trainer)
        if stop:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not self.monitor_given and self.monitor not in trainer.callback_metrics:
            self._take_usual_metric(list(trainer.callback_metrics))
        value = trainer.callback_metrics.get(self.monitor or "")
        if value is None:
            self._metric_missing(list(trainer.callback_metrics))
        if value is not None and math.isfinite(float(value)) and self._is_better(float(value)):
            self.best, self._improved = float(value), True
        if trainer.world_size > 1:
            # A module that logs without sync_dist has a value on each process, but all have to save together.
            self.best, self._improved = trainer.strategy.broadcast((self.best, self._improved))
        if epoch_done(trainer):
            return  # saved when the epoch is over
        if accumulates(trainer):  # a run cannot go on from here: half a gradient would be lost
            if self._improved:
                self.save(trainer, last=False)
            return
        stop = self._should_stop(trainer)
        if self._improved or stop or self._save_is_due(trainer):
            self.save(trainer)
        if stop:
            raise KeyboardInterrupt

    def _take_usual_metric(self, logged: list[str]) -> None:
        """Take the validation loss under the name that it has in most modules that are not zoo's."""
        for name in USUAL_LOSSES:
            if name in logged:
                self.monitor = name
                self.mode = "min"
                return

    def _metric_missing(self, logged: list[str]) -> None:
        """The metric of the best checkpoint is absent: refuse one that the user named, else say once what there is."""
        monitor, known = str(self.monitor), names(logged)
        if self.monitor_given:
            raise ValueError(f"checkpoint.monitor is {monitor!r}, which is not logged; there are {known}")
        if logged and not self._warned:
            self._warned = True
            near = get_close_matches(monitor, [n for n in logged if n.startswith("val")] or logged, cutoff=0.0)[0]
            option = f"--checkpoint.monitor {near} --checkpoint.mode {metric_mode(near)}"
            rank_zero_warn(f"no best.ckpt, as {monitor} is not logged; there are {known}: name one, {option}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            # A run that was stopped in a validation goes on here, without on_train_batch_start.
            end_restart(trainer)
            begin_validation(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not self.interrupted or trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            raise KeyboardInterrupt
        # Several processes finish the validation, to stop at the same step; half a gradient would be lost.
        if trainer.world_size > 1 or accumulates(trainer):
            return
        self._within_validation = True
        self.save(trainer)
        raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._should_stop(trainer):
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._saved_step:
            self.save(trainer, between_epochs=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        should_save = self.interrupted or isinstance(exception, KeyboardInterrupt)
        if should_save and self.dirpath and trainer.global_step > 0 and not (self._folder / "last.ckpt").exists():
            self.save(trainer)

    def save(self, trainer: L.Trainer, between_epochs: bool = False, last: bool = True) -> None:
        """Write ``best.ckpt`` if this is the best, and ``last.ckpt``, of which the one before is ``previous.ckpt``."""
        newest = self._folder / "last.ckpt"
        if last:
            self._saved_step = trainer.global_step
            self._saved_time = time.monotonic()
        improved = self._improved
        self._improved = False
        self._between_epochs = between_epochs
        # The processes write one file or folder together.
        new = Path(trainer.strategy.broadcast(str(temporary_path(newest))))
        try:
            with one_line_for_disk_errors(newest):
                trainer.save_checkpoint(new)
                if trainer.is_global_zero:
                    self._put_in_place(new, improved, last)
        finally:
            if trainer.is_global_zero:
                _remove(new)
            self._within_validation = False
        trainer.strategy.barrier("checkpoint")

    def _put_in_place(self, new: Path, improved: bool, last: bool) -> None:
        """Rename a checkpoint that was just written to ``last.ckpt``, and link or copy it to ``best.ckpt``."""
        newest = self._folder / "last.ckpt"
        if new.is_file():
            seal(new)
            self._warn_if_unreadable(new)
            _sync(new)
        else:
            seal_folder(new)
        if improved:  # first: should the process die in between, the run goes on from before, and does this again
            best = self._folder / "best.ckpt"
            new_best = temporary_path(best)
            try:
                _copy(new, new_best)
                _replace(new_best, best)
            finally:
                _remove(new_best)
        if not last:
            return
        if newest.exists():
            _replace(newest, self._folder / "previous.ckpt")
        _replace(new, newest)

    def _warn_if_unreadable(self, new: Path) -> None:
        """Say once, at the first checkpoint, that a run cannot be resumed from it, as somebody saves Python objects."""
        if self._was_read:
            return
        self._was_read = True
        try:
            read_tensors(new, "meta")
        except UserError:
            rank_zero_warn(
                "the checkpoints of this run hold Python objects, so that zoo cannot read them: hyperparameters and "
                "states have to be tensors and plain values"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        mark_format(checkpoint)
        make_plain(checkpoint)
        if self._between_epochs:  # the epoch that is about to start has not begun yet
            for progress in ("total", "current"):
                counts = checkpoint["loops"]["fit_loop"]["epoch_progress"][progress]
                counts.update(dict.fromkeys(counts, counts["completed"]))
        if self._within_validation:
            restart_validation(checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        upgrade(checkpoint, type(pl_module))
        if trainer.state.fn == "fit":  # also where the run that is resumed had EMA and this one has not
            load_ema(pl_module, checkpoint.get("raw_params", {}))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "between_epochs": self._between_epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._between_epochs = state_dict["best"], state_dict["between_epochs"]

    def _save_is_due(self, trainer: L.Trainer) -> bool:
        if self.every_steps:
            return trainer.global_step - self._saved_step >= self.every_steps
        due = self.every_seconds is not None and time.monotonic() - self._saved_time >= self.every_seconds
        return trainer.strategy.reduce_boolean_decision(due, all=False) if self.every_seconds else False

    def _should_stop(self, trainer: L.Trainer) -> bool:
        # Ctrl-C reaches the processes at different steps; they must all leave at the same one.
        if trainer.world_size > 1:
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        return self.interrupted

    def _is_better(self, value: float) -> bool:
        # Of two that are as good the later one: small validation sets tie early.
        return self.best is None or (value <= self.best if self.mode == "min" else value >= self.best)


def parse_interval(text: str | None) -> tuple[int | None, float | None]:
    """Read ``500 steps`` as (500, None) and ``5 min`` as (None, 300.0)."""
    if text is None:
        return None, None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|s|sec|seconds?|min|minutes?|h|hours?)\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"save_every is a number of steps or a time, such as '500 steps' or '5 min', got {text!r}")
    number, unit = float(match[1]), match[2][0] if match[2] not in ("step", "steps") else "step"
    if unit == "step":
        return max(1, int(number)), None
    return None, number * {"s": 1, "m": 60, "h": 3600}[unit]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():  # a sharded checkpoint is a folder, which nothing can be renamed onto
        shutil.rmtree(target)
    os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)  # the files are only ever replaced, never changed, so they may share their bytes
    except OSError:
        shutil.copyfile(source, target)
