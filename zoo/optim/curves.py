"""Closed forms of the learning-rate schedules: the factor on the peak rate as a function of the step.

Step 0 is the first update of the weights and ``total_steps - 1`` the last one. No step is wasted on a rate of zero at
the start: a warmup of n steps goes 1/n, 2/n, ..., 1. The floor is reached exactly at the last step, and held after it.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

Shape = Literal["linear", "cosine", "sqrt"]


def to_steps(amount: int | float, total_steps: int, what: str = "warmup") -> int:
    """Return the number of steps that a fraction of the run or a count of steps stands for.

    Args:
        amount: below 1 a fraction of the run, else a count of steps; 1.0 could mean either and is refused.
        total_steps: length of the run, in steps.
        what: name of the amount in the error.

    Returns:
        Steps, at least 0; a count may exceed the run.

    Raises:
        ValueError: the amount is negative, 1.0, or a count with a fractional part.
    """
    ambiguous = isinstance(amount, float) and amount == 1
    fractional = amount > 1 and amount != int(amount)
    if amount < 0 or ambiguous or fractional:
        raise ValueError(f"{what} is {amount}, but must be a fraction of the run in [0, 1) or a whole number of steps")
    if amount >= 1:
        return int(amount)
    return round(amount * total_steps)


def anneal(progress: float, shape: Shape = "cosine") -> float:
    """Return a factor that falls from 1 to 0.

    Args:
        progress: 0 at the start, 1 at the end; clamped to [0, 1].
        shape: a line, half a cosine, or 1 - sqrt(progress).

    Returns:
        The factor, in [0, 1].

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
    """Map a factor in [0, 1] to [min_ratio, 1]."""
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio is {min_ratio}, but must be in [0, 1]")
    return min_ratio + (1 - min_ratio) * height


def constant(step: int, total_steps: int, warmup: int | float = 0) -> float:
    """Return the factor of :class:`Constant` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: fraction of the run, or number of steps.

    Returns:
        Factor on the learning rate, in (0, 1].
    """
    steps = to_steps(warmup, total_steps)
    if step >= steps:
        return 1.0
    return (step + 1) / steps


def warmup_anneal(
    step: int, total_steps: int, warmup: int | float = 0.05, min_ratio: float = 0.0, shape: Shape = "cosine"
) -> float:
    """Return the factor of :class:`WarmupCosine` and :class:`WarmupLinear` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: fraction of the run, or number of steps.
        min_ratio: the factor at the last step.
        shape: of the decay.

    Returns:
        Factor on the learning rate.
    """
    steps = to_steps(warmup, total_steps)
    if step < steps:
        return (step + 1) / steps
    peak = max(steps - 1, 0)  # the step at which the warmup ends
    progress = (step - peak) / max(total_steps - 1 - peak, 1)
    return _above_floor(min_ratio, anneal(progress, shape))


def warmup_stable_decay(
    step: int,
    total_steps: int,
    warmup: int | float = 0.05,
    decay: int | float = 0.2,
    min_ratio: float = 0.0,
    shape: Shape = "linear",
) -> float:
    """Return the factor of :class:`WarmupStableDecay` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        warmup: fraction of the run, or number of steps.
        decay: fraction of the run or number of steps, at the end.
        min_ratio: the factor at the last step.
        shape: of the decay.

    Returns:
        Factor on the learning rate; the lower of the two where warmup and decay overlap.
    """
    steps = min(to_steps(decay, total_steps, "decay"), total_steps - 1)
    height = 1.0
    if steps:
        decay_start = total_steps - 1 - steps
        height = anneal((step - decay_start) / steps, shape)
    return min(constant(step, total_steps, warmup), _above_floor(min_ratio, height))


def one_cycle(
    step: int, total_steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> float:
    """Return the factor of :class:`OneCycle` at a step; the numbers of ``torch.optim.lr_scheduler.OneCycleLR``.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        pct_start: fraction of the run in which the rate rises.
        div_factor: peak over start.
        final_div_factor: start over end.

    Returns:
        Factor on the peak learning rate.
    """
    height = cycle_height(step, total_steps, pct_start)
    low = 1 / div_factor
    if step > pct_start * total_steps - 1:  # past the peak, where the floor is another one
        low = 1 / (div_factor * final_div_factor)
    return low + (1 - low) * height


def cycle_height(step: int, total_steps: int, pct_start: float = 0.3) -> float:
    """Return the height of :class:`OneCycle` within its cycle at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        pct_start: fraction of the run in which the rate rises.

    Returns:
        From 0 up to 1, and down to 0 at the last step.
    """
    peak = pct_start * total_steps - 1  # the step of the peak, as torch counts it
    if step <= peak:
        progress = step / peak if peak else 1.0
        return 1 - anneal(progress)
    rest = total_steps - 1 - peak
    progress = (step - peak) / rest if rest > 0 else 1.0
    return anneal(progress)


def step_decay(
    step: int, total_steps: int, milestones: Sequence[int | float], gamma: float = 0.1, warmup: int | float = 0
) -> float:
    """Return the factor of :class:`StepDecay` at a step.

    Args:
        step: from 0.
        total_steps: length of the run, in steps.
        milestones: fractions of the run or steps; the drop is in force at the milestone's own step.
        gamma: factor of one drop.
        warmup: fraction of the run, or number of steps.

    Returns:
        Factor on the learning rate.
    """
    drops = sorted(to_steps(milestone, total_steps, "milestone") for milestone in milestones)
    passed = bisect_right(drops, step)
    return constant(step, total_steps, warmup) * gamma**passed
