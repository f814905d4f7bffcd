"""Checks of gradients and optimizer: a gradient reaches all trainable parameters, and the optimizer updates them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from zoo.callbacks.gradients.analysis import EXPLODING, VANISHING, GradientStats, find_problems
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import Activation
from zoo.diagnosis.report import Finding, Skip, error, ok, warning
from zoo.diagnosis.steps import Gradients

# Fractions of dead or saturated units.
ERROR_FRACTION = 0.9
WARNING_FRACTION = 0.5
MAX_BATCHES = 8  # until the second optimizer step
MAX_LISTED = 4  # layers in a finding


# Gradient flow --------------------------------------------------------------------------------------------------------


def gradient_flow(probe: Probe) -> list[Finding]:
    """A gradient other than 0 reaches all trainable parameters, and is of similar size in all layers."""
    trainable = {name for name, param in probe.params.items() if param.requires_grad}
    if not trainable:
        return [error("no parameter is trainable: all have requires_grad=False", "unfreeze what should be trained")]
    probe.require_gradient()
    nonzero: set[str] = set()
    present: set[str] = set()
    for i, raw in enumerate(probe.raw_batches):
        # Before weights that start at 0 (LoRA, residual gates) there is no gradient yet: perturb them.
        probe.perturb_weights()
        grads = probe.steps.gradients(raw, i)
        present |= grads.keys()
        nonzero |= {name for name, grad in grads.items() if bool((grad != 0).any())}
    missing = trainable - nonzero
    if missing:
        return _missing_gradients(probe, missing, present)
    uneven = [_uneven_finding(problem) for problem in _uneven_layers(probe)]
    return uneven or [ok(f"a gradient reaches all {len(trainable)} trainable parameters")]


def _missing_gradients(probe: Probe, missing: set[str], present: set[str]) -> list[Finding]:
    """Return findings on modules without a gradient: never called, cut off from the loss, or with a gradient of 0.

    Args:
        probe: the probe.
        missing: names of parameters without a gradient, or with one of 0.
        present: names of parameters with a gradient, if only of 0.
    """
    called = {call.module for call in probe.first_trace.calls}
    by_module: dict[str, list[str]] = {}
    for name in probe.params:
        if name in missing:
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
    unused: list[str] = []
    cut: list[str] = []
    zero: list[str] = []
    for path, names in by_module.items():
        if path and not any(part in called for part in probe.module.get_submodule(path).modules()):
            unused.append(path)
        elif any(name in present for name in names):
            zero.append(path or ", ".join(names))
        else:
            cut.append(path or ", ".join(names))
    findings: list[Finding] = []
    if unused:
        findings.append(
            warning(
                f"{_list(unused)}: never called in a training step",
                "call them in forward, or remove them (DDP fails with unused parameters)",
            )
        )
    if cut:
        findings.append(
            error(
                f"{_list(cut)}: no gradient arrives, the backward pass from the loss is cut off",
                "check the code after these layers for .detach(), .data, .item(), torch.no_grad(), argmax or"
                " torch.tensor(...)",
            )
        )
    if zero:
        findings.append(
            error(
                f"{_list(zero)}: the gradient is exactly 0, so nothing is learned there",
                "check for dead units (see units), a loss that does not depend on the outputs, or a factor of 0",
            )
        )
    return findings


def _uneven_layers(probe: Probe) -> list[str]:
    """Return problems in the sizes of the first step's gradients, compared between layers."""
    if not probe.automatic:
        return []  # losses of several optimizers may differ in size
    probe.restore()
    grads = probe.steps.gradients(probe.raw_batches[0], 0)
    rms: dict[str, float] = {}
    for name, param in probe.params.items():
        if param.ndim > 1 and name in grads:
            rms[name] = float(grads[name].float().square().mean().sqrt())
    return find_problems(GradientStats(rms=rms))


def _uneven_finding(problem: str) -> Finding:
    if problem.startswith("vanishing"):
        return warning(
            f"{problem}: there the gradient is less than 1/{1 / VANISHING:,.0f} of the last layer's",
            "use ReLU or GELU with He or Xavier initialisation, residual connections or normalisation",
        )
    return warning(
        f"{problem}: there the gradient is {EXPLODING:,.0f} times the last layer's or more",
        "initialise its weights smaller (recurrent ones orthogonally), normalise, or set gradient_clip_val",
    )


# Units ----------------------------------------------------------------------------------------------------------------


def units(probe: Probe) -> Finding:
    """Few units of ReLU, tanh and sigmoid are dead or saturated."""
    calls: dict[tuple[str, str], list[Activation]] = {}
    probe.first_step()
    for batch in probe.batches:
        trace = probe.trace(batch)
        if not probe.automatic:
            probe.restore()
        for activation in trace.activations:
            path = activation.place.name if activation.place else "training_step"
            calls.setdefault((path, activation.kind), []).append(activation)
    if not calls:
        raise Skip("no ReLU, tanh or sigmoid is called")
    fractions: list[tuple[float, str, str]] = []
    for (path, kind), activations in calls.items():
        fractions.append((_inactive_fraction(activations), path, kind))
    fraction, path, kind = max(fractions)
    if fraction < WARNING_FRACTION:
        return ok(f"at most {fraction:.0%} of the units of an activation are dead or saturated ({path})")
    state = "saturated: at an end of their range"
    if kind == "relu":
        state = "dead: they output 0 for every sample, and pass no gradient"
    report = error if fraction >= ERROR_FRACTION else warning
    return report(
        f"{fraction:.0%} of the units of {path} are {state}{_describe_layer_before(calls[path, kind][0])}",
        "initialise that layer again (weights by He or Xavier, bias 0), or normalise its input",
    )


