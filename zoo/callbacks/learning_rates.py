"""Reading and changing the learning rates of an optimizer together with its schedules."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from zoo._torch import inner_schedules, note_rates, repeat_first_step


def set_value(group: Any, key: Any, lr: float) -> None:
    """Set a learning rate in a parameter group or list, in place where it is a tensor."""
    if isinstance(group[key], Tensor):
        group[key].fill_(lr)
    else:
        group[key] = lr


def rescale(value: float, old: float, new: float, factor: float = 1.0) -> float:
    """Return ``value``, which was computed from the rate ``old``, as computed from ``new``, without rounding errors.

    ``value * (new / old)`` may differ in the last bit. Therefore the factor or divisor that gives ``value`` exactly is
    applied again: the known one, or one recovered from the quotient, as such numbers (0.1, 25) have few decimals.

    Args:
        value: a rate derived from ``old``.
        old: the former main rate.
        new: the new main rate.
        factor: the factor by which ``value`` may have been computed.
    """
    if not (value and old):
        return value
    recovered = float(f"{value / old:.12g}")
    for times in (factor, recovered):
        if old * times == value:
            return new * times
    divisor = float(f"{old / value:.12g}")
    if old / divisor == value:
        return new / divisor
    return value * (new / old)


def lr_schedulers(trainer: Trainer) -> list[LRScheduler]:
    """Return the schedules that hold rates, those within ``SequentialLR`` and ``ChainedScheduler`` included.

    Raises:
        ValueError: for a schedule that is not one of torch's.
    """
    schedules: list[LRScheduler] = []
    for config in trainer.lr_scheduler_configs:
        schedules += _innermost(config.scheduler)
    return schedules


def _innermost(scheduler: Any) -> list[LRScheduler]:
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(
            f"LRFinder cannot set the learning rate of {type(scheduler).__name__}, which is not a torch LRScheduler;"
            " use apply: false and set lr in the config"
        )
    children = inner_schedules(scheduler)
    if children:
        schedules: list[LRScheduler] = []
        for child in children:
            schedules += _innermost(child)
        return schedules
    if isinstance(scheduler, ReduceLROnPlateau):
        return []  # it reads its rates from the parameter groups
    return [scheduler]


def peak_lrs(trainer: Trainer) -> list[float]:
    """Return the highest learning rate that each group is to reach; a warmup may hold the present one near zero."""
    peaks: list[float] = []
    for group in trainer.optimizers[0].param_groups:
        initial = group.get("initial_lr", group["lr"])
        peaks.append(float(group.get("max_lr", initial)))
    for schedule in lr_schedulers(trainer):
        peaks = [float(peak) for peak in getattr(schedule, "max_lrs", peaks)]
    return peaks


def main_lr(groups: list[dict[str, Any]], peaks: list[float]) -> float:
    """Return the rate that a user would call ``lr``: the common one of groups with an ``lr_scale``, else the largest.

    Args:
        groups: parameter groups.
        peaks: their peak rates.

    Raises:
        ValueError: if it is not above 0.
    """
    unscaled: list[float] = []
    for group, peak in zip(groups, peaks, strict=True):
        scale = group.get("lr_scale", 1.0)
        if scale:
            unscaled.append(peak / scale)
    base = max(unscaled, default=0.0)
    if not all(math.isclose(lr, base, rel_tol=1e-9) for lr in unscaled):
        base = max(peaks)
    if base <= 0:
        raise ValueError(f"LRFinder: the optimizer's lr is {base}, which no factor can change; set an lr above 0")
    # A quotient may differ by a rounding error from the decimal that the user wrote.
    return float(f"{base:.12g}")


def rescaled_lrs(groups: list[dict[str, Any]], peaks: list[float], base: float, lr: float) -> list[float]:
    """Return the rates of all groups for a new main rate.

    Args:
        groups: parameter groups.
        peaks: their peak rates.
        base: the present main rate.
        lr: the new main rate.
    """
    rates: list[float] = []
    for group, peak in zip(groups, peaks, strict=True):
        rates.append(rescale(peak, base, lr, group.get("lr_scale", 1.0)))
    return rates


def set_lr(trainer: Trainer, lr: float) -> None:
    """Set the main rate in groups and schedules before the first step, as if they had been constructed with it."""
    groups = trainer.optimizers[0].param_groups
    peaks = peak_lrs(trainer)
    base = main_lr(groups, peaks)
    new_peaks = rescaled_lrs(groups, peaks, base, lr)
    for group, old, new in zip(groups, peaks, new_peaks, strict=True):
        start = float(group.get("initial_lr", old))
        new_start = _rescale_quotient(start, old, new)
        if "max_lr" in group:
            set_value(group, "max_lr", new)
            set_value(group, "min_lr", _rescale_quotient(float(group["min_lr"]), start, new_start))
        if "initial_lr" in group:
            set_value(group, "initial_lr", new_start)
        set_value(group, "lr", new_start)
    for schedule in lr_schedulers(trainer):
        for name in ("base_lrs", "max_lrs"):
            rates = getattr(schedule, name, ())
            for i, value in enumerate(rates):
                set_value(rates, i, rescale(float(value), peaks[i], new_peaks[i]))
    for config in trainer.lr_scheduler_configs:
        restart(config.scheduler)


def _rescale_quotient(value: float, old: float, new: float) -> float:
    """Rescale a rate that may be ``old / n``, as in OneCycleLR; ``old * (1 / n)`` may differ in the last bit."""
    divisor = round(old / value) if value else 0
    if divisor and old / divisor == value:
        return new / divisor
    return rescale(value, old, new)


def restart(scheduler: Any) -> None:
    """Repeat the very first step of a schedule, so that the groups get their rates of step 0."""
    children = inner_schedules(scheduler)
    if children:
        # Of a sequence, only the first schedule has stepped.
        first = children if isinstance(scheduler, ChainedScheduler) else children[:1]
        for child in first:
            restart(child)
    elif not isinstance(scheduler, ReduceLROnPlateau):
        repeat_first_step(scheduler)
    note_rates(scheduler)
