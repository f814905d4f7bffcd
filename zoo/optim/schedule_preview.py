"""What a schedule will do, for the table printed before anything trains."""

import copy
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from zoo.optim.schedules import Schedule


def describe_schedule(schedule: LRScheduler, unit: str, length: int) -> list[dict[str, Any]]:
    """The learning rates at some points of the run; groups with the same rates share a column.

    Args:
        schedule: any of zoo or torch but a plateau's; it is left as it is.
        unit: "step" or "epoch", by which it moves on.
        length: of the run, in that unit.

    Returns:
        Rows with the unit, and a learning rate per column, named for its first group.
    """
    marks = sorted({round(share * (length - 1)) for share in (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)})
    rates = lrs_at(schedule, marks)
    columns: dict[tuple[float, ...], str] = {}
    for i, group in enumerate(schedule.optimizer.param_groups):
        name = str(group.get("name", f"group {i}")).removesuffix(", no decay")
        columns.setdefault(tuple(row[i] for row in rates), name)
    return [{unit: mark, **{name: rates[k] for rates, name in columns.items()}} for k, mark in enumerate(marks)]


def lrs_at(schedule: LRScheduler, marks: list[int]) -> list[list[float]]:
    """The learning rate of every group at each of some points, counted from now, in rising order."""
    if isinstance(schedule, Schedule):
        return [[float(base) * schedule.factor(mark) for base in schedule.base_lrs] for mark in marks]
    params = [p for group in schedule.optimizer.param_groups for p in group["params"]]
    scheduler_copy = copy.deepcopy(schedule, {id(p): p for p in params})
    rates, done = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves on without the optimizer
        for mark in marks:
            for _ in range(mark - done):
                scheduler_copy.step()
            done = mark
            rates.append([float(group["lr"]) for group in scheduler_copy.optimizer.param_groups])
    return rates
