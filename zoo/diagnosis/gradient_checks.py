"""Does a gradient reach everything that should learn, and does the optimizer hold it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from zoo.callbacks.gradients.analysis import EXPLODING, VANISHING, GradientStats, find_problems
from zoo.diagnosis.probe import Gradients, Probe
from zoo.diagnosis.recorder import Call
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

ERROR_FRACTION = 0.9
WARNING_FRACTION = 0.5


def gradient_flow(probe: Probe) -> list[Finding]:
    trainable = {n for n, p in probe.params.items() if p.requires_grad}
    if not trainable:
        return [error("no parameter is trainable: all have requires_grad=False", "unfreeze what should learn")]
    probe.require_gradient()
    reached, touched = set[str](), set[str]()
    for i, raw in enumerate(probe.raw_batches):
        probe.perturb_weights()  # behind weights that start at 0 (LoRA, residual gates) there is no gradient yet
        grads = _gradients_of_step(probe, raw, i)
        touched |= grads.keys()
        reached |= {n for n, g in grads.items() if bool((g != 0).any())}
    called = {c.module for c in probe.first_trace.calls}
    missing = trainable - reached
    if not missing:
        reach = f"a gradient reaches all {len(trainable)} trainable parameters"
        return [_uneven_finding(verdict) for verdict in _uneven_layers(probe)] or [ok(reach)]
    by_module: dict[str, list[str]] = {}
    for name in probe.params:
        if name in missing:
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
    unused = [m for m in by_module if m and not _is_called(probe.module.get_submodule(m), called)]
    cut = [m for m in by_module if m not in unused and not any(n in touched for n in by_module[m])]
    zero = [m for m in by_module if m not in unused and m not in cut]
    found = []
    if unused:
        advice = "call them in forward, or delete them (DDP would stop at them)"
        found.append(warning(f"{_list(unused)}: never called in a training step", advice))
    if cut:
        found.append(
            error(
                f"{_list(_names(cut, by_module))}: no gradient arrives: the backward pass from the loss is cut off",
                "look behind them for .detach(), .data, .item(), torch.no_grad(), argmax or a new torch.tensor(...)",
            )
        )
    if zero:
        found.append(
            error(
                f"{_list(_names(zero, by_module))}: the gradient is exactly 0, so nothing there learns",
                "dead units (see there), a loss that does not change with the outputs, or a factor 0 behind them",
            )
        )
    return found


def units(probe: Probe) -> Finding:
    seen: dict[tuple[str, str], list[tuple[Tensor, Call | None]]] = {}
    probe.first_step()
    for batch in probe.batches:
        trace = probe.trace(batch)
        if not probe.automatic:
            probe.restore()
        for place, kind, output, before in trace.activations:
            if output.ndim > 1 and output.numel():
                path = place.name if place else "training_step"
                seen.setdefault((path, kind), []).append((output.detach(), before))
    if not seen:
        raise Skip("no ReLU, tanh or sigmoid is called")
    share, path, kind = max(
        (_inactive_fraction(kind, [o for o, _ in many]), path, kind) for (path, kind), many in seen.items()
    )
    if share < WARNING_FRACTION:
        return ok(f"at most {share:.0%} of the units of an activation are dead or saturated ({path})")
    dead, full = "dead: they give 0 for every sample, and pass no gradient", "saturated: at an end of their range"
    word = dead if kind == "relu" else full
    before = seen[path, kind][0][1]
    cause = ""
    if before is not None:
        bias = getattr(before.module, "bias", None)
        cause = f"; the layer before is {before.path or 'the module itself'}"
        if isinstance(bias, Tensor):
            cause += f", mean bias {float(bias.detach().mean()):.3g}"
        inputs = [a.float() for a in before.args if isinstance(a, Tensor)]
        cause += f", mean input size {float(inputs[0].abs().mean()):.3g}" if inputs else ""
    advice = "initialise that layer anew (weights by He or Xavier, bias 0), or normalise what enters it"
    return (error if share >= ERROR_FRACTION else warning)(
        f"{share:.0%} of the units of {path} are {word}{cause}", advice
    )


def gradients_cleared(probe: Probe) -> Finding:
    """A second step must see its own gradient, not the sum with that of the first."""
    probe.require_gradient()
    kept, fresh = (_second_gradient(probe, clear) for clear in (False, True))
    for name, own in fresh.items():
        if name not in kept or not bool(own.isfinite().all()):
            continue
        if float((kept[name] - own).norm()) > 1e-3 * float(own.norm()) + 1e-12:
            where = "optimizer_zero_grad is overridden" if probe.automatic else "training_step optimises by itself"
            return error(
                f"the second step still holds the gradient of the first ({name}): zero_grad is never called; {where}",
                "call optimizer.zero_grad() before each backward",
            )
    return ok("each step starts from cleared gradients")


def optimizer(probe: Probe) -> list[Finding]:
    if not probe.trainer.optimizers:
        return [error("configure_optimizers returns no optimizer: nothing is trained", "return one")]
    groups = [group for opt in probe.trainer.optimizers for group in opt.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    absent = [n for n, p in probe.params.items() if p.requires_grad and id(p) not in held]
    frozen = [n for n, p in probe.params.items() if not p.requires_grad and id(p) in held]
    probe.set_peak_lr()
    still = sum(float(group["lr"]) == 0 for group in groups)
    found = []
    if absent:
        found.append(
            error(f"trainable but in no optimizer, so never updated: {_list(_layers(absent))}",
                  "pass self.parameters(), and build the optimizer after the last layer was added or replaced")
        )  # fmt: skip
    if frozen:
        found.append(
            warning(f"in the optimizer but frozen (requires_grad=False), so never updated: {_list(_layers(frozen))}",
                    "unfreeze them if they should learn; if not, leave them out of the optimizer")
        )  # fmt: skip
    if still:
        found.append(error(f"{still} of {len(groups)} parameter groups have a learning rate of 0", "give them one"))
    left = [n for n, p in probe.params.items() if not p.requires_grad and id(p) not in held]
    more = f"; {len(left)} parameters are frozen and left out" if left else ""
    return found or [ok(f"holds all {len(probe.params) - len(left)} trainable parameters{more}")]


def shared_modules(probe: Probe) -> Finding:
    """The same layer under several names of one list, as ``[layer] * n`` makes it."""
    for path, parent in probe.module.named_modules():
        if not isinstance(parent, (nn.ModuleList, nn.Sequential)):
            continue
        names: dict[nn.Module, list[str]] = {}
        for name, child in parent.named_modules(remove_duplicate=False):
            if name and "." not in name and any(True for _ in child.parameters()):
                names.setdefault(child, []).append(f"{path}.{name}".lstrip("."))
        for child, same in names.items():
            if len(same) > 1:
                return warning(
                    f"{_list(same)} are one and the same {type(child).__name__}: [layer] * n makes no copies",
                    "build each in a loop; if the weights are shared on purpose, keep one and call it in a loop",
                )
    return ok("no layer stands in a list twice")


GRADIENTS: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "gradient flow": gradient_flow,
    "units": units,
    "gradients cleared": gradients_cleared,
    "optimizer": optimizer,
    "shared modules": shared_modules,
}


def _gradients_of_step(probe: Probe, raw: object, index: int) -> Gradients:
    """All gradients of one step, whether or not an optimizer holds the parameter."""
    for p in probe.module.parameters():
        p.grad = None
    probe.recording = True
    probe.step(raw, index)
    grads = {n: p.grad for n, p in probe.params.items() if p.grad is not None}
    for seen in probe.recorded:  # a module that optimises by itself may have cleared them again
        grads |= seen
    return grads


def _uneven_layers(probe: Probe) -> list[str]:
    """What the sizes of the first step's gradients say, compared between layers."""
    if not probe.automatic:
        return []  # several losses need not be of one size
    probe.restore()
    grads = _gradients_of_step(probe, probe.raw_batches[0], 0)
    slopes = {
        n: float(grads[n].float().square().mean().sqrt()) for n, p in probe.params.items() if p.ndim > 1 and n in grads
    }
    return find_problems(GradientStats(rms=slopes))


