"""Checks of learning: whether the module overfits a few samples, and whether its learning rate is suitable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zoo.callbacks.learning_rates import set_value
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

# Fractions of the initial loss that remain after training on a few samples.
OVERFIT_RATIO = 0.2
STUCK_RATIO = 0.9
FLAT_RATIO = 0.98
# Half of the fall of the loss in a learning rate sweep is done at 0.4 to 40 times the rates that train MLPs, CNNs, GRUs
# and transformers well, and the loss rises again at 9 times or more. Of rates 100 times too high the first is at most
# 0.12, or the second below 2: wide networks fall early however well they train, hence both. Of rates 100 times too low
# the first is above 40. There it depends on the run: to travel as far as the sweep had by then takes at most 0.6 of the
# steps of a run at a good rate, and more than a whole run at one that is 100 times too low.
LATE = 60.0
LATISH = 20.0
MOST_OF_RUN = 0.75
EARLY = 0.12
RISES_TOO_SOON = 2.0
RISES_IN_TIME = 10.0
BEYOND = 0.1  # of lr: where good rates rise at 9 times lr or more, a loss that rises at less than this cannot train
ADAM_RATES = (1e-3, 3e-2)


def overfit(probe: Probe) -> Finding:
    """Overfit one small batch with the module's own optimizer; if that fails, with Adam, to separate the causes."""
    probe.require_gradient()
    if not probe.automatic and len(probe.first_trace.losses) > 1:
        raise Skip("the module weights several losses by itself, which need not all fall")
    probe.steps.set_peak_lr()
    start = _baseline(probe)
    losses = probe.steps.train(probe.small_batch, probe.overfit_steps)
    ratio = probe.small_batch_loss() / start
    own = f"from {start:.3g} to {ratio * start:.3g} in {len(losses)} steps"
    if ratio < OVERFIT_RATIO:
        return ok(f"the model overfits a few samples: {own}")
    if ratio < STUCK_RATIO and not (probe.automatic and probe.returns_plain_loss):
        return ok(f"the loss on a few samples falls {own}")
    if not probe.automatic:
        return error(
            f"the loss on a few samples does not fall: {own}",
            "check gradients, optimizer steps and learning rate in training_step",
        )
    return _compare_with_adam(probe, start, losses, ratio, own)


def _compare_with_adam(probe: Probe, start: float, losses: list[float], ratio: float, own: str) -> Finding:
    """Return the finding for a module whose own optimizer does not overfit the few samples.

    Args:
        probe: the probe.
        start: the initial loss.
        losses: losses with the module's own optimizer.
        ratio: final loss over initial loss.
        own: the same as text.
    """
    best, lr = _with_adam(probe, start)
    adam = f"Adam at {lr:g} reaches {best * start:.3g}"
    stuck = ratio > STUCK_RATIO
    if best < OVERFIT_RATIO:
        if not ratio < 1.5 or max(losses) > 10 * losses[0]:
            own += f" by way of {max(losses):.3g}"
            return error(
                f"the loss on a few samples explodes, {own}, while {adam}: the learning rate is too high",
                "lower lr by a factor of 10, or clip gradients",
            )
        if stuck and len(losses) == probe.overfit_steps:
            return error(
                f"the loss on a few samples does not fall, {own}, while {adam}: the optimizer or its rate is wrong",
                "change lr (zoo lr-find), and see the finding on the optimizer",
            )
        if not stuck:
            return ok(f"the loss on a few samples falls {own}; {adam}")
    lowest = best
    if math.isfinite(ratio):
        lowest = min(best, ratio)
    if not probe.returns_plain_loss and lowest < FLAT_RATIO:
        return ok(f"the loss on a few samples falls {own}; {adam}; its minimum is unknown")
    if len(losses) < probe.overfit_steps and ratio < 1.5:
        raise Skip(f"the loss on a few samples goes {own}, and {adam}: the time was too short for more")
    advice = (
        "see the other findings first; then check the capacity of the network, contradictory labels, and whether the"
        " loss can reach 0"
    )
    if lowest > 0.5:
        return error(
            f"the model cannot overfit a few samples: {own}, and {adam}; model, loss or labels are wrong",
            advice,
        )
    return warning(f"the model overfits a few samples only partly: {own}, and {adam}", advice)


@dataclass
class Sweep:
    """Loss on one batch while the learning rate rises.

    Args:
        lr: the configured learning rate.
        falls_at: rate at which half of the fall is done.
        rises_at: rate at which half of it is lost again; None if that does not happen.
        steps_needed: steps at ``lr`` that sum up to the rates up to ``falls_at``.
    """

    lr: float
    falls_at: float
    rises_at: float | None
    steps_needed: float

    def __str__(self) -> str:
        text = f"lr is {self.lr:.3g}; in a sweep the loss falls around {self.falls_at:.2g}"
        if self.rises_at is not None:
            text += f" and rises again at {self.rises_at:.2g}"
        return text


