"""Short tables at the end of a command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks import BestAndLast, GenerationMetrics
from zoo.cli.argv import options


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Two aligned columns."""
    rows = [(name, f"{v:.4f}" if isinstance(v, float) else str(v)) for name, v in rows]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


@rank_zero_only
def print_end_of_fit(trainer: L.Trainer, folder: Path | None, checkpoints: BestAndLast, seconds: float) -> None:
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.endswith(("_step", "_epoch"))}
    rows: list[tuple[str, Any]] = sorted(metrics.items())
    if checkpoints.best is not None:
        rows.append((f"best {checkpoints.monitor}", checkpoints.best))
    rows.append(("time", f"{seconds:.1f} s"))
    if folder is not None:
        best = checkpoints.best_path or folder / "checkpoints" / "last.ckpt"
        rows += [("checkpoint", relative(best)), ("run", relative(folder))]
        rows.append(("next", f"zoo test --ckpt_path {relative(best)}"))
    print(table(rows))


@rank_zero_only
def print_trained_already(trainer: L.Trainer, command: str) -> None:
    """What a resume says that finds nothing to do: which limit was reached, and how to go on.

    Args:
        command: that resumes the run.
    """
    epochs, steps = trainer.current_epoch, trainer.global_step
    limits = {"max_epochs": (trainer.max_epochs or -1, epochs), "max_steps": (trainer.max_steps, steps)}
    reached = [name for name, (limit, done) in limits.items() if 0 < limit <= done] or ["max_time"]
    more = " ".join(f"--trainer.{name} N" for name in reached)
    print(f"trained already ({epochs} epochs, {steps} steps), nothing to do; to go on: {command} {more}")


def resume_command(folder: Path, typed: Sequence[str]) -> str:
    """How to resume a run, with the packages that it was allowed to import."""
    allowed = [arg for name in options(list(typed), "--allow-import") for arg in ("--allow-import", name)]
    return shlex.join(["zoo", "fit", "--resume", relative(folder), *allowed])


@rank_zero_only
def print_metrics(results: list[Mapping[str, float]], model: Any) -> None:
    for metrics in results:
        print(table((k, float(v)) for k, v in metrics.items()))
    matrix = getattr(model, "confusion_matrix", None)
    if matrix is not None and len(matrix) <= 20:
        print(confusion(matrix.tolist(), model.class_names))
    if (beside := getattr(model, "test_table", None)) is not None:
        print(beside)


@rank_zero_only
def print_samples(trainer: L.Trainer) -> None:
    """For which classes the samples of a model were taken, where they were measured."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GenerationMetrics) and callback.confusion is not None and len(callback.confusion) <= 20:
            seen = zip(callback.class_names, callback.confusion.sum(0).tolist(), strict=True)
            print(f"  samples taken for {', '.join(f'{name}: {n}' for name, n in seen)}")


def confusion(counts: list[list[int]], names: list[str]) -> str:
    """A confusion matrix as text: a row a true class, a column a predicted one."""
    width = max([len(str(c)) for row in counts for c in row] + [min(8, max(len(n) for n in names))]) + 1
    side = max(len(n) for n in [*names, "true"])
    head = "  " + "true".ljust(side) + "".join(n[: width - 1].rjust(width) for n in names) + "  (predicted)"
    return "\n".join(
        [head, *(f"  {n:<{side}}" + "".join(f"{c:>{width}}" for c in r) for n, r in zip(names, counts, strict=True))]
    )


def relative(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)
    except ValueError:
        return str(path)