def _uneven_finding(verdict: str) -> Finding:
    if verdict.startswith("vanishing"):
        advice = "use ReLU or GELU with He's or Xavier's initialisation, residual connections or normalisation"
        return warning(
            f"{verdict}: there the gradient is less than a {1 / VANISHING:,.0f}th of the last layer's", advice
        )
    advice = "initialise its weights smaller (recurrent ones orthogonal), normalise, or set gradient_clip_val"
    return warning(f"{verdict}: there the gradient is {EXPLODING:,.0f} times the last layer's or more", advice)


def _second_gradient(probe: Probe, clear: bool) -> Gradients:
    """What the optimizers saw at their second step, with gradients cleared by us in between or not."""
    probe.restore()
    probe.recording, steps = True, 0
    for index in range(8):
        probe.recorded.clear()
        probe.step(probe.raw_batches[0], index)
        steps += bool(probe.recorded)
        if steps == 2:
            return {n: g.float() for grads in probe.recorded for n, g in grads.items()}
        if probe.recorded and clear:
            for p in probe.module.parameters():
                p.grad = None
    raise Skip("no optimizer of Lightning's took two steps in eight batches")


def _inactive_fraction(kind: str, outputs: list[Tensor]) -> float:
    """Share of units that never leave 0 (ReLU), or of values at an end of their range (tanh, sigmoid)."""
    if kind != "relu":
        middle, reach = (0.0, 0.99) if kind == "tanh" else (0.5, 0.495)
        return sum(float(((o - middle).abs() > reach).float().mean()) for o in outputs) / len(outputs)
    alive = [o.movedim(1 if o.ndim > 3 else -1, 0).flatten(1).amax(1) > 0 for o in outputs]
    same = [a for a in alive if a.shape == alive[0].shape]
    return 1 - float(torch.stack(same).any(0).float().mean())


def _is_called(module: nn.Module, called: set[nn.Module]) -> bool:
    return any(m in called for m in module.modules())


def _names(modules: list[str], parameters: dict[str, list[str]]) -> list[str]:
    return [m or ", ".join(parameters[m]) for m in modules]


def _layers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