def _describe_layer_before(activation: Activation) -> str:
    """Return a clause on the layer before an activation, with its bias and the size of its input."""
    call = activation.before
    if call is None:
        return ""
    text = f"; the layer before is {call.path or 'the module itself'}"
    bias = getattr(call.module, "bias", None)
    if isinstance(bias, Tensor):
        text += f", mean bias {float(bias.detach().mean()):.3g}"
    inputs = [arg.float() for arg in call.args if isinstance(arg, Tensor)]
    if inputs:
        text += f", mean magnitude of its input {float(inputs[0].abs().mean()):.3g}"
    return text


def _inactive_fraction(activations: list[Activation]) -> float:
    """Return the fraction of units that output 0 in all calls (ReLU), or of saturated outputs (tanh, sigmoid)."""
    first = activations[0]
    active = torch.stack([item.active for item in activations if item.active.shape == first.active.shape])
    if first.kind == "relu":
        return 1 - float(active.any(0).float().mean())
    return 1 - float(active.mean())


# Optimizer ------------------------------------------------------------------------------------------------------------


def gradients_cleared(probe: Probe) -> Finding:
    """The second step gets its own gradient, not the sum with that of the first."""
    probe.require_gradient()
    kept = _second_gradient(probe, clear=False)
    fresh = _second_gradient(probe, clear=True)
    for name, own in fresh.items():
        if name not in kept or not bool(own.isfinite().all()):
            continue
        difference = float((kept[name] - own).norm())
        if difference > 1e-3 * float(own.norm()) + 1e-12:
            where = "optimizer_zero_grad is overridden" if probe.automatic else "training_step takes the steps itself"
            return error(
                f"the second step still holds the gradient of the first ({name}): zero_grad is never called; {where}",
                "call optimizer.zero_grad() before each backward pass",
            )
    return ok("each step starts from cleared gradients")


def _second_gradient(probe: Probe, clear: bool) -> Gradients:
    """Return the gradients of the second optimizer step.

    Args:
        probe: the probe.
        clear: whether to clear the gradients between the two steps.
    """
    probe.restore()
    probe.steps.recording = True
    recorded = probe.steps.recorded
    steps = 0
    for index in range(MAX_BATCHES):
        recorded.clear()
        probe.steps.take(probe.raw_batches[0], index)
        if not recorded:
            continue
        steps += 1
        if steps == 2:
            result: Gradients = {}
            for grads in recorded:
                result |= {name: grad.float() for name, grad in grads.items()}
            return result
        if clear:
            for param in probe.module.parameters():
                param.grad = None
    raise Skip(f"Lightning's optimizers took fewer than two steps in {MAX_BATCHES} batches")


def optimizer(probe: Probe) -> list[Finding]:
    """The optimizers hold all trainable parameters, no frozen ones, and have learning rates above 0."""
    groups = [group for opt in probe.trainer.optimizers for group in opt.param_groups]
    # Lightning puts one without parameters in the place of None.
    if not groups:
        return [error("configure_optimizers returns no optimizer: nothing is trained", "return an optimizer")]
    held: set[int] = set()
    for group in groups:
        held.update(id(param) for param in group["params"])
    absent: list[str] = []
    frozen: list[str] = []
    left_out: list[str] = []
    for name, param in probe.params.items():
        if param.requires_grad and id(param) not in held:
            absent.append(name)
        elif not param.requires_grad and id(param) in held:
            frozen.append(name)
        elif not param.requires_grad:
            left_out.append(name)
    probe.steps.set_peak_lr()
    still = sum(float(group["lr"]) == 0 for group in groups)
    findings: list[Finding] = []
    if absent:
        findings.append(
            error(
                f"trainable but in no optimizer, so never updated: {_list(_layers(absent))}",
                "pass self.parameters(), and build the optimizer after the last layer was added or replaced",
            )
        )
    if frozen:
        findings.append(
            warning(
                f"in the optimizer but frozen (requires_grad=False), so never updated: {_list(_layers(frozen))}",
                "unfreeze them if they should be trained; otherwise do not pass them to the optimizer",
            )
        )
    if still:
        findings.append(
            error(
                f"{still} of {len(groups)} parameter groups have a learning rate of 0",
                "set a learning rate above 0",
            )
        )
    if findings:
        return findings
    message = f"holds all {len(probe.params) - len(left_out)} trainable parameters"
    if left_out:
        message += f"; {len(left_out)} frozen parameters are not in it"
    return [ok(message)]


def shared_modules(probe: Probe) -> Finding:
    """No layer stands in a list under several names, as after ``[layer] * n``."""
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
                    "construct each in a loop; to share weights on purpose, keep one layer and call it in a loop",
                )
    return ok("no layer is in a list twice")


GRADIENTS: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "gradient flow": gradient_flow,
    "units": units,
    "gradients cleared": gradients_cleared,
    "optimizer": optimizer,
    "shared modules": shared_modules,
}


def _layers(names: Iterable[str]) -> list[str]:
    """Return the paths of the modules that own parameters, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _list(names: list[str]) -> str:
    listed = ", ".join(names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        listed += f" and {len(names) - MAX_LISTED} more"
    return listed
