"""What commands print at their end: metrics, files, and the next command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks import BestAndLast, EarlyStopping, GenerationMetrics, LoRA
from zoo.cli.argv import options
from zoo.cli.tables import confusion_table, key_value_table
from zoo.terminal import one_line

# Confusion matrices of more classes do not fit a terminal.
MAX_CLASSES = 20


@rank_zero_only
def print_end_of_fit(trainer: L.Trainer, folder: Path | None, checkpoints: BestAndLast, seconds: float) -> None:
    """Print the last metrics, the best one, the files and the command that tests the model.

    Args:
        trainer: after the fit.
        folder: of the run; None if it writes nothing.
        checkpoints: the callback that kept the checkpoints.
        seconds: duration of the training.
    """
    rows: list[tuple[str, Any]] = []
    for name, value in sorted(trainer.callback_metrics.items()):
        # Lightning adds copies under these suffixes.
        if not name.endswith(("_step", "_epoch")):
            rows.append((name, float(value)))
    if checkpoints.best is not None:
        rows.append((f"best {checkpoints.monitor}", checkpoints.best))
    rows.append(("time", f"{seconds:.1f} s"))
    if folder is not None:
        best = relative(checkpoints.best_path or folder / "checkpoints" / "last.ckpt")
        rows.append(("checkpoint", best))
        rows.append(("run", relative(folder)))
        rows.append(("next", f"zoo test {_tested(trainer, folder, best)}"))
    print(key_value_table(rows))


def _tested(trainer: L.Trainer, folder: Path, best: str) -> str:
    """Return the options that test the best checkpoint; one of LoRA holds the adapter alone."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LoRA):
            return f"-c {relative(folder / 'config.yaml')} --ckpt_path {best}"
    return f"--ckpt_path {best}"


@rank_zero_only
def print_trained_already(trainer: L.Trainer, command: str) -> None:
    """Print that a resumed run has nothing left to do, which limit it has reached, and how to train longer.

    Args:
        trainer: after the fit.
        command: the command that resumes the run.
    """
    epochs = trainer.current_epoch
    steps = trainer.global_step
    reached = []
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= epochs:
        reached.append("max_epochs")
    if 0 < trainer.max_steps <= steps:
        reached.append("max_steps")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, EarlyStopping) and callback.has_stopped for callback in callbacks):
        print(
            f"early stopping has ended this run ({epochs} epochs, {steps} steps), nothing to do; to train longer: "
            f"{command} --early_stopping null"
        )
        return
    if not reached:
        reached.append("max_time")
    longer = " ".join(f"--trainer.{name} N" for name in reached)
    print(f"trained already ({epochs} epochs, {steps} steps), nothing to do; to train longer: {command} {longer}")


def resume_command(folder: Path, argv: Sequence[str]) -> str:
    """Return the command that resumes a run, with the packages that it was allowed to import.

    Args:
        folder: of the run.
        argv: the command that began the run, as typed.
    """
    command = ["zoo", "fit", "--resume", relative(folder)]
    for package in options(argv, "--allow-import"):
        command += ["--allow-import", package]
    return shlex.join(command)


@rank_zero_only
def print_metrics(results: list[Mapping[str, float]], model: Any) -> None:
    """Print the metrics of an evaluation, and the confusion matrix and the table of a model that has them."""
    for metrics in results:
        print(key_value_table((name, float(value)) for name, value in metrics.items()))
    matrix = getattr(model, "confusion_matrix", None)
    if matrix is not None and len(matrix) <= MAX_CLASSES:
        print(confusion_table(matrix.tolist(), model.class_names))
    table = getattr(model, "test_table", None)
    if table is not None:
        print(table)


@rank_zero_only
def print_samples_per_class(trainer: L.Trainer) -> None:
    """Print how many generated images a classifier assigned to each class, where this was measured."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, GenerationMetrics):
            continue
        confusion = callback.confusion
        if confusion is None or len(confusion) > MAX_CLASSES:
            continue
        predicted = confusion.sum(0).tolist()
        counts = [f"{one_line(name)}: {n}" for name, n in zip(callback.class_names, predicted, strict=True)]
        print(f"  generated images by predicted class: {', '.join(counts)}")


def relative(path: Path) -> str:
    """Return a path relative to the working directory if it lies in it, else as it is."""
    try:
        short = os.path.relpath(path)
    except ValueError:  # on another drive
        return str(path)
    return str(path) if short.startswith("..") else short
