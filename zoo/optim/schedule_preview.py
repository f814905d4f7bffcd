"""The learning rates that a schedule will set, for the table printed before training."""

import copy
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from zoo.optim.schedules import Schedule


def describe_schedule(schedule: LRScheduler, unit: str, length: int) -> list[dict[str, Any]]:
    """Return the learning rates at some points of the run; groups with the same rates share a column.

    Args:
        schedule: any schedule of zoo or torch except plateau schedules; it is not changed.
        unit: "step" or "epoch", in which the schedule is stepped.
        length: length of the run, in that unit.

    Returns:
        Rows with the unit, and a learning rate per column, named after its first group.
    """
    fractions = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
    marks = sorted({round(fraction * (length - 1)) for fraction in fractions})
    rates = lrs_at(schedule, marks)  # a row per mark, a column per group
    # Groups whose rates are the same at every mark become one column.
    columns: dict[tuple[float, ...], str] = {}
    for i, group in enumerate(schedule.optimizer.param_groups):
        name = str(group.get("name", f"group {i}")).removesuffix(", no decay")
        columns.setdefault(tuple(row[i] for row in rates), name)
    rows = []
    for k, mark in enumerate(marks):
        row: dict[str, Any] = {unit: mark}
        for group_rates, name in columns.items():
            row[name] = group_rates[k]
        rows.append(row)
    return rows


def lrs_at(schedule: LRScheduler, marks: list[int]) -> list[list[float]]:
    """Return the learning rate of every group at points counted from now, in ascending order."""
    if isinstance(schedule, Schedule):
        return [[float(base) * schedule.factor(mark) for base in schedule.base_lrs] for mark in marks]
    params = [p for group in schedule.optimizer.param_groups for p in group["params"]]
    scheduler_copy = copy.deepcopy(schedule, {id(p): p for p in params})
    rates = []
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the schedule steps without its optimizer
        for mark in marks:
            # torch's schedules are recursive: they only know the next step.
            for _ in range(mark - done):
                scheduler_copy.step()
            done = mark
            rates.append([float(group["lr"]) for group in scheduler_copy.optimizer.param_groups])
    return rates
