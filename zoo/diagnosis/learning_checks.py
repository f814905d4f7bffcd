"""Can the module overfit a few samples, and is its learning rate sane?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from zoo.callbacks.learning_rates import set_value
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

OVERFIT_RATIO = 0.2
STUCK_RATIO = 0.9
FLAT_RATIO = 0.98
# Half of a sweep's fall is done at 0.4 to 40 times the rates that train MLPs, CNNs, GRUs and transformers well, and the
# loss climbs again at 9 times or more. Of rates 100 times too high the first is at most 0.12, or the second below 2:
# wide nets fall early however well they train, hence both. Of rates 100 times too low the first is above 40. There it
# depends on the run: to travel as far as the sweep had by then takes at most 0.6 of the steps of a run at a good rate,
# and more than a whole run at one that is 100 times too low.
LATE = 60.0
LATISH, MOST = 20.0, 0.75
EARLY = 0.12
BEYOND = 0.1  # of lr: a loss that climbs again at less, where that of good rates does at 9 times lr or more, is lost


def overfit(probe: Probe) -> Finding:
    """One small batch with the module's own optimizer; if that fails, with Adam, to tell the rate from the rest."""
    probe.require_gradient()
    if not probe.automatic and len(probe.first_trace.losses) > 1:
        raise Skip("the module weighs several losses by itself, which need not all fall")
    probe.set_peak_lr()
    start = _baseline(probe)
    losses = probe.train(probe.overfit_steps)
    share = probe.small_batch_loss() / start
    own = f"from {start:.3g} to {share * start:.3g} in {len(losses)} steps"
    if share < OVERFIT_RATIO:
        return ok(f"the model overfits a few samples: {own}")
    if share < STUCK_RATIO and not (probe.automatic and probe.returns_plain_loss):
        return ok(f"the loss on a few samples falls {own}")
    if not probe.automatic:
        return error(f"the loss on a few samples does not fall: {own}", "check gradients and learning rate by hand")
    best, rate = _with_adam(probe, start)
    adam = f"Adam at {rate:g} reaches {best * start:.3g}"
    if best < OVERFIT_RATIO:
        if not share < 1.5 or max(losses) > 10 * losses[0]:
            own += f" by way of {max(losses):.3g}"
            text = f"the loss on a few samples explodes, {own}, while {adam}: the learning rate is too high"
            return error(text, "lower lr tenfold, or clip gradients")
        if share > STUCK_RATIO and len(losses) == probe.overfit_steps:
            text = f"the loss on a few samples does not fall, {own}, while {adam}: the optimizer or its rate is wrong"
            return error(text, "change lr (zoo lr-find), and see the finding on the optimizer")
        if share <= STUCK_RATIO:
            return ok(f"the loss on a few samples falls {own}; {adam}")
    kept = min(best, share if math.isfinite(share) else math.inf)
    if not probe.returns_plain_loss and kept < FLAT_RATIO:
        return ok(f"the loss on a few samples falls {own}; {adam}; how low it can get is unknown")
    if len(losses) < probe.overfit_steps and share < 1.5:
        raise Skip(f"the loss on a few samples goes {own}, and {adam}: the time was too short for more")
    advice = "see the other findings first; then: can the net express it, do labels contradict, has the loss a floor?"
    if kept > 0.5:
        text = f"the model cannot overfit a few samples: {own}, and {adam}; model, loss or labels are wrong"
        return error(text, advice)
    return warning(f"a few samples are only half learnt: {own}, and {adam}", advice)


def learning_rate(probe: Probe, steps: int = 80, seconds: float = 20.0) -> Finding:
    """Sweep the rate over one batch, always the same, so that the curve is smooth."""
    probe.require_gradient()
    if not probe.automatic:
        raise Skip("the module optimises by itself")
    probe.set_peak_lr()
    groups = probe.trainer.optimizers[0].param_groups
    tops = [float(group["lr"]) for group in groups]
    base = max(tops)
    if base <= 0:
        raise Skip("the learning rate is 0")
    start, losses, rates = time.monotonic(), [], np.geomspace(1e-7, 10.0, steps).tolist()
    for i, rate in enumerate(rates):
        for group, top in zip(groups, tops, strict=True):
            set_value(group, "lr", top * rate / base)
        losses.append(probe.step(probe.raw_batches[0], i))
        if not losses[-1] < losses[0] + 3 * abs(losses[0]):
            break
        if time.monotonic() - start > seconds:
            raise Skip(f"{steps} steps take more than {seconds:.0f} s")
    if not math.isfinite(losses[0]):
        raise Skip("the loss is not finite")
    least = int(np.nanargmin(losses))
    fall = losses[0] - losses[least]
    if fall <= 0.1 * abs(losses[0]):
        raise Skip("the loss hardly falls at any rate, see overfit")
    middle = losses[0] - fall / 2
    half = next(i for i, loss in enumerate(losses) if loss <= middle)
    down, needed, planned = rates[half], sum(rates[: half + 1]) / base, probe.trainer.estimated_stepping_batches
    up = next((r for r, loss in list(zip(rates, losses, strict=False))[least:] if not loss < middle), None)
    seen = f"lr is {base:.3g}; in a sweep the loss falls around {down:.2g}"
    seen += f" and climbs again at {up:.2g}" if up else ""
    if down > LATE * base or (down > LATISH * base and needed > MOST * planned):
        text = f"{seen}: lr is too low, {needed:.0f} steps would only halve the loss of one batch"
        text += f", and the run has {planned:.0f}" if math.isfinite(planned) else ""
        return warning(text, f"try {down / 3:.1g}, or zoo lr-find")
    if (up and up < 2 * base) or (down < EARLY * base and (up is None or up < 10 * base)):
        found = error if up and up < BEYOND * base else warning
        return found(f"{seen}: lr is too high", f"try {down / 3:.1g}, or zoo lr-find")
    return ok(seen)


LEARNING: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "overfit": overfit,
    "learning rate": learning_rate,
}


def _baseline(probe: Probe) -> float:
    """The loss of a net that knows nothing but what is usual."""
    start, losses = probe.small_batch_loss(), probe.first_trace.losses
    if not math.isfinite(start):
        raise Skip("the loss is not finite")
    if start <= 0:
        raise Skip(f"the loss is {start:.3g}: there is no zero to reach")
    if probe.returns_plain_loss and losses[0].is_classes and losses[0].classes > 1:
        return min(start, math.log(losses[0].classes))
    return start


def _with_adam(probe: Probe, start: float) -> tuple[float, float]:
    """The best share of the loss that Adam leaves, and at which rate."""
    found = []
    for rate in (1e-3, 3e-2):
        probe.restore()
        trainable = [p for p in probe.module.parameters() if p.requires_grad]
        probe.train(probe.overfit_steps, torch.optim.Adam(trainable, lr=rate))
        share = probe.small_batch_loss() / start
        found.append((share if math.isfinite(share) else math.inf, rate))
        if share < OVERFIT_RATIO:
            break
    return min(found)
