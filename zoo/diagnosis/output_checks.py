"""Does a training step run, and do outputs and loss look as they should before any training?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import DISTANCES, Loss, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

PASSING = ("View", "Squeeze", "Unsqueeze", "Reshape", "Permute", "Transpose", "TBackward", "Select", "Slice", "Clone",
           "ToCopy", "Alias", "Expand", "Index")  # fmt: skip


def training_step(probe: Probe) -> Finding:
    first = probe.first_trace
    if first.error is not None:
        text = f"{type(first.error).__name__}: {first.error}".splitlines()[0]
        inside = next((c.name for c in reversed(first.calls) if c.output is None), "training_step itself")
        return error(f"fails in {inside}: {text}", "the other checks need a step that runs: repair this first")
    if first.loss is None:
        if probe.automatic:
            return error("returns no loss for the first batch", "return the loss, or a dict with the key 'loss'")
        return ok("runs, and optimises by itself")
    value = float(first.loss.detach().float().mean())
    if not math.isfinite(value):
        return error(
            f"the first loss is {value}",
            "look at the findings on the data; then train with zoo's NaNGuard, which names the first culprit",
        )
    if probe.automatic and not first.loss.requires_grad:
        return error(
            "the loss depends on no trainable parameter: it was detached (.item(), .detach(), no_grad, a new tensor),"
            " or all parameters are frozen",
            "build the loss from the network's output with torch operations only, and unfreeze what should learn",
        )
    return ok(f"runs; the first loss is {value:.4g}")


def shapes(probe: Probe) -> Finding:
    calls = [c for c in probe.first_step().calls if not any(True for _ in c.module.children())]
    rows = [(c.path or "itself", type(c.module).__name__, _shape(c.args), _shape(c.output)) for c in calls]
    rows = [(*row[:3], row[3] or "a number") for row in rows if row[2] or row[3]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}} -> {d}" for a, b, c, d in rows]
    batch = ", ".join(
        f"{_shape(t)} {str(t.dtype).removeprefix('torch.')}" for t in named_tensors(probe.batches[0]).values()
    )
    mismatch = [
        loss for loss in probe.first_step().losses if loss.kind in DISTANCES and loss.input.shape != loss.target.shape
    ]
    if mismatch:
        outputs, targets = _shape(mismatch[0].input), _shape(mismatch[0].target)
        return error(
            f"the {mismatch[0].kind} compares outputs {outputs} with targets {targets}: broadcasting compares every"
            " sample with every other one",
            "give both one shape, with squeeze(1) or unsqueeze(1)",
        )
    if len(lines) > 40:
        lines = [*lines[:20], f"... {len(lines) - 40} more ...", *lines[-20:]]
    return ok(
        f"a batch is {batch or 'no tensor'}; {len(rows)} layer{'s are' if len(rows) != 1 else ' is'} called",
        tuple(lines),
    )


def initial_loss(probe: Probe) -> Finding:
    loss = probe.main_loss()
    value = loss.mean()
    if not math.isfinite(value):
        raise Skip("the first loss is not finite")
    if loss.is_classes or (loss.kind.startswith("binary") and bool(((loss.target == 0) | (loss.target == 1)).all())):
        return _initial_cross_entropy(loss, value)
    if loss.kind == "squared error":
        return _initial_squared_error(loss, value)
    raise Skip("what to expect of this loss is unknown" if not loss.kind else f"nothing is expected of {loss.kind}")


def _initial_cross_entropy(loss: Loss, value: float) -> Finding:
    expected, word = (math.log(loss.classes), f"ln {loss.classes}") if loss.is_classes else (math.log(2), "ln 2")
    seen = f"{value:.3g}, expected about {word} = {expected:.3g}"
    if value > expected + 1.5 + 0.15 * expected:
        spread = float(loss.input.detach().float().std())
        cause = (
            f"the logits are large (standard deviation {spread:.3g}), so the net is surely wrong before it has learnt"
        )
        advice = "initialise the last layer smaller, or normalise inputs: healthy logits are near 0 at first"
        return (error if value > 5 * expected else warning)(f"{seen}: {cause}", advice)
    if value < 0.5 * expected:
        return warning(
            f"{seen}: far too good for an untrained net; do the inputs contain the answer?",
            "look at what the inputs hold; if the weights are already trained on this task, all is well",
        )
    return ok(seen)


def _initial_squared_error(loss: Loss, value: float) -> Finding:
    target = loss.target.detach().float()
    mean, std = float(target.mean()), float(target.std(correction=0))
    size = math.hypot(mean, std)
    seen = f"{value:.3g}; the targets have mean {mean:.3g} and standard deviation {std:.3g}"
    if size > 10 or 0 < size < 0.01:
        advice = "standardise the targets by the training set's mean and deviation (zoo: target_mean, target_std)"
        return warning(f"{seen}: the targets are not scaled", advice)
    if value > 10 * (size**2 + 0.01):
        spread = float(loss.input.detach().float().square().mean().sqrt())
        advice = "initialise the last layer smaller, or normalise inputs"
        return warning(f"{seen}: the outputs are far larger (root mean square {spread:.3g})", advice)
    return ok(seen)


def loss_scale(probe: Probe) -> Finding:
    first = probe.first_step()
    known = [loss for loss in first.losses if loss.kind and loss.value is not None]
    if not known or first.loss is None:
        raise Skip("the loss is none of torch's")
    if len(known) > 1:
        raise Skip(f"{len(known)} losses are taken, whose weights are a choice")
    loss, returned, plain = known[0], float(first.loss.detach().float().mean()), known[0].mean()
    if loss.options.get("reduction", "mean") != "mean" and not loss.is_classes:
        raise Skip("the loss is summed or averaged by hand")
    factor = returned / plain if plain else 1.0
    if not 0.1 < factor < 10 and math.isfinite(factor):
        summed = loss.options.get("reduction") == "sum" or math.isclose(factor, loss.target.numel(), rel_tol=0.01)
        cause = "it is summed over the batch, so the batch size changes the step" if summed else "a factor is left over"
        return warning(
            f"training_step returns {returned:.3g}, {factor:.3g} times the mean {loss.kind} of {plain:.3g}: {cause}",
            "return the mean over the batch: learning rates and clipping are meant for it",
        )
    return ok("training_step returns the mean of its loss")


def activation_on_outputs(probe: Probe) -> Finding:
    """A softmax, sigmoid or ReLU between the last layer and a loss that wants raw numbers."""
    loss = probe.main_loss()
    x, producer = loss.input.detach().float(), _producer(loss.input)
    if loss.kind == "cross-entropy":
        if loss.classes == 1:
            return error(
                "cross-entropy over one class is always 0", "one output needs BCEWithLogitsLoss, or two outputs"
            )
        total, low = x.sum(1), float(x.min())
        if low >= 0 and bool(torch.allclose(total, torch.ones_like(total), atol=1e-3)):
            advice = "give cross_entropy the raw logits: it takes the log-softmax itself"
            return error("the outputs are probabilities already: softmax is applied twice", advice)
        if "LogSoftmax" in producer or _is_log_probabilities(x):
            return warning("the outputs are log-probabilities already: log-softmax is applied twice, without effect",
                           "leave out the first one")  # fmt: skip
    if loss.kind == "negative log-likelihood" and not _is_log_probabilities(x):
        return error("nll_loss is given numbers that are no log-probabilities", "use cross_entropy on the logits")
    if loss.kind.startswith("binary cross-entropy with"):
        inside = bool(((x >= 0) & (x <= 1)).all()) and x.numel() >= 16
        if "Sigmoid" in producer or "Softmax" in producer or (inside and not producer):
            advice = "give binary_cross_entropy_with_logits the raw logits: it takes the sigmoid itself"
            return error("the outputs are probabilities already: sigmoid is applied twice", advice)
    wants_raw = loss.is_classes or loss.kind.startswith("binary cross-entropy with")
    zeros = float((x == 0).float().mean())
    clipped = "Relu" in producer or (float(x.min()) == 0 and 0.1 < zeros < 1 and not producer)
    if wants_raw and clipped and "Leaky" not in producer:
        return error(
            f"a ReLU stands behind the last layer: {zeros:.0%} of the logits are cut off at 0 and get no gradient",
            "end with a bare linear layer",
        )
    if wants_raw and any(word in producer for word in ("Leaky", "Gelu", "Silu", "Tanh", "Sigmoid", "Elu", "Softplus")):
        name = producer.rstrip("0").removesuffix("Backward")
        return warning(
            f"an activation ({name}) stands behind the last layer: it bounds the logits", "end with a bare linear layer"
        )
    if loss.kind in DISTANCES:
        reach = {"Relu": (0, math.inf), "Sigmoid": (0, 1), "Tanh": (-1, 1), "Softmax": (0, 1)}
        limits = next((v for k, v in reach.items() if k in producer and "Leaky" not in producer), (-math.inf, math.inf))
        low, high = float(loss.target.min()), float(loss.target.max())
        if low < limits[0] - 0.01 or high > limits[1] + 0.01:
            name = producer.rstrip("0").removesuffix("Backward")
            return error(
                f"the outputs end in {name}, which cannot reach the targets: they run from {low:.3g} to {high:.3g}",
                "end with a bare linear layer, or scale the targets",
            )
    return ok("the loss is given raw outputs" if wants_raw else "nothing stands between outputs and loss")


def softmax_dimension(probe: Probe) -> Finding:
    """Attention that is normalised over queries instead of keys, or a softmax over the batch."""
    found = probe.first_step().softmaxes
    if not found:
        raise Skip("no softmax is called")
    for path, x, dim in found:
        if dim == x.ndim - 2 and x.ndim >= 3 and x.shape[-1] == x.shape[-2]:
            return error(
                f"a softmax in {path or 'training_step'} over {_shape(x)} runs along dimension {dim}, the queries;"
                " the weights of one query do not add up to 1",
                "use dim=-1, the keys",
            )
        if dim == 0 and x.ndim > 1 and len(x) == probe.batch_size != 1:
            return error(
                f"a softmax in {path or 'training_step'} over {_shape(x)} runs along dimension 0, the samples",
                "use dim=1 or dim=-1, so that each sample stands for itself",
            )
    return ok(f"{len(found)} softmax calls, none along samples or queries")


def output_bias(probe: Probe) -> Finding:
    loss = probe.main_loss()
    logits = loss.input.detach().float()
    if loss.is_classes and loss.classes > 1 and loss.kind == "cross-entropy":
        shares = logits.movedim(1, -1).reshape(-1, loss.classes).softmax(1).mean(0)
    elif loss.kind == "binary cross-entropy with logits" and logits.numel() == len(logits):
        yes = logits.sigmoid().mean()
        shares = torch.stack([1 - yes, yes])
    else:
        raise Skip("the outputs are no logits of classes")
    if not bool(shares.isfinite().all()):
        raise Skip("the outputs are not finite")
    share, favourite = float(shares.max()), int(shares.argmax())
    if share <= 0.5 + 0.8 / len(shares):
        return ok(f"no class is preferred before training (at most {share:.0%}, class {favourite})")
    labels = loss.valid if loss.is_classes else loss.target
    common = float((labels == favourite).float().mean())
    if common > 0.5 and abs(common - share) < 0.15:
        return ok(f"class {favourite} starts at {share:.0%}, as often as it occurs")
    layer = _largest_bias(probe, len(shares))
    cause = f": {layer[0]} holds {layer[1]:.3g}" if layer else ""
    return warning(
        f"class {favourite} gets {share:.0%} of the probability before training, but has {common:.0%} of labels{cause}",
        "initialise the last layer's bias with 0, or with the classes' log-frequencies",
    )


OUTPUTS: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "training step": training_step,
    "shapes": shapes,
    "initial loss": initial_loss,
    "loss scale": loss_scale,
    "activation on outputs": activation_on_outputs,
    "softmax dimension": softmax_dimension,
    "output bias": output_bias,
}


def _shape(value: Any) -> str:
    tensors = [t for t in named_tensors(value).values() if t.ndim]
    return " ".join("x".join(map(str, t.shape)) for t in tensors[:3])


def _producer(x: Tensor) -> str:
    """The operation that made a tensor, behind those that only rearrange."""
    node = x.grad_fn
    while node is not None and node.name().startswith(PASSING) and node.next_functions:
        node = node.next_functions[0][0]
    return node.name() if node is not None else ""


def _is_log_probabilities(x: Tensor) -> bool:
    total = x.logsumexp(1) if x.ndim > 1 else x.logsumexp(0)
    return bool(total.abs().max() < 1e-3) and x.shape[min(1, x.ndim - 1)] > 1


def _largest_bias(probe: Probe, classes: int) -> tuple[str, float] | None:
    """A bias of as many numbers as there are outputs, if a big one stands in it."""
    for call in reversed(probe.first_step().finished):
        bias = getattr(call.module, "bias", None)
        values = bias.detach().flatten() if isinstance(bias, nn.Parameter) else torch.empty(0)
        if values.numel() in (classes, 1) and float(values.abs().max()) > 1:
            return f"{call.path}.bias", float(values[values.abs().argmax()])
    return None
