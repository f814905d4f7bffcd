"""What ``zoo plan`` prints: the fine-tuning plan, the parameter groups, and the learning rate over the run."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zoo.callbacks import FineTuning
from zoo.callbacks.phases import describe_plan
from zoo.cli.tables import number_table
from zoo.optim import describe_groups
from zoo.optim.schedule_preview import describe_schedule


def plan_report(
    trainer: L.Trainer,
    module: L.LightningModule,
    tuning: FineTuning | None = None,
    adapter: str | None = None,
) -> str:
    """Return the fine-tuning plan, the parameter groups and the schedules as text.

    Args:
        trainer: with optimizers and schedulers in place.
        module: the module.
        tuning: the fine-tuning callback, if there is one.
        adapter: what is said of a low-rank adapter, if there is one.
    """
    steps = trainer.estimated_stepping_batches
    parts = []
    if adapter is not None:
        parts.append(adapter)
    if tuning is not None:
        epochs = trainer.max_epochs
        if epochs is None or epochs <= 0:
            epochs = math.inf
        parts.append(number_table(describe_plan(tuning.plan, module, epochs, steps)))
    for optimizer in trainer.optimizers:
        rows = describe_groups(optimizer)
        for row in rows:
            row.pop("trainable", None)
        parts.append(number_table(rows))
    parts.append(f"{steps} steps, {trainer.num_training_batches} batches an epoch")
    for config in trainer.lr_scheduler_configs:
        length = steps if config.interval == "step" else trainer.max_epochs
        parts.append(schedule_report(config, length))
    return "\n\n".join(parts)


def schedule_report(config: Any, length: float | None) -> str:
    """Return the learning rate of each parameter group over a run, as far as it is known before the run.

    Args:
        config: Lightning's description of the scheduler.
        length: of the run in steps or epochs, whichever the scheduler counts.
    """
    schedule = config.scheduler
    name = type(schedule).__name__
    if isinstance(schedule, ReduceLROnPlateau):
        return (
            f"{name}: multiplies the learning rate by {schedule.factor:g} after {schedule.patience + 1} epochs "
            f"without a better {config.monitor} ({schedule.mode})"
        )
    if not length or not 0 < length < math.inf:
        return f"{name}, stepped every {config.interval}"
    rows = describe_schedule(schedule, config.interval, int(length))
    return f"{name}, the learning rate of each group:\n{number_table(rows)}"
