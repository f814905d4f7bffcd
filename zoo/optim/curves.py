"""The closed forms of the learning-rate schedules: factor on the peak rate as a function of the step.

Step 0 is the first update of the weights and ``total_steps - 1`` the last one. No step is wasted on a rate of zero at
the start: a warmup of n steps goes 1/n, 2/n, ..., 1. The floor is reached exactly at the last step, and held after it.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

Shape = Literal["linear", "cosine", "sqrt"]


def to_steps(amount: int | float, total_steps: int, what: str = "warmup") -> int:
    """The number of steps that a share or a count stands for.

    Args:
        amount: below 1 a share of the run, else a count of steps; exactly 1.0 could be meant as either and is refused.
        total_steps: length of the run, in steps.
        what: what to call it in the error.

    Returns:
        Steps, at least 0; a count may exceed the run.

    Raises:
        ValueError: the amount is negative, 1.0, or a count with a fraction.
    """
    if amount < 0 or (isinstance(amount, float) and (amount == 1 or (amount > 1 and not amount.is_integer()))):
        raise ValueError(f"{what} is {amount}, but must be a share of the run in [0, 1) or a whole number of steps")
    return int(amount) if amount >= 1 else round(amount * total_steps)


def anneal(progress: float, shape: Shape = "cosine") -> float:
    """Goes from 1 down to 0.

    Args:
        progress: 0 at the start, 1 at the end; clamped to these.
        shape: along a line, half a cosine, or 1 - sqrt(progress).

    Returns:
        The height.

    Raises:
        ValueError: the shape is unknown.
    """
    progress = min(max(progress, 0.0), 1.0)
    if shape == "linear":
        return 1 - progress
    if shape == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if shape == "sqrt":
        return 1 - math.sqrt(progress)
    raise ValueError(f"shape is {shape!r}, but must be linear, cosine or sqrt")


def _above_floor(min_ratio: float, height: float) -> float:
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio is {min_ratio}, but must be in [0, 1]")
    return min_ratio + (1 - min_ratio) * height


def constant(step: int, total_steps: int, warmup: int | float = 0) -> float:
    """Factor of :class:`Constant` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: share or steps.

    Returns:
        Factor on the learning rate, in (0, 1].
    """
    steps = to_steps(warmup, total_steps)
    return (step + 1) / steps if step < steps else 1.0


def warmup_anneal(
    step: int, total_steps: int, warmup: int | float = 0.05, min_ratio: float = 0.0, shape: Shape = "cosine"
) -> float:
    """Factor of :class:`WarmupCosine` and :class:`WarmupLinear` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: share or steps.
        min_ratio: the factor at the last step.
        shape: of the way down.

    Returns:
        Factor on the learning rate.
    """
    steps = to_steps(warmup, total_steps)
    if step < steps:
        return (step + 1) / steps
    peak = max(steps - 1, 0)
    return _above_floor(min_ratio, anneal((step - peak) / max(total_steps - 1 - peak, 1), shape))


def warmup_stable_decay(
    step: int,
    total_steps: int,
    warmup: int | float = 0.05,
    decay: int | float = 0.2,
    min_ratio: float = 0.0,
    shape: Shape = "linear",
) -> float:
    """Factor of :class:`WarmupStableDecay` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: share or steps.
        decay: share or steps, at the end.
        min_ratio: the factor at the last step.
        shape: of the decay.

    Returns:
        Factor on the learning rate; the lower of the two where warmup and decay overlap.
    """
    steps = min(to_steps(decay, total_steps, "decay"), total_steps - 1)
    into_decay = step - (total_steps - 1 - steps)
    height = anneal(into_decay / steps, shape) if steps else 1.0
    return min(constant(step, total_steps, warmup), _above_floor(min_ratio, height))


def one_cycle(
    step: int, total_steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> float:
    """Factor of :class:`OneCycle` at a step; the numbers of ``torch.optim.lr_scheduler.OneCycleLR``.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        pct_start: share of the run that goes up.
        div_factor: peak over start.
        final_div_factor: start over end.

    Returns:
        Factor on the peak learning rate.
    """
    height = cycle_height(step, total_steps, pct_start)
    low = 1 / div_factor if step <= pct_start * total_steps - 1 else 1 / (div_factor * final_div_factor)
    return low + (1 - low) * height


def cycle_height(step: int, total_steps: int, pct_start: float = 0.3) -> float:
    """How far up its one cycle is :class:`OneCycle` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        pct_start: share of the run that goes up.

    Returns:
        From 0 up to 1, and down to 0 at the last step.
    """
    peak = pct_start * total_steps - 1
    if step <= peak:
        return 1 - anneal(step / peak if peak else 1.0)
    return anneal((step - peak) / (total_steps - 1 - peak) if peak < total_steps - 1 else 1.0)


def step_decay(
    step: int, total_steps: int, milestones: Sequence[int | float], gamma: float = 0.1, warmup: int | float = 0
) -> float:
    """Factor of :class:`StepDecay` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        milestones: shares or steps; the drop is in force at the milestone's own step.
        gamma: factor of one drop.
        warmup: share or steps.

    Returns:
        Factor on the learning rate.
    """
    passed = bisect_right(sorted(to_steps(m, total_steps, "milestone") for m in milestones), step)
    return constant(step, total_steps, warmup) * gamma**passed
