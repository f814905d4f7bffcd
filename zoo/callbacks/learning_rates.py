"""Reading and setting the learning rate of an optimizer with its schedule, whatever they are."""

import math
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from zoo._torch import inner_schedules, note_rates, repeat_first_step


def set_value(group: Any, key: Any, lr: float) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(lr)
    else:
        group[key] = lr


def rescale(value: float, old: float, new: float, factor: float = 1.0) -> float:
    """`value`, made from the rate `old`, as it would have been made from `new`: to the last bit.

    `value * (new / old)` may miss by a rounding. So the factor or divisor is applied again that explains `value`
    exactly: the one given, or else the one recovered, as such numbers are short decimals as a rule (0.1, 25).
    """
    if not (value and old):
        return value
    for times in (factor, float(f"{value / old:.12g}")):
        if old * times == value:
            return new * times
    over = float(f"{old / value:.12g}")
    return new / over if old / over == value else value * (new / old)


def lr_schedulers(trainer: Trainer) -> list[LRScheduler]:
    """The schedules that hold rates: those inside `SequentialLR` and `ChainedScheduler`, not these themselves."""

    def leaves(scheduler: Any) -> list[LRScheduler]:
        if not isinstance(scheduler, LRScheduler):
            raise ValueError(
                f"LRFinder cannot set the rate of {type(scheduler).__name__}, which is no torch LRScheduler;"
                " use apply: false and set lr by hand"
            )
        if children := inner_schedules(scheduler):
            return [leaf for child in children for leaf in leaves(child)]
        return [] if isinstance(scheduler, ReduceLROnPlateau) else [scheduler]

    return [leaf for config in trainer.lr_scheduler_configs for leaf in leaves(config.scheduler)]


def peak_lrs(trainer: Trainer) -> list[float]:
    """The highest rate that each group is meant to reach: now a warmup may hold it near zero."""
    groups = trainer.optimizers[0].param_groups
    peaks = [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]
    for schedule in lr_schedulers(trainer):
        peaks = [float(peak) for peak in getattr(schedule, "max_lrs", peaks)]
    return peaks


def main_lr(groups: list[dict[str, Any]], peaks: list[float]) -> float:
    """The rate a user would call `lr`: the common one when groups name their `lr_scale`, else the largest."""
    scales = [group.get("lr_scale", 1.0) for group in groups]
    unscaled = [peak / scale for peak, scale in zip(peaks, scales, strict=True) if scale]
    base = max(unscaled, default=0.0)
    if not all(math.isclose(lr, base, rel_tol=1e-9) for lr in unscaled):
        base = max(peaks)
    if base <= 0:
        raise ValueError(f"LRFinder: the optimizer's lr is {base}, so no factor can change it; give a positive lr")
    # a quotient may be a rounding off the decimal that the user wrote
    return float(f"{base:.12g}")


def rescaled_lrs(groups: list[dict[str, Any]], peaks: list[float], base: float, lr: float) -> list[float]:
    """The groups' rates once the main one is `lr`."""
    return [rescale(peak, base, lr, group.get("lr_scale", 1.0)) for group, peak in zip(groups, peaks, strict=True)]


def set_lr(trainer: Trainer, lr: float) -> None:
    """Sets the main rate in groups and schedules, before the first step, as if they had been built with it."""
    groups = trainer.optimizers[0].param_groups
    peaks = peak_lrs(trainer)
    base = main_lr(groups, peaks)
    new_peaks = rescaled_lrs(groups, peaks, base, lr)
    for group, old, new in zip(groups, peaks, new_peaks, strict=True):
        start = float(group.get("initial_lr", old))
        new_start = rescale(start, old, new)
        if "max_lr" in group:
            set_value(group, "max_lr", new)
            set_value(group, "min_lr", rescale(float(group["min_lr"]), start, new_start))
        if "initial_lr" in group:
            set_value(group, "initial_lr", new_start)
        set_value(group, "lr", new_start)
    for schedule in lr_schedulers(trainer):
        for name in ("base_lrs", "max_lrs"):
            for i, value in enumerate(getattr(schedule, name, ())):
                set_value(getattr(schedule, name), i, rescale(float(value), peaks[i], new_peaks[i]))
    for config in trainer.lr_scheduler_configs:
        restart(config.scheduler)


def restart(scheduler: Any) -> None:
    """Takes a schedule's very first step again, so that the groups get their rate of step 0."""
    children = inner_schedules(scheduler)
    if children:
        for child in children if isinstance(scheduler, ChainedScheduler) else children[:1]:
            restart(child)
    elif not isinstance(scheduler, ReduceLROnPlateau):
        repeat_first_step(scheduler)
    note_rates(scheduler)