def learning_rate(probe: Probe, steps: int = 80, seconds: float = 20.0) -> Finding:
    """Sweep the learning rate over one batch, always the same so that the curve is smooth."""
    probe.require_gradient()
    if not probe.automatic:
        raise Skip("manual optimization")
    sweep = _sweep(probe, steps, seconds)
    planned = probe.trainer.estimated_stepping_batches
    advice = f"try {sweep.falls_at / 3:.1g}, or run zoo lr-find"
    too_slow = sweep.steps_needed > MOST_OF_RUN * planned
    if sweep.falls_at > LATE * sweep.lr or (sweep.falls_at > LATISH * sweep.lr and too_slow):
        text = f"{sweep}: lr is too low, {sweep.steps_needed:.0f} steps would only halve the loss of one batch"
        if math.isfinite(planned):
            text += f", and the run has {planned:.0f}"
        return warning(text, advice)
    if sweep.rises_at is not None and sweep.rises_at < BEYOND * sweep.lr:
        return error(f"{sweep}: lr is too high", advice)
    if _is_too_high(sweep):
        return warning(f"{sweep}: lr is too high", advice)
    return ok(str(sweep))


def _is_too_high(sweep: Sweep) -> bool:
    falls_early = sweep.falls_at < EARLY * sweep.lr
    if sweep.rises_at is None:
        return falls_early
    if sweep.rises_at < RISES_TOO_SOON * sweep.lr:
        return True
    return falls_early and sweep.rises_at < RISES_IN_TIME * sweep.lr


def _sweep(probe: Probe, steps: int, seconds: float) -> Sweep:
    """Run a learning rate sweep from 1e-7 to 10; raise Skip where the curve says nothing."""
    probe.steps.set_peak_lr()
    groups = probe.trainer.optimizers[0].param_groups
    peaks = [float(group["lr"]) for group in groups]
    base = max(peaks)
    if base <= 0:
        raise Skip("the learning rate is 0")
    rates = np.geomspace(1e-7, 10.0, steps).tolist()
    losses: list[float] = []
    start = time.monotonic()
    for i, rate in enumerate(rates):
        _set_rate(groups, peaks, rate / base)
        losses.append(probe.steps.take(probe.raw_batches[0], i))
        if not losses[-1] < losses[0] + 3 * abs(losses[0]):
            break
        if time.monotonic() - start > seconds:
            raise Skip(f"{steps} steps take more than {seconds:.0f} s")
    if not math.isfinite(losses[0]):
        raise Skip("the loss is not finite")
    lowest = int(np.nanargmin(losses))
    fall = losses[0] - losses[lowest]
    if fall <= 0.1 * abs(losses[0]):
        raise Skip("the loss hardly falls at any rate, see overfit")
    middle = losses[0] - fall / 2
    half = next(i for i, loss in enumerate(losses) if loss <= middle)
    rises_at = None
    for rate, loss in zip(rates[lowest:], losses[lowest:], strict=False):
        if not loss < middle:
            rises_at = rate
            break
    return Sweep(base, rates[half], rises_at, sum(rates[: half + 1]) / base)


def _set_rate(groups: list[dict[str, Any]], peaks: list[float], factor: float) -> None:
    for group, peak in zip(groups, peaks, strict=True):
        set_value(group, "lr", peak * factor)


LEARNING: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "overfit": overfit,
    "learning rate": learning_rate,
}


def _baseline(probe: Probe) -> float:
    """Return the initial loss, at most that of a uniform prediction."""
    start = probe.small_batch_loss()
    losses = probe.first_trace.losses
    if not math.isfinite(start):
        raise Skip("the loss is not finite")
    if start <= 0:
        raise Skip(f"the loss is {start:.3g}, and not known to fall to 0")
    if probe.returns_plain_loss and losses[0].is_classes and losses[0].classes > 1:
        return min(start, math.log(losses[0].classes))
    return start


def _with_adam(probe: Probe, start: float) -> tuple[float, float]:
    """Return the smallest fraction of the initial loss that Adam reaches, and its learning rate."""
    results: list[tuple[float, float]] = []
    for lr in ADAM_RATES:
        probe.restore()
        trainable = [param for param in probe.module.parameters() if param.requires_grad]
        probe.steps.train(probe.small_batch, probe.overfit_steps, torch.optim.Adam(trainable, lr=lr))
        ratio = probe.small_batch_loss() / start
        if not math.isfinite(ratio):
            ratio = math.inf
        results.append((ratio, lr))
        if ratio < OVERFIT_RATIO:
            break
    return min(results)
